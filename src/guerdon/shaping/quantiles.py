"""Scores of several prompts at once, and where a score lies among those that came before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The 19 levels 0.05, 0.10, ..., 0.95 of the source.
LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))


class Papers(NamedTuple):
    """Trajectories put together like the answers of an exam paper, one to each prompt of a bundle.

    Attributes:
        paper: (N,) number of the paper that each trajectory is part of, -1 for those in none.
        bundle: (M,) number of the bundle of prompts that each paper answers.
        full: (M,) whether that bundle has all the prompts it was meant to have.
    """

    paper: Tensor
    bundle: Tensor
    full: Tensor

    def total(self, x: Tensor) -> Tensor:
        """Sum (M,) over each paper of what its trajectories have, x (N,)."""
        inside = self.paper >= 0
        return x.new_zeros(len(self.bundle)).index_add_(0, self.paper[inside], x[inside])

    def spread(self, x: Tensor) -> Tensor:
        """Hand each trajectory (N,) the number of its paper, x (M,); 0 to those in none."""
        inside = self.paper >= 0
        return x.new_zeros(len(self.paper)).masked_scatter_(inside, x[self.paper[inside]])


def bundle(group: Tensor, *, size: int = 5) -> Papers:
    """Bundle consecutive prompts of a batch; the j-th answers to the prompts of a bundle are its j-th paper.

    A bundle has as many papers as the shortest of its groups has answers; further answers are in no paper, and none
    is in two. Prompts count in the order in which they first appear; the last bundle may have fewer.

    Args:
        group: (N,) key of the trajectories that answer the same prompt.
        size: prompts per bundle, at least 1.

    Raises:
        ValueError: when the size is below 1.

    Source: Ren et al. 2025, arXiv 2510.00911.
    """
    if size < 1:
        raise ValueError(f"size is {size}, wanted at least 1 prompt per bundle; 5 is the source's")
    n, rows = len(group), torch.arange(len(group), device=group.device)
    keys, key = torch.unique(group, return_inverse=True)
    first = rows.new_full((len(keys),), n).scatter_reduce_(0, key, rows, "amin")
    prompt = first.argsort().argsort()[key]
    answers = torch.bincount(prompt, minlength=len(keys))
    order = prompt.argsort(stable=True)
    nth = torch.empty_like(rows)
    nth[order] = rows - (answers.cumsum(0) - answers)[prompt[order]]

    bundle_of_prompt = torch.arange(len(keys), device=group.device) // size
    count = -(-len(keys) // size)
    papers = rows.new_full((count,), n).scatter_reduce_(0, bundle_of_prompt, answers, "amin")
    number = (papers.cumsum(0) - papers)[prompt // size] + nth
    full = torch.bincount(bundle_of_prompt, minlength=count) == size
    return Papers(
        paper=torch.where(nth < papers[prompt // size], number, -1),
        bundle=torch.arange(count, device=group.device).repeat_interleave(papers),
        full=full.repeat_interleave(papers),
    )


class QuantileTracker:
    """Running quantiles of a score whose distribution drifts: a controller with one value per level.

    The first batch sets q_a to its empirical quantiles; each later one moves them towards its own,
    q_a <- q_a + rate (a - mean 1[score < q_a]). The moves can carry neighbours past one another; values are sorted
    after each, which never takes an estimate further from the true quantiles.

    Args:
        levels: probabilities in (0,1), in ascending order.
        rate: largest move per batch, in units of the score.

    Raises:
        ValueError: when the levels are not ascending within (0,1), or the rate is not positive.

    Source: Ren et al. 2025, arXiv 2510.00911.
    """

    def __init__(self, levels: Sequence[float] = LEVELS, *, rate: float = 0.1) -> None:
        ascending = all(a < b for a, b in zip([0.0, *levels], [*levels, 1.0], strict=True))
        if not levels or not ascending:
            raise ValueError(f"levels are {list(levels)}, wanted ascending probabilities between 0 and 1")
        if not rate > 0:
            raise ValueError(f"rate is {rate}, wanted above 0; 0.1 is the source's")
        self.levels, self.rate = tuple(levels), rate
        self.values: list[float] | None = None

    def update(self, scores: Tensor) -> list[float] | None:
        """Take a batch of scores (M,) into account; an empty one changes nothing."""
        seen = scores.detach().double().reshape(-1).cpu()
        if not len(seen):
            return self.values
        levels = torch.tensor(self.levels, dtype=torch.float64)
        if self.values is None:
            moved = torch.quantile(seen, levels)
        else:
            now = torch.tensor(self.values, dtype=torch.float64)
            below = (seen.unsqueeze(1) < now).double().mean(dim=0)
            moved = (now + self.rate * (levels - below)).sort().values
        self.values = moved.tolist()
        return self.values

    def at(self, level: float) -> float | None:
        """The quantile at a level, between levels by linear interpolation; None before the first batch.

        Raises:
            ValueError: when the level lies outside those that are tracked.
        """
        if not self.levels[0] <= level <= self.levels[-1]:
            raise ValueError(
                f"level {level} is not tracked: levels run from {self.levels[0]} to {self.levels[-1]}; add it to them"
            )
        if self.values is None:
            return None
        above = next(i for i, known in enumerate(self.levels) if known >= level)
        if self.levels[above] == level:
            return self.values[above]
        low, high = self.levels[above - 1], self.levels[above]
        part = (level - low) / (high - low)
        return (1 - part) * self.values[above - 1] + part * self.values[above]

    def state_dict(self) -> dict[str, Any]:
        """The quantiles so far."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.values = state["values"]
