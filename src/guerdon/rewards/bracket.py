"""Who meets whom in a tournament, and what follows for the ranks; for many groups of equal size at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Given rows (m,) and rows (m,): their scores (m,2).
Compare = Callable[[Tensor, Tensor], Tensor]


class Table:
    """What was played so far in B groups of n.

    Contestants are numbered from 0 in each group; n stands for an empty place, which nobody plays against.

    Args:
        compare: gives the scores of pairs of rows.
        rows: (B,n) row of each contestant.

    Attributes:
        scored, games: (B,n) sum of each contestant's scores, and how many there are.
        decided: (B,) whether some comparison was no draw.
        comparisons: how many there were.
    """

    def __init__(self, compare: Compare, rows: Tensor) -> None:
        self.compare, self.rows = compare, rows
        self.groups, self.size = rows.shape
        self.scored, self.games = torch.zeros(rows.shape), torch.zeros(rows.shape)
        self.decided = torch.zeros(self.groups, dtype=torch.bool)
        self.comparisons = 0

    def play(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Let contestants meet; their scores, each (B,m), and 0 where ``valid`` is false or a place is empty."""
        present = (first < self.size) & (second < self.size)
        present = present if valid is None else present & valid
        group, nth = present.nonzero(as_tuple=True)
        out = self.scored.new_zeros(*first.shape, 2)
        if not len(group):
            return out[..., 0], out[..., 1]
        left, right = first[group, nth], second[group, nth]
        scores = self.compare(self.rows[group, left], self.rows[group, right]).to(self.scored)
        out[group, nth] = scores
        for side, who in enumerate((left, right)):
            self.scored.index_put_((group, who), scores[:, side], accumulate=True)
            self.games.index_put_((group, who), torch.ones(len(who)), accumulate=True)
        self.decided |= (out[..., 0] != out[..., 1]).any(dim=1)
        self.comparisons += len(group)
        return out[..., 0], out[..., 1]

    def mean(self) -> Tensor:
        """(B,n) mean score of each contestant."""
        return self.scored / self.games.clamp(min=1)

    def numbers(self) -> Tensor:
        """(B,n) the contestants in order."""
        return torch.arange(self.size).expand(self.groups, self.size)


def anchor(table: Table) -> Tensor:
    """All against the first, ranked by their scores; the first by its mean."""
    others = table.numbers()[:, 1:]
    table.play(torch.zeros_like(others), others)
    return _best_rank(table.mean())


def round_robin(table: Table) -> Tensor:
    """All against all, ranked by their points."""
    first, second = torch.triu_indices(table.size, table.size, 1).unsqueeze(1).expand(2, table.groups, -1)
    return _best_rank(_points(table, first, second, *table.play(first, second)))


def single_elimination(table: Table) -> Tensor:
    """Seeded by a round against the first; whoever loses is out."""
    anchor(table)
    seeds = torch.argsort(table.mean(), dim=1, descending=True, stable=True)
    places = torch.cat([seeds, torch.full((table.groups, 1), table.size)], dim=1)
    entrants = places[:, torch.tensor(bracket(table.size)).clamp(max=table.size)]
    left = torch.zeros_like(table.scored)
    for turn in range(1, entrants.shape[1].bit_length()):
        entrants, losers = _bout(table, entrants)
        _mark(left, losers, turn)
    _mark(left, entrants, math.inf)
    return _mean_rank(left, table.mean())


def double_elimination(table: Table) -> Tensor:
    """Whoever loses twice is out; at the end the unbeaten one has to be beaten twice."""
    unbeaten, once = table.numbers(), table.numbers()[:, :0]
    left = torch.zeros_like(table.scored)
    turn = 0
    while unbeaten.shape[1] > 1 or once.shape[1] > 1:
        turn += 1
        unbeaten, dropped = _bout(table, unbeaten)
        once, losers = _bout(table, once)
        _mark(left, losers, turn)
        once = torch.cat([once, dropped], dim=1)
    first, second = table.play(unbeaten, once)
    again = second > first
    first, second = table.play(unbeaten, once, again)
    champion = torch.where(again & (second > first), once, unbeaten)
    _mark(left, champion, math.inf)
    _mark(left, torch.where(champion == once, unbeaten, once), turn + 1)
    return _mean_rank(left, table.mean())


