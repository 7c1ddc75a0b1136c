"""What the answers of one group say about each other, without a reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor

from guerdon.credit.grouping import group_mean, grouped
from guerdon.rewards.base import batched, reward


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


@reward(paper="Han et al. 2025, arXiv 2508.04138")
@batched
def answer_entropy(text: Sequence[str], group: Tensor, *, pattern: Pattern | None = None) -> Tensor:
    """Entropy of the final answers of each group, in nats: 0 where all agree.

    H = -sum_a p(a) ln p(a),  p(a) = share of the group's answers that are a

    It is no reward to climb, for disagreement is not worth having in itself; list it with ``watch: true``.

    Args:
        text: N texts that the policy wrote.
        group: (N,) key of the trajectories that share a start.
        pattern: see ``final_answer``; texts in which it finds nothing count as one answer, which no other equals.

    Returns:
        (N,) H of each trajectory's group, at most ln of its size.

    Source: Han et al. 2025, arXiv 2508.04138.
    """
    known: dict[str | None, int] = {}
    label = torch.tensor([known.setdefault(final_answer(t, pattern), len(known)) for t in text], device=group.device)
    pair = torch.unique(group, return_inverse=True)[1] * max(len(known), 1) + label.long()
    ones = torch.ones(group.shape, device=group.device)
    return group_mean((grouped(ones, group).count() / grouped(ones, pair).count()).log(), group)
