"""Rewards known to be wrong at times: corrected where they are low, or made wrong to see what training bears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.errors import RecipeError, nearest
from guerdon.registry import register
from guerdon.rewards.noise import Unit, flipped


@register("shaping", output="components", paper="Lv et al. 2025, arXiv 2505.22653")
def calibrate_low(
    components: Tensor,
    component_names: Sequence[str],
    *,
    score: str,
    pattern: str,
    threshold: float = 0.5,
    gain: float = 0.1,
    most: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """Raise low scores of a learned reward a little where the text reasons well, for they may be false negatives.

    s <- min(most, s + gain p) where s < threshold;  p = the reward that sees how a text reasons

    High scores stay, so nothing is paid for phrases where the reward is content. List ``pattern`` with weight 0: it
    is to correct, not to be earned. Put this before whatever sums or normalises.

    Args:
        components: (N,K) raw rewards; where either of the two is NaN, nothing is corrected.
        component_names: names of the columns.
        score: name of the learned reward, in [0,1].
        pattern: name of the reward of reasoning, in [0,1], such as ``reasoning_pattern``.
        threshold: below which a score is corrected.
        gain: what full marks of ``pattern`` add.
        most: largest corrected score. It binds only for a threshold plus a gain above it.

    Returns:
        (N,K) components with the column of ``score`` changed, and the share of trajectories that were ``raised``.

    Raises:
        RecipeError: when a name is not that of a reward, or both are the same.

    Source: Lv et al. 2025, arXiv 2505.22653.
    """
    names = list(component_names)
    for name in (score, pattern):
        _known("calibrate_low", name, names)
    if score == pattern:
        raise RecipeError(f"calibrate_low: score and pattern are both '{score}'; name two rewards")
    column = names.index(score)
    low, added = components[:, column], gain * components[:, names.index(pattern)]
    raised = (low < threshold) & added.isfinite()
    new = torch.where(raised, (low + added).clamp(max=most), low)
    here = torch.arange(len(names), device=components.device) == column
    share = float((new > low).double().mean()) if len(low) else 0.0
    return torch.where(here, new.unsqueeze(1), components), {"raised": share}


@register("shaping", output="components", paper="Lv et al. 2025, arXiv 2505.22653")
def flip_noise(
    components: Tensor,
    component_names: Sequence[str],
    group: Tensor,
    seed: int,
    *,
    p: Annotated[float, Field(ge=0, le=1)],
    per: Unit = "group",
    reward: str | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Turn rewards upside down at random, to learn how much noise a training bears before it meets a noisy verifier.

    r_i -> 1 - r_i with probability p, drawn anew in every step; see ``guerdon.rewards.noise.flip_noise``

    The raw rewards stay as they are in the log, and evaluation never sees the noise.

    Args:
        components: (N,K) raw rewards; NaN stays NaN.
        component_names: names of the columns.
        group: (N,) key of the trajectories that share a start.
        seed: of the step.
        p: probability of a flip.
        per: ``group``: one coin for all members, as in the source; ``sample``: one for each.
        reward: name of the reward that is flipped, in [0,1]; all by default.

    Returns:
        (N,K) components, and the share of trajectories that were ``flipped``.

    Raises:
        RecipeError: when no reward is called so.

    Source: Lv et al. 2025, arXiv 2505.22653.
    """
    names = list(component_names)
    if reward is not None:
        _known("flip_noise", reward, names)
    wrong = flipped(group, seed, p=p, per=per)
    here = torch.tensor([reward is None or name == reward for name in names], device=components.device)
    share = float(wrong.double().mean()) if len(wrong) else 0.0
    return torch.where(wrong.unsqueeze(1) & here, 1 - components, components), {"flipped": share}


def _known(method: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise RecipeError(f"{method}: no reward is called '{name}'{nearest(name, names)}")
