"""The reward stage: score every trajectory by every reward; a failure is a recorded fault, never a silent zero."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from guerdon.errors import RecipeError, RewardError, nearest
from guerdon.fields import FIELDS
from guerdon.registry import Bound, Method, describe, missing_field
from guerdon.rewards.columns import Column, Fault, column_of, keep_details, spread
from guerdon.rewards.event_loop import AsyncCalls
from guerdon.rewards.forms import (
    Calls,
    Form,
    Reply,
    Score,
    batched,
    counted,
    failure,
    form_of,
    grouped,
    is_async,
    reward,
)
from guerdon.rewards.workers import WorkerPool, pack
from guerdon.rollouts import Fields, Rollouts
from guerdon.tasks.base import MISSING, Task, look_up

__all__ = [
    "Calls",
    "Fault",
    "Reward",
    "Score",
    "Scorer",
    "batched",
    "drop_faulted",
    "fault_counts",
    "grouped",
    "resolve_task_reward",
    "reward",
    "reward_stats",
    "score",
]
OnFault = Literal["drop", "floor", "stop"]
Waiting = Callable[[], Reply]

# Fields that belong to the batch, not to a sample.
_SHARED = frozenset({"step", "component_names", "component_weights"})


@dataclass(frozen=True)
class Reward:
    """A scoring function as a recipe lists it.

    Attributes:
        name: the component's name.
        method: the bound function; None for the component ``task`` that the environment already wrote.
        weight: multiplies the component when components are summed.
        watch: scored and shown, never optimised.
        on_fault: ``drop`` takes the sample out of its group, ``floor`` gives it ``floor``, ``stop`` ends the run.
        floor: the value of a faulted sample under ``floor``.
        calls: where and under which limits the function is called.
        when: the samples that are scored: keys of their metadata (``a.b`` for nested ones), each with the values that
            will do. All by default.

    Raises:
        RecipeError: when the function cannot be called so.
    """

    name: str
    method: Method | None
    options: Mapping[str, Any]
    weight: float = 1.0
    watch: bool = False
    on_fault: OnFault = "drop"
    floor: float = 0.0
    calls: Calls = field(default_factory=Calls)
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    # Kept by copies of the reward, so that evaluation works in the pool of training.
    _pools: dict[int, WorkerPool] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.method is None or not self.pooled:
            return
        target = self.method.target
        memory = next((name for name in ("state_dict", "stats") if hasattr(target, name)), None)
        if memory is not None:
            raise RecipeError(
                f"reward '{self.name}' has '{memory}', so it belongs to the trainer's process: several workers would "
                "each have their own; set workers: 0 without timeout and memory_mb"
            )
        if id(self.method) not in self._pools:
            target = getattr(target, "in_worker", target)
            by_path = ":" in self.method.name and target is self.method.target
            function = pack(self.method.name if by_path else target, self.options)
            self._pools[id(self.method)] = WorkerPool(function, self.calls)

    @functools.cached_property
    def bound(self) -> Bound:
        """The method with its options fixed; one object for the life of the reward, so a class keeps its memory."""
        assert self.method is not None
        return self.method.bind(self.options)

    @property
    def form(self) -> Form:
        """Whether one call takes a sample, a group or the batch."""
        return "sample" if self.method is None else form_of(self.method.target)

    @property
    def pooled(self) -> bool:
        """Whether the function works in processes of its own; a limit can only be kept there."""
        limited = self.calls.timeout is not None and not self.awaited
        return self.calls.workers > 0 or self.calls.memory_mb is not None or limited

    @property
    def awaited(self) -> bool:
        """Whether the function is async."""
        return self.method is not None and is_async(self.method.target)

    @functools.cached_property
    def caller(self) -> _InPlace | _Pooled | AsyncCalls:
        """What makes the calls."""
        if self.pooled:
            return _Pooled(self._pools[id(self.method)])
        if self.awaited:
            return AsyncCalls(self.bound.call, self.calls)
        return _InPlace(self.bound.call, self.calls)

    @functools.cached_property
    def told(self) -> dict[str, float]:
        """Numbers that the function gave beside its last results."""
        return {}

    def changed(self, options: Mapping[str, Any], weight: float) -> Reward:
        """The same reward with other options and another weight; what it remembers goes along if no option differs."""
        if options != self.options:
            return replace(self, options=options, weight=weight, _pools={})
        other = replace(self, weight=weight)
        if self.method is not None:
            other.__dict__.update(bound=self.bound, told=self.told)
        return other

    def rows(self, batch: Rollouts, *, part: bool = False) -> list[int]:
        """The samples that it scores.

        Args:
            batch: the trajectories.
            part: whether they are part of a batch only.

        Raises:
            RewardError: when no sample's metadata in a whole batch has a key that ``when`` names.
        """
        rows = list(range(len(batch)))
        known = [data or {} for data in batch.metadata or [{} for _ in rows]] if self.when else []
        for key, values in self.when.items():
            found = [look_up(data, key) for data in known]
            if not part and all(value is MISSING for value in found):
                seen = sorted({name for data in known for name in data})
                raise RewardError(
                    f"reward '{self.name}' is asked when '{key}' is one of {list(values)}, but no sample's metadata "
                    f"has '{key}'{nearest(key, seen)}; it has {', '.join(seen) or 'nothing'}"
                )
            rows = [row for row in rows if found[row] in values]
        return rows

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        for pool in self._pools.values():
            pool.close()


class _InPlace:
    """Calls in the trainer's process, made when their results are wanted, in the order of the batch."""

    def __init__(self, function: Callable[..., Any], calls: Calls) -> None:
        self._function, self._retries = function, calls.retries

    def submit(self, arguments: Mapping[str, Any]) -> Waiting:
        return lambda: self._attempts(arguments)

    def _attempts(self, arguments: Mapping[str, Any]) -> Reply:
        reply, tries = self._once(arguments), 1
        while reply.again and tries <= self._retries:
            reply, tries = self._once(arguments), tries + 1
        return counted(reply, tries)

    def _once(self, arguments: Mapping[str, Any]) -> Reply:
        try:
            return Reply(self._function(**arguments))
        except (Exception, SystemExit) as error:
            return failure(error)

    def cancel(self) -> None:
        """Nothing has begun."""


