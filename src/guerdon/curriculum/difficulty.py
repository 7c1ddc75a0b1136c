"""How much each problem should weigh, given how hard it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def difficulty_softmax(accuracy: Tensor, useful: Tensor | None = None, *, temperature: float = 2.0) -> Tensor:
    """Weights that favour hard problems and average 1 over the useful ones.

    lambda_s = B softmax_s(-accuracy_s / temperature), over the B useful problems; 1 elsewhere

    For accuracies in [0,1] no weight exceeds another by more than the factor exp(1 / temperature).

    Args:
        accuracy: (S,) mean accuracy on each problem.
        useful: (S,) bool, problems whose group carries a signal; all by default. The others don't enter the softmax,
            whatever they hold.
        temperature: greater than 0; the larger, the more even the weights.

    Returns:
        (S,) weights.

    Raises:
        ValueError: when the temperature is not greater than 0.

    Source: Dai et al. 2026, arXiv 2601.20614.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, wanted greater than 0; 2.0 is the source's")
    useful = torch.ones_like(accuracy, dtype=torch.bool) if useful is None else useful.bool()
    if not bool(useful.any()):
        return torch.ones_like(accuracy)
    share = torch.softmax((-accuracy / temperature).masked_fill(~useful, float("-inf")), dim=0)
    return torch.where(useful, useful.sum() * share, 1.0)


def repeats_by_pass_rate(
    pass_rate: Tensor,
    *,
    bounds: Sequence[float] = (0.2, 0.6, 0.8),
    repeats: Sequence[int] = (6, 4, 2),
    otherwise: int = 0,
) -> Tensor:
    """How often each problem stands in the data: the harder, the more often, and the easy ones not at all.

    Args:
        pass_rate: (P,) share of answers of the first policy that were right.
        bounds: rising ends of the ranges; each belongs to the next range.
        repeats: how often the problems of each range stand in the data.
        otherwise: the same for pass rates at or above the last bound; 0 in the source's release.

    Returns:
        (P,) int64, for ``torch.repeat_interleave``.

    Raises:
        ValueError: when there are not as many bounds as repeats, or they do not rise.

    Source: Lyu et al. 2025, arXiv 2502.06781.
    """
    edges = torch.tensor(list(bounds), dtype=torch.float64)
    if len(bounds) != len(repeats) or bool((edges.diff() <= 0).any()):
        raise ValueError(f"bounds are {list(bounds)} for repeats {list(repeats)}; wanted one rising bound for each")
    times = torch.tensor([*repeats, otherwise], dtype=torch.int64)
    return times[torch.bucketize(pass_rate.double(), edges, right=True)]
