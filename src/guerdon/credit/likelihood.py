"""Credit that also reads how likely the policy found what it did."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import center, grouped, per_action, whiten
from guerdon.registry import register
from guerdon.rewards.likelihood import low_prob_confidence


@register("credit", paper="Li et al. 2026, arXiv 2602.05281", needs_group=True)
def progrpo(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    old_logp: Tensor,
    prompt_logp: Tensor | None = None,
    *,
    alpha: float = 0.3,
    share: Annotated[float, Field(gt=0, le=1)] = 0.2,
    correct_only: bool = False,
    centre: bool | None = None,
    threshold: float = 0.0,
    eps: float = 1e-4,
) -> tuple[Tensor, dict[str, float]]:
    """Group-relative advantage plus a bonus for what the policy was unsure of, so that no solution crowds out the rest.

    A_i = z_i + alpha (c(q) - c(o_i))  in a group with a success,  A_i = z_i in a group without

    z is ``grpo``'s advantage, c ``low_prob_confidence``, of the prompt q and of what was written, o_i. Of two correct
    answers the less confident gets more, so groups in which everything is right still teach: towards equal confidence.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        old_logp: (N,T) log-probability of each action when it was sampled.
        prompt_logp: (N,P) log-probability of each prompt token, nan where there is none. Where it is not given, as for
            policies that read no prompt, c(q) is 0 and the bonus is centred.
        alpha: size of the bonus.
        share: part of the positions that confidence looks at, the least likely ones.
        correct_only: give the bonus to successes only. By default wrong answers of a group with a success get it too,
            which lifts those of low confidence.
        centre: take the bonus relative to its mean in the group, so that credit adds up to 0 again; c(q), the same for
            the whole group, then cancels. By default only where ``prompt_logp`` is missing.
        threshold: outcome above which a trajectory is a success.
        eps: added to the standard deviation of z.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere; and the mean ``confidence`` of what was written and
        ``prompt_confidence``.

    Source: Li et al. 2026, arXiv 2602.05281. (The size 0.3 of the bonus is ours.)
    """
    confidence = low_prob_confidence(old_logp, mask, share=share)
    stats = {"confidence": confidence.mean().item()}
    prompt = torch.zeros_like(confidence)
    if prompt_logp is not None:
        known = ~prompt_logp.isnan()
        prompt = low_prob_confidence(prompt_logp.masked_fill(~known, 0.0), known, share=share).to(confidence)
        stats["prompt_confidence"] = prompt.mean().item()
    success = reward > threshold
    entitled = grouped(success.to(reward.dtype), group).extreme(largest=True) > 0
    if correct_only:
        entitled = entitled & success
    bonus = alpha * (prompt - confidence).to(reward.dtype)
    if centre or (centre is None and prompt_logp is None):
        bonus = center(bonus, group, entitled)
    else:
        bonus = bonus.masked_fill(~entitled, 0.0)
    return per_action(whiten(reward, group, eps=eps) + bonus, mask), stats
