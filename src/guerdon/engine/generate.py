"""The embedded engine: batched sampling from any language model, nothing computed twice and nothing for the dead.

Prefixes are computed once however many rows begin with them, rows that have ended leave the batch at once, and a row's
draws depend on the seed, its own identity and the position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.engine.decoding import decoder
from guerdon.engine.filters import draw, keep_likely
from guerdon.engine.fused import fused
from guerdon.engine.noise import RowUniforms
from guerdon.engine.reading import LanguageModel
from guerdon.errors import GuerdonError


class SamplingError(GuerdonError):
    """Prefixes or options that nothing can be sampled from."""


class Written(NamedTuple):
    """What the rows still being written look like before a token is drawn.

    Attributes:
        rows: (B,) places of the rows among those asked for.
        tokens: (B,t) what each has written so far.
    """

    rows: Tensor
    tokens: Tensor


Processor = Callable[[Tensor, Written], Tensor]
"""Changes logits (B,V) before they are scaled and filtered."""

Steer = Callable[[Tensor, Written], Tensor]
"""Changes the hidden states (B,D) of the rows' last tokens before the logits are computed from them."""


@dataclass(frozen=True)
class GenerationOptions:
    """How to draw tokens.

    Attributes:
        max_new_tokens: budget of each row.
        temperature: divides the logits.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose mass reaches p.
        min_p: keep tokens at least p times as likely as the likeliest; 0 keeps all.
        stop_tokens: a row ends after drawing one of these.
        stop: a row ends with the token that completes one of these strings, which stays a part of it.
        greedy: take the most likely token.
        processors: change the logits, in order, before anything else does.
        steer: changes the hidden states of which the logits are made. What it makes of them is the policy: the
            log-probabilities are those after it.
        top_logits: how many of the largest logits to return for every token drawn.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    greedy: bool = False
    processors: tuple[Processor, ...] = ()
    steer: Steer | None = None
    top_logits: int = 0

    @property
    def filtered(self) -> bool:
        """Whether the distribution that is sampled differs from the policy's at this temperature."""
        return bool(self.top_k or self.top_p < 1.0 or self.min_p > 0.0 or self.processors)


@dataclass(frozen=True)
class Completions:
    """What was drawn; N rows of at most T tokens.

    Attributes:
        tokens: (N,T) int64, right-padded with ``pad``.
        mask: (N,T) bool, true on drawn tokens, the stop token included.
        logp: (N,T) log-probability of each token under the policy at this temperature, before processors and filters.
        entropy: (N,T) entropy of the same distribution in nats.
        sampled_logp: (N,T) log-probability of each token under the distribution that it was drawn from.
        finished: (N,) bool, whether the row ended by itself rather than by its budget.
        top_logits, top_tokens: (N,T,K) the largest logits and their tokens, if asked for.
    """

    tokens: Tensor
    mask: Tensor
    logp: Tensor
    entropy: Tensor
    sampled_logp: Tensor
    finished: Tensor
    top_logits: Tensor | None = None
    top_tokens: Tensor | None = None

    @classmethod
    def blank(cls, rows: int, width: int, pad: int, top: int) -> Completions:
        """Room for ``width`` tokens per row."""
        return cls(
            tokens=torch.full((rows, width), pad, dtype=torch.int64),
            mask=torch.zeros(rows, width, dtype=torch.bool),
            logp=torch.zeros(rows, width),
            entropy=torch.zeros(rows, width),
            sampled_logp=torch.zeros(rows, width),
            finished=torch.zeros(rows, dtype=torch.bool),
            top_logits=torch.zeros(rows, width, top) if top else None,
            top_tokens=torch.zeros(rows, width, top, dtype=torch.int64) if top else None,
        )

    def narrow(self, width: int) -> Completions:
        """Without the columns beyond ``width``."""
        columns = [f.name for f in fields(self) if f.name != "finished" and getattr(self, f.name) is not None]
        return replace(self, **{name: getattr(self, name)[:, :width] for name in columns})


