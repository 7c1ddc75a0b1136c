"""Holding the first turn near the reference while later turns learn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from guerdon.objectives.aggregation import TermAggregation, same_shape
from guerdon.objectives.divergence import kl
from guerdon.registry import register


@register("term", paper="Kumar et al. 2024, arXiv 2409.12917")
def first_turn_kl(
    logp: Tensor,
    ref_logp: Tensor,
    mask: Tensor,
    turn: Tensor,
    step: int,
    *,
    beta: float = 0.1,
    first_stage: Annotated[int, Field(ge=0)] | None = None,
    estimator: Literal["k2", "k3"] = "k2",
    aggregate: TermAggregation = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Penalty for leaving the reference in the first turn, during the first steps.

    loss = beta aggregate(k) over the actions of turn 0 while step < first_stage, then 0

    Later turns are free, and term ``kl`` may hold all turns a little.

    Args:
        logp: (N,T) log-probability of each action now, differentiable.
        ref_logp: (N,T) under the reference; no gradient reaches it.
        mask: (N,T) true on actions; nothing off the mask is read.
        turn: (N,T) turn of each action.
        step: training step.
        beta: weight; the source's is 0.1 for mathematics and 0.25 for code.
        first_stage: steps that it lasts, as in ``progress_bonus``; null for always.
        estimator: ``k2``, whose gradient is that of KL(pi || pi_ref), or ``k3``.
        aggregate, max_length: see ``kl``; over the actions of turn 0.

    Returns:
        The loss, and the mean estimate per action of turn 0 as ``kl``, in nats, which goes on being measured.

    Source: Kumar et al. 2024, arXiv 2409.12917 (SCoRe, stage I).
    """
    same_shape(mask, logp=logp, ref_logp=ref_logp, turn=turn)
    active = first_stage is None or step < first_stage
    first = mask.bool() & (turn == 0)
    weight = beta if active else 0.0
    return kl(logp, ref_logp, first, beta=weight, estimator=estimator, aggregate=aggregate, max_length=max_length)
