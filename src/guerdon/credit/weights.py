"""Weights on credit that is there already: they follow the method that estimates it."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.curriculum.difficulty import difficulty_softmax
from guerdon.registry import register


@register("credit", paper="Dai et al. 2026, arXiv 2601.20614", needs_group=True)
def difficulty_weights(
    advantage: Tensor,
    reward: Tensor,
    group: Tensor,
    components: Tensor | None = None,
    *,
    accuracy: int = 0,
    temperature: Annotated[float, Field(gt=0)] = 2.0,
) -> tuple[Tensor, dict[str, float]]:
    """Weigh the credit of hard problems more: the question weights of ``dgpo``, after any other credit.

    A_i <- lambda_g A_i,  lambda: ``difficulty_softmax`` of the mean accuracy of each group that has any credit

    Args:
        advantage: (N,T) credit so far; name this method after the one that estimates it.
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        components: (N,K) raw rewards; the outcome stands for the accuracy where they are not given.
        accuracy: column of components that tells how hard a problem is; NaN counts as 0.
        temperature: of the softmax over the groups with credit.

    Returns:
        (N,T) weighted credit, and the largest and smallest weight as ``largest`` and ``smallest``.

    Source: Dai et al. 2026, arXiv 2601.20614.
    """
    score = reward if components is None else components[:, accuracy]
    credited = (advantage != 0).any(dim=1)
    useful = grouped(credited.to(score.dtype), group).extreme(largest=True) > 0
    weight = question_weight(score, group, useful, temperature=temperature)
    stats = {"largest": weight.max().item(), "smallest": weight.min().item()} if len(weight) else {}
    return weight.unsqueeze(1) * advantage, stats


def question_weight(score: Tensor, group: Tensor, useful: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Weight of each trajectory's problem among the useful ones; 1 for the others.

    A group that is 0 throughout on the score, yet useful through another reward, gets the weight of a solved one.

    Args:
        score: (N,) accuracy of each trajectory; NaN counts as 0.
        group: (N,) key of the trajectories that share a start.
        useful: (N,) bool, true for every member of a useful group.
        temperature: see ``difficulty_softmax``.

    Returns:
        (N,); 1 on average over the useful groups.
    """
    stats = grouped(score.masked_fill(score.isnan(), 0.0), group)
    hopeless = stats.tied() & (stats.values == 0)
    mean = torch.where(hopeless, 1.0, stats.mean())
    size = stats.total(torch.ones_like(mean)).clamp(min=1)
    weights = difficulty_softmax(
        stats.total(mean) / size, stats.total(useful.to(mean.dtype)) > 0, temperature=temperature
    )
    return stats.spread(weights)
