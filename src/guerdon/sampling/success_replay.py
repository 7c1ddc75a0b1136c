"""What a policy once did right, shown to it again where it now fails throughout."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Annotated, Any, Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import first_rows, grouped
from guerdon.registry import register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source
from guerdon.seeding import torch_generator
from guerdon.tasks.base import Starts

Item = TypeVar("Item")


class SuccessBuffer(Generic[Item]):
    """The last successes of each problem, first in, first out.

    Args:
        per_task: how many are kept of each.
    """

    def __init__(self, *, per_task: int = 8) -> None:
        self.per_task = per_task
        self.known: dict[int, deque[Item]] = {}

    def add(self, task_id: int, item: Item) -> None:
        """Take in a success."""
        self.known.setdefault(task_id, deque(maxlen=self.per_task)).append(item)

    def draw(self, task_id: int, generator: torch.Generator) -> Item | None:
        """One at random; None if the problem has none."""
        own = self.known.get(task_id)
        return own[int(torch.randint(len(own), (), generator=generator))] if own else None


def all_failed(reward: Tensor, group: Tensor, *, spread: float = 0.05, mean: float = 0.2) -> Tensor:
    """(N,) whether a trajectory's group says nothing because all of it failed: std < spread and mean < mean.

    Args:
        reward: (N,) outcomes; NaN counts neither way, and a group of nothing else has not failed.
        group: (N,) key of the trajectories that share a start.
        spread, mean: the two bounds. A group that succeeds throughout is above the second.
    """
    stats = grouped(reward, group, reward.isfinite())
    failed = (stats.std() < spread) & (stats.mean() < mean) & (stats.count() > 0)
    return grouped(failed.to(stats.values), group).extreme(largest=True) > 0


def replace_first(rollouts: Rollouts, failed: Tensor, stored: dict[int, Rollouts]) -> Rollouts:
    """Put a stored success in the place of the first trajectory of groups that failed.

    Args:
        rollouts: N trajectories of T actions.
        failed: (N,) see ``all_failed``.
        stored: by group, one trajectory of T actions with the fields of ``rollouts``, as it was sampled. What
            ``old_logp`` it has stays, and its actions are marked ``external``.

    Returns:
        The batch with those rows replaced, in the same order; the same batch if there is none.
    """
    keys, rows = first_rows(rollouts.group)
    places = [
        (int(row), stored[int(key)]) for key, row in zip(keys, rows, strict=True) if int(key) in stored and failed[row]
    ]
    if not places:
        return rollouts
    fresh = rollouts.clone(recurse=False)
    if fresh.external is None:
        fresh.external = torch.zeros_like(fresh.mask)
    shown = []
    for row, success in places:
        again = success.clone(recurse=False)
        again.group, again.external = rollouts.group[row : row + 1], again.mask.clone()
        shown.append(again)
    order = torch.arange(len(rollouts))
    order[[row for row, _ in places]] = len(rollouts) + torch.arange(len(places))
    both: Rollouts = torch.cat([fresh, *shown])  # type: ignore[arg-type, assignment]
    return both[order]


@register("source", "success_replay", paper="Lu et al. 2025, arXiv 2505.16282")
class SuccessReplay(Source):
    """One earlier success of the policy's own for every prompt of which all rollouts have failed.

    It joins the group, so that there is something to compare with, and keeps the log-probabilities that it was sampled
    with; objective ``replay_clip`` reads it. New successes enter the buffer afterwards. (The paper replaces the group's
    first rollout, as ``replace_first`` does. A source of a recipe adds rows, so here the group has one more.)

    Args:
        per_task: successes kept of each problem, the newest.
        success: raw weighted reward above which a trajectory is kept.
        spread, mean: see ``all_failed``.

    Source: Lu et al. 2025, arXiv 2505.16282.
    """

    when = "scoring"
    external = True

    def __init__(
        self,
        *,
        per_task: Annotated[int, Field(ge=1)] = 8,
        success: float = 0.1,
        spread: Annotated[float, Field(gt=0)] = 0.05,
        mean: float = 0.2,
    ) -> None:
        self.success, self.spread, self.mean = success, spread, mean
        self.buffer: SuccessBuffer[tuple[list[int], list[float]]] = SuccessBuffer(per_task=per_task)

    def draw(self, draw: Draw) -> Rollouts | None:
        """A success for each group that failed and has one, once per step."""
        assert draw.starts is not None
        assert draw.rollouts is not None
        assert draw.reward is not None
        if draw.round:
            return None
        batch, generator = draw.rollouts, torch_generator(draw.seed, "success_replay")
        problems = draw.starts.of_group
        failed = all_failed(draw.reward, batch.group.cpu(), spread=self.spread, mean=self.mean)
        found = {
            key: self.buffer.draw(problems[key].task_id, generator)
            for key in batch.group.cpu()[failed].unique().tolist()
        }
        shown = {key: item for key, item in found.items() if item is not None}
        self._keep(batch, (draw.reward > self.success).nonzero().flatten().tolist())
        if not shown:
            return None
        starts = Starts([problems[key] for key in shown], torch.tensor(list(shown)), draw.step)
        actions, logp = [item[0] for item in shown.values()], [item[1] for item in shown.values()]
        return draw.policy.replay(starts, actions, draw.sampling, logp=logp)

    def state_dict(self) -> dict[str, Any]:
        """The successes of each problem, oldest first."""
        return {"known": [[task, [list(item) for item in items]] for task, items in self.buffer.known.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.buffer.known = {}
        for task, items in state["known"]:
            for actions, logp in items:
                self.buffer.add(task, (actions, logp))

    def _keep(self, batch: Rollouts, rows: Iterable[int]) -> None:
        """Store what was done in some rows, and how likely that was."""
        assert batch.tokens is not None
        for row in rows:
            acted = batch.mask[row]
            item = batch.tokens[row][acted].tolist(), batch.old_logp[row][acted].tolist()
            self.buffer.add(int(batch.task_id[row]), item)
