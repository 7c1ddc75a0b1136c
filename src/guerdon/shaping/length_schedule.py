"""Rewards of length for the groups that can afford to be brief."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import first_rows, group_mean, whiten
from guerdon.registry import register
from guerdon.seeding import torch_generator

Share = Annotated[float, Field(ge=0, le=1)]


class Leading(NamedTuple):
    """Which trajectories (N,) belong to the most accurate groups, and the least accuracy among those groups."""

    rows: Tensor
    accuracy: float


def leading_groups(right: Tensor, group: Tensor, seed: int, *, share: float) -> Leading:
    """Choose the most accurate share of the groups of a batch; of groups that are equally accurate, some at random.

    max(1, floor(share * groups)) groups, or none for a share of 0

    Args:
        right: (N,) bool.
        group: (N,) key of the trajectories that share a start.
        seed: of the draw among equals.
        share: part of the groups, in [0,1].
    """
    if len(group) == 0 or share == 0:
        return Leading(torch.zeros_like(right, dtype=torch.bool), float("nan"))
    keys, rows = first_rows(group)
    accuracy = group_mean(right.double(), group)[rows]
    drawn = torch.randperm(len(keys), generator=torch_generator(seed, "leading groups")).to(keys.device)
    order = drawn[accuracy[drawn].argsort(descending=True, stable=True)]
    chosen = order[: max(1, int(share * len(keys) + 1e-9))]
    return Leading(torch.isin(group, keys[chosen]), float(accuracy[chosen[-1]]))


@register("shaping", paper="Dai et al. 2025, arXiv 2505.18086")
def grpo_lambda(
    reward: Tensor,
    length: Tensor,
    group: Tensor,
    seed: int,
    *,
    share: Share = 0.2,
    alpha: Share = 0.2,
    threshold: float = 0.5,
) -> tuple[Tensor, dict[str, float]]:
    """Pay for brevity in the most accurate groups of the batch only, and for being right in all others.

    leading groups: r_i = 1 - alpha sigmoid((L_i - mean_right L) / std_right L) if right, else 0;  others: r_i = 1 or 0

    A group that is still failing is not pushed to be brief, so that it doesn't give up what it is about to learn.
    Follow it with a credit that compares within groups (``grpo``).

    Args:
        reward: (N,) outcome, of an earlier shaping method (``weighted_sum``).
        length: (N,) number L of actions.
        group: (N,) key of the trajectories that share a start.
        seed: of the draw among groups that are equally accurate.
        share: lambda, part of the groups that are rewarded for length; at least one is, unless it is 0.
        alpha: the most that length costs. The source's value was not seen; a third-party version uses 0.6.
        threshold: least outcome of a right answer.

    Returns:
        (N,) reward in [0,1]; a wrong answer has 0 however short it is, and right ones of one length have 1 - alpha / 2.
        Beside it the least ``accuracy`` of a leading group, and the part of all trajectories that are ``leading``.

    Source: Dai et al. 2025, arXiv 2505.18086. Mean and population standard deviation are those of the group's right
    answers. (A third-party version rewards the brevity of wrong answers too, which is not done here.)
    """
    right = reward >= threshold
    lead = leading_groups(right, group, seed, share=share)
    relative = whiten(length.to(reward), group, right, eps=0.0, ddof=0)
    paid = torch.where(lead.rows, 1 - alpha * relative.sigmoid(), 1.0)
    stats = {"accuracy": lead.accuracy, "leading": float(lead.rows.double().mean()) if len(reward) else 0.0}
    return torch.where(right, paid, 0.0), stats
