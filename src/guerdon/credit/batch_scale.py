"""Credit from comparing within groups, on one scale for the whole batch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import center, grouped, per_action, whiten
from guerdon.registry import register


@register("credit", paper="Liu et al. 2025, arXiv 2510.15110", needs_group=True)
def batch_scaled(
    reward: Tensor, group: Tensor, mask: Tensor, *, eps: Annotated[float, Field(ge=0)] = 1e-6, ddof: int = 1
) -> tuple[Tensor, dict[str, float]]:
    """Outcome minus its group's mean, scaled by the spread of the whole batch.

    a_i = r_i - mean_g r;  A_i = (a_i - mean_B a) / (std_B a + eps)

    Scaled by the spread of its own group, the only success among 16 has a credit of 3.75, eight times that of a success
    among many, and under a limit of length the only success is often a lucky one. Here all groups share a scale. B are
    the trajectories of groups that say something, as if the others had not been drawn; with objective ``dapo`` and
    ``aggregate: valid_token_mean`` their actions don't enter the mean of the loss either.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        eps: added to the standard deviation.
        ddof: 1 for the sample standard deviation, 0 for the population one.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere and in groups of equal rewards. Beside it the share of
        trajectories that are ``accepted``, that is, in groups that say something. As the easiest and the hardest
        problems drop out, the mix of problems that is learned from changes: watch it.

    Source: Liu et al. 2025, arXiv 2510.15110. (Not ``reinforce++_baseline``, whose scale also counts silent groups and,
    by default, long trajectories more than short ones.)
    """
    useful = ~grouped(reward, group).tied() & mask.bool().any(dim=1)
    scaled = whiten(center(reward, group), None, useful, eps=eps, ddof=ddof)
    return per_action(scaled, mask), {"accepted": float(useful.double().mean()) if len(reward) else 0.0}