def swiss(table: Table) -> Tensor:
    """Rounds among those of equal points, without a rematch; ranked by points, then by those of the opponents."""
    places = table.size + table.size % 2  # with an odd number of contestants, one meets an empty place: a bye
    met = torch.zeros(table.groups, places, places, dtype=torch.bool)
    points = torch.zeros(table.groups, places)
    points[:, table.size :] = -1.0  # the empty place stands below everybody
    for _ in range(math.ceil(math.log2(table.size))):
        order = torch.argsort(points, dim=1, descending=True, stable=True)
        pairs = torch.tensor([_pair(o, m) for o, m in zip(order.tolist(), met.tolist(), strict=True)])
        first, second = pairs[..., 0], pairs[..., 1]
        group = torch.arange(table.groups).unsqueeze(1)
        met[group, first, second] = met[group, second, first] = True
        won = _points(table, first, second, *table.play(first, second))
        bye = torch.where(second >= table.size, first, places)
        won = won + (table.numbers().unsqueeze(2) == bye.unsqueeze(1)).any(dim=2)
        points[:, : table.size] += won
    own = points[:, : table.size]
    opponents = met[:, : table.size, : table.size].to(own) @ own.unsqueeze(2)
    return _mean_rank(own, opponents.squeeze(2))


TOPOLOGIES: dict[str, Callable[[Table], Tensor]] = {
    "anchor": anchor,
    "round_robin": round_robin,
    "single_elimination": single_elimination,
    "double_elimination": double_elimination,
    "swiss": swiss,
}


def bracket(n: int) -> list[int]:
    """Seeds in the order in which they stand in the bracket, whose length is the next power of 2.

    By repeated (i, 2 c - 1 - i), c = 1, 2, 4, ...: seeds 0 and 1 can meet in the final only.
    """
    order, count = [0], 1
    while count < n:
        count *= 2
        order = [seed for i in order for seed in (i, count - 1 - i)]
    return order


def _bout(table: Table, entrants: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours meet; winners and losers, in order. An odd one out comes first in the next round; a draw goes to the
    first listed."""
    bye = entrants[:, entrants.shape[1] - entrants.shape[1] % 2 :]
    first, second = entrants[:, 0 : entrants.shape[1] - 1 : 2], entrants[:, 1::2]
    ours, theirs = table.play(first, second)
    upset = theirs > ours
    winners, losers = torch.where(upset, second, first), torch.where(upset, first, second)
    return torch.cat([bye, winners], dim=1), losers


def _mark(left: Tensor, who: Tensor, turn: float) -> None:
    """Write down in which round contestants (B,m) left; empty places don't count."""
    group, nth = (who < left.shape[1]).nonzero(as_tuple=True)
    left[group, who[group, nth]] = turn


def _points(table: Table, first: Tensor, second: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """(B,n) a point for each comparison won, half a point for a draw; nothing for a meeting with an empty place."""
    real = (first < table.size) & (second < table.size)
    points = torch.zeros(table.groups, table.size + 1)
    for who, mine, other in ((first, ours, theirs), (second, theirs, ours)):
        points.scatter_add_(1, who, torch.where(real, (mine > other) + 0.5 * (mine == other), 0.0))
    return points[:, : table.size]


def _pair(order: list[int], met: list[list[bool]]) -> list[tuple[int, int]]:
    """Pair the best with the next best that it has not met, so that the rest can be paired too.

    There is always a way: after r < ceil(log2 n) rounds everybody has at least half of the others left to meet.
    """

    def search(rest: list[int]) -> list[tuple[int, int]] | None:
        if not rest:
            return []
        best, others = rest[0], rest[1:]
        for i, other in enumerate(others):
            if not met[best][other]:
                found = search(others[:i] + others[i + 1 :])
                if found is not None:
                    return [(best, other), *found]
        return None

    pairs = search(order)
    assert pairs is not None
    return pairs


def _above(keys: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """For each (i,j) whether j stands above i by the first key in which they differ, and whether they are level."""
    level = torch.ones(*keys[0].shape, keys[0].shape[1], dtype=torch.bool)
    above = torch.zeros_like(level)
    for key in keys:
        mine, other = key.unsqueeze(2), key.unsqueeze(1)
        above |= level & (other > mine)
        level &= other == mine
    return above, level


def _mean_rank(*keys: Tensor) -> Tensor:
    """1 - rank / (n - 1); equals share the mean of their ranks."""
    above, level = _above(keys)
    rank = above.sum(dim=2) + (level.sum(dim=2) - 1) / 2
    return 1 - rank / (keys[0].shape[1] - 1)


def _best_rank(*keys: Tensor) -> Tensor:
    """(last - rank) / last; equals share the best of their ranks, and the last of a group has 0."""
    rank = _above(keys)[0].sum(dim=2).to(keys[0])
    last = rank.amax(dim=1, keepdim=True)
    return (last - rank) / last.clamp(min=1)
