"""The part of the gradient of a likelihood reward that goes through the reward itself."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.objectives.aggregation import same_shape
from guerdon.registry import register
from guerdon.rewards.answer_likelihood import Kind, likelihood_reward, log_mean_prob


@register("term", paper="Likelihood-Based Reward Designs for General LLM Reasoning, 2026")
def answer_term(
    logp: Tensor,
    mask: Tensor,
    group: Tensor,
    external: Tensor | None = None,
    *,
    kind: Kind | Literal["jepo"] = "log_prob",
    beta: Annotated[float, Field(ge=0)] = 1.0,
    aggregate: Literal["mean", "sum_over_max_length"] = "mean",
    max_length: Annotated[int, Field(ge=1)] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Raise the likelihood of the reference answer after the reasoning that there is: loss = -beta mean_i R_i.

    grad E[R] = E[A grad log pi(z|p) + grad R]:  the objective has the first part, this term the second

    grad R is grad l for ``log_prob``, l the log-probability of the answer, which is supervised learning of the answer
    after z; e^l grad l for ``prob``; and sum_j softmax(l)_j grad l_j per group for ``jepo``. Without it the policy
    learns to reason towards an answer as it would give it at first.

    Args:
        logp: (N,T) log-probability of each token now, differentiable.
        mask: (N,T) true on actions and on tokens of the reference; nothing off the mask is read.
        group: (N,) key of the trajectories that share a start, for ``jepo``.
        external: (N,T) true on tokens of the reference, as source ``reference_answer`` marks them. Trajectories without
            any, or all if it is missing, add nothing.
        kind: that of reward ``answer_likelihood``; ``jepo`` for credit ``jepo``.
        beta: weight; 1 is the exact gradient where the objective sums over the actions of a trajectory.
        aggregate: ``sum_over_max_length`` divides by ``max_length`` as well, as the objective does under that name, so
            that beta 1 is exact beside it.
        max_length: generation budget in actions.

    Returns:
        The loss; the mean ``likelihood`` by its kind.

    Raises:
        ValueError: when ``sum_over_max_length`` lacks ``max_length``.

    Source: Likelihood-Based Reward Designs for General LLM Reasoning, 2026.
    """
    same_shape(mask, logp=logp)
    there = torch.zeros_like(mask).bool() if external is None else external.bool() & mask.bool()
    has = there.any(dim=1)
    if kind == "jepo":
        log_p = likelihood_reward(logp, there)[has]
        size = grouped(log_p, group[has]).count()
        value = log_mean_prob(log_p, group[has])
        each = value / size
    else:
        value = each = likelihood_reward(logp, there, kind=kind)[has]
    divisor = max(len(each), 1) * _budget(aggregate, max_length)
    loss = -beta * each.sum() / divisor
    return loss, {"likelihood": float(value.detach().mean())} if len(value) else {}


def _budget(aggregate: str, max_length: int | None) -> int:
    if aggregate == "mean":
        return 1
    if max_length is None:
        raise ValueError(
            "aggregate 'sum_over_max_length' needs 'max_length', got None; set it to the one of the objective"
        )
    return max_length
