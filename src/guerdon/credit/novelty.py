"""Credit that favours right answers which the policy found unlikely."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import center
from guerdon.registry import register


@register("credit", paper="Bamba et al. 2025, arXiv 2510.06672", needs_group=True)
def novelty_sharpen(
    advantage: Tensor,
    reward: Tensor,
    group: Tensor,
    old_logp: Tensor,
    mask: Tensor,
    *,
    novelty: Annotated[float, Field(ge=0)] = 2.5,
    cap: Annotated[float, Field(ge=0)] = 0.5,
    threshold: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Raise the credit of right answers that are less likely than their group's average, after any other credit.

    A_i <- A_i + min(max(novelty (1 - eta_i), 0), cap A_i) where r_i > threshold and A_i > 0
    eta_i = exp(s_i - mean_g s),  s_i = mean_t log pi_old(a_t)

    The mean over tokens still goes with length: watch the mean length, with and without.

    Args:
        advantage: (N,T) credit so far; name this method after the one that estimates it.
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        old_logp: (N,T) log-probability of each action when it was sampled.
        mask: (N,T) true on actions.
        novelty: size of the bonus.
        cap: largest bonus, as a share of the credit.
        threshold: outcome above which a trajectory is right.

    Returns:
        (N,T) credit, and the share of trajectories whose credit was raised as ``sharpened``.

    Source: Bamba et al. 2025, arXiv 2510.06672.
    """
    mask = mask.bool()
    length = mask.sum(dim=1)
    score = old_logp.masked_fill(~mask, 0.0).sum(dim=1) / length.clamp(min=1)
    rarity = 1 - center(score, group, length > 0).exp()
    bonus = (novelty * rarity).clamp(min=0.0).to(advantage.dtype).unsqueeze(1)
    entitled = (reward > threshold).unsqueeze(1) & (advantage > 0)
    sharpened = torch.where(entitled, advantage + torch.minimum(bonus, cap * advantage), advantage)
    raised = (sharpened > advantage).any(dim=1)
    return sharpened, {"sharpened": raised.to(advantage.dtype).mean().item() if len(raised) else 0.0}
