"""Credit against a baseline: the outcome minus what was to be expected; every action gets its trajectory's."""

from __future__ import annotations

from torch import Tensor

from guerdon.credit.grouping import center, group_mean, per_action
from guerdon.registry import register


@register("credit", paper="Li et al. 2023, arXiv 2310.10505")
def remax(reward: Tensor, greedy_reward: Tensor, mask: Tensor) -> Tensor:
    """Reward minus that of the greedy trajectory from the same start.

    A_i = r_i - r_greedy(i)

    Args:
        reward: (N,) outcome of each trajectory.
        greedy_reward: (N,) outcome of one greedy trajectory from the same start.
        mask: (N,T) true on actions.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere.

    Source: Li et al. 2023, arXiv 2310.10505.
    """
    return per_action(reward - greedy_reward, mask)


@register("credit", paper="Hao et al. 2025, arXiv 2505.23585", needs_group=True)
def opo(reward: Tensor, group: Tensor, length: Tensor, mask: Tensor) -> Tensor:
    """Reward minus the length-weighted mean of the group: the least-variance baseline for on-policy training.

    A_i = r_i - b,  b = sum_g l r / sum_g l

    It is optimal when the squared norm of a trajectory's score grows in proportion to its length.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        length: (N,) number of actions.
        mask: (N,T) true on actions.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere and in a group of one.

    Source: Hao et al. 2025, arXiv 2505.23585.
    """
    centred = center(reward, group)
    weight = length.to(reward.dtype)
    # b - mean_g r, from centred rewards so that equal ones cancel exactly.
    shift = group_mean(weight * centred, group) / group_mean(weight, group).clamp(min=1e-8)
    return per_action(centred - shift, mask)
