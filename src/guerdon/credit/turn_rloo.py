"""Returns of turns, compared with those that the rest of the group had from the same turn on."""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.credit.grouping import leave_one_out_mean
from guerdon.credit.turn import group_by_anchor, returns_to_go, turns_of
from guerdon.registry import register


@register("credit", paper="Kumar et al. 2024, arXiv 2409.12917", needs_group=True)
def turn_rloo(dense: Tensor, group: Tensor, turn: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return to go of each turn, minus the mean of the others' from the same turn.

    A_{i,m} = G_{i,m} - mean_{j in g, j != i} G_{j,m},  G_{i,m} = sum_{u >= m} gamma^(u-m) r_{i,u}

    Unlike ``mapo`` it does not divide by a deviation, so a turn that is paid more is learned from more strongly. A turn
    that only one trajectory of the group came to has nothing to be compared with, and gets 0.

    Args:
        dense: (N,T) reward of each action, which sums to the outcome; r_{i,m} is what turn m's actions earned.
        group: (N,) key of the trajectories that share a start.
        turn: (N,T) turn of each action, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.
        gamma: discount per turn.

    Returns:
        (N,T) A of the turn on each of its actions, 0 elsewhere.

    Source: Kumar et al. 2024, arXiv 2409.12917 (REINFORCE with a baseline, on two turns); Ahmadian et al. 2024, arXiv
    2402.14740 (the baseline).
    """
    turns = turns_of(turn, mask)
    value = returns_to_go(turns.total(dense), gamma)
    number = torch.arange(value.shape[1], device=value.device).expand(value.shape)
    key = group_by_anchor(number, group, turns.exists)
    return turns.spread(torch.where(turns.exists, value - leave_one_out_mean(value, key, turns.exists), 0.0))
