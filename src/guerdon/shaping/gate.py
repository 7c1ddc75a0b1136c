"""Rewards that count only where others have been earned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guerdon.errors import RecipeError, nearest
from guerdon.registry import register


@register("shaping", output="components", paper="Liu et al. 2026, arXiv 2601.05242")
def conditioned_reward(
    components: Tensor, component_names: Sequence[str], *, easy: str, hard: str, threshold: float = 1.0
) -> Tensor:
    """Let an easy reward count only where a hard one has been earned, so that it can't be learned in its stead.

    r_easy <- r_easy 1[r_hard >= threshold]

    The form of the condition is ours; the source names the option. It comes before every normalisation.

    Args:
        components: (N,K) raw rewards, one column each.
        component_names: their names.
        easy: name of the reward that is conditioned.
        hard: name of the reward it is conditioned on; NaN counts as not earned.
        threshold: least hard reward that counts as earned.

    Returns:
        (N,K) components with the easy column changed; NaN, a reward that does not apply, stays NaN.

    Raises:
        RecipeError: when a name is not a component, or both are the same.

    Source: Liu et al. 2026, arXiv 2601.05242.
    """
    names = list(component_names)
    for name in (easy, hard):
        if name not in names:
            raise RecipeError(f"conditioned_reward: no reward is called '{name}'{nearest(name, names)}")
    if easy == hard:
        raise RecipeError(f"conditioned_reward: easy and hard are both '{easy}'; name two rewards")
    column, earned = names.index(easy), components[:, names.index(hard)] >= threshold
    conditioned = torch.where(earned | components[:, column].isnan(), components[:, column], 0.0)
    index = torch.arange(len(names), device=components.device) == column
    return torch.where(index, conditioned.unsqueeze(1), components)


@register("shaping", paper="Zhuang et al. 2025, arXiv 2512.07478")
def staged_reward(
    components: Tensor,
    *,
    bonuses: Sequence[float] = (0.1, 0.1, 0.1),
    quality: float = 0.7,
) -> tuple[Tensor, dict[str, float]]:
    """Pay stage by stage: each stage counts only if all earlier ones pass, and quality only if all of them do.

    r = sum_j b_j prod_{l <= j} c_l + b_Q Q prod_l c_l

    So an answer that can't be parsed earns nothing for being fluent, and there is something to learn before the first
    right answer.

    Args:
        components: (N,K) the stages c_1, c_2, ... in order, 0 or 1 each, and last the quality Q in [0,1]; NaN counts
            as 0. A recipe lists its rewards in this order.
        bonuses: b_j, one per stage. The values are ours; the source gives the order.
        quality: b_Q.

    Returns:
        (N,) reward, and the share of trajectories that pass each stage as ``stage1``, ``stage2``, ...

    Raises:
        RecipeError: when there are not as many bonuses as stages.

    Source: Zhuang et al. 2025, arXiv 2512.07478.
    """
    stages = components.shape[1] - 1
    if stages != len(bonuses):
        raise RecipeError(
            f"staged_reward: {components.shape[1]} rewards are {stages} stages and a quality, but bonuses has "
            f"{len(bonuses)} numbers; give one bonus per stage"
        )
    scores = components.masked_fill(components.isnan(), 0.0)
    passed = scores[:, :-1].cumprod(dim=1)
    reached = passed[:, -1] if stages else torch.ones_like(scores[:, 0])
    weights = passed.new_tensor(list(bonuses))
    shares = passed.mean(dim=0).tolist() if len(passed) else []
    return passed @ weights + quality * scores[:, -1] * reached, {
        f"stage{j}": share for j, share in enumerate(shares, start=1)
    }
