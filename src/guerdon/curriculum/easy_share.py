"""How many solved problems a batch should hold beside those that still teach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from guerdon.credit.grouping import first_rows, group_mean
from guerdon.seeding import torch_generator


class EasyShare:
    """The share of a batch that is left to problems of which all answers are right, led by how much of these is needed.

    kappa <- clip(kappa + gain (nu_t - nu_{t-1}), 0, most)
    admitted = floor(kappa M / (1 - kappa)),  M: problems with right and wrong answers

    nu is the share of their reasoning that right answers need. Solved problems teach nothing but brevity; while there
    is little to cut off (nu rises) more of them are let in. Problems without a right answer never are.

    Args:
        gain: change of kappa per change of nu.
        most: largest kappa, below 1. (Unbounded it can leave [0,1), where the number admitted has no meaning.)
        kappa: at the start.

    Raises:
        ValueError: when most is not in [0,1), or kappa not in [0,most].

    Source: Jiang et al. 2025, arXiv 2509.25827. (The bounds are ours.)
    """

    def __init__(self, *, gain: float = 0.2, most: float = 0.9, kappa: float = 0.0) -> None:
        if not 0 <= kappa <= most < 1:
            raise ValueError(f"kappa is {kappa} and most {most}; wanted 0 <= kappa <= most < 1")
        self.gain, self.most, self.kappa = gain, most, kappa
        self.needed: float | None = None

    def update(self, needed: float) -> float:
        """Take in nu of a batch and return kappa; a batch without right answers (nan) changes nothing."""
        if math.isnan(needed):
            return self.kappa
        if self.needed is not None:
            self.kappa = min(max(self.kappa + self.gain * (needed - self.needed), 0.0), self.most)
        self.needed = needed
        return self.kappa

    def admitted(self, mixed: int) -> int:
        """Solved problems to admit beside so many with right and wrong answers."""
        return math.floor(self.kappa * mixed / (1 - self.kappa) + 1e-9)

    def choose(self, right: Tensor, group: Tensor, seed: int) -> Tensor:
        """Choose the groups of a batch.

        Args:
            right: (N,) whether an answer is right.
            group: (N,) key of the trajectories that share a problem.
            seed: of the draw among solved ones.

        Returns:
            (N,) bool: groups with right and wrong answers, and as many solved ones as are admitted.
        """
        if not len(group):
            return torch.zeros_like(group, dtype=torch.bool)
        keys, rows = first_rows(group)
        accuracy = group_mean(right.double(), group)[rows]
        mixed, solved = (accuracy > 0) & (accuracy < 1), (accuracy == 1).nonzero().flatten()
        order = torch.randperm(len(solved), generator=torch_generator(seed, "easy share")).to(solved.device)
        taken = solved[order[: self.admitted(int(mixed.sum()))]]
        return torch.isin(group, torch.cat([keys[mixed], keys[taken]]))

    def state_dict(self) -> dict[str, Any]:
        """kappa and the last nu."""
        return {"kappa": self.kappa, "needed": self.needed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.kappa, self.needed = state["kappa"], state["needed"]
