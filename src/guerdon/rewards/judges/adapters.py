"""Judges in the place of the functions that some rewards take."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.rewards.judges.base import Judge
from guerdon.rewards.judges.questions import QUALITY, Answer, Checklist, Item, JudgeError, Preference, Question, Rating


class AskedPairs:
    """A judge as a function of prompts, first and second answers, which returns two scores from 0 to 10 for each pair.

    (10 p, 10 (1 - p)),  p the verdict in favour of the first; None where there is no verdict.

    Attributes:
        problem: why the last question without a verdict has none.
    """

    def __init__(self, judge: Judge, criteria: str = QUALITY) -> None:
        self.judge, self.criteria, self.problem = judge, criteria, ""
        self.stats = judge.stats

    def __call__(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[tuple[float, float] | None]:
        answers = self.judge.ask(
            [
                Preference(prompt=prompt, answers=(a, b), criteria=self.criteria)
                for prompt, a, b in zip(prompts, first, second, strict=True)
            ]
        )
        self.problem = problem_of(answers) or self.problem
        return [None if isinstance(a, JudgeError) else (10 * a.values[0], 10 * (1 - a.values[0])) for a in answers]


class AskedRubric:
    """A judge as a function of texts, references and dimensions, which returns scores from 1 to 5; None without."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.stats = judge, judge.stats

    def __call__(
        self, text: Sequence[str], reference: Sequence[str], dimensions: Sequence[str]
    ) -> list[list[float] | None]:
        items = tuple(Item(f"How close the answer comes to the reference: {name}.", (1.0, 5.0)) for name in dimensions)
        criteria = "How close the answer comes to the reference, not how good it is: 1 not at all, 5 entirely."
        questions = [
            Checklist(prompt="", answers=(t,), reference=r, criteria=criteria, items=items)
            for t, r in zip(text, reference, strict=True)
        ]
        return [
            None if isinstance(answer, JudgeError) else [1 + 4 * value for value in answer.values]
            for answer in self.judge.ask(questions)
        ]


class AskedCheck:
    """A judge as a function of a rationale and a verdict: 1 where they agree, -1 where they conflict, 0 in between.

    2 v - 1 rounded, v in [0,1] what the judge says; so a judge that is less sure than 3 to 1 abstains.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge, self.stats = judge, judge.stats

    def __call__(self, rationale: str, verdict: str) -> float:
        """Compare one pair.

        Raises:
            JudgeError: when the judge has no verdict.
        """
        question: Question = Rating(
            prompt=f"The end of a rationale:\n{rationale}",
            answers=(verdict,),
            criteria="Whether the answer is the one that the rationale leads to, right or wrong: 1 if it is, -1 if the "
            "rationale leads to another, 0 if that can't be told.",
            low=-1,
            high=1,
        )
        (answer,) = self.judge.ask([question])
        if isinstance(answer, JudgeError):
            raise answer
        return float(round(2 * answer.values[0] - 1))


def problem_of(answers: Sequence[Answer]) -> str:
    """What the last error among answers says; nothing where there is none."""
    return next((str(answer) for answer in reversed(answers) if isinstance(answer, JudgeError)), "")
