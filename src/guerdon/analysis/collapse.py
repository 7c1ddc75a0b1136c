"""Whether a reward still tells answers apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from guerdon.credit.grouping import group_std


class Discriminability(NamedTuple):
    """How well a reward tells answers apart.

    Attributes:
        spread: mean over the groups of two or more of the standard deviation within the group; nan without one.
        auc: chance that a good answer scores above a bad one, ties counting half; nan unless both kinds are known.
    """

    spread: float
    auc: float


def discriminability(reward: Tensor, group: Tensor, good: Tensor | None = None) -> Discriminability:
    """Measure how well a reward tells answers apart: within groups, and good from bad.

    The spread alone can be noise: a reward that collapsed has a small spread, one that is stretched noise has an AUC
    of 0.5.

    Args:
        reward: (N,) scores.
        group: (N,) key of the answers to the same problem; each group counts once.
        good: (N,) bool, which answers are known to be good; the others are bad.

    Returns:
        The spread and the AUC.

    Source: Liu et al. 2025, arXiv 2508.12957, for the spread; Mann and Whitney 1947 for the AUC.
    """
    scores = reward.detach().double()
    _, slot, size = torch.unique(group, return_inverse=True, return_counts=True)
    each = group_std(scores, group)
    several = size[slot] > 1
    spread = float((each / size[slot])[several].sum() / (size > 1).sum()) if bool(several.any()) else math.nan
    return Discriminability(spread, math.nan if good is None else _auc(scores, good.bool()))


def _auc(scores: Tensor, good: Tensor) -> float:
    positive, negative = int(good.sum()), int((~good).sum())
    if not positive or not negative:
        return math.nan
    ranks = stats.rankdata(scores.cpu().numpy())[good.cpu().numpy()]
    return float((ranks.sum() - positive * (positive + 1) / 2) / (positive * negative))
