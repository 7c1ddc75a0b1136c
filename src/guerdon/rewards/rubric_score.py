"""A score for the whole way to an answer, by a judge that reads it against the problem's rubric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guerdon.registry import register
from guerdon.rewards.base import Score, batched
from guerdon.rewards.judge_single import Results, scored
from guerdon.rewards.judges.base import JudgeOption, ask_counted, resolve_judge
from guerdon.rewards.judges.questions import JudgeError, Rating, UnreadableVerdict

# How a right answer comes about by wrong means, or a way goes wrong beside its answer.
FAILURES = {
    "miracle_step": "the answer appears without anything that leads to it",
    "inductive_overgeneralisation": "a pattern of a few cases is taken for proved",
    "outcome_irrelevant_error": "a step is wrong, and the answer does not depend on it",
    "neglected_operation_premises": "an operation is used where its conditions do not hold",
    "unverified_assumption": "something is assumed that the problem does not give, and never checked",
    "numerical_coincidence": "wrong steps cancel, or happen to end at the right number",
}

_CRITERIA = (
    "Judge the way, not the answer: how well does it follow the rubric, step by step? A right answer that the steps do "
    "not lead to earns nothing for being right. Any valid method is as good as another.\nRubric:\n"
)
HIGHEST = 10


@register("reward", "rubric_score", paper="Yuan et al. 2025, arXiv 2510.07774")
@batched
class RubricScore:
    """How sound the whole way to an answer is, from 0 to 1, by a judge that reads it with the problem's rubric.

    score / 10,  score a whole number from 0 to 10

    It stands in the place of the outcome, not beside it: a right answer that nothing leads to earns what its way does.
    The judge never sees the reference answer, and the rubric should not hold it, or the end is all that is judged.

    A verdict that can't be read is worth 0, and the share of those is in the metrics as ``unreadable``. So that zeros
    are rare and not systematic, watch it; a judge that was not reached at all is a fault of its sample instead.

    Args:
        judge: who judges: ``{backend: openai | local | scripted, ...}``, or an import path to a judge.
        rubric: the rubric of all problems, or, with ``key``, of those that have none of their own.
        key: entry of each problem's metadata that holds its rubric, a text or a list of texts.
        criteria: what stands before the rubric.

    Raises:
        ValueError: when there is neither a rubric nor a key.

    Source: Yuan et al. 2025, arXiv 2510.07774, with a judge of its own: trained on answers of all scores, in balance.
    """

    def __init__(
        self, *, judge: JudgeOption, rubric: str = "", key: str | None = "rubric", criteria: str = _CRITERIA
    ) -> None:
        if not rubric and key is None:
            raise ValueError("rubric_score has neither a 'rubric' nor a 'key' of the metadata that holds one; name one")
        self.judge = resolve_judge(judge)
        self.rubric, self.key, self.criteria = rubric, key, criteria

    def __call__(
        self, prompt: Sequence[str], text: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Results:
        """Score a batch.

        Args:
            prompt, text: N prompts and whole answers.
            metadata: N mappings, with the rubrics.

        Returns:
            N scores in [0,1] with the judge's reasons, errors in the place of faults, and what the judge did.
        """
        rubrics = [self._rubric(None if metadata is None else metadata[row]) for row in range(len(text))]
        questions = [
            Rating(prompt=p, answers=(t,), criteria=f"{self.criteria}{r}", low=0, high=HIGHEST)
            for p, t, r in zip(prompt, text, rubrics, strict=True)
            if r
        ]
        answers, stats = ask_counted(self.judge, questions)
        unreadable = sum(isinstance(answer, UnreadableVerdict) for answer in answers)
        given, missing = (
            iter(answers),
            JudgeError(f"the problem's metadata has no '{self.key}', where its rubric is read"),
        )
        scores: list[Score | JudgeError] = [scored(next(given), 0.0, _first) if r else missing for r in rubrics]
        return scores, stats | {"unreadable": unreadable / max(len(answers), 1)}

    def _rubric(self, metadata: Mapping[str, Any] | None) -> str:
        own = (metadata or {}).get(self.key) if self.key is not None else None
        if own is None:
            return self.rubric
        return own if isinstance(own, str) else "\n".join(f"- {item}" for item in own)


def _first(values: Sequence[float]) -> float:
    return values[0]
