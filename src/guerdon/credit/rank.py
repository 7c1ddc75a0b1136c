"""Credit from the order of the outcomes of a group, whatever their distances."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guerdon.credit.grouping import grouped, per_action, whiten
from guerdon.registry import register

Ties = Literal["mean", "min"]


def group_rank(x: Tensor, group: Tensor, *, ties: Ties = "mean") -> Tensor:
    """Place of each entry in its group, from 0 for the largest.

    Args:
        x: (N,) what is ranked; not NaN.
        group: (N,) key.
        ties: equal entries share the mean of the places they take up (``mean``) or the best of them (``min``).

    Returns:
        (N,) float places.
    """
    order = torch.argsort(x, descending=True, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    value, key = x[order], group[order]
    place = torch.arange(len(x), device=x.device)
    fresh_group = torch.ones_like(key, dtype=torch.bool)
    fresh_group[1:] = key[1:] != key[:-1]
    fresh = fresh_group.clone()
    fresh[1:] |= value[1:] != value[:-1]
    run = fresh.cumsum(0) - 1
    first, size = place[fresh][run], torch.bincount(run)[run]
    shared = first + ((size - 1) / 2 if ties == "mean" else 0)
    start = place[fresh_group][fresh_group.cumsum(0) - 1]
    ranks = torch.empty(len(x), dtype=x.dtype, device=x.device)
    ranks[order] = (shared - start).to(x.dtype)
    return ranks


@register("credit", paper="Zhang et al. 2026, arXiv 2601.06487", needs_group=True)
def rank_to_advantage(reward: Tensor, group: Tensor, mask: Tensor, *, ties: Ties = "mean", eps: float = 1e-6) -> Tensor:
    """Credit that depends on the order of a group's outcomes only, so neither their scale nor an outlier matters.

    q_i = 1 - rank_i / (n_g - 1), rank 0 best;  A_i = (q_i - mean_g q) / (std_g q + eps)

    Made for reward ``tournament``, whose rewards are places already: with ``ties: mean`` it leaves their order, and
    their distances where nobody is level, as they are. It is the last step: another z-score behind it (credit ``grpo``
    on its result) changes nothing, and shaping that mixes places with other rewards before it is lost but for order.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        ties: equal outcomes share the mean of their places, which keeps the sum of q the same in every group of a
            size (``mean``), or the best of them (``min``).
        eps: added to the standard deviation.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere, in a group of one and where all outcomes are equal.

    Source: Zhang et al. 2026, arXiv 2601.06487.
    """
    others = (grouped(reward, group).count() - 1).clamp(min=1)
    return per_action(whiten(1 - group_rank(reward, group, ties=ties) / others, group, eps=eps), mask)
