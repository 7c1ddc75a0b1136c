"""Entropy of the policy: computed safely, and rewarded."""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.objectives import aggregation
from guerdon.objectives.aggregation import TermAggregation, same_shape, token_mean
from guerdon.registry import register


def categorical_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the last dimension, in nats.

    H = -sum_v p_v log p_v, where an outcome of probability 0 (logit -inf) counts 0 and has no gradient

    Args:
        logits: (..., V); at least one entry of each row is finite.

    Returns:
        (...), with a finite gradient.
    """
    logp = torch.log_softmax(logits, dim=-1)
    return -(logp.exp() * logp.masked_fill(logp == float("-inf"), 0.0)).sum(dim=-1)


@register("term", paper="Williams and Peng 1991; Mnih et al. 2016, arXiv 1602.01783")
def entropy(
    entropy: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.01,
    aggregate: TermAggregation = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Bonus for staying uncertain: loss = -beta aggregate(H).

    Args:
        entropy: (N,T) entropy of the policy at each action, in nats, differentiable.
        mask: (N,T) true on actions; nothing off the mask is read.
        beta: weight of the bonus; negative to sharpen the policy.
        aggregate: see ``aggregation.aggregate``.
        max_length: generation budget in actions, for ``sum_over_max_length``.

    Returns:
        The loss, and the mean per action as ``entropy``.

    Source: Williams and Peng 1991; Mnih et al. 2016, arXiv 1602.01783.
    """
    same_shape(mask, entropy=entropy)
    loss = -beta * aggregation.aggregate(entropy, mask, aggregate, max_length=max_length)
    return loss, {"entropy": token_mean(entropy.detach(), mask).item()}
