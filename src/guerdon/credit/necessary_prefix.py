"""Credit that tells the reasoning that an answer needed from what was written after it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from guerdon.credit.grouping import whiten
from guerdon.curriculum.easy_share import EasyShare
from guerdon.registry import imported, register


class Prefix(NamedTuple):
    """Where a text stops needing what it says: characters [begin, end) are redundant.

    ``needed`` is the number of chunks of reasoning up to the first that holds the answer, over all chunks.
    """

    begin: int
    end: int
    needed: float


# Given n chunks of reasoning and the reference answer: which chunk is the first to hold it, None if none does.
Judge = Callable[[Sequence[str], Any], int | None]
JudgeOption = Annotated[Judge | None, BeforeValidator(imported)]


def first_mention(chunks: Sequence[str], answer: Any) -> int | None:
    """The first chunk that holds the answer as a word or number of its own: stands for the source's small judge."""
    wanted = str(answer).strip()
    if not wanted:
        return None
    form = re.compile(rf"(?<![\w.]){re.escape(wanted)}(?!\w|\.\d)", re.IGNORECASE)
    return next((i for i, chunk in enumerate(chunks) if form.search(chunk)), None)


def necessary_prefix(
    text: str,
    answer: Any,
    *,
    judge: Judge | None = None,
    opening: str = "<think>",
    closing: str = "</think>",
    separator: str = "\n\n",
) -> Prefix:
    """Find where the reasoning of a right answer has reached its result.

    The thought is cut into chunks at the separator. What follows the first chunk that holds the answer, up to the end
    of the thought, is redundant; what stands after the thought is not. In a text without the closing mark everything
    but the last chunk is the thought.

    Args:
        text: what the policy wrote.
        answer: the reference.
        judge: says which chunk is the first; ``first_mention`` by default.
        opening, closing: marks of the thought.
        separator: between chunks.

    Returns:
        The redundant stretch; an empty one where no chunk holds the answer.

    Source: Jiang et al. 2025, arXiv 2509.25827.
    """
    start = text.find(opening)
    start = 0 if start < 0 else start + len(opening)
    end = text.find(closing, start)
    end = max(text.rfind(separator), start) if end < 0 else end
    cuts = [start + found.end() for found in re.finditer(re.escape(separator), text[start:end])]
    edges = [start, *(cut for cut in cuts if cut < end), end]
    chunks = [text[a:b] for a, b in itertools.pairwise(edges)]
    first = (judge or first_mention)(chunks, answer)
    if first is None:
        return Prefix(end, end, 1.0)
    return Prefix(edges[first + 1], end, (first + 1) / len(chunks))


def decs_token_reward(
    right: Tensor, redundant: Tensor, mask: Tensor, *, beta: float = 0.1, longest: int = 16384
) -> Tensor:
    """Reward of every action: a little less for what a right answer did not need, the longer the answer.

    right: 1 + beta where necessary, 1 + beta (1 - L / longest) where redundant;  wrong: 0

    Args:
        right: (N,) bool.
        redundant: (N,T) bool, actions after the necessary prefix.
        mask: (N,T) true on actions; L counts them.
        beta: largest difference.
        longest: the most actions that an answer may have.

    Returns:
        (N,T), 0 off the mask.

    Source: Jiang et al. 2025, arXiv 2509.25827.
    """
    mask = mask.bool()
    share = (1 - mask.sum(dim=1, keepdim=True) / longest).clamp(min=0.0)
    paid = 1 + beta * torch.where(redundant.bool(), share, torch.ones_like(share))
    return torch.where(mask & right.bool().unsqueeze(1), paid, 0.0)


def positionwise_advantage(
    token_reward: Tensor, ended: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-6, ddof: int = 1
) -> Tensor:
    """Compare the reward of each action with those of the group at the same position.

    A_{i,t} = (R_{i,t} - mean_g R_t) / (std_g R_t + eps)

    An answer that is over still counts at later positions, with one number. So the actions up to which two answers are
    equally good have no credit, whatever comes after.

    Args:
        token_reward: (N,T) R.
        ended: (N,) what an answer counts after its last action.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions. Gaps between actions count nowhere.
        eps: added to each standard deviation.
        ddof: 1 for the sample standard deviation, 0 for the population one.

    Returns:
        (N,T), 0 off the mask, and where all that count at a position are equal.

    Source: Jiang et al. 2025, arXiv 2509.25827. (Among few answers the statistics of a position are noisy.)
    """
    mask = mask.bool()
    place = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, place, -1).amax(dim=1, keepdim=True) if mask.shape[1] else mask.new_zeros(len(mask), 1)
    over = (place > last) & (last >= 0)
    value = torch.where(over, ended.to(token_reward).unsqueeze(1), token_reward)
    number = torch.unique(group, return_inverse=True)[1]
    key = number.unsqueeze(1) * max(mask.shape[1], 1) + place
    return torch.where(mask, whiten(value, key, mask | over, eps=eps, ddof=ddof), 0.0)


