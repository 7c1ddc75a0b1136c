"""The reward stage: score every trajectory by every reward; a failure is a recorded fault, never a silent zero."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import Bound, Method, describe, missing_field, register
from guerdon.rollouts import Fields, Rollouts, at_last_action
from guerdon.tasks.base import Task

OnFault = Literal["drop", "floor", "stop"]
FaultKind = Literal["exception", "nan", "infinite", "wrong type", "wrong shape"]

# Fields that belong to the batch, not to a sample.
_SHARED = frozenset({"step", "component_names", "component_weights"})


class Score(NamedTuple):
    """What a reward may return instead of a number.

    Attributes:
        value: the number.
        valid: whether the reward applies to this sample; where it does not, the component is NaN.
        detail: anything worth reading later.
    """

    value: float
    valid: bool = True
    detail: str = ""


@dataclass(frozen=True)
class Fault:
    """One call of one reward on one sample that gave no usable number."""

    reward: str
    row: int
    kind: FaultKind
    message: str

    def __str__(self) -> str:
        return f"{self.reward}: {self.kind} on sample {self.row}: {self.message}"


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
    """

    name: str
    method: Method | None
    options: Mapping[str, Any]
    weight: float = 1.0
    watch: bool = False
    on_fault: OnFault = "drop"
    floor: float = 0.0

    @functools.cached_property
    def bound(self) -> Bound:
        """The method with its options fixed; one object for the life of the reward, so a class keeps its memory."""
        assert self.method is not None
        return self.method.bind(self.options)


def batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a reward that takes the whole batch: its fields arrive as tensors and lists, and it returns N numbers.

    Without the mark a reward is called once per sample, with that sample's ``text``, ``answer``, ``metadata``, ...
    """
    function.batched = True  # type: ignore[attr-defined]
    return function


def reward(name: str | None = None, *, paper: str = "", aliases: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Register a reward function; shorthand for ``register("reward", ...)``."""
    return register("reward", name, paper=paper, aliases=aliases)


def score(rollouts: Rollouts, rewards: Sequence[Reward], step: int = 0) -> tuple[Rollouts, list[Fault]]:
    """Write the raw component of every reward into ``rollouts.rewards`` (or ``.watch``) and report the faults.

    A sample without a usable number is NaN in its component, unless the reward's ``on_fault`` says otherwise.

    Returns:
        the same rollouts, and the faults, whose ``row`` counts in it.

    Raises:
        MissingField: when a reward asks for a field that the batch lacks.
        RewardError: on the first fault of a reward with ``on_fault="stop"``.
    """
    fields = Fields(rollouts, step=step)
    faults: list[Fault] = []
    for spec in rewards:
        destination = rollouts.watch if spec.watch else rollouts.rewards
        if spec.method is None:
            if spec.watch:
                destination[spec.name] = rollouts.rewards.pop(spec.name)
            continue
        values, found = _call(spec, fields, len(rollouts))
        if found and spec.on_fault == "stop":
            raise RewardError(f"reward {found[0]}; fix the reward, or set on_fault to 'drop' or 'floor'")
        if found and spec.on_fault == "floor":
            rows = [f.row for f in found]
            floor = torch.full((len(rows),), spec.floor, dtype=values.dtype)
            values[rows] = floor if values.ndim == 1 else at_last_action(floor, rollouts.mask[rows].cpu())
        faults += found
        destination[spec.name] = values.to(rollouts.mask.device)
    return rollouts, faults


def drop_faulted(rollouts: Rollouts, rewards: Sequence[Reward], faults: Iterable[Fault]) -> Rollouts:
    """Take the samples whose optimised reward faulted under ``drop`` out of the batch; groups stay keyed."""
    dropping = {spec.name for spec in rewards if spec.on_fault == "drop" and not spec.watch}
    rows = sorted({f.row for f in faults if f.reward in dropping})
    if not rows:
        return rollouts
    keep = torch.ones(len(rollouts), dtype=torch.bool)
    keep[rows] = False
    return rollouts[keep]


