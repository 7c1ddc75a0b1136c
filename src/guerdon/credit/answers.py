"""Which answers the texts of a group end with, and how far they agree."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor

from guerdon.credit.grouping import group_mean, grouped


def _compilable(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compilable)]


def final_answer(text: str, pattern: str | None = None) -> str | None:
    """The answer that a text ends with: the last match of a pattern, its first group if it has one.

    Args:
        text: what was written.
        pattern: regular expression; the whole text is the answer by default.

    Returns:
        The answer with white space reduced to single blanks; None where nothing matches.
    """
    if pattern is None:
        return " ".join(text.split())
    matches = list(re.finditer(pattern, text, re.DOTALL))
    if not matches:
        return None
    last = matches[-1]
    found = last.group(1) if last.re.groups else last.group()
    return None if found is None else " ".join(found.split())


def entropy_of_answers(text: Sequence[str], group: Tensor, pattern: str | None = None) -> Tensor:
    """Entropy (N,) in nats of the final answers of each trajectory's group.

    Args:
        text: N texts.
        group: (N,) key of the trajectories that share a start.
        pattern: see ``final_answer``; texts in which it finds nothing count as one answer, which no other equals.
    """
    known: dict[str | None, int] = {}
    label = torch.tensor([known.setdefault(final_answer(t, pattern), len(known)) for t in text], device=group.device)
    pair = torch.unique(group, return_inverse=True)[1] * max(len(known), 1) + label.long()
    ones = torch.ones(group.shape, device=group.device)
    return group_mean((grouped(ones, group).count() / grouped(ones, pair).count()).log(), group)
