"""The reward of a model that judges pairs: whether its verdict, at the end of what it wrote, is the right one."""

from __future__ import annotations

import re
from typing import Any

from guerdon.errors import RewardError
from guerdon.rewards.forms import Score, reward

_MARK = r"(?:\bverdict\b[\s*]*(?:is\b|[:=])?[\s*]*|\\boxed\{\s*|<answer>\s*)"
_CHOICE = re.compile(
    rf"{_MARK}(?:(?:action|candidate|answer|response)\s*)?[\[(*]*([12])[\])*}}.\s]*(?:</answer>)?[.\s*]*\Z",
    re.IGNORECASE,
)


def read_choice(text: str) -> int | None:
    """The verdict that a text ends with, 1 or 2; None where it doesn't end with one.

    ``Verdict: 2``, ``**Verdict:** Action 2.``, ``\\boxed{2}`` and ``<answer>2</answer>`` are verdicts. What is named on
    the way to it is none: a comparison speaks of both candidates.
    """
    found = _CHOICE.search(text[-200:])
    return int(found[1]) if found else None


@reward("pairwise_verdict")
def pairwise_verdict(text: str, answer: Any) -> Score:
    """Give 1 where a text ends with the right verdict on two candidates, and -1 for anything else.

    A text without a verdict costs as much as a wrong one; if it were skipped, saying nothing would be the way out of
    every hard pair.

    Args:
        text: what the judge wrote, see ``read_choice``.
        answer: 1 or 2.

    Returns:
        1.0 or -1.0.

    Raises:
        RewardError: when the reference is neither 1 nor 2.

    Source: WebArbiter (2026).
    """
    if str(answer).strip() not in ("1", "2"):
        raise RewardError(f"reward 'pairwise_verdict': the reference is {answer!r:.60}, want 1 or 2; fix the answers")
    seen = read_choice(text)
    value = 1.0 if seen is not None and str(seen) == str(answer).strip() else -1.0
    return Score(value, detail={"verdict": seen} if seen else {"why": "the text ends with no verdict"})
