"""Outcomes that count only within a limit of length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guerdon.credit.grouping import group_mean
from guerdon.errors import RecipeError
from guerdon.registry import register


def difficulty_limits(
    accuracy: Tensor, *, thresholds: Sequence[float] = (0.5,), limits: Sequence[int] = (4000, 2000)
) -> Tensor:
    """Limit of length by how well a problem is solved: the better, the tighter.

    limit = limits[number of thresholds that are <= accuracy]

    Args:
        accuracy: (N,) share of right answers to the problem of each trajectory.
        thresholds: rising; an accuracy that equals one is beyond it.
        limits: in actions, one more than there are thresholds.

    Returns:
        (N,) int64.

    Raises:
        RecipeError: when there is not one limit more than thresholds, or the thresholds do not rise.

    Source: Liu et al. 2025, arXiv 2510.15110.
    """
    edges = torch.tensor(list(thresholds), dtype=torch.float64, device=accuracy.device)
    if len(limits) != len(thresholds) + 1 or bool((edges.diff() <= 0).any()):
        raise RecipeError(
            f"limits are {list(limits)} for thresholds {list(thresholds)}; give rising thresholds and one limit more"
        )
    table = torch.tensor(list(limits), dtype=torch.int64, device=accuracy.device)
    return table[torch.bucketize(accuracy.double(), edges, right=True)]


@register("shaping", paper="Liu et al. 2025, arXiv 2510.15110")
def truncation_reward(
    reward: Tensor,
    length: Tensor,
    truncated: Tensor,
    group: Tensor,
    *,
    limits: Sequence[int] = (4000,),
    thresholds: Sequence[float] = (),
    threshold: float = 0.5,
) -> tuple[Tensor, dict[str, float]]:
    """Let an outcome count only if the answer ended by itself, within the limit of length.

    r_i <- r_i if L_i <= limit_g and not truncated, else 0

    With one limit, set ``max_new_tokens`` to it, so that rollouts cost no more than what counts. With several
    (``thresholds: [0.5]``, ``limits: [4000, 2000]``) a group's limit follows from its share of answers that are right
    within the largest limit; the source does this for some 150 steps after the plain form.

    Args:
        reward: (N,) outcome, of an earlier shaping method (``weighted_sum``); 0 at least.
        length: (N,) number L of actions.
        truncated: (N,) whether the answer was cut: it gets 0, however right it looks.
        group: (N,) key of the trajectories that share a start.
        limits, thresholds: see ``difficulty_limits``.
        threshold: least outcome of a right answer.

    Returns:
        (N,) reward; the mean ``limit``, and the share of trajectories whose outcome was ``lost`` to it.

    Raises:
        RecipeError: when the limits do not fit the thresholds.

    Source: Liu et al. 2025, arXiv 2510.15110. That a group's limit follows from the same group's accuracy is inferred.
    """
    ended = (length <= max(limits)) & ~truncated.bool()
    accuracy = group_mean((ended & (reward >= threshold)).double(), group)
    limit = difficulty_limits(accuracy, thresholds=thresholds, limits=limits)
    kept = ended & (length <= limit)
    if not len(reward):
        return reward, {}
    stats = {"limit": float(limit.double().mean()), "lost": float((~kept & (reward > 0)).double().mean())}
    return torch.where(kept, reward, 0.0), stats
