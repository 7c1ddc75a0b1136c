"""How much each problem should weigh, given how hard it is."""

from __future__ import annotations

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
