"""Reward models that judge an answer token by token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


class PrefixTokenRM(nn.Module):
    """One logit for every token, whose mean over an answer says whether the answer is right.

    z_t = head(h_t);  P(right) = sigmoid(mean_t z_t);  p_t = sigmoid(mean_{s <= t} z_s)

    It learns from outcomes alone, and what it says of prefixes comes with that: where an answer goes wrong, p_t falls.
    It reads the features of a model, which stays as it is; the source trains a copy of the whole policy with a linear
    head. The last layer begins at 0, so everything begins at p = 1/2.

    Args:
        width: size D of the features h_t of an answer up to and including its token t.
        hidden: size of the hidden layer; 0 for the source's linear head.

    Source: Lyu et al. 2025, arXiv 2502.06781.
    """

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden) if hidden else None
        self.last = nn.Linear(hidden or width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features (...,D) to logits (...)."""
        x = features if self.inner is None else nn.functional.gelu(self.inner(features))
        return self.last(x).squeeze(-1)


def prefix_means(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean of the logits of the tokens so far: (1 / t) sum_{s <= t} z_s.

    Args:
        logits: (N,T); what it holds off the mask is never read.
        mask: (N,T) true on tokens, which alone count.

    Returns:
        (N,T), 0 off the mask.
    """
    mask = mask.bool()
    so_far = logits.masked_fill(~mask, 0.0).cumsum(dim=1)
    return (so_far / mask.cumsum(dim=1).clamp(min=1)).masked_fill(~mask, 0.0)


def outcome_loss(logits: Tensor, mask: Tensor, right: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(mean_t z_t) against the outcome, over the answers that have a token.

    Args:
        logits, mask: (N,T), see ``prefix_means``.
        right: (N,) whether the answer is right.

    Returns:
        A scalar, 0 without any answer.
    """
    mask = mask.bool()
    length = mask.sum(dim=1)
    mean = logits.masked_fill(~mask, 0.0).sum(dim=1) / length.clamp(min=1)
    loss = binary_cross_entropy_with_logits(mean, right.to(mean.dtype), reduction="none")
    return torch.where(length > 0, loss, 0.0).sum() / (length > 0).sum().clamp(min=1)
