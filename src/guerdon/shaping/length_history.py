"""Rewards of length by how short the right answers to the same problem have been so far."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import first_rows, grouped
from guerdon.registry import register

Form = Literal["cosine", "linear"]
Memory = Literal["min", "mean", "quantile"]


def relative_length_reward(
    right: Tensor, length: Tensor, usual: Tensor, *, form: Form = "cosine", floor: float = -0.7, tolerance: float = 0.1
) -> Tensor:
    """Reward of a length L by the usual length h of right answers to the problem: above 0 for right ones below it.

    cosine:  x = cos(pi/2 min(L / h, 2)); right: max(floor, x), wrong: min(0, x)
    linear:  right: 1 - L / h below h, 0 up to (1 + tolerance) h, then max(floor, -(L - (1 + tolerance) h) / h);
             wrong: 0 up to (1 + tolerance) h, then max(-1, the same)

    Args:
        right: (N,) bool.
        length: (N,) number L of actions.
        usual: (N,) h, in actions; NaN where there is none yet.
        form: which of the two.
        floor: least reward of a right answer. Above -1 it keeps long right answers above all wrong ones.
        tolerance: of the linear form.

    Returns:
        (N,) in [-1,1]; 0 where there is no usual length.

    Source: Huang et al. 2025, arXiv 2505.11225.
    """
    known = usual.isfinite() & (usual > 0)
    ratio = length / torch.where(known, usual, 1.0)
    if form == "cosine":
        value = torch.cos(ratio.clamp(max=2.0) * (math.pi / 2))
        paid = torch.where(right, value.clamp(min=floor), value.clamp(max=0.0))
    else:
        beyond = (ratio - 1 - tolerance).clamp(min=0.0)
        for_right = torch.where(ratio < 1, 1 - ratio, torch.clamp(-beyond, min=floor))
        paid = torch.where(right, for_right, torch.clamp(-beyond, min=-1.0))
    return torch.where(known, paid, 0.0)


@register("shaping", "hapo", paper="Huang et al. 2025, arXiv 2505.11225")
class HapoReward:
    """Outcome plus a reward for being right in fewer actions than ever before on the same problem.

    r_i = r_i + weight l_i,  l: ``relative_length_reward`` with h, the least length of a right answer so far

    A problem without a right answer has no h, and its answers have no reward of length. h changes once all rewards of a
    batch are known. At weight 1 every right answer, with 0.3 at least, stays above every wrong one, with 0 at most.

    One lucky short guess sets the least length for good: where answers can be guessed, use ``memory: mean`` or
    ``quantile``. (The optional penalty of repetition is a reward of its own: list one under ``rewards``.)

    Args:
        weight: of the reward of length.
        form, floor, tolerance: see ``relative_length_reward``.
        memory: what h is: the least length (``min``), the mean over steps of the mean length of a step's right answers
            (``mean``; in the release a problem that stands in a batch several times counts as often), or a quantile of
            the last ``keep`` lengths.
        quantile: which one.
        keep: lengths kept of each problem for it.
        threshold: least outcome of a right answer.

    Source: Huang et al. 2025, arXiv 2505.11225. (The quantile is ours.)
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        form: Form = "cosine",
        floor: Annotated[float, Field(ge=-1, le=0)] = -0.7,
        tolerance: Annotated[float, Field(ge=0)] = 0.1,
        memory: Memory = "min",
        quantile: Annotated[float, Field(ge=0, le=1)] = 0.25,
        keep: Annotated[int, Field(ge=1)] = 64,
        threshold: float = 0.5,
    ) -> None:
        self.weight, self.threshold = weight, threshold
        self.options: dict[str, Any] = {"form": form, "floor": floor, "tolerance": tolerance}
        self.memory, self.quantile, self.keep = memory, quantile, keep
        # By problem: [h] (min), [sum, count] (mean), or the last lengths (quantile).
        self.known: dict[int, list[float]] = {}

    def __call__(self, reward: Tensor, length: Tensor, task_id: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Reward a batch by the history before it, then take it in.

        Args:
            reward: (N,) outcome, of an earlier shaping method (``weighted_sum``).
            length: (N,) number of actions.
            task_id: (N,) stable identity of the problem.

        Returns:
            (N,) reward; the share of trajectories whose problem has a ``history``, and the mean ``ratio`` of the length
            of right ones to it.
        """
        right = reward >= self.threshold
        usual = self.usual(task_id).to(reward)
        shaped = reward + self.weight * relative_length_reward(right, length, usual, **self.options).to(reward)
        known = usual.isfinite()
        ratio = (length / usual)[known & right]
        self._take_in(right & (length > 0), length, task_id)
        stats = {"history": float(known.double().mean())} if len(reward) else {}
        return shaped, stats | ({"ratio": float(ratio.double().mean())} if len(ratio) else {})

    def usual(self, task_id: Tensor) -> Tensor:
        """(N,) h of each problem, NaN where there is none."""
        ids, index = torch.unique(task_id, return_inverse=True)
        found = torch.tensor([self._usual_of(int(i)) for i in ids.tolist()], dtype=torch.float64, device=task_id.device)
        return found[index]

    def _usual_of(self, problem: int) -> float:
        seen = self.known.get(problem)
        if not seen:
            return math.nan
        if self.memory == "mean":
            return seen[0] / seen[1]
        if self.memory == "quantile":
            return float(torch.tensor(seen, dtype=torch.float64).quantile(self.quantile))
        return seen[0]

    def _take_in(self, right: Tensor, length: Tensor, task_id: Tensor) -> None:
        ids, rows = first_rows(task_id[right])
        lengths = length[right].double()
        stats = grouped(lengths, task_id[right])
        step = {"min": stats.extreme(largest=False), "mean": stats.mean(), "quantile": lengths}[self.memory]
        if self.memory == "quantile":
            for problem, value in zip(task_id[right].tolist(), lengths.tolist(), strict=True):
                self.known[problem] = list(deque([*self.known.get(problem, []), value], maxlen=self.keep))
            return
        news = {problem: [value, 1.0] for problem, value in zip(ids.tolist(), step[rows].tolist(), strict=True)}
        self._merge(news if self.memory == "mean" else {problem: seen[:1] for problem, seen in news.items()})

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what another worker's ``state_dict`` knows: the smaller of two least lengths, the sum of counts."""
        self._merge({int(problem): list(seen) for problem, seen in state["known"].items()})

    def _merge(self, news: Mapping[int, list[float]]) -> None:
        for problem, seen in news.items():
            old = self.known.get(problem)
            if old is None:
                self.known[problem] = list(seen)
            elif self.memory == "min":
                self.known[problem] = [min(old[0], seen[0])]
            elif self.memory == "mean":
                self.known[problem] = [old[0] + seen[0], old[1] + seen[1]]
            else:
                self.known[problem] = [*old, *seen][-self.keep :]

    def state_dict(self) -> dict[str, Any]:
        """What is known of each problem."""
        return {"known": {str(problem): seen for problem, seen in self.known.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.known = {int(problem): list(seen) for problem, seen in state["known"].items()}
