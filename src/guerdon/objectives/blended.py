"""Objectives that weigh two kinds of credit against each other."""

from __future__ import annotations

from torch import Tensor

from guerdon.objectives.aggregation import TermAggregation, same_shape, token_mean
from guerdon.objectives.policy import Objective, surrogate
from guerdon.registry import register


@register("objective", paper="Han et al. 2025, arXiv 2508.04138")
def blended_clip(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    prompt_advantage: Tensor,
    local_weight: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregate: TermAggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """Two clipped surrogates of PPO, one for each kind of credit, in proportions of their own for every action.

    w L(A) + (1 - w) L(B),  L(A) = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)

    It goes with credit ``copo``. Where the ratio is clipped this is not L(w A + (1 - w) B): each credit is bounded on
    its own side.

    Args:
        logp, old_logp, mask: (N,T), see ``surrogate``.
        advantage: (N,T) credit A.
        prompt_advantage: (N,T) credit B.
        local_weight: (N,T) share w of A, in [0,1].
        clip_low, clip_high: distances from 1.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss, its stats, of which ``clip_fraction`` is the mean of the two weighed alike, and the mean
        ``local_weight``.

    Raises:
        ValueError: when shapes differ.

    Source: Han et al. 2025, arXiv 2508.04138.
    """
    same_shape(mask, local_weight=local_weight)
    parts = [
        surrogate(
            logp,
            old_logp,
            credit,
            mask,
            weight,
            hi_pos=1 + clip_high,
            lo_neg=1 - clip_low,
            aggregate=aggregate,
            max_length=max_length,
        )
        for credit, weight in ((advantage, local_weight), (prompt_advantage, 1 - local_weight))
    ]
    (local, stats), (prompt, other) = parts
    share = token_mean(local_weight, mask).item()
    cut = share * stats["clip_fraction"] + (1 - share) * other["clip_fraction"]
    return local + prompt, {**stats, "clip_fraction": cut, "local_weight": share}
