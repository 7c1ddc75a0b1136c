"""Which tokens may be drawn, and one token per row from what is left."""

from __future__ import annotations

import torch
from torch import Tensor

FORBIDDEN = -1e6  # added to the logit of a token; finite, so that a divergence of two such distributions is no nan


def keep_listed(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits (B,V), those of all but the listed tokens so low that they have no probability.

    Args:
        logits: (B,V) logits or log-probabilities.
        tokens: (B,W) tokens that are kept, -1 in places of no use; a row that lists none is kept whole.
    """
    outside = torch.ones(len(logits), logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
    outside = outside.scatter(1, torch.where(tokens < 0, logits.shape[1], tokens), False)[:, :-1]
    return logits + FORBIDDEN * (outside & (tokens >= 0).any(dim=1, keepdim=True))


def keep_likely(log_probs: Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Log-probabilities (B,V) with the tokens outside at -inf, not normalised again.

    Args:
        log_probs: (B,V).
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose mass reaches p (Holtzman et al. 2020, arXiv:1904.09751).
        min_p: keep tokens at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082).
    """
    if top_k and top_k < log_probs.shape[-1]:
        floor = log_probs.topk(top_k, dim=-1).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < floor, float("-inf"))
    if top_p < 1.0:
        ordered, order = log_probs.sort(dim=-1, descending=True)
        mass = ordered.softmax(dim=-1)
        before = mass.cumsum(dim=-1) - mass
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
        log_probs = log_probs.masked_fill(outside, float("-inf"))
    if min_p > 0.0:
        best = log_probs.amax(dim=-1, keepdim=True)
        log_probs = log_probs.masked_fill(log_probs < best + torch.tensor(min_p).log(), float("-inf"))
    return log_probs


def draw(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """One token per row: the inverse of the cumulative distribution of ``log_probs`` (B,V) at ``uniform`` (B,)."""
    cumulative = log_probs.double().exp().cumsum(dim=-1)
    at = uniform.unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, at, right=True).squeeze(1).clamp_(max=log_probs.shape[-1] - 1)