class _Pooled:
    """Calls in worker processes."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def submit(self, arguments: Mapping[str, Any]) -> Waiting:
        return self._pool.submit({name: _portable(value) for name, value in arguments.items()}).result

    def cancel(self) -> None:
        self._pool.close()


class Scorer:
    """Scores one batch, part of it while the rest is still being sampled.

    ``submit`` may begin rewards that are called per sample and work elsewhere (workers, async); ``collect`` makes all
    other calls, waits, and writes the components. Results depend on the batch alone.

    Args:
        rewards: what scores.
        step: the training step.
    """

    def __init__(self, rewards: Sequence[Reward], step: int = 0) -> None:
        self._rewards, self._step = rewards, step
        self._begun: dict[str, dict[int, Waiting]] = {spec.name: {} for spec in rewards}

    @property
    def eager(self) -> bool:
        """Whether there is any reward that ``submit`` could begin."""
        return any(map(_can_begin, self._rewards))

    def submit(self, rollouts: Rollouts, rows: Sequence[int]) -> None:
        """Begin to score trajectories that are complete.

        Args:
            rollouts: the complete trajectories.
            rows: for each of them, its row in the batch that ``collect`` will get.
        """
        for spec in self._rewards:
            if not _can_begin(spec):
                continue
            columns = _columns(spec, Fields(rollouts, step=self._step))
            for place in spec.rows(rollouts, part=True):
                self._begun[spec.name][rows[place]] = spec.caller.submit(_sample(columns, place))

    def collect(self, rollouts: Rollouts) -> tuple[Rollouts, list[Fault]]:
        """Write the raw component of every reward into ``rollouts.rewards`` (or ``.watch``) and report the faults.

        Raises:
            MissingField: when a reward asks for a field that the batch lacks.
            RewardError: on the first fault of a reward with ``on_fault="stop"``.
        """
        fields = Fields(rollouts, step=self._step)
        called = [spec for spec in self._rewards if spec.method is not None]
        try:
            begun = {spec.name: self._begin(spec, fields) for spec in called}
            columns: dict[str, Column] = {}
            # What works elsewhere goes on while the trainer's process makes its own calls.
            for spec in sorted(called, key=lambda spec: not isinstance(spec.caller, _InPlace)):
                replies = [(rows, wait()) for rows, wait in begun[spec.name]]
                columns[spec.name] = column_of(spec.name, spec.form, rollouts, replies)
        except BaseException:
            self.cancel()
            raise
        faults: list[Fault] = []
        played = rollouts.rewards.pop("task") if len(called) < len(self._rewards) else None
        for spec in self._rewards:
            destination = rollouts.watch if spec.watch else rollouts.rewards
            column = _of_environment(spec.name, played, rollouts.failure) if spec.method is None else columns[spec.name]
            values = _settled(spec, column, rollouts)
            faults += column.faults
            destination[spec.name] = values.to(rollouts.mask.device)
            spec.told.update(column.stats)
        keep_details(rollouts, {name: column.details for name, column in columns.items()})
        return rollouts, faults

    def cancel(self) -> None:
        """Forget what was begun."""
        for spec in self._rewards:
            if spec.method is not None:
                spec.caller.cancel()

    def _begin(self, spec: Reward, fields: Fields) -> list[tuple[list[int], Waiting]]:
        columns, batch = _columns(spec, fields), fields.rollouts
        asked = spec.rows(batch)
        if spec.form == "sample":
            early = self._begun[spec.name]
            return [([row], early[row] if row in early else spec.caller.submit(_sample(columns, row))) for row in asked]
        if spec.form == "batch":
            whole = len(asked) == len(batch)
            return [(asked, spec.caller.submit(columns if whole else _picked(columns, asked)))] if asked else []
        members: dict[int, list[int]] = {}
        keys = fields["group"].tolist()
        for row in asked:
            members.setdefault(keys[row], []).append(row)
        return [(rows, spec.caller.submit(_picked(columns, rows))) for rows in members.values()]


def _of_environment(name: str, played: Tensor | None, failures: Sequence[Any] | None) -> Column:
    """The component that environments wrote; those that broke are faults."""
    assert played is not None
    column = Column(played.clone())
    for row, broken in enumerate(failures or ()):
        if broken is not None:
            column.faults.append(Fault(name, row, *broken))
            column.values[row] = math.nan
    return column


def _can_begin(spec: Reward) -> bool:
    """Whether a reward can be computed elsewhere for one trajectory, before it is known how long the others get."""
    if spec.method is None or spec.form != "sample" or isinstance(spec.caller, _InPlace):
        return False
    read = (*spec.method.requires, *spec.method.optional)
    return not any(FIELDS[name].shape.startswith("(N,T") for name in read)


def score(rollouts: Rollouts, rewards: Sequence[Reward], step: int = 0) -> tuple[Rollouts, list[Fault]]:
    """Write the raw component of every reward into ``rollouts.rewards`` (or ``.watch``) and report the faults.

    A sample without a usable number is NaN in its component, unless the reward's ``on_fault`` says otherwise.

    Returns:
        the same rollouts, and the faults, whose ``row`` counts in it.

    Raises:
        MissingField: when a reward asks for a field that the batch lacks.
        RewardError: on the first fault of a reward with ``on_fault="stop"``.
    """
    return Scorer(rewards, step).collect(rollouts)


def drop_faulted(rollouts: Rollouts, rewards: Sequence[Reward], faults: Iterable[Fault]) -> Rollouts:
    """Take the samples whose optimised reward faulted under ``drop`` out of the batch; groups stay keyed."""
    dropping = {spec.name for spec in rewards if spec.on_fault == "drop" and not spec.watch}
    rows = sorted({f.row for f in faults if f.reward in dropping})
    if not rows:
        return rollouts
    keep = torch.ones(len(rollouts), dtype=torch.bool)
    keep[rows] = False
    return rollouts[keep]


def fault_counts(faults: Sequence[Fault]) -> dict[str, float]:
    """Metrics of a step's faults: ``faults``, and ``faults/KIND`` of each kind that occurred."""
    kinds = Counter(fault.kind for fault in faults)
    return {"faults": float(len(faults))} | {f"faults/{kind}": float(kinds[kind]) for kind in sorted(kinds)}


