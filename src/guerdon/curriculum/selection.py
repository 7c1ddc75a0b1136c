"""Curricula of a recipe: by the success of each class, by stages of difficulty, and by what can be learned."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from guerdon.curriculum.base import Curriculum, Pool, metadata_of
from guerdon.curriculum.staged import StagedDifficulty, difficulty_stages
from guerdon.curriculum.success_softmax import SuccessSoftmax
from guerdon.errors import TaskError
from guerdon.registry import register
from guerdon.tasks.base import Problem

Share = Annotated[float, Field(ge=0, le=1)]
Above = Annotated[float, Field(gt=0)]


@register("curriculum", "success_softmax", paper="Lu et al. 2025, arXiv 2505.18719")
class ByClass(Curriculum):
    """Rather classes of problems that fail more often than they succeed.

    P(j) = softmax_j((1/2 - s_j) / temperature), shared alike among the candidates of class j

    Args:
        key: name under which the task's metadata hold the class of a problem.
        temperature, prior, prior_count, decay: see ``SuccessSoftmax``.
        correct: raw weighted reward from which on a trajectory counts as a success.
        pool: candidates per problem; classes that are rare in the task need more of them.

    Source: Lu et al. 2025, arXiv 2505.18719.
    """

    def __init__(
        self,
        *,
        key: str,
        temperature: Above = 0.5,
        prior: Share = 0.5,
        prior_count: Above = 4.0,
        decay: Annotated[float, Field(gt=0, le=1)] = 0.99,
        correct: float = 1.0,
        pool: Pool = 4,
    ) -> None:
        self.key, self.correct, self.pool = key, correct, pool
        self.rates = SuccessSoftmax(1, temperature=temperature, prior=prior, prior_count=prior_count, decay=decay)
        self.rates.successes, self.rates.tries = self.rates.successes[:0], self.rates.tries[:0]
        self.classes: list[str | int | float] = []

    def weigh(self, problems: Sequence[Problem]) -> Tensor:
        """(P,) chance of the problem's class over how many candidates have it."""
        of = self._classes(problems)
        size = torch.bincount(of, minlength=len(self.classes))
        return (self.rates.probabilities / size.clamp(min=1))[of]

    def observe(self, problems: Sequence[Problem], success: Tensor) -> dict[str, float]:
        """Count the successes of each class; the success rate of each goes to the metrics."""
        of, known = self._classes(problems), ~success.isnan()
        self.rates.update(of[known], success[known])
        return {f"success/{name}": rate for name, rate in zip(self.classes, self.rates.rates.tolist(), strict=True)}

    def _classes(self, problems: Sequence[Problem]) -> Tensor:
        """(P,) number of each problem's class; classes that are new get the next numbers."""
        values = metadata_of(problems, self.key)
        known = set(self.classes)
        fresh = sorted({value for value in values if value not in known}, key=lambda value: (str(type(value)), value))
        self.classes += fresh
        missing = torch.zeros(len(self.classes) - len(self.rates.tries), dtype=torch.float64)
        self.rates.successes = torch.cat([self.rates.successes, missing])
        self.rates.tries = torch.cat([self.rates.tries, missing])
        number = {value: place for place, value in enumerate(self.classes)}
        return torch.tensor([number[value] for value in values], dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """The classes and their counts."""
        return {"classes": self.classes, "rates": self.rates.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.classes = list(state["classes"])
        self.rates.load_state_dict(state["rates"])


@register("curriculum", "staged_difficulty", paper="Nong et al. 2025, CRAFT-GUI")
class ByStages(Curriculum):
    """From easy to hard problems, in stages that each last until they succeed.

    The borders between the stages are those that split a sample of the task's problems into equal parts.

    Args:
        key: name under which the task's metadata hold a number that grows with difficulty.
        stages, keep, advance, least, decay: see ``StagedDifficulty``.
        correct: raw weighted reward from which on a trajectory counts as a success.
        pool: candidates per problem; at least as many as there are stages.

    Source: Nong et al. 2025, CRAFT-GUI.
    """

    def __init__(
        self,
        *,
        key: str,
        stages: Annotated[int, Field(ge=1)] = 3,
        keep: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        advance: Annotated[float, Field(gt=0, le=1)] = 0.7,
        least: Above = 32.0,
        decay: Annotated[float, Field(gt=0, lt=1)] = 0.8,
        correct: float = 1.0,
        pool: Pool = 6,
    ) -> None:
        self.key, self.correct, self.pool = key, correct, pool
        self.course = StagedDifficulty(stages, keep=keep, advance=advance, least=least, decay=decay)
        self.borders: list[float] = []

    def prepare(self, problems: Sequence[Problem]) -> None:
        """Find the largest difficulty of each stage but the last."""
        difficulty = self._difficulty(problems)
        stage = difficulty_stages(difficulty, stages=self.course.stages)
        empty = sorted(set(range(self.course.stages)) - set(stage.tolist()))
        if empty:
            raise TaskError(
                f"'{self.key}' has {len(difficulty.unique())} values among {len(problems)} problems, which leaves "
                f"stage {empty[0]} of {self.course.stages} without any; use fewer stages"
            )
        self.borders = [float(difficulty[stage == number].max()) for number in range(self.course.stages - 1)]

    def weigh(self, problems: Sequence[Problem]) -> Tensor:
        """(P,) chance of the problem's stage over how many candidates it has."""
        of = self._stage(problems)
        size = torch.bincount(of, minlength=self.course.stages)
        return (self.course.probabilities / size.clamp(min=1))[of]

    def observe(self, problems: Sequence[Problem], success: Tensor) -> dict[str, float]:
        """Go on to the next stage once the present one succeeds; metrics are those of the batch's stage."""
        stage = float(self.course.stage)
        self.course.update(self._stage(problems), success)
        return {"stage": stage, "success": self.course.rate}

    def _stage(self, problems: Sequence[Problem]) -> Tensor:
        return torch.bucketize(self._difficulty(problems), torch.tensor(self.borders, dtype=torch.float64))

    def _difficulty(self, problems: Sequence[Problem]) -> Tensor:
        values = metadata_of(problems, self.key)
        if any(isinstance(value, str) for value in values):
            raise TaskError(f"'{self.key}' holds text, wanted a number that grows with difficulty; name another key")
        return torch.tensor(values, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """The borders, the stage and its counts."""
        return {"borders": self.borders, "course": self.course.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.borders = list(state["borders"])
        self.course.load_state_dict(state["course"])


@register("curriculum", "learnability", paper="Rutherford et al. 2024, arXiv 2408.15099")
class ByLearnability(Curriculum):
    """Rather problems that sometimes succeed and sometimes fail.

    w = p (1 - p) + floor,  p = (successes + n_0 / 2) / (tries + n_0)

    The variance of the outcome is what a group's comparison lives on: a problem that always or never succeeds gives
    equal rewards, and teaches nothing. Counts fade by ``decay`` with every further batch that has the problem.

    Args:
        key: name under which the task's metadata hold the class of a problem; each problem by itself if left out,
            which is of use where problems come back.
        floor: weight of a problem that is known to teach nothing, so that it is asked again at times; a problem of
            which nothing is known has 1/4 + floor.
        prior_count: n_0, tries that the prior of 1/2 is worth.
        decay: of the counts.
        correct: raw weighted reward from which on a trajectory counts as a success.
        pool: candidates per problem.
        capacity: largest number of problems or classes that are remembered; those seen longest ago go first.

    Source: Rutherford et al. 2024, arXiv 2408.15099. (They estimate p by extra rollouts; here it is what training saw,
    which costs nothing. Prior, decay and floor are ours.)
    """

    def __init__(
        self,
        *,
        key: str | None = None,
        floor: Annotated[float, Field(ge=0)] = 0.02,
        prior_count: Above = 2.0,
        decay: Annotated[float, Field(gt=0, le=1)] = 0.9,
        correct: float = 1.0,
        pool: Pool = 4,
        capacity: Annotated[int, Field(ge=1)] = 100_000,
    ) -> None:
        self.key, self.floor, self.prior_count, self.decay = key, floor, prior_count, decay
        self.correct, self.pool, self.capacity = correct, pool, capacity
        self.counts: dict[Hashable, tuple[float, float]] = {}

    def weigh(self, problems: Sequence[Problem]) -> Tensor:
        """(P,) p (1 - p) + floor."""
        counts = torch.tensor([self.counts.get(name, (0.0, 0.0)) for name in self._names(problems)])
        p = (counts[:, 0] + 0.5 * self.prior_count) / (counts[:, 1] + self.prior_count)
        return p * (1 - p) + self.floor

    def observe(self, problems: Sequence[Problem], success: Tensor) -> dict[str, float]:
        """Count successes and tries; the metrics say how many problems are known, and how learnable the batch was."""
        fresh: dict[Hashable, tuple[float, float]] = {}
        for name, won in zip(self._names(problems), success.tolist(), strict=True):
            if not math.isnan(won):
                wins, tries = fresh.get(name, (0.0, 0.0))
                fresh[name] = (wins + won, tries + 1)
        for name, (wins, tries) in fresh.items():
            before = self.counts.pop(name, (0.0, 0.0))  # so that it stands last
            self.counts[name] = (self.decay * before[0] + wins, self.decay * before[1] + tries)
        for name in list(self.counts)[: max(len(self.counts) - self.capacity, 0)]:
            del self.counts[name]
        shares = [wins / tries for wins, tries in fresh.values()]
        mean = sum(share * (1 - share) for share in shares) / max(len(shares), 1)
        return {"known": float(len(self.counts)), "learnability": mean}

    def _names(self, problems: Sequence[Problem]) -> list[Hashable]:
        if self.key is None:
            return [problem.task_id for problem in problems]
        return list(metadata_of(problems, self.key))

    def state_dict(self) -> dict[str, Any]:
        """The counts, in the order in which they were seen last."""
        return {"counts": [[name, *count] for name, count in self.counts.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.counts = {name: (wins, tries) for name, wins, tries in state["counts"]}
