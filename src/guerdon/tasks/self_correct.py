"""Any problem with one answer, asked twice: the policy reads its first answer and an instruction, and answers again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from guerdon.errors import RecipeError
from guerdon.registry import describe, get, register
from guerdon.rewards.forms import form_of
from guerdon.seeding import numpy_generator
from guerdon.tasks.base import Problem, Task
from guerdon.tasks.environments import EnvironmentTask, Seconds, Step

Share = Annotated[float, Field(ge=0, le=1)]
INSTRUCTION = "\nThere may be an error above. Correct it.\n"


class TwoAttempts:
    """One problem: both answers are scored, and between them stands an instruction.

    Args:
        score: reward of an answer, from its text and the problem.
        instruction: what is said to the first answer, whether it is right or wrong.
    """

    def __init__(self, score: Callable[[str, Problem], float], instruction: str) -> None:
        self._score, self._instruction = score, instruction

    def reset(self, problem: Problem, seed: int) -> str:
        """Ask the problem."""
        self._problem, self._first = problem, True
        return problem.prompt

    def step(self, action: str) -> Step:
        """Score an answer; the second one ends the episode."""
        reward = self._score(action, self._problem)
        if not self._first:
            return Step("", reward, terminated=True)
        self._first = False
        return Step(self._instruction, reward, info={"state": action})


def score_of(scorer: Callable[..., Any], reads: Sequence[str], text: str, problem: Problem) -> float:
    """What a scorer, which reads some fields of a sample, gives to a text."""
    known = {"text": text, "prompt": problem.prompt, "answer": problem.answer, "metadata": problem.metadata}
    value = scorer(**{name: known[name] for name in reads})
    return float(value["value"] if isinstance(value, Mapping) else getattr(value, "value", value))


@register("task", name="self_correct", paper="Kumar et al. 2024, arXiv 2409.12917")
class SelfCorrect(EnvironmentTask):
    """Problems of another task in two turns: an answer, an instruction to correct it, and a second answer.

    Each answer is scored by that task's own scorer, which gives the reward ``task`` of its turn. The instruction is the
    same for right and wrong answers, so it tells nothing. ``state_key`` of the second turn is the first answer.

    Args:
        of: the task that asks and scores, as a recipe names it; one with a scorer of its own.
        instruction: what is said to the first answer.
        right: share of demonstrations whose first answer is right; the others begin with the answer of another problem.
            The second answer of a demonstration is right.
        workers, timeout: see ``EnvironmentTask``.

    Raises:
        RecipeError: when the task takes several turns itself, or has no scorer that takes one text.

    Source: Kumar et al. 2024, arXiv 2409.12917 (SCoRe).
    """

    supplies = EnvironmentTask.supplies | {"answer"}

    def __init__(
        self,
        *,
        of: dict[str, Any] | str,
        instruction: str = INSTRUCTION,
        right: Share = 0.5,
        max_turns: Annotated[int, Field(ge=2, le=2)] = 2,
        workers: int = 0,
        timeout: Seconds = 60.0,
    ) -> None:
        super().__init__(max_turns=max_turns, workers=workers, timeout=timeout)
        spec = {"name": of} if isinstance(of, str) else dict(of)
        if "name" not in spec:
            raise RecipeError(f"task 'self_correct': of is {of!r}, want a mapping with the 'name' of a task")
        method = get("task", spec.pop("name"))
        self.inner: Task = method.target(**method.validate(spec))
        scorer = self.inner.scorer
        if self.inner.kind != "language" or scorer is None or form_of(scorer) != "sample":
            raise RecipeError(
                f"task 'self_correct': task '{method.name}' has no scorer of single texts; use one that has, such as "
                "'reasoning_gym' or 'dataset'"
            )
        if isinstance(self.inner, EnvironmentTask):
            raise RecipeError(f"task 'self_correct': task '{method.name}' takes several turns; use one with one answer")
        reads = describe("reward", scorer, "task").requires
        unknown = sorted(set(reads) - {"text", "prompt", "answer", "metadata"})
        if unknown:
            raise RecipeError(
                f"task 'self_correct': the scorer of task '{method.name}' reads '{unknown[0]}', which a single answer "
                "does not have; use a task whose scorer reads 'text', 'prompt', 'answer' and 'metadata' alone"
            )
        self.instruction, self.right = instruction, right
        self._score = partial(score_of, scorer, reads)

    def environment(self) -> Callable[[], TwoAttempts]:
        """A problem, asked twice."""
        return partial(TwoAttempts, self._score, self.instruction)

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Problems of the task, with demonstrations to imitate."""
        return self._asked(self.inner.train_batch(n, seed), numpy_generator(seed, "self_correct"))

    def eval_problems(self, n: int) -> list[Problem]:
        """Held-out problems of the task."""
        return self._asked(self.inner.eval_problems(n), numpy_generator(0, "self_correct", "held out"))

    def corpus(self) -> Iterable[str]:
        """What the task shows, and the instruction."""
        yield self.instruction
        yield from self.inner.corpus()

    def state_dict(self) -> dict[str, Any]:
        """Memory of the task."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.inner.load_state_dict(state)

    def _asked(self, problems: Sequence[Problem], random: np.random.Generator) -> list[Problem]:
        """With an episode each; a wrong first answer is the right one of another problem of the batch."""
        answers = [problem.answer for problem in problems]
        asked = []
        for problem in problems:
            if problem.answer is None:
                asked.append(problem)
                continue
            first = problem.answer
            if random.random() >= self.right:
                others = [answer for answer in answers if answer is not None and answer != problem.answer]
                first = others[int(random.integers(len(others)))] if others else first
            episode = (str(first), self.instruction, str(problem.answer))
            asked.append(replace(problem, demonstration=(), episode=episode))
        return asked
