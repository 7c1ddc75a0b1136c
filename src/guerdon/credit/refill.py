"""Credit in which groups that teach stand in for those that don't."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped, per_action, whiten
from guerdon.registry import register
from guerdon.sampling.allocation import value_refill


@register("credit", paper="Zhuang et al. 2025, arXiv 2512.07478", needs_group=True)
def vspo(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    seed: int,
    *,
    max_reward: float = 1.0,
    max_weight: Annotated[float | None, Field(ge=1)] = 2.0,
    by_value: bool = True,
    eps: float = 1e-4,
) -> tuple[Tensor, dict[str, float]]:
    """Group-relative advantage, in which the slots of silent groups go to groups that are hard and undecided.

    A_i = v_q (r_i - mean_g r) / (std_g r + eps),  v_q: weight of ``value_refill``

    A group that fills a slot besides its own gains the weight of one rollout batch, damped: without the damping
    (``max_weight: null``) a few groups make the whole step.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        seed: of the step's draws.
        max_reward, max_weight, by_value: see ``value_refill``.
        eps: added to the standard deviation.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere; the share of groups that are ``useful``, and the largest
        weight as ``largest``.

    Source: Zhuang et al. 2025, arXiv 2512.07478.
    """
    refill = value_refill(reward, group, seed, max_reward=max_reward, max_weight=max_weight, by_value=by_value)
    stats = grouped(reward, group)
    each = 1 / stats.count().clamp(min=1)
    useful = (each * ~stats.tied()).sum() / each.sum().clamp(min=1)
    largest = refill.weight.max().item() if len(reward) else 1.0
    credit = refill.weight * whiten(reward, group, eps=eps)
    return per_action(credit, mask), {"useful": useful.item(), "largest": largest}
