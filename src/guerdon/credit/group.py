"""Credit from comparing the outcomes of one group, or of the whole batch; every action gets its trajectory's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guerdon.credit.grouping import Singleton, center, grouped, leave_one_out_mean, per_action, whiten
from guerdon.registry import register


@register("credit", paper="Shao et al. 2024, arXiv 2402.03300", needs_group=True)
def grpo(
    reward: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-4, ddof: int = 1, singleton: Singleton = "zero"
) -> Tensor:
    """Group-relative advantage, scaled by the group's spread.

    A_i = (r_i - mean_g r) / (std_g r + eps)

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        eps: added to the standard deviation.
        ddof: 1 for the sample standard deviation, 0 for the population one.
        singleton: what a group of one gets. It has nothing to compare with, so the default is no credit (``zero``);
            trainers disagree, and ``raw`` reproduces those that keep its reward (mean 0, std 1).

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere; exactly 0 where all rewards of a group are equal.

    Source: Shao et al. 2024, arXiv 2402.03300.
    """
    return per_action(whiten(reward, group, eps=eps, ddof=ddof, singleton=singleton), mask)


@register("credit", paper="Liu et al. 2025, arXiv 2503.20783", needs_group=True)
def dr_grpo(reward: Tensor, group: Tensor, mask: Tensor, *, singleton: Singleton = "zero") -> Tensor:
    """Group-relative advantage without scaling, so that no prompt weighs more for having a small spread.

    A_i = r_i - mean_g r

    The published method is this credit with objective ``ppo_clip`` and ``aggregate: sum_over_max_length``.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        singleton: what a group of one gets: no credit (``zero``) or its reward (``raw``).

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere.

    Source: Liu et al. 2025, arXiv 2503.20783.
    """
    return per_action(center(reward, group, singleton=singleton), mask)


@register("credit", paper="Ahmadian et al. 2024, arXiv 2402.14740", needs_group=True)
def rloo(reward: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """Reward minus the mean of the other members of the group: an unbiased baseline.

    A_i = r_i - mean_{j in g, j != i} r_j

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere and in a group of one.

    Source: Ahmadian et al. 2024, arXiv 2402.14740; Kool et al. 2019.
    """
    return per_action(reward - leave_one_out_mean(reward, group), mask)


@register("credit", "reinforce++", paper="Hu 2025, arXiv 2501.03262", aliases=("reinforce_pp",))
def reinforce_pp(
    reward: Tensor,
    mask: Tensor,
    *,
    unit: Literal["token", "trajectory"] = "token",
    eps: float = 1e-8,
    ddof: int = 0,
) -> Tensor:
    """Outcome whitened over the whole batch, with no comparison inside groups.

    A_i = (r_i - mean_B r) / (std_B r + eps)

    Args:
        reward: (N,) outcome of each trajectory.
        mask: (N,T) true on actions.
        unit: what the batch statistics count. ``token``, as in the authors' release: each trajectory counts once per
            action, so long ones weigh more. ``trajectory``: each counts once.
        eps: added to the standard deviation.
        ddof: 0 for the population standard deviation of the authors' release; some ports use 1.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere. The per-action KL penalty that the paper subtracts
        from the reward is the separate term ``kl``.

    Source: Hu 2025, arXiv 2501.03262.
    """
    return _batch_whiten(reward, mask, unit, eps, ddof)


@register(
    "credit",
    "reinforce++_baseline",
    paper="Hu 2025, arXiv 2501.03262",
    aliases=("reinforce_pp_baseline",),
    needs_group=True,
)
def reinforce_pp_baseline(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    *,
    unit: Literal["token", "trajectory"] = "token",
    eps: float = 1e-8,
    ddof: int = 0,
    singleton: Singleton = "zero",
) -> Tensor:
    """Outcome minus its group's mean, then whitened over the whole batch.

    c_i = r_i - mean_g r;  A_i = (c_i - mean_B c) / (std_B c + eps)

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        unit: what the batch statistics count, as in ``reinforce_pp``.
        eps: added to the standard deviation.
        ddof: 0 for the population standard deviation, 1 for the sample one.
        singleton: what a group of one enters the batch with: 0 (``zero``) or its reward (``raw``).

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere. A group of equal rewards gets exactly 0; in the
        release it gets the shift -mean_B c / std_B c, which carries no information about it.

    Source: Hu 2025, arXiv 2501.03262.
    """
    centred = center(reward, group, singleton=singleton)
    stats = grouped(reward, group)
    silent = stats.tied() & ((stats.count() > 1) | (singleton == "zero"))
    return _batch_whiten(centred, mask, unit, eps, ddof).masked_fill(silent.unsqueeze(1), 0.0)


@register("credit", paper="Chu et al. 2025, arXiv 2504.02546", needs_group=True)
def gpg(
    reward: Tensor, group: Tensor, mask: Tensor, *, f_norm: Literal["one", "std"] = "one", eps: float = 1e-4
) -> Tensor:
    """Group-centred outcome, rescaled for the trajectories that carry no signal.

    A_i = alpha (r_i - mean_g r) / F,  alpha = B / (B - M)

    B counts the trajectories of the batch and M those in groups of equal rewards, so the gradient keeps its size
    when many groups are silent. (The release counts trajectories of reward 0 instead; the paper's M stands here.)

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        f_norm: F = 1 (``one``) or std_g r + eps (``std``).
        eps: added to the standard deviation.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere, in groups of one, and when every group is silent.

    Source: Chu et al. 2025, arXiv 2504.02546.
    """
    useful = (~grouped(reward, group).tied()).sum()
    alpha = reward.shape[0] / useful.clamp(min=1)
    relative = center(reward, group) if f_norm == "one" else whiten(reward, group, eps=eps)
    return per_action(alpha * relative, mask)


def _batch_whiten(x: Tensor, mask: Tensor, unit: Literal["token", "trajectory"], eps: float, ddof: int) -> Tensor:
    if unit == "token":
        return whiten(per_action(x, mask), None, mask, eps=eps, ddof=ddof)
    acted = torch.any(mask, dim=1)
    return per_action(whiten(x, None, acted, eps=eps, ddof=ddof), mask)
