"""What is best when several things are wanted at once."""

from __future__ import annotations

import torch
from torch import Tensor


def dominates(objectives: Tensor) -> Tensor:
    """Which candidate dominates which: no worse in any objective, better in one.

    Args:
        objectives: (...,N,K), larger is better. A candidate with a NaN neither dominates nor is dominated.

    Returns:
        (...,N,N) bool, true at [i,j] where i dominates j.
    """
    one, other = objectives.unsqueeze(-2), objectives.unsqueeze(-3)
    return (one >= other).all(dim=-1) & (one > other).any(dim=-1)


def non_dominated(objectives: Tensor, group: Tensor | None = None) -> Tensor:
    """Candidates on the Pareto front: those that none of the others dominates.

    Equal candidates stand together, on the front or off it.

    Args:
        objectives: (...,N,K), larger is better; a candidate with a NaN is not on the front.
        group: (...,N) integer key of candidates that are compared with one another; all are by default.

    Returns:
        (...,N) bool.

    Raises:
        ValueError: when the shape of ``group`` is not that of the candidates.
    """
    worse = dominates(objectives)
    if group is not None:
        if group.shape != objectives.shape[:-1]:
            raise ValueError(f"group has shape {tuple(group.shape)}, wanted {tuple(objectives.shape[:-1])}")
        worse = worse & (group.unsqueeze(-1) == group.unsqueeze(-2))
    return ~worse.any(dim=-2) & ~torch.isnan(objectives).any(dim=-1)
