"""Credit of decisions that last: rewards of single actions, handed to the choice that they followed from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.credit.turn import turns_of


class Options(NamedTuple):
    """Decisions among actions, (N,T) each.

    Attributes:
        reward: what each decision earned until the next, at the action with which it was taken; 0 elsewhere.
        mask: actions with which a decision was taken.
        option: number of the decision that each action follows from, from 0; -1 off actions.
        duration: how many actions a decision lasted, where it was taken; 0 elsewhere.
    """

    reward: Tensor
    mask: Tensor
    option: Tensor
    duration: Tensor


def fold_options(dense: Tensor, fires: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Options:
    """Make a semi-Markov decision process of actions: one decision for each firing, paid all that came before the next.

    R_k = sum_{j < d_k} gamma^j r_{b_k + j},  decision k taken with action b_k, lasting d_k actions

    The first action of a trajectory always takes one. The value after a decision is discounted by gamma^{d_k}, as in
    ``two_level_gae``.

    Args:
        dense: (N,T) reward of each action.
        fires: (N,T) actions with which something new is decided.
        mask: (N,T) true on actions; nothing off the mask is read, and positions off it take no time.
        gamma: discount per action.

    Returns:
        The decisions.

    Source: Sutton, Precup and Singh 1999 (options); Kobayashi et al. 2025, arXiv 2512.20605.
    """
    mask = mask.bool()
    begins = mask & (fires.bool() | (mask.cumsum(dim=1) == 1))
    option = torch.where(mask, begins.long().cumsum(dim=1) - 1, -1)
    parts = turns_of(option, mask)
    age = mask.long().cumsum(dim=1) - 1
    start = parts.total(torch.where(begins, age, 0).to(dense.dtype))
    weight = gamma ** (age - parts.spread(start))
    earned = parts.spread(parts.total(torch.where(mask, dense, 0.0) * weight))
    lasted = parts.spread(parts.total(mask.to(dense.dtype)))
    return Options(earned * begins, begins, option, (lasted * begins).long())
