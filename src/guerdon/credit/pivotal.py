"""Credit of attempts and their retries: what both share earns none, and success outweighs failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import center, per_action
from guerdon.registry import register


def pivotal_mask(mask: Tensor, turn: Tensor, pivot: Tensor) -> Tensor:
    """Actions from the turn on in which an attempt and its retry part: mask and turn >= k.

    Args:
        mask: (N,T) true on actions.
        turn: (N,T) turn of each action, counted from 0; -1 off actions. Turns are the policy's, not messages.
        pivot: (N,) k, the turns that both share; 0 where there is nothing to compare with.

    Returns:
        (N,T) bool.

    Source: R^3L, Reflect-then-Retry Reinforcement Learning, and its code.
    """
    return mask.bool() & (turn >= pivot.unsqueeze(1))


@register("credit", paper="R^3L: Reflect-then-Retry Reinforcement Learning")
def pivotal(
    advantage: Tensor, mask: Tensor, turn: Tensor, metadata: Sequence[Mapping[str, Any]]
) -> tuple[Tensor, dict[str, float]]:
    """Take the credit off the turns that an attempt and its retry share, which are to blame for neither outcome.

    A_t = 0 where turn_t < k

    It follows the credit that estimates the advantage. k is the entry ``pivot`` of a trajectory's metadata, which
    source ``reflect_retry`` writes. (The source takes those actions out of the mask; here they still count in a mean
    over actions, which changes its gradient by the same factor for the whole batch.)

    Args:
        advantage: (N,T) credit of each action.
        mask: (N,T) true on actions.
        turn: (N,T) turn of each action, -1 off actions.
        metadata: N mappings; those without ``pivot`` keep all their credit.

    Returns:
        (N,T) the advantage, 0 on shared turns and off the mask; and the share of actions that are ``shared``.

    Source: R^3L, Reflect-then-Retry Reinforcement Learning.
    """
    pivot = torch.tensor([int((known or {}).get("pivot", 0)) for known in metadata], device=mask.device)
    kept = pivotal_mask(mask, turn, pivot)
    shared = 1 - float(kept.sum()) / max(int(mask.bool().sum()), 1)
    return advantage.masked_fill(~kept, 0.0), {"shared": shared}


@register("credit", paper="R^3L: Reflect-then-Retry Reinforcement Learning")
def positive_amplification(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    *,
    amplification: Annotated[float, Field(ge=0)] = 3.0,
    success: float = 1.0,
) -> Tensor:
    """Deviation from the group's mean, larger above it than below, and 1 for whatever succeeds.

    s_i = r_i - mean_g r;  A_i = 1 if r_i >= success, amplification s_i if s_i >= 0, s_i otherwise

    Failures are the many. Without the factor their negative credit drives the policy away from all that was tried, and
    with no ratio to clip nothing bounds that. A full success counts even alone in its group, or where all succeed. A
    group of equal failures has no credit.

    Args:
        reward: (N,) outcome of each trajectory; one that is not finite gets no credit and enters no mean.
        group: (N,) key of the trajectories that are compared: attempts at a problem and their retries.
        mask: (N,T) true on actions.
        amplification: factor on credit above the mean.
        success: reward of a full success.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere.

    Source: R^3L, Reflect-then-Retry Reinforcement Learning, and its code.
    """
    valid = reward.isfinite()
    above = center(reward, group, valid)
    credit = torch.where(above >= 0, amplification * above, above)
    return per_action(torch.where(valid & (reward >= success), torch.ones_like(credit), credit), mask)