def decs_advantage(
    right: Tensor,
    redundant: Tensor,
    group: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.1,
    longest: int = 16384,
    eps: float = 1e-6,
) -> Tensor:
    """Compare ``decs_token_reward`` by ``positionwise_advantage`` (N,T); one that is over and right counts 1 + beta."""
    rewards = decs_token_reward(right, redundant, mask, beta=beta, longest=longest)
    # By the same arithmetic as the reward, so that equal numbers are exactly equal.
    over = (1 + beta * torch.ones(len(rewards)).to(rewards)) * right.to(rewards)
    return positionwise_advantage(rewards, over, group, mask, eps=eps)


@register("credit", "decs", paper="Jiang et al. 2025, arXiv 2509.25827", needs_group=True)
class Decs:
    """Credit at each position against the group at that position, less for what a right answer did not need.

    ``decs_advantage`` on the groups that ``EasyShare`` chooses

    A reward of length for whole answers takes credit from the steps that found the result, and gives it to the useless
    end of an answer that is short all the same. Here only actions after the necessary prefix pay for length.

    Where a text stops needing what it says is found by its characters, and actions are taken to be equally wide. In a
    right answer in which no chunk holds the reference every action is necessary.

    Args:
        beta: largest reward of brevity.
        longest: the most actions that an answer may have (``max_new_tokens``).
        judge: import path of a function that says which chunk is the first to hold the answer, or the function;
            ``first_mention`` by default, where the source asks a small model.
        opening, closing, separator: see ``necessary_prefix``.
        gain, most: see ``EasyShare``.
        curriculum: whether solved groups earn credit only as far as ``EasyShare`` admits them; otherwise all do.
        threshold: least outcome of a right answer.
        eps: added to each standard deviation.

    Source: Jiang et al. 2025, arXiv 2509.25827. (The source draws problems anew until the batch is full; here the
    groups that are left out have no credit.)
    """

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(ge=0)] = 0.1,
        longest: Annotated[int, Field(ge=1)] = 16384,
        judge: JudgeOption = None,
        opening: str = "<think>",
        closing: str = "</think>",
        separator: Annotated[str, Field(min_length=1)] = "\n\n",
        gain: float = 0.2,
        most: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        curriculum: bool = True,
        threshold: float = 0.5,
        eps: float = 1e-6,
    ) -> None:
        self.options: dict[str, Any] = {"beta": beta, "longest": longest, "eps": eps}
        self.marks: dict[str, Any] = {"opening": opening, "closing": closing, "separator": separator}
        self.judge, self.threshold, self.curriculum = judge, threshold, curriculum
        self.share = EasyShare(gain=gain, most=most)

    def __call__(
        self, reward: Tensor, group: Tensor, mask: Tensor, text: Sequence[str], answer: Sequence[Any], seed: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Credit of a batch.

        Args:
            reward: (N,) outcome of each trajectory.
            group: (N,) key of the trajectories that share a start.
            mask: (N,T) true on actions.
            text: N texts that the policy wrote.
            answer: N references.
            seed: of the draw among solved groups.

        Returns:
            (N,T) credit, 0 off the mask; nu as ``needed``, ``kappa``, and the share of actions that are ``redundant``.
        """
        right = reward >= self.threshold
        found = [
            necessary_prefix(said, known, judge=self.judge, **self.marks) if good else Prefix(0, 0, 1.0)
            for said, known, good in zip(text, answer, right.tolist(), strict=True)
        ]
        redundant = redundant_actions(found, text, mask)
        credit = decs_advantage(right, redundant, group, mask, **self.options)
        needed = torch.tensor([prefix.needed for prefix in found], dtype=torch.float64)[right.cpu()]
        kappa = self.share.update(float(needed.mean()) if len(needed) else float("nan"))
        if self.curriculum:
            credit = credit * self.share.choose(right, group, seed).unsqueeze(1)
        stats = {"kappa": kappa, "redundant": float(redundant.sum() / mask.sum().clamp(min=1))}
        return credit, stats | ({"needed": float(needed.mean())} if len(needed) else {})

    def state_dict(self) -> dict[str, Any]:
        """kappa and the last nu."""
        return self.share.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.share.load_state_dict(state)


def redundant_actions(found: Sequence[Prefix], text: Sequence[str], mask: Tensor) -> Tensor:
    """(N,T) actions whose middle lies in the redundant stretch, if all actions of a text are equally wide."""
    mask = mask.bool()
    if not len(found):
        return torch.zeros_like(mask)
    width = torch.tensor([max(len(said), 1) for said in text], dtype=torch.float64, device=mask.device)
    begin, end = (
        torch.tensor([getattr(prefix, side) for prefix in found], dtype=torch.float64, device=mask.device) / width
        for side in ("begin", "end")
    )
    length = mask.sum(dim=1, keepdim=True).clamp(min=1)
    middle = (mask.cumsum(dim=1) - 0.5) / length
    return mask & (middle >= begin.unsqueeze(1)) & (middle < end.unsqueeze(1))
