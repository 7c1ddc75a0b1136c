"""Rewards without a reference: what most of a group answers, and how sure the policy is of what it wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.credit.answers import Pattern, final_answer
from guerdon.credit.grouping import grouped
from guerdon.rewards.base import batched, reward
from guerdon.seeding import derive

NO_ANSWER = -1
Ties = Literal["exclude", "random"]


class Vote(NamedTuple):
    """What a vote within groups came to.

    Attributes:
        won: (N,) bool, the trajectory gave the answer of its group's majority.
        share: (N,) part of the group's votes that the trajectory's own answer has; 0 without an answer.
        top: (N,) part of the group's votes that the first answer has, whether or not another has as many.
        label: (N,) answer of the group's majority; -1 where there is none.
    """

    won: Tensor
    share: Tensor
    top: Tensor
    label: Tensor


def answer_numbers(
    text: Sequence[str], pattern: str | None = None, valid: Callable[[str], bool] | None = None
) -> tuple[Tensor, list[str]]:
    """Number the final answers of texts, equal answers alike.

    Args:
        text: N texts.
        pattern: see ``final_answer``.
        valid: whether an answer counts; any that is not empty does by default.

    Returns:
        (N,) numbers, -1 where a text has no answer that counts; and the answer behind each number.
    """
    known: dict[str, int] = {}
    numbers = []
    for one in text:
        found = final_answer(one, pattern)
        counts = bool(found) and (valid is None or valid(found))
        numbers.append(known.setdefault(found, len(known)) if counts and found else NO_ANSWER)
    return torch.tensor(numbers, dtype=torch.int64), list(known)


def lots(answers: Sequence[str], number: Tensor, step: int = 0) -> Tensor:
    """(N,) pseudo-random numbers by which ties are broken: the same for equal answers, others in every step.

    They depend on the answers' spelling and not on the order of the batch.
    """
    drawn = [float(derive(step, "tie", answer)) for answer in answers]
    table = torch.tensor([*drawn, -1.0], dtype=torch.float64)
    return table.to(number.device)[number]


def vote(answer: Tensor, group: Tensor, *, weight: Tensor | None = None, priority: Tensor | None = None) -> Vote:
    """Let the answers of each group vote.

    label_g = argmax_a sum_{i in g} w_i [answer_i = a]

    Args:
        answer: (N,) int64, equal for equal answers; negative where there is none, which votes for nothing.
        group: (N,) key of the trajectories that share a start.
        weight: (N,) of each vote; 1 by default.
        priority: (N,) equal for equal answers: of several first answers the one with the largest wins. Without it, a
            group with several has no majority.

    Returns:
        The vote. Votes without an answer count in nothing.

    Raises:
        ValueError: when shapes differ.
    """
    if answer.shape != group.shape:
        raise ValueError(f"answer has shape {tuple(answer.shape)}, group {tuple(group.shape)}; they must agree")
    valid = answer >= 0
    votes = torch.ones(answer.shape, dtype=torch.float64, device=answer.device) if weight is None else weight.double()
    width = int(answer.max()) + 1 if len(answer) else 1
    pair = torch.unique(group, return_inverse=True)[1] * max(width, 1) + answer.clamp(min=0)

    def total(x: Tensor, key: Tensor) -> Tensor:
        """Sum over the entries with the same key, for every entry."""
        stats = grouped(x, key)
        return stats.spread(stats.total(x))

    def different(leads: Tensor) -> Tensor:
        """How many different answers lead each group."""
        return total(torch.where(leads, 1 / total(leads.double(), pair).clamp(min=1), 0.0), group).round()

    votes = torch.where(valid, votes, 0.0)
    mine = torch.where(valid, total(votes, pair), 0.0)
    everyone = grouped(mine, group)
    most = everyone.extreme(largest=True)
    # Weighted sums may differ in the last digits, whatever order they were taken in.
    leads = valid & (mine >= most * (1 - 1e-9)) & (most > 0)
    if priority is not None:
        rank = torch.where(leads, priority.double(), -torch.inf)
        leads &= rank == grouped(rank, group).extreme(largest=True)
    leads &= different(leads) == 1
    winners = total(leads.double(), group)
    label = (total(torch.where(leads, answer.double(), 0.0), group) / winners.clamp(min=1)).round().long()
    cast = total(votes, group).clamp(min=torch.finfo(torch.float64).tiny)
    return Vote(leads, mine / cast, most / cast, torch.where(winners > 0, label, NO_ANSWER))


@reward(paper="Zuo et al. 2025, arXiv 2504.16084")
@batched
def majority_vote(
    text: Sequence[str], group: Tensor, step: int = 0, *, pattern: Pattern | None = None, ties: Ties = "exclude"
) -> tuple[Tensor, dict[str, float]]:
    """Reward 1 for the answer that most of the group give.

    r_i = [answer_i = mode_g answer]

    It sharpens what the policy believes already: where the first answer is the right one it wins, where it is a wrong
    one that wins (``sharpening_odds`` says how fast). Watch a true reward on a few labelled problems beside it.

    Args:
        text: N texts that the policy wrote.
        group: (N,) key of the trajectories that share a start.
        step: the training step, by which ties are broken.
        pattern: see ``final_answer``; a text in which it finds nothing has no vote and gets 0.
        ties: ``exclude``: a group with several first answers gets 0, which teaches nothing; ``random``: one of them
            wins, by lot.

    Returns:
        (N,) 0 or 1; and as ``agreement`` the mean share of the first answer, as ``undecided`` the share of
        trajectories in groups without a majority.

    Source: Zuo et al. 2025, arXiv 2504.16084 (TTRL). (Excluding ties is ours.)
    """
    number, answers = answer_numbers(text, pattern)
    number = number.to(group.device)
    result = vote(number, group, priority=lots(answers, number, step) if ties == "random" else None)
    stats = {"agreement": _mean(result.top), "undecided": _mean((result.label < 0).double())}
    return result.won.to(torch.get_default_dtype()), stats


@reward()
@batched
def log_probability(old_logp: Tensor, mask: Tensor, *, reduce: Literal["mean", "sum"] = "mean") -> Tensor:
    """Log-probability of what was written: how sure the policy was of it.

    mean_t log pi_old(a_t), or the sum over t

    The sum pays for short texts, since every token costs something; the mean does not.

    Args:
        old_logp: (N,T) log-probability of each action when it was sampled, in nats.
        mask: (N,T) true on actions; nothing off the mask is read.
        reduce: over the actions.

    Returns:
        (N,) at most 0; 0 where nothing was done.
    """
    kept = torch.where(mask.bool(), old_logp.detach(), 0.0).sum(dim=1)
    return kept if reduce == "sum" else kept / mask.sum(dim=1).clamp(min=1)


@reward()
@batched
def trajectory_probability(old_logp: Tensor, mask: Tensor) -> Tensor:
    """Probability of what was written: prod_t pi_old(a_t).

    It vanishes for long texts, so the policy learns to write short ones; its failure is a collapse of length.

    Args:
        old_logp: (N,T) log-probability of each action when it was sampled, in nats.
        mask: (N,T) true on actions; nothing off the mask is read.

    Returns:
        (N,) in [0,1]; 1 where nothing was done.
    """
    return log_probability(old_logp, mask, reduce="sum").exp()


def anchored_certainty(logits: Tensor, anchor: Tensor, mask: Tensor, *, sign: float = 1.0) -> Tensor:
    """The one form of all certainty rewards: mean over actions of the cross-entropy to an anchor distribution.

    r_i = sign mean_t CE(q_t, pi_t),  CE(q, p) = -sum_v q(v) log p(v)

    q uniform and sign +1 is self-certainty plus ln V; q = pi and sign -1 is minus the entropy; q the token that was
    written and sign -1 is the mean log-probability.

    Args:
        logits: (N,T,V), read without gradient.
        anchor: (V,), (N,T,V) or what broadcasts to it: probabilities q.
        mask: (N,T) true on actions; nothing off the mask is read.
        sign: +1 to move away from the anchor, -1 towards it.

    Returns:
        (N,); 0 where nothing was done.
    """
    kept = mask.bool().unsqueeze(-1)
    table = torch.where(kept, logits.detach(), 0.0).log_softmax(dim=-1)
    weights = torch.where(kept, anchor.detach().expand_as(table), 0.0)
    # A probability of 0 in the anchor asks nothing of the policy, even where that is 0 as well.
    cross = -torch.where(weights > 0, weights * table, 0.0).sum(dim=-1)
    return sign * cross.sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def self_certainty(logits: Tensor, mask: Tensor) -> Tensor:
    """How far the policy is from uniform: mean_t KL(U || pi_t), with U uniform over the vocabulary.

    Args:
        logits: (N,T,V), read without gradient.
        mask: (N,T) true on actions; nothing off the mask is read.

    Returns:
        (N,) at least 0; 0 where nothing was done.

    Source: Zhao et al. 2025, arXiv 2505.19590.
    """
    size = logits.shape[-1]
    uniform = torch.full((size,), 1 / size, dtype=logits.dtype, device=logits.device)
    return anchored_certainty(logits, uniform, mask) - math.log(size) * mask.bool().any(dim=1).to(logits.dtype)


def token_certainty(entropy: Tensor, mask: Tensor) -> Tensor:
    """Minus the mean entropy of the actions; its failure is a text that repeats itself.

    Args:
        entropy: (N,T) in nats, read without gradient.
        mask: (N,T) true on actions; nothing off the mask is read.

    Returns:
        (N,) at most 0; 0 where nothing was done.
    """
    return -torch.where(mask.bool(), entropy.detach(), 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def probability_gap(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean distance between the probabilities of the two likeliest tokens.

    Args:
        logits: (N,T,V) of V from 2 on, read without gradient.
        mask: (N,T) true on actions; nothing off the mask is read.

    Returns:
        (N,) in [0,1]; 0 where nothing was done.
    """
    table = torch.where(mask.bool().unsqueeze(-1), logits.detach(), 0.0).softmax(dim=-1)
    first, second = table.topk(2, dim=-1).values.unbind(dim=-1)
    return torch.where(mask.bool(), first - second, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _mean(x: Tensor) -> float:
    return float(x.mean()) if len(x) else 0.0
