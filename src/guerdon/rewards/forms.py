"""What a reward function looks like and may return; imports nothing heavy, so that a worker starts at once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

FaultKind = Literal["exception", "not_finite", "wrong_type", "wrong_length", "timeout", "killed", "memory"]
Form = Literal["sample", "group", "batch"]
DEFAULT_TIMEOUT = 300.0  # seconds of a call that can be ended and for which nobody set a limit


class Score(NamedTuple):
    """What a reward may return instead of a number; a mapping with the same keys will do as well.

    Attributes:
        value: the number.
        valid: whether the reward applies to this sample; where it does not, the component is NaN.
        detail: anything worth reading later; kept beside the sample as text or JSON.
    """

    value: Any
    valid: bool = True
    detail: Any = None


@dataclass(frozen=True)
class Unusable:
    """A result of a worker that is nothing a reward may return, as it looked there."""

    seen: str


class Reply(NamedTuple):
    """What came of one call of a reward: its result, or the kind of fault and what happened.

    Attributes:
        again: whether another try may go better.
    """

    result: Any = None
    kind: FaultKind | None = None
    message: str = ""
    again: bool = False


@dataclass(frozen=True)
class Calls:
    """How the calls of a reward are made.

    Attributes:
        workers: processes that make them; 0 for the trainer's own.
        timeout: seconds a call may take.
        memory_mb: megabytes a worker may take beyond what it holds when its first call begins.
        retries: further tries of a call that timed out, died or ran out of memory, or whose connection failed.
        concurrency: calls of an async function at a time, in the trainer's process.
    """

    workers: int = 0
    timeout: float | None = None
    memory_mb: int | None = None
    retries: int = 0
    concurrency: int = 32


def batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a reward that takes the whole batch: its fields arrive as tensors and lists, and it returns N numbers.

    Without the mark a reward is called once per sample, with that sample's ``text``, ``answer``, ``metadata``, ...
    """
    function.batched = True  # type: ignore[attr-defined]
    return function


def grouped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a reward that takes one group at a time, in the order of the batch, and returns a number for each member.

    Its fields arrive as tensors and lists of the group's members, as those of the batch do under ``batched``.
    """
    function.grouped = True  # type: ignore[attr-defined]
    return function


def reward(name: str | None = None, *, paper: str = "", aliases: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Register a reward function; shorthand for ``register("reward", ...)``."""
    from guerdon.registry import register

    return register("reward", name, paper=paper, aliases=aliases)


def form_of(function: Callable[..., Any]) -> Form:
    """What one call of a reward takes, by its marks, if need be under options fixed by ``functools.partial``."""
    function = _bare(function)
    if getattr(function, "batched", False):
        return "batch"
    return "group" if getattr(function, "grouped", False) else "sample"


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call of the function, or of an object of the class, is to be awaited."""
    function = _bare(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def failure(error: BaseException) -> Reply:
    """The fault that an exception of a reward function amounts to."""
    message = f"{type(error).__name__}: {error}"[:500]
    if isinstance(error, MemoryError):
        return Reply(kind="memory", message=message, again=True)
    if isinstance(error, TimeoutError):
        return Reply(kind="timeout", message=message, again=True)
    return Reply(kind="exception", message=message, again=isinstance(error, ConnectionError))


def counted(reply: Reply, tries: int) -> Reply:
    """A reply whose message tells of more tries than one."""
    return reply._replace(message=f"{reply.message} ({tries} tries)") if reply.kind and tries > 1 else reply


def _bare(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function
