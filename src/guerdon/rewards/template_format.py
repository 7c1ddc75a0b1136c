"""Form that the question's template asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guerdon.errors import RewardError
from guerdon.rewards.forms import reward

MARKS = "template_marks"  # what a problem's metadata hold of its template


def share_once(text: str, marks: Sequence[str]) -> float:
    """Share of some marks that stand in a text exactly once; 1 where there are none."""
    return sum(text.count(mark) == 1 for mark in marks) / len(marks) if marks else 1.0


@reward("template_format", paper="Lu et al. 2026, arXiv 2602.03190")
def template_format(text: str, metadata: Mapping[str, Any]) -> float:
    """Share of what the question's template asks for that stands in the text exactly once; 1 where it asks for nothing.

    Belongs with task ``prompt_augmentation``. What the prompt opened already is not asked for. Templates that ask for
    nothing pay everyone, which cancels as long as the members of a group share their template.

    Args:
        text: what the policy wrote, without what the prompt opened.
        metadata: the problem's, with ``template_marks``.

    Returns:
        A number in [0,1].

    Raises:
        RewardError: when the problem has no template.

    Source: Lu et al. 2026, arXiv 2602.03190, and its code.
    """
    if MARKS not in metadata:
        raise RewardError(
            f"reward 'template_format': the problem's metadata lack '{MARKS}'; use task 'prompt_augmentation'"
        )
    return share_once(text, metadata[MARKS])
