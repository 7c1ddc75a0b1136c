"""Which problems a step practises: a curriculum weighs candidates, and sees how each of them went."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from guerdon.errors import TaskError, nearest
from guerdon.seeding import torch_generator
from guerdon.tasks.base import MISSING, Problem, look_up

Pool = Annotated[int, Field(ge=1)]


class Curriculum(ABC):
    """Chooses among problems that the task draws. Registered under stage ``curriculum``; options go to ``__init__``.

    Attributes:
        pool: candidates that the task draws for each problem of a batch.
        sample: problems that ``prepare`` sees.
        correct: raw weighted reward from which on a trajectory counts as a success.
    """

    pool: int = 4
    sample: int = 512
    correct: float = 1.0

    def prepare(self, problems: Sequence[Problem]) -> None:  # noqa: B027 - not every curriculum looks round
        """See what problems there are, before the first step."""

    @abstractmethod
    def weigh(self, problems: Sequence[Problem]) -> Tensor:
        """(P,) how much each candidate is wanted, 0 or more."""

    @abstractmethod
    def observe(self, problems: Sequence[Problem], success: Tensor) -> dict[str, float]:
        """Take in a batch.

        Args:
            problems: the problem of each trajectory.
            success: (N,) 1 or 0; nan where it is not known.

        Returns:
            Numbers for the metrics.
        """

    def choose(self, problems: Sequence[Problem], n: int, seed: int) -> list[Problem]:
        """``n`` of the candidates by their weights, each at most once where enough of them are wanted at all.

        Raises:
            TaskError: when none is.
        """
        weight = self.weigh(problems)
        wanted = int((weight > 0).sum())
        if not wanted:
            raise TaskError(
                f"{type(self).__name__} wants none of the {len(problems)} problems that the task drew; raise 'pool' "
                f"(now {self.pool}), or give the task problems of the difficulty that is practised now"
            )
        generator = torch_generator(seed, "curriculum")
        chosen = torch.multinomial(weight.double(), n, replacement=wanted < n, generator=generator)
        return [problems[index] for index in chosen.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Memory of the curriculum, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - one may remember nothing
        """Restore what ``state_dict`` gave."""


def metadata_of(problems: Sequence[Problem], key: str) -> list[str | int | float]:
    """What each problem's metadata hold under ``key`` (``a.b`` for nested ones).

    Raises:
        TaskError: when one of them has no such key, or neither text nor a number there.
    """
    found = [look_up(problem.metadata, key) for problem in problems]
    if any(value is MISSING for value in found):
        seen = sorted({name for problem in problems for name in problem.metadata})
        raise TaskError(
            f"the curriculum tells problems apart by '{key}', and the metadata of some have none{nearest(key, seen)}; "
            f"they have {', '.join(seen) or 'nothing'}"
        )
    wrong = next((value for value in found if not isinstance(value, str | int | float)), None)
    if wrong is not None:
        raise TaskError(f"the curriculum tells problems apart by '{key}', which is {wrong!r}; want text or a number")
    return found
