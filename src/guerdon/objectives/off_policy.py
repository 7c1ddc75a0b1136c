"""Objectives for batches that the policy has moved away from: importance weights with bounds of their own."""

from __future__ import annotations

from torch import Tensor

from guerdon.objectives.aggregation import Aggregation
from guerdon.objectives.policy import Objective, surrogate
from guerdon.registry import register


@register("objective", paper="Karaman et al. 2026, arXiv 2602.00983")
def dispo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low_pos: float = 0.2,
    clip_high_pos: float = 10.0,
    clip_low_neg: float = 1.0,
    clip_high_neg: float = 100.0,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """Clipped importance weight on the score, with a window for each sign of the advantage.

    -sg[w] A log pi,  w = clip(rho, 1 - clip_low_pos, 1 + clip_high_pos) where A > 0,
    w = clip(rho, 1 - clip_low_neg, 1 + clip_high_neg) where A < 0

    Every token keeps a gradient. Where A > 0, ratios above 1 explore and ratios below 1 distil; where A < 0, a low
    ceiling lets repetitions grow and a high floor shortens answers. ``cispo`` is the same window for both signs. The
    value of the loss is no objective to compare.

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        clip_low_pos, clip_high_pos: distances from 1 of the window of actions with positive advantage.
        clip_low_neg, clip_high_neg: the same for negative advantage; 1 below is no floor.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats.

    Source: Karaman et al. 2026, arXiv 2602.00983.
    """
    return surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        lo_pos=1 - clip_low_pos,
        hi_pos=1 + clip_high_pos,
        lo_neg=1 - clip_low_neg,
        hi_neg=1 + clip_high_neg,
        gradient="score",
        aggregate=aggregate,
        max_length=max_length,
    )
