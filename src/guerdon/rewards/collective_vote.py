"""Several models vote on one answer, and whoever agrees with itself has the louder voice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.credit.answers import Pattern, final_answer
from guerdon.credit.grouping import group_mean
from guerdon.rewards.base import batched, reward
from guerdon.rewards.label_free import NO_ANSWER, Ties, answer_numbers, lots, vote


class Collective(NamedTuple):
    """What a vote of several models came to.

    Attributes:
        won: (N,) bool, the trajectory gave the answer of the collective.
        label: (N,) that answer; -1 where there is none.
        weight: (N,) self-consistency of the trajectory's model on its question.
        consistency: (N,) part of all weighted votes on the question that the first answer has.
    """

    won: Tensor
    label: Tensor
    weight: Tensor
    consistency: Tensor


def collective_vote(
    answer: Tensor, group: Tensor, model: Tensor, *, weighted: bool = True, priority: Tensor | None = None
) -> Collective:
    """Let the answers of several models to each question vote, weighted by how far each model agrees with itself.

    label = argmax_a sum_m SC_m sum_k [a_mk = a],  SC_m = count of m's most frequent answer / number of its answers

    A model that is sure and wrong has the loudest voice: nothing here knows what is right. Answers must be in one form
    across models.

    Args:
        answer: (N,) int64, equal for equal answers; negative where there is none, which votes for nothing but counts
            among its model's answers.
        group: (N,) key of the question, which models share.
        model: (N,) int64, which model wrote the answer.
        weighted: false for the plain vote of all answers.
        priority: (N,) equal for equal answers, breaks ties; without it a question with several first answers has no
            label.

    Returns:
        The vote.

    Raises:
        ValueError: when shapes differ.

    Source: Yuan et al. 2025, arXiv 2508.12338.
    """
    if model.shape != group.shape:
        raise ValueError(f"model has shape {tuple(model.shape)}, group {tuple(group.shape)}; they must agree")
    models, which = torch.unique(model, return_inverse=True)
    cell = torch.unique(group, return_inverse=True)[1] * max(len(models), 1) + which
    own = vote(answer, cell)
    weight = own.top * group_mean((answer >= 0).double(), cell)
    result = vote(answer, group, weight=weight if weighted else None, priority=priority)
    return Collective(result.won, result.label, weight, result.top)


def rlccf_labels(answers: Tensor) -> tuple[int, Tensor]:
    """What M models with K answers each to one question agree on, and how much each of them counts.

    Args:
        answers: (M,K) int64, equal for equal answers; negative where there is none.

    Returns:
        The label, -1 where there is none, and (M,) self-consistencies.

    Source: as ``collective_vote``.
    """
    models, each = answers.shape
    rows = torch.arange(models).repeat_interleave(each)
    result = collective_vote(answers.reshape(-1), torch.zeros_like(rows), rows)
    label = int(result.label[0]) if each and models else NO_ANSWER
    return label, result.weight.view(models, each)[:, 0] if each else result.weight.new_zeros(models)


@reward(paper="Yuan et al. 2025, arXiv 2508.12338")
@batched
def rlccf(
    text: Sequence[str],
    group: Tensor,
    metadata: Sequence[Mapping[str, Any]],
    step: int = 0,
    *,
    peers: str = "peers",
    pattern: Pattern | None = None,
    weighted: bool = True,
    ties: Ties = "exclude",
) -> tuple[Tensor, dict[str, float]]:
    """Reward 1 for the answer on which the policy and other models agree most, each as loud as it is sure.

    r_i = [answer_i = label],  see ``collective_vote``

    The other models' answers come with the problem, so they stay as they were: collect them anew from time to time
    for models to evolve together.

    Args:
        text: N texts that the policy wrote.
        group: (N,) key of the trajectories that share a start.
        metadata: what the task knows of the N problems.
        step: the training step, by which ties are broken.
        peers: key in the metadata with the other models' final answers: a list of answers for each model.
        pattern: see ``final_answer``, for the policy's own texts.
        weighted: false for the plain vote of all answers.
        ties: ``exclude``: a question with several first answers gets 0; ``random``: one of them wins, by lot.

    Returns:
        (N,) 0 or 1; and the mean over the trajectories of ``consistency``, the first answer's part of the votes, of
        ``weight``, the policy's own self-consistency, and the share that are ``undecided``.

    Raises:
        ValueError: when a problem's metadata lack the key, or hold no lists there.

    Source: Yuan et al. 2025, arXiv 2508.12338. (There all models are trained in the same step.)
    """
    questions = list(dict.fromkeys(group.tolist()))
    known = dict(zip(group.tolist(), metadata, strict=True))
    rows = [(str(one), key, m + 1) for key in questions for m, one in _answers(known[key], peers)]
    number, names = answer_numbers([*(final_answer(one, pattern) or "" for one in text), *(row[0] for row in rows)])
    keys = torch.cat([group.cpu().long(), torch.tensor([row[1] for row in rows], dtype=torch.int64)])
    model = torch.cat([torch.zeros(len(text)).long(), torch.tensor([row[2] for row in rows], dtype=torch.int64)])
    priority = lots(names, number, step) if ties == "random" else None
    result = collective_vote(number, keys, model, weighted=weighted, priority=priority)
    mine = slice(0, len(text))
    stats = {"consistency": result.consistency[mine], "weight": result.weight[mine]}
    stats["undecided"] = (result.label[mine] < 0).double()
    means = {name: float(x.mean()) if len(text) else 0.0 for name, x in stats.items()}
    return result.won[mine].to(group.device, torch.get_default_dtype()), means


def _answers(metadata: Mapping[str, Any], key: str) -> list[tuple[int, Any]]:
    """The other models' answers to a problem, each with the number of its model."""
    if key not in metadata:
        raise ValueError(f"rlccf: the metadata have no '{key}'; known: {', '.join(map(str, metadata)) or 'nothing'}")
    found = metadata[key]
    if not isinstance(found, Sequence) or any(isinstance(x, str) or not isinstance(x, Sequence) for x in found):
        raise ValueError(f"rlccf: '{key}' is {found!r:.60}, wanted a list of answers for each model")
    return [(number, one) for number, several in enumerate(found) for one in several]
