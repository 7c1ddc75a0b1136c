"""Credit from rewards and values of single steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.credit import grouping
from guerdon.registry import register


class GAE(NamedTuple):
    """Credit of each action and the critic's target, both (N,T) and 0 off the mask."""

    advantage: Tensor
    returns: Tensor


@register("credit", paper="Schulman et al. 2015, arXiv 1506.02438")
def gae(
    dense: Tensor,
    values: Tensor,
    mask: Tensor,
    bootstrap: Tensor,
    done: Tensor,
    *,
    gamma: float = 0.99,
    lam: float = 0.95,
    whiten: bool = True,
    eps: float = 1e-8,
) -> GAE:
    """Generalised advantage estimation, from one action to the next.

    delta_k = r_k + gamma V_{k+1} - V_k;  A_k = delta_k + gamma lam A_{k+1};  returns_k = A_k + V_k

    k counts actions. Positions off the mask, such as tokens that a tool wrote, take no time: neither discounted nor
    read, whatever they hold.

    Args:
        dense: (N,T) reward of each action.
        values: (N,T) critic's value of the state before each action.
        mask: (N,T) true on actions; trajectories may be ragged and have holes.
        bootstrap: (N,) critic's value of the state after the last action.
        done: (N,) the episode ended by itself: nothing follows, and ``bootstrap`` is read as 0.
        gamma: discount per action.
        lam: 0 trusts the critic after one action, 1 never does.
        whiten: shift and scale the advantage to mean 0 and standard deviation 1 over the actions of the batch;
            the returns are taken before that.
        eps: added to that standard deviation.

    Returns:
        The advantage and the returns, (N,T) each.

    Source: Schulman et al. 2015, arXiv 1506.02438.
    """
    mask = mask.bool()
    acts, r, v = (x.t().contiguous() for x in (mask, dense.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)))
    following = bootstrap.to(v.dtype).masked_fill(done.bool(), 0.0)
    running = torch.zeros_like(following)
    by_time = torch.zeros_like(v)
    for t in range(len(v) - 1, -1, -1):
        delta = r[t] + gamma * following - v[t]
        running = torch.where(acts[t], delta + gamma * lam * running, running)
        following = torch.where(acts[t], v[t], following)
        by_time[t] = running
    advantage = by_time.t().masked_fill(~mask, 0.0)
    returns = (advantage + values).masked_fill(~mask, 0.0)
    if whiten:
        advantage = grouping.whiten(advantage, None, mask, eps=eps)
    return GAE(advantage, returns)
