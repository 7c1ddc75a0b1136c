"""Bounds on what a single outlier can do to a batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def sigma_filter(
    scores: Tensor,
    valid: Tensor | None = None,
    *,
    sigmas: float = 3.0,
    outside: Literal["zero", "clip"] = "zero",
) -> tuple[Tensor, dict[str, float]]:
    """Silence what lies too many standard deviations from the mean.

    z -> 0 where |z| > sigmas (``zero``), or z -> sigmas sign(z) there (``clip``)

    It takes scores that are standardised already, such as the result of ``grouping.whiten``, so it follows any
    estimator that ends in a z-score. Rare is not wrong: a correct answer among N of which a share p < 0.1 is correct
    lies more than 3 standard deviations out. Watch the share, and use ``clip`` where rare successes matter. In fewer
    than 11 numbers none can lie that far out, and nothing is filtered.

    Args:
        scores: any shape, in standard deviations from the mean.
        valid: which of them count, of the same shape; all by default. Others pass unchanged.
        sigmas: the bound, above 0.
        outside: what becomes of scores beyond it. Those that are not finite always become 0.

    Returns:
        The bounded scores, and the share of valid ones that were changed as ``outliers``.

    Raises:
        ValueError: when the bound is not positive.

    Source: Zhang et al. 2025, arXiv 2505.02835. (The release compares raw advantages with their mean ± 3; this is the
    rule of three standard deviations that the paper states.)
    """
    if not sigmas > 0:
        raise ValueError(f"sigmas is {sigmas}, wanted above 0; 3 is the source's")
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid.bool()
    finite = scores.isfinite()
    outlier = valid & ~(finite & (scores.abs() <= sigmas))
    bounded = torch.where(finite, scores, 0.0).clamp(-sigmas, sigmas) if outside == "clip" else torch.zeros_like(scores)
    share = outlier.sum() / valid.sum().clamp(min=1)
    return torch.where(outlier, bounded, scores), {"outliers": share.item()}
