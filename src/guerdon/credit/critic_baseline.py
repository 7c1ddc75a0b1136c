"""Credit against a critic's expectation, without looking ahead step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from guerdon.credit import grouping
from guerdon.credit.grouping import per_action
from guerdon.credit.step import GAE
from guerdon.registry import register


@dataclass
class RunningMoments:
    """Mean and variance of all numbers seen, batch by batch.

    Args:
        mean, variance, count: the memory; it begins as a ten-thousandth of a number with mean 0 and variance 1.
    """

    mean: float = 0.0
    variance: float = 1.0
    count: float = 1e-4

    def add(self, x: Tensor) -> None:
        """Count the numbers of a batch."""
        new = x.numel()
        if new == 0:
            return
        total, shift = self.count + new, float(x.mean()) - self.mean
        spread = float(x.var(correction=0))
        squares = self.variance * self.count + spread * new + shift**2 * self.count * new / total
        self.mean, self.variance, self.count = self.mean + shift * new / total, squares / total, total

    def normalise(self, x: Tensor, eps: float = 1e-8) -> Tensor:
        """(x - mean) / (std + eps)."""
        return (x - self.mean) / (math.sqrt(self.variance) + eps)


@register("credit", "critic_baseline", paper="Maity 2026, arXiv 2602.04651")
class CriticBaseline:
    """Outcome on a running scale, minus what the critic expected before each action, whitened over the batch.

    r' = (r - mean) / (std + eps) over all rewards so far;  A_{i,t} = whiten(r'_i - V_{i,t});  returns_{i,t} = r'_i

    This is GAE with gamma = lam = 1 on normalised outcomes. The release reads one value per trajectory, after its last
    token: such a value knows the answer, so the more it learns the less credit it leaves. Here the critic is asked
    before each action, as a baseline must be.

    Args:
        eps: added to both standard deviations.

    Source: Maity 2026, arXiv 2602.04651.
    """

    def __init__(self, *, eps: float = 1e-8) -> None:
        self.eps, self.moments = eps, RunningMoments()

    def __call__(self, reward: Tensor, values: Tensor, mask: Tensor) -> tuple[GAE, dict[str, float]]:
        """Credit of each action and the critic's target.

        Args:
            reward: (N,) outcome of each trajectory.
            values: (N,T) critic's value of the state before each action.
            mask: (N,T) true on actions; nothing off the mask is read.

        Returns:
            The advantage and the returns, (N,T) each and 0 off the mask; the ``mean`` and ``std`` of all rewards.
        """
        mask = mask.bool()
        self.moments.add(reward.detach())
        returns = per_action(self.moments.normalise(reward, self.eps), mask)
        surprise = (returns - values.detach()).masked_fill(~mask, 0.0)
        advantage = grouping.whiten(surprise, None, mask, eps=self.eps)
        return GAE(advantage, returns), {"mean": self.moments.mean, "std": math.sqrt(self.moments.variance)}

    def state_dict(self) -> dict[str, Any]:
        """The moments of all rewards so far."""
        return vars(self.moments).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.moments = RunningMoments(**state)
