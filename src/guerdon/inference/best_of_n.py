"""The best of several samples: by a score, or by a knockout of pairwise verdicts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.credit.grouping import first_rows, grouped
from guerdon.rewards.bracket import Compare, Table
from guerdon.seeding import torch_generator


def best_of_n(score: Tensor, group: Tensor) -> Tensor:
    """Row of the best sample of every group; the first of equal ones.

    Args:
        score: (N,); a nan is never the best, unless the group has nothing else.
        group: (N,) key of the samples among which to choose.

    Returns:
        (G,) int64 rows, groups in order of their keys.
    """
    known = score.double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    best = known == grouped(known, group).extreme(largest=True)
    rows = best.nonzero().flatten()
    return rows[first_rows(group[rows])[1]]


class Knockout(NamedTuple):
    """How knockouts ended.

    Attributes:
        rows: (G,) int64 row of each group's winner, groups in order of their keys.
        comparisons: pairs that were compared.
    """

    rows: Tensor
    comparisons: int


def knockout(compare: Compare, group: Tensor, *, seed: int | None = None) -> Knockout:
    """Let the samples of every group meet in pairs; losers are out, and the last one left wins.

    A group of n takes n - 1 comparisons in ceil(log2 n) rounds; where a judge is right with chance p whenever the one
    good sample of a group stands against another, it wins with p^ceil(log2 n), if n is a power of 2. With an odd number
    the last has no opponent and comes first in the next round. (Reward ``tournament`` seeds its bracket by a round
    against the first, and ranks everybody; here only the winner matters.)

    Args:
        compare: given rows (m,) and rows (m,), returns their scores (m,2): the greater wins, the first of equal ones
            stays. A ``Referee`` of a judge is one, which asks in both orders. All groups of one size are asked about
            together.
        group: (N,) key.
        seed: shuffles the bracket; the order of the rows by default.

    Source: WebArbiter (2026); the form of the tournament is inferred.
    """
    keys, counts = torch.unique(group, return_counts=True)
    shuffled = torch.arange(len(group))
    if seed is not None:
        shuffled = torch.randperm(len(group), generator=torch_generator(seed, "knockout"))
    order = shuffled.to(group.device)[torch.argsort(group[shuffled.to(group.device)], stable=True)]
    blocks = order.split(counts.tolist())
    winners, comparisons = torch.empty(len(keys), dtype=torch.int64), 0
    for size in counts.unique().tolist():
        places = [place for place, block in enumerate(blocks) if len(block) == size]
        rows = torch.stack([blocks[place] for place in places])
        table = Table(compare, rows)
        left = table.numbers()
        while left.shape[1] > 1:
            even = left.shape[1] - left.shape[1] % 2
            first, second = left[:, 0:even:2], left[:, 1:even:2]
            ours, theirs = table.play(first, second)
            left = torch.cat([left[:, even:], torch.where(theirs > ours, second, first)], dim=1)
        winners[places] = rows.gather(1, left).squeeze(1).cpu()
        comparisons += table.comparisons
    return Knockout(winners.to(group.device), comparisons)