def reward_stats(rewards: Sequence[Reward]) -> dict[str, float]:
    """What rewards tell of themselves beside their last results or by a method ``stats()``, as ``reward/NAME/KEY``."""
    out: dict[str, float] = {}
    for spec in rewards:
        if spec.method is None:
            continue
        told = dict(spec.told)
        if not spec.pooled and hasattr(spec.bound.call, "stats"):
            told |= spec.bound.call.stats()
        out |= {f"{'watch' if spec.watch else 'reward'}/{spec.name}/{key}": float(x) for key, x in told.items()}
    return out


def _settled(spec: Reward, column: Column, rollouts: Rollouts) -> Tensor:
    """The values of a component after its faults have been dealt with as the reward says."""
    values = column.values
    if column.faults and spec.on_fault == "stop":
        raise RewardError(f"reward {column.faults[0]}; fix the reward, or set on_fault to 'drop' or 'floor'")
    if column.faults and spec.on_fault == "floor":
        rows = [fault.row for fault in column.faults]
        floor = torch.full((len(rows),), spec.floor, dtype=values.dtype)
        values[rows] = spread(floor, tuple(values.shape[1:]), rollouts[rows])
    return values


def _columns(spec: Reward, fields: Fields) -> dict[str, Any]:
    """The fields that a reward names, as far as the batch has them."""
    assert spec.method is not None
    missing = [name for name in spec.method.requires if name not in fields]
    if missing:
        raise missing_field(spec.method, missing[0], "this batch")
    named = (*spec.method.requires, *spec.method.optional)
    columns = {name: fields[name] for name in named if name in fields}
    if spec.form != "sample":
        return columns
    # A number per sample is a plain number, here as in a worker.
    return {name: x.tolist() if isinstance(x, Tensor) and x.ndim == 1 else x for name, x in columns.items()}


def _sample(columns: Mapping[str, Any], row: int) -> dict[str, Any]:
    return {name: column if name in _SHARED else column[row] for name, column in columns.items()}


def _picked(columns: Mapping[str, Any], rows: list[int]) -> dict[str, Any]:
    """Rows of each column."""
    out = {}
    for name, column in columns.items():
        whole = name in _SHARED
        tensors = isinstance(column, Tensor | TensorDictBase)
        out[name] = column if whole else column[rows] if tensors else [column[row] for row in rows]
    return out


def _portable(value: Any) -> Any:
    """A value as it crosses to another process: tensors on the CPU, without the batch they are a view of."""
    return value.detach().cpu().clone() if isinstance(value, Tensor | TensorDictBase) else value


def resolve_task_reward(task: Task) -> Method | None:
    """The method behind the reward named ``task``: the task's scorer, or None if its environment scores.

    Raises:
        RecipeError: when the task neither scores nor has an environment that does.
    """
    if task.scorer is not None:
        return describe("reward", task.scorer, "task")
    if "reward" in task.supplies:
        return None
    raise RecipeError(f"task '{type(task).__name__}' has no scorer of its own; name a reward under 'rewards'")