@torch.no_grad()
def generate(
    model: LanguageModel,
    prefixes: Sequence[Sequence[int]],
    options: GenerationOptions,
    *,
    pad: int,
    seed: int,
    rows: Sequence[int] | None = None,
    budgets: Sequence[int] | None = None,
    decode: Callable[[list[list[int]]], list[str]] | None = None,
    ended: Callable[[Tensor, Completions], None] | None = None,
    compact: bool = True,
) -> Completions:
    """Continue each prefix until it stops by itself or its budget is used up.

    Args:
        model: writes.
        prefixes: token ids of each row, at least one; any rows may share any part.
        options: how to draw.
        pad: token id that fills unused positions.
        seed: together with ``rows`` decides every draw.
        rows: identity of each row; its index by default.
        budgets: tokens of each row, ``options.max_new_tokens`` by default and at most.
        decode: texts of token lists; needed for ``options.stop``.
        ended: called with the rows that ended just now and what has been written so far, while others still write.
        compact: whether rows that have ended leave the batch. It changes the time that sampling takes, not what is
            sampled.

    Raises:
        SamplingError: for an empty prefix, or stop strings without a way to decode.
    """
    n = len(prefixes)
    _check(prefixes, options, decode)
    budget = torch.full((n,), options.max_new_tokens)
    if budgets is not None:
        budget = budget.minimum(torch.as_tensor(budgets))
    width = int(budget.max()) if n else 0
    out = Completions.blank(n, width, pad, options.top_logits)
    active = (budget > 0).nonzero().flatten()  # the rows that the decoder holds, in its order
    if not len(active):
        return out
    uniforms = RowUniforms(seed, range(n) if rows is None else rows)
    with fused(model) as writer:
        writing = decoder(writer, [prefixes[row] for row in active.tolist()], capacity=width, pad=pad)
        alive = torch.ones(len(active), dtype=torch.bool)
        for position in range(width):
            drawn = _write(model, writing.states, options, uniforms, out, position, active, alive)
            stopped = alive & _stopped(drawn, out.tokens, active, position, options, decode)
            out.finished[active[stopped]] = True
            spent = stopped | (alive & (budget[active] == position + 1))
            alive &= ~spent
            if ended is not None and bool(spent.any()):
                ended(active[spent], out)
            if not bool(alive.any()):
                break
            if compact and not bool(alive.all()):
                order = writing.keep(alive.nonzero().flatten())
                active, drawn = active[order], drawn[order]
                alive = torch.ones(len(active), dtype=torch.bool)
            writing.step(drawn)
    return out.narrow(int(out.mask.any(dim=0).sum()))


def _check(
    prefixes: Sequence[Sequence[int]], options: GenerationOptions, decode: Callable[[list[list[int]]], list[str]] | None
) -> None:
    empty = [row for row, prefix in enumerate(prefixes) if not len(prefix)]
    if empty:
        raise SamplingError(
            f"prefix {empty[0]} has no tokens, so there is nothing to continue; begin it with the tokenizer's first "
            "token, or another that the model knows as a beginning"
        )
    if options.stop and decode is None:
        raise SamplingError(f"stop strings {list(options.stop)} need 'decode', which turns tokens into text; pass it")


def _write(
    model: LanguageModel,
    states: Tensor,
    options: GenerationOptions,
    uniforms: RowUniforms,
    out: Completions,
    position: int,
    active: Tensor,
    alive: Tensor,
) -> Tensor:
    """Draw one token per row, and write it down, with its numbers, for those that are alive."""
    written = Written(active, out.tokens[active, :position])
    if options.steer is not None:
        states = options.steer(states, written)
    logits = model.project(states).float()
    log_probs = torch.log_softmax(logits / options.temperature, dim=-1)
    allowed = log_probs
    if options.processors:
        for processor in options.processors:
            logits = processor(logits, written)
        allowed = torch.log_softmax(logits / options.temperature, dim=-1)
    if options.filtered:
        allowed = keep_likely(allowed, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p)
        allowed = torch.log_softmax(allowed, dim=-1)
    if options.greedy:
        drawn = allowed.argmax(dim=-1)
    else:
        drawn = draw(allowed, uniforms.at(position, active.numpy()))
    rows, picks = (active, slice(None)) if bool(alive.all()) else (active[alive], alive)
    token = drawn.unsqueeze(1)
    out.tokens[rows, position] = drawn[picks]
    out.mask[rows, position] = True
    out.logp[rows, position] = log_probs.gather(1, token).squeeze(1)[picks]
    out.sampled_logp[rows, position] = allowed.gather(1, token).squeeze(1)[picks]
    out.entropy[rows, position] = -(log_probs.exp() * log_probs).nan_to_num(0.0).sum(dim=-1)[picks]
    if out.top_logits is not None and out.top_tokens is not None:
        best = logits.topk(options.top_logits, dim=-1)
        out.top_logits[rows, position], out.top_tokens[rows, position] = best.values[picks], best.indices[picks]
    return drawn


def _stopped(
    drawn: Tensor,
    tokens: Tensor,
    active: Tensor,
    position: int,
    options: GenerationOptions,
    decode: Callable[[list[list[int]]], list[str]] | None,
) -> Tensor:
    """Which rows ended with the token drawn last."""
    stopped = torch.isin(drawn, torch.tensor(options.stop_tokens, dtype=torch.int64))
    if options.stop and decode is not None:
        # Every token but special ones adds a character, so these are enough to hold the longest string.
        reach = max(len(text) for text in options.stop) + 4
        tails = decode(tokens[active, max(0, position + 1 - reach) : position + 1].tolist())
        hits = [any(text in tail for text in options.stop) for tail in tails]
        stopped = stopped | torch.tensor(hits, dtype=torch.bool)
    return stopped
