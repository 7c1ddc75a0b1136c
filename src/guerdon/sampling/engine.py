"""The embedded engine: batched decoding of any language model, one prefill per distinct prompt.

Rows are left-padded so that every row writes the same column of the cache; finished rows leave the batch; a
row's random draws depend on the seed, its own identity and the position alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from guerdon.sampling.noise import RowUniforms


class Cache(Protocol):
    """Keys and values of the tokens seen so far."""

    def select(self, rows: Tensor) -> Cache:
        """The cache of the given rows, in that order; rows may repeat."""
        ...


class LanguageModel(Protocol):
    """What the engine asks of a model."""

    def hidden(self, ids: Tensor, attention: Tensor, cache: Any | None = None, use_cache: bool = False) -> Any:
        """Last hidden states (N,T,D) of ``ids`` (N,T), and the cache if asked for.

        Args:
            attention: (N,S) bool over all cached and present tokens; false on left padding.
        """
        ...

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (...,V) of hidden states (...,D)."""
        ...


@dataclass(frozen=True)
class GenerationOptions:
    """How to draw tokens.

    Attributes:
        max_new_tokens: budget of each row.
        temperature: divides the logits.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose mass reaches p.
        stop_tokens: a row ends after drawing one of these.
        greedy: take the most likely token.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    greedy: bool = False


@dataclass(frozen=True)
class Completions:
    """What was drawn.

    Attributes:
        tokens: (N,T) int64, right-padded with ``pad``.
        mask: (N,T) bool, true on drawn tokens, the stop token included.
        logp: (N,T) log-probability of each token under the policy at this temperature, before top-k and top-p.
        entropy: (N,T) entropy of the same distribution in nats.
        finished: (N,) bool, whether the row drew a stop token.
    """

    tokens: Tensor
    mask: Tensor
    logp: Tensor
    entropy: Tensor
    finished: Tensor


# Rows that finished are dropped from the cache once they are this share of it: copying the cache costs about
# as much as a few decoding steps on it.
_COMPACT_AT = 0.25


def left_pad(sequences: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Stack ragged token lists into (N,P) ids and a (N,P) bool mask, padded on the left."""
    width = max((len(s) for s in sequences), default=0)
    ids = np.full((len(sequences), width), pad, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=bool)
    for row, sequence in enumerate(sequences):
        if len(sequence):
            ids[row, width - len(sequence) :] = sequence
            mask[row, width - len(sequence) :] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    *,
    pad: int,
    seed: int,
    rows: Sequence[int] | None = None,
) -> Completions:
    """Continue each prompt until a stop token or the budget.

    Args:
        prompts: token ids of each row; equal prompts are computed once.
        pad: token id that fills unused positions.
        seed: together with ``rows`` decides every draw.
        rows: identity of each row; its index by default.
    """
    n, budget = len(prompts), options.max_new_tokens
    tokens = torch.full((n, budget), pad, dtype=torch.int64)
    mask = torch.zeros(n, budget, dtype=torch.bool)
    logp, entropy = torch.zeros(n, budget), torch.zeros(n, budget)
    finished = torch.zeros(n, dtype=torch.bool)
    if n == 0 or budget == 0:
        return Completions(tokens, mask, logp, entropy, finished)

    uniforms = RowUniforms(seed, range(n) if rows is None else rows)
    hidden, cache, attention = _prefill(model, prompts, pad)
    stop = torch.tensor(options.stop_tokens, dtype=torch.int64)
    active = torch.arange(n)  # rows of the batch that the cache holds, in its order
    alive = torch.ones(n, dtype=torch.bool)
    for position in range(budget):
        logits = model.project(hidden).float() / options.temperature
        log_probs = torch.log_softmax(logits, dim=-1)
        drawn = _draw(logits, log_probs, options, uniforms, position, active)
        rows_now, drawn_now = active[alive], drawn[alive]
        picked = log_probs.gather(1, drawn.unsqueeze(1)).squeeze(1)
        tokens[rows_now, position] = drawn_now
        mask[rows_now, position] = True
        logp[rows_now, position] = picked[alive]
        entropy[rows_now, position] = -(log_probs.exp() * log_probs).nan_to_num(0.0).sum(-1)[alive]
        ended = torch.isin(drawn, stop) & alive
        finished[active[ended]] = True
        alive &= ~ended
        if position + 1 == budget or not alive.any():
            break
        if alive.float().mean() <= 1 - _COMPACT_AT:
            keep = alive.nonzero().flatten()
            cache, attention, active, drawn = cache.select(keep), attention[keep], active[keep], drawn[keep]
            alive = alive[keep]
        attention = torch.cat([attention, attention.new_ones(len(active), 1)], dim=1)
        states, cache = model.hidden(drawn.unsqueeze(1), attention, cache, use_cache=True)
        hidden = states[:, -1]
    width = int(mask.any(dim=0).sum())
    return Completions(tokens[:, :width], mask[:, :width], logp[:, :width], entropy[:, :width], finished)


def _prefill(model: LanguageModel, prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Any, Tensor]:
    """Run each distinct prompt once and hand its cache to all its rows."""
    index: dict[tuple[int, ...], int] = {}
    of_row = torch.tensor([index.setdefault(tuple(p), len(index)) for p in prompts])
    ids, attention = left_pad(list(index), pad)
    states, cache = model.hidden(ids, attention, None, use_cache=True)
    if len(index) < len(prompts) or not torch.equal(of_row, torch.arange(len(prompts))):
        cache = cache.select(of_row)
    return states[:, -1][of_row], cache, attention[of_row]


def _draw(
    logits: Tensor,
    log_probs: Tensor,
    options: GenerationOptions,
    uniforms: RowUniforms,
    position: int,
    active: Tensor,
) -> Tensor:
    """One token per row: the mode, or the inverse of the cumulative distribution at the row's uniform."""
    if options.greedy:
        return logits.argmax(dim=-1)
    kept = _filter(log_probs, options)
    cumulative = kept.double().exp().cumsum(dim=-1)
    u = uniforms.at(position, active.numpy()).unsqueeze(1) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, u, right=True).squeeze(1)
    return drawn.clamp_(max=logits.shape[-1] - 1)


def _filter(log_probs: Tensor, options: GenerationOptions) -> Tensor:
    """Send tokens outside top-k and top-p to -inf."""
    if options.top_k and options.top_k < log_probs.shape[-1]:
        floor = log_probs.topk(options.top_k, dim=-1).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < floor, float("-inf"))
    if options.top_p < 1.0:
        ordered, order = log_probs.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= options.top_p)
        log_probs = log_probs.masked_fill(outside, float("-inf"))
    return log_probs
