"""The vote of a group decides what is right, and how new the reasoning is decides how much it earns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor
from torch.nn.functional import normalize

from guerdon.credit.answers import Pattern
from guerdon.credit.grouping import grouped
from guerdon.registry import imported
from guerdon.rewards.base import batched, reward
from guerdon.rewards.label_free import answer_numbers, lots, vote

INVALID = -1.0


Embedding = Annotated[Callable[[list[str]], Any], BeforeValidator(imported)]
Validity = Annotated[Callable[[str], bool], BeforeValidator(imported)]

TRIGRAMS = "guerdon.rewards.text:trigram_embedding"


def has_digit(answer: str) -> bool:
    """Whether an answer holds a digit: what the release takes for a valid one."""
    return any(character.isdigit() for character in answer)


def novelty(embedding: Tensor, won: Tensor, group: Tensor, valid: Tensor, *, mix: float = 0.5) -> Tensor:
    """How little each text resembles those of its group.

    u_i = 1 - ((1 - mix) mean_{j in class of i, j != i} S_ij + mix max_{j != i} S_ij),  S_ij = clip(cos(e_i, e_j), 0, 1)

    The classes are those who won the vote and the others. Whoever is alone in a class is compared with all others.

    Args:
        embedding: (N,D) vectors of any length; a vector of zeros resembles nothing.
        won: (N,) bool, the class.
        group: (N,) key of the texts that are compared.
        valid: (N,) bool; other texts are compared with none.
        mix: weight of the closest text.

    Returns:
        (N,) in [0,1]: 1 alone in a group, 0 where not valid.
    """
    rows, present = _members(group, valid)
    unit = normalize(torch.where(valid.unsqueeze(1), embedding, 0.0).double(), dim=1)[rows]
    others = present.unsqueeze(1) & present.unsqueeze(2)
    others &= ~torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)
    close = (unit @ unit.transpose(1, 2)).clamp(0.0, 1.0)
    same = others & (won[rows].unsqueeze(1) == won[rows].unsqueeze(2))
    compared = torch.where(same.any(dim=2, keepdim=True), same, others)
    average = torch.where(compared, close, 0.0).sum(dim=2) / compared.sum(dim=2).clamp(min=1)
    closest = torch.where(others, close, 0.0).amax(dim=2) if rows.shape[1] else average
    out = embedding.new_zeros(len(group), dtype=torch.float64)
    out[rows[present]] = (1 - ((1 - mix) * average + mix * closest))[present]
    return out


def evol_reward(
    answer: Tensor, embedding: Tensor, group: Tensor, *, mix: float = 0.5, priority: Tensor | None = None
) -> Tensor:
    """Pay for the answer of the majority, and within each side for what others did not write.

    r_i = 0.5 + 0.5 n_i in the majority, -1 + 0.5 n_i elsewhere;  n = ``novelty``, from 0 to 1 within its class

    Where a class has one member it gets 1 and -0.5; where all are equally new, 0.75 and -0.75. An answer that is not
    valid gets -1, as do all of a group with fewer than two valid ones.

    Args:
        answer: (N,) int64, equal for equal answers; negative where there is no valid one.
        embedding: (N,D) of the reasoning.
        group: (N,) key of the trajectories that share a start.
        mix: weight of the closest text against the mean of the class.
        priority: see ``vote``; without it a group with several first answers has no majority, and all are elsewhere.

    Returns:
        (N,) in [-1,1]; every member of a majority has at least 1 more than any other.

    Source: Zhou et al. 2025, arXiv 2509.15194.
    """
    valid = answer >= 0
    won = vote(answer, group, priority=priority).won
    enough = grouped(valid.double(), group)
    valid &= enough.spread(enough.total(valid.double())) >= 2
    unlike = novelty(embedding, won, group, valid, mix=mix)
    side = torch.unique(group, return_inverse=True)[1] * 2 + won.long()
    stats = grouped(unlike, side, valid)
    low, high = stats.extreme(largest=False), stats.extreme(largest=True)
    spread = high - low
    # Cosines of equal texts differ by rounding: what is that small is no difference.
    tied = spread <= 1e-9
    scaled = torch.where(tied, 0.5, (unlike - low) / torch.where(tied, 1.0, spread))
    scaled = torch.where(stats.count() == 1, 1.0, scaled)
    return torch.where(valid, torch.where(won, 0.5, -1.0) + 0.5 * scaled, INVALID)


@reward("evol_rl", paper="Zhou et al. 2025, arXiv 2509.15194")
@batched
def evol_rl(
    text: Sequence[str],
    group: Tensor,
    step: int = 0,
    *,
    pattern: Pattern | None = None,
    valid: Validity | None = None,
    embed: Embedding = TRIGRAMS,  # type: ignore[assignment]  # resolved below
    mix: Annotated[float, Field(ge=0, le=1)] = 0.5,
    after: str | None = "</think>",
    longest: Annotated[int, Field(ge=1)] = 64_000,
) -> tuple[Tensor, dict[str, float]]:
    """Reward the answer that most of the group give, and more the less its reasoning resembles that of the others.

    see ``evol_reward``; go with ``clip_high: 0.28`` and, if variety still falls, a small entropy bonus

    The spread within a class is always full, so among almost equal texts noise becomes signal: watch
    ``similarity``, and go back to ``majority_vote`` where it nears 1.

    Args:
        text: N texts that the policy wrote.
        group: (N,) key of the trajectories that share a start.
        step: the training step, by which ties are broken.
        pattern: see ``final_answer``.
        valid: whether an answer counts, a function or an import path to one; any that is not empty does by default,
            ``guerdon.rewards.novelty_vote:has_digit`` is the release's.
        embed: from n texts to (n,D) vectors, a function or an import path to one; character trigrams by default, for
            want of an embedding model.
        mix: weight of the closest text against the mean of the class.
        after: only what follows its last occurrence is compared, as in the release; the whole text where it does not
            occur, or is null.
        longest: characters that are compared, counted from the end.

    Returns:
        (N,) in [-1,1]; and ``agreement``, the mean share of the first answer, ``invalid``, the share without an answer,
        and ``similarity``, one minus the mean novelty before it is stretched.

    Raises:
        ValueError: when ``embed`` does not give one vector per text.

    Source: Zhou et al. 2025, arXiv 2509.15194. (Ties are broken by lot; the release takes the
    answer that was given first, which depends on the order of the batch.)
    """
    number, answers = answer_numbers(text, pattern, valid)
    number = number.to(group.device)
    compared = [(one if after is None else one.rpartition(after)[2])[-longest:] for one in text]
    vectors = torch.as_tensor(imported(embed)(compared)).detach().to(group.device)
    if vectors.ndim != 2 or len(vectors) != len(text):
        raise ValueError(f"evol_rl: embed gave shape {tuple(vectors.shape)} for {len(text)} texts, want one each")
    priority = lots(answers, number, step)
    result = evol_reward(number, vectors, group, mix=mix, priority=priority)
    poll, counted = vote(number, group, priority=priority), number >= 0
    unlike = novelty(vectors, poll.won, group, counted, mix=mix)
    stats = {
        "agreement": float(poll.top.mean()) if len(text) else 0.0,
        "invalid": float((~counted).double().mean()) if len(text) else 0.0,
        "similarity": float(1 - unlike[counted].mean()) if bool(counted.any()) else 0.0,
    }
    return result.to(torch.get_default_dtype()), stats


def _members(group: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of each group side by side: (B,G) row numbers, and where there is one."""
    slot = torch.unique(group, return_inverse=True)[1]
    order = torch.where(valid, slot, len(group)).argsort(stable=True)[: int(valid.sum())]
    counts = torch.bincount(slot[order], minlength=int(slot.max()) + 1 if len(slot) else 0)
    place = torch.arange(len(order), device=group.device) - (counts.cumsum(0) - counts)[slot[order]]
    shape = (len(counts), int(counts.max()) if len(counts) else 0)
    rows = torch.zeros(shape, dtype=torch.int64, device=group.device)
    present = torch.zeros(shape, dtype=torch.bool, device=group.device)
    rows[slot[order], place], present[slot[order], place] = order, True
    return rows, present
