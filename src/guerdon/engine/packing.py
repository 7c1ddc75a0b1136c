"""Rows that begin alike are one tree: what they share is held, and later computed, once.

Rows are put in lexicographic order. Each then keeps only the tokens that it does not share with the row before it, and
what several rows have in common stands with the first of them. Every row's own tokens are contiguous, and so are those
of all rows that share a stretch, so attention over the tree needs slices and no gathering.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Tokens that a row must share with its neighbour before sharing them pays: every shared stretch is one more call of
# the attention kernel, which costs about as much as computing this many tokens of a small model again.
MIN_SHARED = 8


@dataclass(frozen=True)
class Stretch:
    """Tokens that the rows of a span have in common: queries ``[query, query_end)`` see all of ``[key, key_end)``."""

    query: int
    query_end: int
    key: int
    key_end: int


@dataclass(frozen=True)
class Pack:
    """Some rows of a batch, their tokens laid out flat with none twice. R rows of at most C tokens, L in all.

    Attributes:
        rows: (R,) int64 places of the rows in the batch.
        ids: (L,) int64 tokens.
        positions: (L,) int64 depth of each token, from 0.
        place: (R,C) int64 where each row's tokens stand in ``ids``; right of a row's end it means nothing.
        own: (R,2) int64 start and length of the tokens that each row does not share with the row before it.
        shared: stretches that rows have in common.
    """

    rows: Tensor
    ids: Tensor
    positions: Tensor
    place: Tensor
    own: Tensor
    shared: tuple[Stretch, ...]


def compact(ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move what is attended to in each row to the left.

    Args:
        ids: (N,C) int64.
        attention: (N,C) bool.

    Returns:
        The tokens (N,C), 0 beyond each row's end; the lengths (N,); and where each column went (N,C), if anywhere.
    """
    order = attention.cumsum(dim=1) - 1
    out = torch.zeros_like(ids)
    row, column = attention.nonzero(as_tuple=True)
    out[row, order[row, column]] = ids[row, column]
    return out, attention.sum(dim=1), order


def pack_rows(
    ids: Tensor, lengths: Tensor, *, max_tokens: int | None = None, min_shared: int = MIN_SHARED
) -> list[Pack]:
    """Lay out rows as trees, in packs of about equal size.

    A pack holds rows that are neighbours in lexicographic order, so only at its borders is something computed twice.

    Args:
        ids: (N,C) int64 tokens, from the left; what stands beyond a row's end does not matter.
        lengths: (N,) int64, at least 1 each.
        max_tokens: most tokens of a pack; a single longer row makes a pack of its own. None puts all in one.
        min_shared: least number of further tokens that a row must share with its neighbour for them to be shared.
    """
    if not len(ids):
        return []
    table, length = ids.cpu().numpy(), lengths.cpu().numpy()
    table = np.where(np.arange(table.shape[1]) < length[:, None], table, -1)
    order = _lexicographic(table)
    table, length = table[order], length[order]
    common = _common_prefix(table, length)
    packs = []
    for first, end, start, shared in _plan(common, length, *_sizes(common, length, max_tokens, min_shared), min_shared):
        packs.append(_pack(order[first:end], table[first:end], length[first:end], start, shared, ids.device))
    return packs


def _lexicographic(table: np.ndarray) -> np.ndarray:
    """Order of the rows; equal rows keep theirs."""
    words = np.ascontiguousarray((table + 1).astype(">u4"))
    return np.argsort(words.view(f"S{4 * max(table.shape[1], 1)}").ravel(), kind="stable")


