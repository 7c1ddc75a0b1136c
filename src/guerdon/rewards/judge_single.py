"""Rewards from a judge that reads each answer alone: a rating, a rubric, or a verdict on every step.

A question without a verdict is a fault of its sample. Where the judge answered, but with no verdict, ``fallback`` may
stand in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from guerdon.registry import explain, register
from guerdon.rewards.base import Score, batched
from guerdon.rewards.judges.base import JudgeOption, ask_counted, resolve_judge
from guerdon.rewards.judges.questions import (
    QUALITY,
    Answer,
    Checklist,
    Item,
    JudgeError,
    Question,
    Rating,
    Steps,
    UnreadableVerdict,
)

Results = tuple[list[Score | JudgeError], dict[str, float]]


def _increasing(scale: tuple[int, int]) -> tuple[int, int]:
    if not 0 < scale[1] - scale[0] <= 1000:
        raise ValueError("want two whole numbers, the worst below the best by at most 1000")
    return scale


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


@register("reward", "judge_score", paper="Zheng et al. 2023, arXiv 2306.05685")
@batched
class JudgeScore:
    """How good a judge finds each answer, on a scale that is brought to [0,1].

    (score - worst) / (best - worst)

    Args:
        judge: who judges: ``{backend: openai | local | scripted, ...}``, or an import path to a judge.
        criteria: what makes an answer good.
        scale: worst and best score, whole numbers.
        show_reference: show the judge the problem's reference answer.
        fallback: value of an answer on which the judge's words could not be read; a fault if null.

    Source: Zheng et al. 2023, arXiv 2306.05685.
    """

    def __init__(
        self,
        *,
        judge: JudgeOption,
        criteria: str = QUALITY,
        scale: Annotated[tuple[int, int], AfterValidator(_increasing)] = (1, 10),
        show_reference: bool = False,
        fallback: float | None = None,
    ) -> None:
        self.judge = resolve_judge(judge)
        self.criteria, self.scale = criteria, _increasing(scale)
        self.show_reference, self.fallback = show_reference, fallback

    def __call__(self, prompt: Sequence[str], text: Sequence[str], answer: Sequence[Any] | None = None) -> Results:
        """Score a batch.

        Args:
            prompt, text: N prompts and answers.
            answer: N reference answers.

        Returns:
            N scores in [0,1] with the judge's reasons, errors in the place of faults, and what the judge did.
        """
        references = references_of(answer, len(text), self.show_reference)
        low, high = self.scale
        questions = [
            Rating(prompt=p, answers=(t,), criteria=self.criteria, reference=r, low=low, high=high)
            for p, t, r in zip(prompt, text, references, strict=True)
        ]
        answers, stats = ask_counted(self.judge, questions)
        return [scored(a, self.fallback, lambda values: values[0]) for a in answers], stats


class RubricItem(BaseModel):
    """One item of a rubric.

    Attributes:
        text: a statement that may hold for an answer.
        weight: what it is worth; below 0 for a fault that costs.
        kind: whether the judge says yes or no, or how far it holds, from 0 to 1.
    """

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1)
    weight: float = Field(default=1.0, allow_inf_nan=False)
    kind: Literal["yes_no", "fraction"] = "yes_no"

    @property
    def item(self) -> Item:
        return Item(self.text, None if self.kind == "yes_no" else (0.0, 1.0))


_Rubric = TypeAdapter(list[RubricItem | str])


def read_rubric(items: Any) -> list[RubricItem]:
    """A rubric from texts and mappings.

    Raises:
        ValueError: when it is no rubric, or has no item with a weight above 0.
    """
    try:
        rubric = [RubricItem(text=i) if isinstance(i, str) else i for i in _Rubric.validate_python(items)]
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    if not any(item.weight > 0 for item in rubric):
        raise ValueError(
            f"a rubric of {len(rubric)} items, none of them with a weight above 0; add one that can be met"
        )
    return rubric


def _usable_rubric(rubric: Any) -> list[RubricItem] | str:
    return rubric if isinstance(rubric, str) else read_rubric(rubric)


@register("reward", "judge_rubric", paper="Gunjal et al. 2025, arXiv 2507.17746")
@batched
class JudgeRubric:
    """Weighted share of the items of a rubric that an answer meets, by a judge.

    sum_k w_k s_k / sum of the positive w_k,  s_k in [0,1]

    So 1 is an answer that meets everything and commits none of the faults with negative weights; those can bring it
    below 0.

    Args:
        judge: who judges: ``{backend: openai | local | scripted, ...}``, or an import path to a judge.
        rubric: items, each a text or a mapping with ``text``, ``weight`` and ``kind`` (``yes_no`` or ``fraction``); or
            the name of the entry of each problem's metadata that holds such a list.
        together: ask about all items at once; else one question per item, dearer, and no item leans on another.
        criteria: what the judge should know besides.
        show_reference: show the judge the problem's reference answer.
        fallback: value of an answer on which the judge's words could not be read; a fault if null.

    Source: Gunjal et al. 2025, arXiv 2507.17746. Weights below 0 are those of Arora et al. 2025, arXiv 2505.08775,
    which clips at 0 only the mean over problems.
    """

    def __init__(
        self,
        *,
        judge: JudgeOption,
        rubric: Annotated[list[RubricItem | str] | str, AfterValidator(_usable_rubric)],
        together: bool = True,
        criteria: str = "Judge by the items alone, each by its own words.",
        show_reference: bool = False,
        fallback: float | None = None,
    ) -> None:
        self.judge = resolve_judge(judge)
        self.rubric = _usable_rubric(rubric)
        self.together, self.criteria = together, criteria
        self.show_reference, self.fallback = show_reference, fallback

    def __call__(
        self,
        prompt: Sequence[str],
        text: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        answer: Sequence[Any] | None = None,
    ) -> Results:
        """Score a batch.

        Args:
            prompt, text: N prompts and answers.
            metadata: N mappings, with the rubrics if each problem has its own.
            answer: N reference answers.

        Returns:
            N scores, each with the value of every item and the judge's reasons; errors in the place of faults; and what
            the judge did.
        """
        references = references_of(answer, len(text), self.show_reference)
        rubrics = [self._rubric(None if metadata is None else metadata[row]) for row in range(len(text))]
        questions, counts = [], []
        for p, t, reference, rubric in zip(prompt, text, references, rubrics, strict=True):
            whole = [] if isinstance(rubric, JudgeError) else [item.item for item in rubric]
            parts = [whole] if self.together and whole else [[item] for item in whole]
            counts.append(len(parts))
            questions += [
                Checklist(prompt=p, answers=(t,), criteria=self.criteria, reference=reference, items=tuple(part))
                for part in parts
            ]
        answers, stats = ask_counted(self.judge, questions)
        given = iter(answers)
        results: list[Score | JudgeError] = []
        for rubric, count in zip(rubrics, counts, strict=True):
            own = [next(given) for _ in range(count)]
            results.append(rubric if isinstance(rubric, JudgeError) else self._score(rubric, own))
        return results, stats

    def _rubric(self, metadata: Mapping[str, Any] | None) -> list[RubricItem] | JudgeError:
        if not isinstance(self.rubric, str):
            return self.rubric
        if metadata is None or self.rubric not in metadata:
            return JudgeError(f"the problem's metadata has no '{self.rubric}', where its rubric should stand")
        try:
            return read_rubric(metadata[self.rubric])
        except ValueError as error:
            return JudgeError(f"the problem's '{self.rubric}': {error}")

    def _score(self, rubric: Sequence[RubricItem], answers: Sequence[Answer]) -> Score | JudgeError:
        failed = next((a for a in answers if isinstance(a, JudgeError)), None)
        if failed is not None:
            return scored(failed, self.fallback, lambda values: values[0])
        verdicts = [a for a in answers if not isinstance(a, JudgeError)]
        values = [value for verdict in verdicts for value in verdict.values]
        detail = [f"{value:.3g} of {item.weight:g}: {item.text}" for item, value in zip(rubric, values, strict=True)]
        detail += [verdict.reason for verdict in verdicts if verdict.reason]
        return Score(rubric_value(values, [item.weight for item in rubric]), detail="\n".join(detail))


def rubric_value(values: Sequence[float], weights: Sequence[float]) -> float:
    """sum_k w_k s_k / sum of the positive w_k."""
    return math.fsum(w * s for w, s in zip(weights, values, strict=True)) / math.fsum(w for w in weights if w > 0)


Aggregate = Literal["min", "mean", "product", "prefix"]
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": lambda values: math.fsum(values) / len(values),
    "product": math.prod,
    "prefix": lambda values: sum(1 for _ in takewhile(lambda value: value >= 0.5, values)) / len(values),
}


@register("reward", "judge_steps", paper="Lightman et al. 2023, arXiv 2305.20050")
@batched
class JudgeSteps:
    """How right the steps of an answer are, by a judge that gives a verdict on each.

    An answer without a single step is worth 0. The value of every step stands in the detail of the score.

    Args:
        judge: who judges: ``{backend: openai | local | scripted, ...}``, or an import path to a judge.
        split: regular expression between steps; by default an empty line.
        aggregate: how the steps become one number: the worst (``min``), the ``mean``, the ``product``, or the share
            of steps before the first with a value below 1/2 (``prefix``).
        kind: whether the judge says yes or no to a step, or how far it is right, from 0 to 1.
        criteria: what makes a step good.
        show_reference: show the judge the problem's reference answer.
        fallback: value of an answer on which the judge's words could not be read; a fault if null.

    Source: Lightman et al. 2023, arXiv 2305.20050, for ``product`` and ``min``.
    """

    def __init__(
        self,
        *,
        judge: JudgeOption,
        split: Annotated[str, AfterValidator(_expression)] = r"\n\s*\n",
        aggregate: Aggregate = "min",
        kind: Literal["yes_no", "fraction"] = "yes_no",
        criteria: str = "A step is right if what it says follows from the prompt and the steps before it.",
        show_reference: bool = False,
        fallback: float | None = None,
    ) -> None:
        self.judge = resolve_judge(judge)
        self.split, self.aggregate = re.compile(split), AGGREGATES[aggregate]
        self.scale = None if kind == "yes_no" else (0.0, 1.0)
        self.criteria, self.show_reference, self.fallback = criteria, show_reference, fallback

    def __call__(self, prompt: Sequence[str], text: Sequence[str], answer: Sequence[Any] | None = None) -> Results:
        """Score a batch.

        Args:
            prompt, text: N prompts and answers.
            answer: N reference answers.

        Returns:
            N scores in [0,1], each with the value of every step; errors in the place of faults; and what the judge did.
        """
        references = references_of(answer, len(text), self.show_reference)
        questions: list[Question | None] = []
        for p, t, reference in zip(prompt, text, references, strict=True):
            steps = tuple(step.strip() for step in self.split.split(t) if step and step.strip())
            question = Steps(prompt=p, answers=steps, criteria=self.criteria, reference=reference, scale=self.scale)
            questions.append(question if steps else None)
        answers, stats = ask_counted(self.judge, [q for q in questions if q is not None])
        given = iter(answers)
        return [
            Score(0.0, detail="no steps") if q is None else scored(next(given), self.fallback, self.aggregate, "steps")
            for q in questions
        ], stats


def scored(
    answer: Answer, fallback: float | None, value: Callable[[Sequence[float]], float], name: str = ""
) -> Score | JudgeError:
    """The score that a verdict means, the fallback for one that could not be read, or the error that came instead."""
    if isinstance(answer, UnreadableVerdict) and fallback is not None:
        return Score(fallback, detail=f"fallback: {answer}")
    if isinstance(answer, JudgeError):
        return answer
    listed = f"{name} {', '.join(f'{v:.3g}' for v in answer.values)}" if name else ""
    return Score(value(answer.values), detail="\n".join(part for part in (listed, answer.reason) if part))


def references_of(answer: Sequence[Any] | None, n: int, shown: bool) -> list[str | None]:
    """N reference answers to show; None for all, where they are not to be shown.

    Raises:
        ValueError: when they are to be shown, and the batch has none.
    """
    if not shown:
        return [None] * n
    if answer is None:
        raise ValueError("show_reference: true, but the problems have no reference answers; set it to false")
    return [None if a is None else str(a) for a in answer]
