"""Credit that looks beyond the group when its answers agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.credit.answers import Pattern, entropy_of_answers
from guerdon.credit.grouping import first_rows, grouped, per_action, whiten
from guerdon.registry import register

# The threshold of the source, for its groups of eight; for others the same share of the largest possible entropy.
RHO_OF_EIGHT, RHO_SHARE = 1.5, 0.72


class Consistency(NamedTuple):
    """Two kinds of credit, and how much the first of them counts."""

    advantage: Tensor
    prompt_advantage: Tensor
    local_weight: Tensor


@register("credit", paper="Han et al. 2025, arXiv 2508.04138", needs_group=True)
def copo(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    text: Sequence[str],
    *,
    pattern: Pattern | None = None,
    gamma: float = 20.0,
    rho: float | None = None,
    eps: float = 1e-4,
) -> tuple[Consistency, dict[str, float]]:
    """Group-relative credit where a group disagrees, credit from comparing prompts where its answers are all the same.

    local: A_i = (r_i - mean_g r) / (std_g r + eps);  prompt: B_q = (R_q - mean R) / (std R + eps),  R_q = mean_g r
    weight of the local one: w = sigmoid(gamma (H - rho)),  H: ``entropy_of_answers`` of the group

    Objective ``blended_clip`` puts both together; any other uses the local credit alone, which is ``grpo``'s. The
    credit of a prompt goes to each of its trajectories, so in an easy prompt wrong ones are rewarded too. Prompts
    are compared within the batch of a step.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        text: N texts that the policy wrote.
        pattern: how to find the final answer in a text, see ``final_answer``.
        gamma: steepness of the switch between the two.
        rho: entropy at which both count the same, in nats. It must lie below ln of the group's size and of the number
            of answers there can be, or the local credit never counts. By default 1.5 in groups of eight, as in the
            source, and 0.72 ln G in groups of another size G, which is the same share of the largest entropy.
        eps: added to the standard deviations.

    Returns:
        (N,T) each: the local credit, the prompt's and the weight of the local one, 0 off the mask. The prompt's credit
        is 0 where all prompts have the same mean. Means over the batch: ``answer_entropy`` and ``local_weight``.

    Source: Han et al. 2025, arXiv 2508.04138.
    """
    entropy = entropy_of_answers(text, group, pattern).to(reward.dtype)
    stats = grouped(reward, group)
    size = stats.count()
    if rho is None:
        threshold = torch.where(size == 8, RHO_OF_EIGHT, RHO_SHARE * size.log())
    else:
        threshold = torch.full_like(size, rho)
    weight = torch.sigmoid(gamma * (entropy - threshold))
    first = torch.zeros_like(reward, dtype=torch.bool)
    first[first_rows(group)[1]] = True
    once = whiten(stats.mean(), None, first, eps=eps)
    between = stats.spread(stats.total(once))
    credit = Consistency(*(per_action(x, mask) for x in (whiten(reward, group, eps=eps), between, weight)))
    return credit, {"answer_entropy": entropy.mean().item(), "local_weight": weight.mean().item()}