def _common_prefix(table: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Number of leading tokens that each row shares with the row before it; 0 for the first."""
    same = table[1:] == table[:-1]
    until = np.where(same.all(axis=1), table.shape[1], same.argmin(axis=1))
    shorter = np.minimum(length[1:], length[:-1])
    return np.concatenate([[0], np.minimum(until, shorter)])


class _Tree:
    """The stretches on the path to the present row, outermost first, each as [owner, from, to, first row]."""

    def __init__(self, min_shared: int) -> None:
        self.min_shared = min_shared
        self.path: list[list[int]] = []
        self.closed: list[tuple[int, int, int, int]] = []

    @property
    def depth(self) -> int:
        return self.path[-1][2] if self.path else 0

    def worth(self, common: int) -> int:
        """How much of ``common`` leading tokens to share: up to a border that exists, or enough beyond it."""
        border = max((stretch[2] for stretch in self.path if stretch[2] <= common), default=0)
        return common if common - border >= self.min_shared else border

    def enter(self, row: int, shared: int) -> None:
        """Go on to a row that shares its first tokens with the row before."""
        while self.path and self.path[-1][1] >= shared:
            self._close(row)
        if self.depth > shared:
            owner, begin, _, _ = self.path[-1]
            self._close(row)
            self.path.append([owner, begin, shared, row])
        elif self.depth < shared:
            self.path.append([row - 1, self.depth, shared, row])

    def _close(self, row: int) -> None:
        owner, begin, end, first = self.path.pop()
        if row > first:
            self.closed.append((first, row, owner, end - begin))

    def finish(self, row: int) -> list[tuple[int, int, int, int]]:
        """All stretches as (first row, row after the last, owner, tokens)."""
        while self.path:
            self._close(row)
        return self.closed


_Planned = tuple[int, int, list[int], list[tuple[int, int, int, int]]]


def _sizes(common: np.ndarray, length: np.ndarray, max_tokens: int | None, min_shared: int) -> tuple[float, float]:
    """How many tokens a pack should hold, so that all hold about as many, and how many it may hold."""
    if max_tokens is None:
        return math.inf, math.inf
    ((_, _, start, _),) = _plan(common, length, math.inf, math.inf, min_shared)
    total = int(length.sum()) - sum(start)
    return total / math.ceil(total / max_tokens), max_tokens


def _plan(common: np.ndarray, length: np.ndarray, target: float, limit: float, min_shared: int) -> Iterator[_Planned]:
    """For each pack its rows [first, end), where each row's own tokens begin, and the stretches, counted from first."""
    first, held, start, tree, before, packs = 0, 0, [], _Tree(min_shared), 0, 1
    for row in range(len(length)):
        shared = tree.worth(int(common[row])) if row > first else 0
        if row > first and (before + held >= packs * target or held + length[row] - shared > limit):
            yield first, row, start, tree.finish(row - first)
            before, packs = before + held, packs + 1
            first, held, start, tree, shared = row, 0, [], _Tree(min_shared), 0
        tree.enter(row - first, shared)
        start.append(shared)
        held += int(length[row]) - shared
    yield first, len(length), start, tree.finish(len(length) - first)


def _pack(
    rows: np.ndarray,
    table: np.ndarray,
    length: np.ndarray,
    start: list[int],
    shared: list[tuple[int, int, int, int]],
    device: torch.device,
) -> Pack:
    begin = np.asarray(start)
    own = length - begin
    offset = np.concatenate([[0], own.cumsum()])
    column = np.arange(table.shape[1])
    mine = (column >= begin[:, None]) & (column < length[:, None])
    # The row in which a shared token stands is the last one, up to here, whose own tokens begin at or before it.
    owner = np.maximum.accumulate(np.where(column >= begin[:, None], np.arange(len(rows))[:, None], 0), axis=0)
    place = offset[owner] + column - begin[owner]

    def tensor(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.int64)).to(device)

    return Pack(
        rows=tensor(rows),
        ids=tensor(table[mine]),
        positions=tensor(np.broadcast_to(column, table.shape)[mine]),
        place=tensor(place),
        own=torch.from_numpy(np.stack([offset[:-1], own], axis=1).astype(np.int64)),
        shared=tuple(
            Stretch(int(offset[a]), int(offset[b]), int(offset[o]), int(offset[o]) + n)
            for a, b, o, n in shared
            if offset[b] > offset[a]  # rows that are the same to the end have no tokens of their own
        ),
    )
