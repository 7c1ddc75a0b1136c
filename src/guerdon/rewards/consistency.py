"""Reward for judges in training: a right verdict, in form, that the rationale leads to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, SkipValidation
from torch import Tensor

from guerdon.rewards.base import Score, reward
from guerdon.rewards.judges.adapters import AskedCheck
from guerdon.rewards.judges.base import DESCRIBED, Judge, resolve_judge_or_function
from guerdon.rewards.verifiable import exact

Number = TypeVar("Number", float, Tensor)
# Given the end of a rationale and a verdict: 1 where they agree, -1 where they conflict, 0 where it can't be told.
Check = Callable[[str, str], float]


def consistency_score(form: Number, accuracy: Number, consistency: Number) -> Number:
    """Score a rationale with a verdict: 0.5 form + accuracy (1 + 0.5 consistency).

    Consistency multiplies accuracy, so it never pays for a wrong verdict.

    Args:
        form: 1 where the text has the form asked for, 0 elsewhere.
        accuracy: 1 where the verdict is right, 0 elsewhere.
        consistency: 1 where the rationale agrees with the verdict, -1 where it conflicts, 0 where unknown.

    Returns:
        From 0 to 2, in the shape of the arguments.

    Source: Zhang et al. 2025, arXiv 2505.02835.
    """
    return 0.5 * form + accuracy * (1 + 0.5 * consistency)


@reward("consistency_reward", paper="Zhang et al. 2025, arXiv 2505.02835")
class ConsistencyReward:
    """Reward of a text that thinks and then answers, with a second opinion on whether the one follows from the other.

    0.5 [the whole text is a think block and an answer block] + [the answer is right] (1 + 0.5 check)

    The check is asked only about right answers that come with a rationale; elsewhere it could not change the reward.

    Args:
        check: who compares the two: a judge (``{backend: openai | local | scripted, ...}``); or a function that, given
            the end of the rationale and the answer, returns 1 where they agree, -1 where they conflict and 0 where it
            can't tell; or an import path to either (``package.module:function`` or ``file.py:function``).
        think, answer_tag: names of the two blocks' tags.
        lines: lines at the end of the rationale that the check reads; empty ones don't count.

    Source: Zhang et al. 2025, arXiv 2505.02835.
    """

    def __init__(
        self,
        *,
        check: Annotated[Check | Judge, SkipValidation, BeforeValidator(resolve_judge_or_function), DESCRIBED],
        think: str = "think",
        answer_tag: str = "answer",
        lines: Annotated[int, Field(ge=1)] = 3,
    ) -> None:
        resolved = resolve_judge_or_function(check)
        self.check: Check = AskedCheck(resolved) if isinstance(resolved, Judge) else resolved
        self.lines = lines
        inside = r"((?:(?!</?{0}>).)*?)"
        rationale, verdict = (rf"<{tag}>{inside.format(tag)}</{tag}>" for tag in map(re.escape, (think, answer_tag)))
        self.rationale, self.verdict = re.compile(rationale, re.DOTALL), re.compile(verdict, re.DOTALL)
        self.form = re.compile(rf"\s*{rationale}\s*{verdict}\s*", re.DOTALL)
        self.tags = [f"<{think}>", f"<{answer_tag}>"]

    def __call__(self, text: str, answer: Any) -> Score:
        """Score one text against the reference answer.

        Args:
            text: what the policy wrote.
            answer: the right verdict, text or a number.

        Returns:
            The reward, and what it is made of.

        Raises:
            ValueError: when the check returns anything but 1, -1 or 0, or the reference is empty.
        """
        once = all(text.count(tag) == 1 for tag in self.tags)
        form = float(once and self.form.fullmatch(text) is not None)
        verdicts, rationales = self.verdict.findall(text), self.rationale.findall(text)
        accuracy = exact(verdicts[-1], answer) if verdicts else 0.0
        consistency = 0.0
        if accuracy and rationales and rationales[-1].strip():
            read = [line for line in rationales[-1].splitlines() if line.strip()]
            consistency = float(self.check("\n".join(read[-self.lines :]), verdicts[-1].strip()))
            if consistency not in (-1.0, 0.0, 1.0):
                raise ValueError(
                    f"the check returned {consistency:g}, wanted 1 (agrees), -1 (conflicts) or 0 (unknown)"
                )
        detail = f"form {form:g}, accuracy {accuracy:g}, consistency {consistency:g}"
        return Score(consistency_score(form, accuracy, consistency), detail=detail)
