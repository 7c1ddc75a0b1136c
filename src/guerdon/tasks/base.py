"""Where problems come from: the protocol of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

Kind = Literal["language", "flow", "control"]
MISSING = object()


def look_up(data: Any, path: str) -> Any:
    """What metadata hold under ``a.b.c``, or ``MISSING``."""
    for key in path.split("."):
        if not isinstance(data, Mapping) or key not in data:
            return MISSING
        data = data[key]
    return data


@dataclass(frozen=True)
class Problem:
    """One start: a prompt, a condition or an environment seed, with what is known about it.

    Attributes:
        task_id: identity that is stable across epochs and runs.
        prompt: what a language policy is asked; a caption of the start for other kinds.
        answer: the reference answer, or None.
        start: the condition of a flow policy (class label) or the reset seed of an environment.
        metadata: whatever the task's scorer wants to see again.
        demonstration: what a warm start imitates instead of the answer: in turn what a language policy writes, and
            what a tool says, which is only read; the last is the policy's.
        episode: the same for a task of several turns: in turn an action and what the environment says to it; the last
            is an action.
    """

    task_id: int
    prompt: str = ""
    answer: Any = None
    start: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    demonstration: tuple[str, ...] = ()
    episode: tuple[str, ...] = ()


@dataclass(frozen=True)
class Starts:
    """What a policy samples from: one problem per trajectory and the key of its group."""

    problems: list[Problem]
    group: Tensor
    version: int = 0

    @classmethod
    def repeat(cls, problems: Sequence[Problem], group_size: int, version: int = 0) -> Starts:
        """Start ``group_size`` trajectories from each problem; the members of a group are adjacent."""
        repeated = [problem for problem in problems for _ in range(group_size)]
        return cls(repeated, torch.arange(len(problems)).repeat_interleave(group_size), version)

    @property
    def task_id(self) -> Tensor:
        """(N,) int64."""
        return torch.tensor([p.task_id for p in self.problems], dtype=torch.int64)

    @property
    def of_group(self) -> dict[int, Problem]:
        """The problem behind each group, in the order of the rows."""
        return dict(zip(self.group.tolist(), self.problems, strict=True))

    def __len__(self) -> int:
        return len(self.problems)


class Task(ABC):
    """A source of problems with a train and a held-out split.

    A task is registered under stage ``task``; its keyword-only constructor parameters are its recipe options.
    ``supplies`` names the batch fields that exist because of this task (``answer``, ``state_key``, ...).
    The task's own scorer, when it has one, is the reward named ``task``.
    """

    kind: ClassVar[Kind]
    supplies: ClassVar[frozenset[str]] = frozenset()
    scorer: Callable[..., Any] | None = None

    @abstractmethod
    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Draw ``n`` training problems; a pure function of ``seed``."""

    @abstractmethod
    def eval_problems(self, n: int) -> list[Problem]:
        """The first ``n`` held-out problems, always the same, disjoint from training.

        Raises:
            TaskError: when fewer than ``n`` exist.
        """

    def corpus(self) -> Iterable[str]:
        """Texts from which a language policy may build its vocabulary: prompts and answers."""
        for problem in self.train_batch(512, seed=0):
            yield problem.prompt
            if problem.answer is not None:
                yield str(problem.answer)

    def state_dict(self) -> dict[str, Any]:
        """Memory of the task between steps (open episodes), empty for most; must be JSON-serialisable."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most tasks remember nothing
        """Restore what ``state_dict`` gave."""