def _call(spec: Reward, fields: Fields, n: int) -> tuple[Tensor, list[Fault]]:
    """Call one reward on the batch; (N,) or (N,T) values with NaN at faults and where it does not apply."""
    method, function = spec.bound.method, spec.bound.call
    missing = [name for name in method.requires if name not in fields]
    if missing:
        raise missing_field(method, missing[0], "this batch")
    if _is_batched(function):
        return _call_batched(spec, fields, n)
    columns = {name: fields[name] for name in (*method.requires, *method.optional) if name in fields}
    results: list[Any] = []
    faults: list[Fault] = []
    for row in range(n):
        sample = {name: column if name in _SHARED else column[row] for name, column in columns.items()}
        try:
            results.append(function(**sample))
        except Exception as error:
            results.append(Score(math.nan, valid=False))
            faults.append(Fault(spec.name, row, "exception", f"{type(error).__name__}: {error}"))
    values, unusable = _numbers(spec.name, results)
    return values, sorted(faults + unusable, key=lambda fault: fault.row)


def _call_batched(spec: Reward, fields: Fields, n: int) -> tuple[Tensor, list[Fault]]:
    """Call a reward once; what spoils the whole result is a fault of every sample."""

    def all_faulted(kind: FaultKind, message: str) -> tuple[Tensor, list[Fault]]:
        return torch.full((n,), math.nan), [Fault(spec.name, row, kind, message) for row in range(n)]

    try:
        result = spec.bound(fields).fields["value"]
    except Exception as error:
        return all_faulted("exception", f"{type(error).__name__}: {error}")
    if isinstance(result, list | tuple):
        if len(result) != n:
            return all_faulted("wrong shape", f"got {len(result)} numbers, want {n}")
        return _numbers(spec.name, result)
    if isinstance(result, np.ndarray) and result.dtype.kind in "biuf":
        result = torch.from_numpy(result)
    if not isinstance(result, Tensor) or result.is_complex():
        return all_faulted("wrong type", f"got {type(result).__name__} {result!r:.60}, want {n} real numbers")
    mask = fields.rollouts.mask.cpu()
    if result.shape not in ((n,), mask.shape):
        return all_faulted("wrong shape", f"got shape {tuple(result.shape)}, want ({n},) or {tuple(mask.shape)}")
    values = result.detach().to("cpu", torch.get_default_dtype(), copy=True)
    if values.ndim == 2:
        values = values.masked_fill(~mask, 0.0)
    bad = ~torch.isfinite(values).reshape(n, -1).all(dim=1)
    faults = []
    for row in bad.nonzero().flatten().tolist():
        kind = "nan" if torch.isnan(values[row]).any() else "infinite"
        faults.append(Fault(spec.name, row, kind, "the reward returned a value that is not finite"))
    values[bad] = math.nan
    return values, faults


def _is_batched(function: Callable[..., Any]) -> bool:
    """Whether a reward carries the mark of ``batched``, if need be under options fixed by ``functools.partial``."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "batched", False)


def _numbers(name: str, results: Sequence[Any]) -> tuple[Tensor, list[Fault]]:
    """One number per result; NaN where it does not apply, and where it is unusable, which is a fault."""
    values = torch.full((len(results),), math.nan)
    faults: list[Fault] = []
    for row, result in enumerate(results):
        score = result if isinstance(result, Score) else Score(result)
        if not score.valid:
            continue
        value = score.value
        if isinstance(value, Tensor | np.ndarray):
            if math.prod(value.shape) != 1:
                faults.append(Fault(name, row, "wrong shape", f"got shape {tuple(value.shape)}, want one number"))
                continue
            value = value.item()
        try:
            number = None if isinstance(value, str | bytes) else float(value)
        except Exception:
            number = None
        if number is None:
            faults.append(Fault(name, row, "wrong type", f"got {type(value).__name__} {value!r:.60}, want a number"))
        elif math.isnan(number):
            faults.append(Fault(name, row, "nan", "the reward returned NaN"))
        elif abs(number) > torch.finfo(values.dtype).max:
            faults.append(Fault(name, row, "infinite", f"the reward returned {number:g}"))
        else:
            values[row] = number
    return values, faults


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
