"""Rows that a model writes token by token, from prefixes that are computed once however many rows begin with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from guerdon.engine.attention import GrowingAttention, TreeAttention
from guerdon.engine.fused import FusedModel
from guerdon.engine.packing import pack_rows
from guerdon.engine.padding import left_pad, right_pad
from guerdon.engine.reading import LanguageModel


class Decoder(Protocol):
    """Rows in the middle of being written."""

    states: Tensor  # (B,D) hidden state of each row's last token

    def step(self, tokens: Tensor) -> None:
        """Give each row (B,) its next token."""
        ...

    def keep(self, rows: Tensor) -> Tensor:
        """Forget all but the given rows (ascending); return the order (B,) in which they now stand."""
        ...

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows (B,) in their order; rows may repeat, so that one row can become several."""
        ...


def decoder(model: LanguageModel, prefixes: Sequence[Sequence[int]], *, capacity: int, pad: int) -> Decoder:
    """Begin one row per prefix; equal prefixes, and what different ones begin with in common, are computed once.

    Args:
        model: writes.
        prefixes: token ids of each row.
        capacity: most tokens that a row will be given.
        pad: token id that fills unused positions, for models that need padding.
    """
    distinct: dict[tuple[int, ...], int] = {}
    of_row = torch.tensor([distinct.setdefault(tuple(prefix), len(distinct)) for prefix in prefixes])
    if model.flat:
        return FlatDecoder(model, list(distinct), of_row, capacity=capacity)
    return PaddedDecoder(model, list(distinct), of_row, pad=pad)


class FlatDecoder:
    """Decoding without padding, for models whose attention is ours."""

    def __init__(
        self, model: LanguageModel, prefixes: Sequence[Sequence[int]], of_row: Tensor, *, capacity: int
    ) -> None:
        self.model = model
        # Tensors of a model of ours alone never meet a gradient, and are spared the book-keeping for one.
        self._mode = torch.inference_mode if isinstance(model, FusedModel) else torch.no_grad
        with self._mode():
            self._begin(prefixes, of_row, capacity)

    def _begin(self, prefixes: Sequence[Sequence[int]], of_row: Tensor, capacity: int) -> None:
        ids, present = right_pad(prefixes, 0)
        lengths = present.sum(dim=1)
        (pack,) = pack_rows(ids, lengths)
        tree = TreeAttention(pack, record=True)
        states = self.model.hidden(pack.ids, pack.positions, tree)
        place = torch.zeros_like(pack.place)
        place[pack.rows] = torch.where(present[pack.rows], pack.place, 0)
        assert tree.recorded is not None
        keys, values = ([_prefix_block(layer[i], place) for layer in tree.recorded] for i in (0, 1))
        last = place.gather(1, lengths.unsqueeze(1) - 1).squeeze(1)
        self.states = states[last][of_row]
        self.depth = lengths[of_row]
        self.attend = GrowingAttention(keys, values, lengths, of_row, capacity=capacity)

    def step(self, tokens: Tensor) -> None:
        """Give each row its next token."""
        with self._mode():
            self.states = self.model.hidden(tokens, self.depth, self.attend)
            self.attend.advance()
            self.depth = self.depth + 1

    def keep(self, rows: Tensor) -> Tensor:
        """Forget all but the given rows."""
        with self._mode():
            order = self.attend.keep(rows)
            self.states, self.depth = self.states[order], self.depth[order]
        return order.clone()

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows in their order."""
        with self._mode():
            self.attend.select(rows)
            self.states, self.depth = self.states[rows], self.depth[rows]


class PaddedDecoder:
    """Decoding with left-padded rows and the model's own cache, for models whose attention can't be replaced."""

    def __init__(self, model: LanguageModel, prefixes: Sequence[Sequence[int]], of_row: Tensor, *, pad: int) -> None:
        self.model = model
        ids, attention = left_pad(prefixes, pad)
        states, self.cache = model.padded(ids, attention, keep=True)
        self.states, self.attention = states[:, -1][of_row], attention[of_row]
        if not torch.equal(of_row, torch.arange(len(prefixes))):
            self.cache = self.cache.select(of_row)

    def step(self, tokens: Tensor) -> None:
        """Give each row its next token."""
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)
        states, self.cache = self.model.padded(tokens.unsqueeze(1), self.attention, self.cache, keep=True)
        self.states = states[:, -1]

    def keep(self, rows: Tensor) -> Tensor:
        """Forget all but the given rows."""
        self.select(rows)
        return rows

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows in their order."""
        self.cache, self.attention, self.states = self.cache.select(rows), self.attention[rows], self.states[rows]


def _prefix_block(x: Tensor, place: Tensor) -> Tensor:
    """(P,K,S,D) keys or values of prefixes, from those of a pack (L,K,D)."""
    return x.index_select(0, place.reshape(-1)).view(*place.shape, *x.shape[1:]).transpose(1, 2).contiguous()
