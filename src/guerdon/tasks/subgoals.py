"""Goals in parts: episodes cut where one subgoal after the other is met, each a task of its own."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

_ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):])\s*(.+?)\s*$")


def parse_subgoals(text: str, *, most: int | None = None) -> list[str]:
    """The subgoals that a generator wrote, one a line, with a number or a dash before each.

    Args:
        text: what it wrote; lines without a number or a dash are passed over.
        most: how many are kept at most, from the first; all by default.

    Source: Wu et al. 2025, arXiv 2502.07949 (the form of the list is ours).
    """
    found = [match[1] for line in text.splitlines() if (match := _ITEM.match(line))]
    return found[:most]


class Parts(NamedTuple):
    """Episodes cut at their subgoals.

    Attributes:
        segment: (N,M) subgoal that each turn pursues, -1 where there is no turn.
        reward: (N,M) 1 on the turn that meets its subgoal.
        met: (N,K) whether each subgoal was met, all before it as well.
    """

    segment: Tensor
    reward: Tensor
    met: Tensor


def cut_at_subgoals(reached: Tensor, exists: Tensor) -> Parts:
    """Cut episodes where subgoals are met, in their order; the first that is not met takes all that is left.

    A subgoal is met on the first turn, once it is its turn, after which it is satisfied.

    Args:
        reached: (N,M,K) whether subgoal k is satisfied after turn m. A turn that meets several belongs to the first.
        exists: (N,M) turns there are, without holes; nothing else is read. None is pursued once all are met.

    Returns:
        The segments and their rewards.

    Source: Wu et al. 2025, arXiv 2502.07949.
    """
    exists, (rows, turns, total) = exists.bool(), reached.shape
    time = torch.arange(turns, device=exists.device)
    begun, when = torch.zeros(rows, 1, dtype=torch.int64, device=exists.device), []
    for k in range(total):
        here = reached[:, :, k].bool() & exists & (time >= begun)
        begun = torch.where(here, time, turns).amin(dim=1, keepdim=True) if turns else begun + 1
        when.append(begun)
    met_at = torch.cat(when, dim=1) if when else begun[:, :0]  # ``turns`` for never
    before = (met_at.unsqueeze(1) < time.view(1, -1, 1)).sum(dim=2)
    pursued = exists & (before < total)
    reward = (pursued & (met_at.unsqueeze(1) == time.view(1, -1, 1)).any(dim=2)).to(torch.get_default_dtype())
    return Parts(torch.where(pursued, before, -1), reward, met_at < turns)


class Relabelled(NamedTuple):
    """One row (N*K) for each episode and subgoal: the episode again, as an attempt at that subgoal alone.

    Attributes:
        episode, subgoal: (N*K,) where the row comes from.
        mask: (N*K,M) turns in which the subgoal is pursued; none for one whose turn never comes.
        dense: (N*K,M) 1 on the turn that meets it.
        done: (N*K,) whether it was met.
    """

    episode: Tensor
    subgoal: Tensor
    mask: Tensor
    dense: Tensor
    done: Tensor


def relabel(parts: Parts) -> Relabelled:
    """Make each subgoal an episode of its own, so that a failure teaches what led to the subgoals that it met.

    Args:
        parts: as ``cut_at_subgoals`` gives them.

    Source: Wu et al. 2025, arXiv 2502.07949.
    """
    n, k = parts.met.shape
    subgoal = torch.arange(k, device=parts.segment.device)
    mask = parts.segment.unsqueeze(1) == subgoal.view(1, k, 1)
    dense = parts.reward.unsqueeze(1) * mask
    episode = torch.arange(n, device=mask.device).repeat_interleave(k)
    return Relabelled(
        episode, subgoal.repeat(n), mask.flatten(0, 1), dense.flatten(0, 1), dense.flatten(0, 1).any(dim=1)
    )
