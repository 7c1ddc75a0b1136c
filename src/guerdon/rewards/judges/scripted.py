"""A judge whose faults are known, for tests and experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from guerdon.rewards.judges.base import Backend, imported
from guerdon.rewards.judges.questions import (
    Answer,
    Checklist,
    JudgeError,
    Preference,
    Question,
    Ranking,
    Steps,
    Verdict,
    placement,
)
from guerdon.seeding import numpy_generator

# Given a prompt, a text and a statement about it: the quality of the text, or how far the statement holds, in [0,1].
# The statement is empty where the text as a whole, or a single step, is judged.
Truth = Callable[[str, str, str], float]


class ScriptedJudge(Backend):
    """Sees the truth, plus chosen noise and biases, and fails as often as it is told to.

    seen = truth + noise N(0,1) + length_bias characters / 1000 + position_bias [listed first among several]

    Every question has noise of its own, which is a function of the seed and the question: asked twice the judge says
    the same, asked in another order it looks anew.

    Attributes:
        truth: quality in [0,1] of a text, given (prompt, text, statement): a function, or an import path to one.
        noise: standard deviation of what it sees.
        position_bias: quality that it adds to what it reads first.
        length_bias: quality that it adds for each 1000 characters.
        tie_margin: two answers whose qualities seem no further apart than this are a tie.
        failure_rate: share of questions that get no verdict.
        seed: of noise and failures.
    """

    backend: Literal["scripted"] = "scripted"
    truth: Annotated[Truth, BeforeValidator(imported)]
    noise: float = Field(default=0.0, ge=0)
    position_bias: float = 0.0
    length_bias: float = 0.0
    tie_margin: float = Field(default=0.0, ge=0)
    failure_rate: float = Field(default=0.0, ge=0, le=1)
    seed: int = 0

    def _answer(self, questions: Sequence[Question]) -> list[Answer]:
        return [self._one(question) for question in questions]

    def _one(self, question: Question) -> Answer:
        generator = numpy_generator(self.seed, "scripted judge", repr(question))
        if generator.random() < self.failure_rate:
            return JudgeError("the scripted judge failed, as it was told to")
        seen = self._seen(question, generator)
        match question:
            case Preference():
                gap = seen[0] - seen[1]
                return Verdict((0.5 if abs(gap) <= self.tie_margin else float(gap > 0),))
            case Ranking():
                return Verdict(placement(np.argsort(-seen, kind="stable").tolist()))
            case Checklist():
                scales = [item.scale for item in question.items]
            case Steps():
                scales = [question.scale] * len(question.answers)
            case _:
                scales = [(0.0, 1.0)]
        values = [
            round(value) if scale is None else value for value, scale in zip(seen.clip(0, 1), scales, strict=True)
        ]
        return Verdict(tuple(map(float, values)))

    def _seen(self, question: Question, generator: np.random.Generator) -> np.ndarray:
        """What it sees of each answer, step or item."""
        if isinstance(question, Checklist):
            (text,) = question.answers
            looks = [(text, item.text) for item in question.items]
        else:
            looks = [(text, "") for text in question.answers]
        seen = np.array([self.truth(question.prompt, text, statement) for text, statement in looks], dtype=float)
        seen += self.noise * generator.standard_normal(len(looks))
        seen += self.length_bias * np.array([len(text) for text, _ in looks]) / 1000
        if isinstance(question, Preference | Ranking):
            seen[0] += self.position_bias
        return seen
