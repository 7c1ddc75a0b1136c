"""Teacher-forced reading: the hidden states of given tokens, each distinct prefix computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from guerdon.engine.attention import Attend, TreeAttention
from guerdon.engine.packing import Pack, compact, pack_rows


class LanguageModel(Protocol):
    """What reading and sampling ask of a model."""

    @property
    def flat(self) -> bool:
        """Whether ``hidden`` works; models whose attention can't be replaced have ``padded`` instead."""
        ...

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Last hidden states (L,D) of tokens ``ids`` (L,) at depths ``positions`` (L,).

        Args:
            attend: what tokens see of one another; called once per layer.
        """
        ...

    def padded(self, ids: Tensor, attention: Tensor, cache: Any = None, *, keep: bool = False) -> tuple[Tensor, Any]:
        """Last hidden states (N,T,D) of ``ids`` (N,T), and the cache if it is to be kept.

        Args:
            attention: (N,S) bool over all cached and present tokens; false on left padding.
        """
        ...

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (...,V) of hidden states (...,D)."""
        ...


def read(model: LanguageModel, ids: Tensor, attention: Tensor, at: Tensor, *, max_tokens: int | None = None) -> Tensor:
    """Hidden states of chosen tokens once the model has read them; differentiable.

    Rows are packed as trees: what they begin with in common is computed once, and nothing is computed for padding or
    for what follows the last chosen token of a row.

    Args:
        model: reads.
        ids: (N,C) tokens.
        attention: (N,C) bool, which of them there are; each row sees its own in order.
        at: (N,C) bool, a part of ``attention``: whose states are wanted.
        max_tokens: most tokens to hold activations of. If there are more, they are read in parts, and under gradient
            each part is read again when its turn comes; None reads everything at once.

    Returns:
        (M,D), row by row.
    """
    if not bool(at.any()):
        return _states_of_one(model, ids[0, :1])[:0]
    wanted = attention & (at.flip(1).cumsum(dim=1).flip(1) > 0)
    if not model.flat:
        return _read_padded(model, ids, wanted, at, max_tokens)
    tokens, lengths, order = compact(ids, wanted)
    kept = lengths.nonzero().flatten()
    packs = pack_rows(tokens[kept], lengths[kept], max_tokens=max_tokens)
    place, offset = torch.zeros_like(tokens), 0
    for pack in packs:
        place[kept[pack.rows]] = pack.place + offset
        offset += len(pack.ids)
    row, column = at.nonzero(as_tuple=True)
    return _states(model, packs).index_select(0, place[row, order[row, column]])


def _states_of_one(model: LanguageModel, ids: Tensor) -> Tensor:
    """States (1,D) of a single token, for their shape."""
    if not model.flat:
        return model.padded(ids.unsqueeze(0), torch.ones_like(ids, dtype=torch.bool).unsqueeze(0))[0][0]
    return _states(model, pack_rows(ids.unsqueeze(0), torch.ones_like(ids)))


def _states(model: LanguageModel, packs: list[Pack]) -> Tensor:
    """Hidden states (L,D) of all packs, one after the other; those of several are computed again for the gradient."""

    def one(pack: Pack) -> Tensor:
        return model.hidden(pack.ids, pack.positions, TreeAttention(pack))

    if len(packs) == 1:
        return one(packs[0])
    return torch.cat([_again(one, pack) for pack in packs])


def _again(function: Callable[[Any], Tensor], part: Any) -> Tensor:
    """``function(part)``; under gradient what it holds is dropped, and computed again when its turn comes."""
    if not torch.is_grad_enabled():
        return function(part)
    out: Any = checkpoint(function, part, use_reentrant=False)
    return out


def _read_padded(model: LanguageModel, ids: Tensor, wanted: Tensor, at: Tensor, max_tokens: int | None) -> Tensor:
    columns = wanted.any(dim=0).nonzero()
    span = slice(int(columns.min()), int(columns.max()) + 1)
    ids, wanted, at = ids[:, span], wanted[:, span], at[:, span]
    rows = len(ids) if max_tokens is None else max(1, max_tokens // ids.shape[1])

    def one(part: slice) -> Tensor:
        return model.padded(ids[part], wanted[part])[0][at[part]]

    if rows >= len(ids):
        return one(slice(None))
    return torch.cat([_again(one, slice(start, start + rows)) for start in range(0, len(ids), rows)])
