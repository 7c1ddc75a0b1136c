"""The answers to a question are judged by the vote of another phrasing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from guerdon.credit.answers import Pattern
from guerdon.rewards.base import Score, batched, reward
from guerdon.rewards.label_free import NO_ANSWER, Ties, answer_numbers, lots


def partner_label(answer: Tensor, group: Tensor, pair: Tensor, *, priority: Tensor | None = None) -> Tensor:
    """What most answers to the other phrasings of each question say.

    label_g = argmax_a sum over groups h != g of the same pair of |{i in h: answer_i = a}|

    Args:
        answer: (N,) int64, equal for equal answers; negative where there is none.
        group: (N,) key of the trajectories that share a start.
        pair: (N,) int64, equal for the groups that ask the same question.
        priority: (A,) of each answer's number: of several first answers the one with the largest wins. Without it,
            several first answers are no label.

    Returns:
        (N,) int64; -1 where the others have no majority or no answer, -2 where there is no other phrasing.

    Raises:
        ValueError: when shapes differ, or a group belongs to two pairs.
    """
    if not answer.shape == group.shape == pair.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (answer, group, pair))
        raise ValueError(f"answer, group and pair have shapes {shapes}; they must agree")
    if not len(answer):
        return answer.clone()
    slots, slot = torch.unique(group, return_inverse=True)
    pairs, place = torch.unique(pair, return_inverse=True)
    of_group = torch.zeros_like(slots).scatter(0, slot, place)
    if bool((of_group[slot] != place).any()):
        row = int((of_group[slot] != place).int().argmax())
        raise ValueError(f"group {int(group[row])} belongs to several pairs; a group asks one question")
    width = max(int(answer.max()) + 1, 1)
    counts = torch.zeros(len(slots), width, dtype=torch.int64, device=answer.device)
    valid = answer >= 0
    counts.index_put_((slot[valid], answer[valid]), torch.ones_like(slot[valid]), accumulate=True)
    everyone = counts.new_zeros(len(pairs), width).index_add_(0, of_group, counts)
    others = everyone[of_group] - counts
    most = others.amax(dim=1, keepdim=True)
    leads = (others == most) & (most > 0)
    if priority is not None:
        rank = torch.where(leads, priority[:width].double(), -torch.inf)
        leads &= rank == rank.amax(dim=1, keepdim=True)
    label = torch.where(leads.sum(dim=1) == 1, leads.int().argmax(dim=1), NO_ANSWER)
    several = torch.bincount(of_group, minlength=len(pairs))[of_group] > 1
    return torch.where(several, label, NO_ANSWER - 1)[slot]


def contrastive_reward(answer: Tensor, group: Tensor, pair: Tensor, *, priority: Tensor | None = None) -> Tensor:
    """Reward 1 for the answer that most give to another phrasing of the same question.

    r_i = [answer_i = label of the other phrasing],  see ``partner_label``

    Args:
        answer: (N,) int64, equal for equal answers; negative where there is none.
        group: (N,) key of the trajectories that share a start.
        pair: (N,) int64, equal for the groups that ask the same question.
        priority: (A,) breaks ties; without it a phrasing without a majority gives its partner no reward.

    Returns:
        (N,) 0 or 1; nan where the question has one phrasing in the batch.

    Source: Zhang et al. 2025, arXiv 2508.00410.
    """
    label = partner_label(answer, group, pair, priority=priority)
    right = ((label >= 0) & (answer == label)).to(torch.get_default_dtype())
    return torch.where(label < NO_ANSWER, torch.nan, right)


@reward(paper="Zhang et al. 2025, arXiv 2508.00410")
@batched
def co_reward(
    text: Sequence[str],
    group: Tensor,
    task_id: Tensor,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    step: int = 0,
    *,
    pair: str | None = None,
    pattern: Pattern | None = None,
    ties: Ties = "exclude",
) -> tuple[list[Score], dict[str, float]]:
    """Reward 1 for the answer that most give to another phrasing of the same question.

    r_i = [answer_i = mode of the answers to the other phrasing]

    A policy that is sure of a wrong answer to one phrasing earns nothing by it, unless the other phrasing misleads it
    to the same answer. Both phrasings must be in the batch; source ``paraphrase`` adds the second. A paraphrase whose
    answer is another teaches both phrasings wrong answers, so check it.

    Args:
        text: N texts that the policy wrote.
        group: (N,) key of the trajectories that share a start.
        task_id: (N,) identity of the problem, which phrasings share.
        metadata: what the task knows of the N problems.
        step: the training step, by which ties are broken.
        pair: key in the metadata whose value phrasings share, where they are problems of their own.
        pattern: see ``final_answer``; a text in which it finds nothing has no vote and gets 0.
        ties: ``exclude``: a phrasing with several first answers gives its partner 0; ``random``: one of them is the
            label, by lot.

    Returns:
        N scores of 0 or 1, not valid where the batch has one phrasing only; and as ``paired`` the share of
        trajectories that have a partner, as ``undecided`` the share of those whose partner has no majority.

    Raises:
        ValueError: when a problem's metadata lack the key.

    Source: Zhang et al. 2025, arXiv 2508.00410.
    """
    number, answers = answer_numbers(text, pattern)
    number = number.to(group.device)
    keys = task_id if pair is None else _numbered(pair, metadata or [{}] * len(text)).to(group.device)
    every = torch.arange(len(answers), device=group.device)
    priority = lots(answers, every, step) if ties == "random" and answers else None
    label = partner_label(number, group, keys, priority=priority)
    partnered = label >= NO_ANSWER
    scores = [
        Score(float(right), valid=known)
        for right, known in zip(((label >= 0) & (number == label)).tolist(), partnered.tolist(), strict=True)
    ]
    without = (label == NO_ANSWER).sum() / partnered.sum().clamp(min=1)
    return scores, {"paired": float(partnered.double().mean()) if len(text) else 0.0, "undecided": float(without)}


def _numbered(key: str, metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    """(N,) number of each problem's value under a key."""
    known: dict[str, int] = {}
    for row, data in enumerate(metadata):
        if key not in data:
            raise ValueError(
                f"co_reward: the metadata of sample {row} have no '{key}'; known: {', '.join(map(str, data)) or 'none'}"
            )
    return torch.tensor([known.setdefault(str(data[key]), len(known)) for data in metadata], dtype=torch.int64)
