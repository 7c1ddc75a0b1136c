"""Outcomes that are worth more the more concisely they were reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import group_mean
from guerdon.errors import RecipeError, nearest
from guerdon.registry import register


@register("shaping", paper="Wang et al. 2025, arXiv 2511.09158")
def conciseness_reward(
    reward: Tensor,
    components: Tensor,
    component_names: Sequence[str],
    group: Tensor,
    step: int,
    *,
    score: str = "conciseness",
    alpha: Annotated[float, Field(ge=0)] = 0.5,
    anneal: Annotated[int, Field(ge=1)] = 500,
    easiness: Literal["accuracy", "none"] = "accuracy",
    threshold: float = 0.5,
) -> tuple[Tensor, dict[str, float]]:
    """Multiply the outcome by a bonus for conciseness, so that a wrong answer gains nothing by being short.

    r_i = R_i (1 + alpha c_i (s + d_q)),  s = max(0, 1 - step / anneal),  d_q = share of right answers in the group

    Added to the outcome instead, conciseness can be had without being right, and is.

    Args:
        reward: (N,) outcome R, of an earlier shaping method (``weighted_sum``); 0 for wrong answers, and never below.
        components: (N,K) raw rewards.
        component_names: their names.
        group: (N,) key of the trajectories that share a start.
        step: the training step.
        score: name of the reward that gives c in [0,1]; list it with weight 0. NaN counts as 0.
        alpha: weight of the bonus.
        anneal: steps over which s falls from 1 to 0.
        easiness: d_q, by which easy problems are shortened more, or ``none`` for 0.
        threshold: least outcome of a right answer.

    Returns:
        (N,) reward; s as ``anneal``, and the standard deviation of the scores of right answers as ``spread``: scores
        that cluster say little.

    Raises:
        RecipeError: when no reward is called ``score``.
        ValueError: when an outcome is negative, for the product would then reward length in wrong answers.

    Source: Wang et al. 2025, arXiv 2511.09158. (The formula is theirs. alpha, the schedule of s and what d_q is were
    not found; those here are inferred.)
    """
    names = list(component_names)
    if score not in names:
        raise RecipeError(f"conciseness_reward: no reward is called '{score}'{nearest(score, names)}")
    if len(reward) and float(reward.min()) < 0:
        raise ValueError(
            f"conciseness_reward: the smallest outcome is {float(reward.min()):.4g}, and times a bonus it would reward "
            "wrong answers for being long; give wrong answers 0"
        )
    concise = components[:, names.index(score)].nan_to_num(0.0).to(reward)
    right = reward >= threshold
    easy = group_mean(right.to(reward), group) if easiness == "accuracy" else torch.zeros_like(reward)
    annealed = max(0.0, 1 - step / anneal)
    stats = {"anneal": annealed}
    if int(right.sum()) > 1:
        stats["spread"] = float(concise[right].double().std())
    return reward * (1 + alpha * concise * (annealed + easy)), stats
