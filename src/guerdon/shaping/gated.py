"""Rewards of several levels, of which the lower count only once the higher have come far enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.errors import RecipeError, nearest
from guerdon.registry import register
from guerdon.rollouts import at_last_action, at_turn_ends


class Gated(NamedTuple):
    """Reward of each trajectory (N,) and of each action (N,T), which adds up to it."""

    reward: Tensor
    dense: Tensor


def open_gates(
    components: Tensor,
    component_names: Sequence[str],
    *,
    levels: Sequence[Sequence[str]],
    gates: Mapping[str, float],
    strict: bool = True,
) -> Tensor:
    """Whether all rewards of the levels above each level exceed their gates.

    open_l = product over j of a level above l of [R_j > v_j]

    Args:
        components: (N,K) raw rewards; NaN exceeds nothing.
        component_names: names of the columns.
        levels: names of the rewards of each level, the most final first.
        gates: v by name; a reward without one shuts nothing.
        strict: R_j > v_j, or R_j >= v_j. It matters where a gate equals a value that the reward takes.

    Returns:
        (N,L) bool, true for the first level.

    Raises:
        RecipeError: when the levels are not the rewards, each once, or a gate is for none of them.
    """
    names, listed = list(component_names), [name for level in levels for name in level]
    for name in (*listed, *gates):
        if name not in names:
            raise RecipeError(f"gated_accumulation: no reward is called '{name}'{nearest(name, names)}")
    wrong = next((name for name in names if listed.count(name) != 1), None)
    if wrong is not None:
        raise RecipeError(
            f"gated_accumulation: 'levels' names reward '{wrong}' {listed.count(wrong)} times; name every reward once"
        )
    bounds = components.new_tensor([gates.get(name, -torch.inf) for name in names])
    passed = (components > bounds) if strict else (components >= bounds)
    passed |= torch.tensor([name not in gates for name in names], device=components.device)
    whole = [passed[:, [names.index(name) for name in level]].all(dim=1) for level in levels]
    return torch.stack([torch.ones_like(whole[0]), *whole[:-1]], dim=1).long().cumprod(dim=1).bool()


@register("shaping", paper="Sun et al. 2025, arXiv 2508.10548")
def gated_accumulation(
    components: Tensor,
    component_names: Sequence[str],
    component_weights: Tensor,
    mask: Tensor,
    turn: Tensor,
    turn_reward: Tensor | None = None,
    *,
    levels: list[list[str]],
    gates: dict[str, float],
    strict: bool = True,
    gate_penalties: bool = True,
) -> tuple[Gated, dict[str, float]]:
    """Weighted sum of rewards in which a level counts only where the levels above it have passed their gates.

    R = sum_k w_k R_k prod_{j of a level above k} [R_j > v_j];  per turn: w r_m on turn m, if the gates above are open

    Rewards for steps, format or tools are earned sooner than the outcome, and a policy may live on them. Gated, they
    are worth nothing in an episode that the outcome does not approve of; summed (gates of minus infinity) they are
    direct accumulation. Gates are read from the whole trajectory, so they come before credit and before any
    normalisation. A gate that only full success passes leaves a sparse reward early on; one below (a patch was
    submitted) does not.

    Args:
        components: (N,K) raw rewards, one column each; NaN contributes 0 and passes no gate.
        component_names: names of the columns.
        component_weights: (K,).
        mask: (N,T) true on actions.
        turn: (N,T) turn of each action, -1 off actions.
        turn_reward: (N,M) weighted sum of the rewards that come per turn, which must be those of the lowest level, all
            of them. Without it everything stands at the last action.
        levels: names of the rewards of each level, the most final first.
        gates: what the rewards of a level must exceed for the lower ones to count, by name. Put one between two values
            that the reward takes. The source's values were not seen.
        strict: whether a reward that equals its gate is shut out, as in a re-implementation that quotes the rule.
        gate_penalties: whether negative rewards are gated as well, so that a failed episode escapes its penalties.

    Returns:
        Rewards of trajectories and actions; and the share of trajectories in which each lower level is ``open``, by the
        level's number from 2 on. Plot the levels' raw rewards apart: that they part company is the alarm.

    Raises:
        RecipeError: when the levels are not the rewards, each once, or a gate is for none of them.
        ValueError: when turn_reward does not add up to the lowest level.

    Source: Sun et al. 2025, arXiv 2508.10548; the strict inequality is that of a re-implementation.
    """
    is_open = open_gates(components, component_names, levels=levels, gates=gates, strict=strict)
    names, scores = list(component_names), components.nan_to_num(0.0) * component_weights.to(components)
    level = torch.tensor([next(i for i, of in enumerate(levels) if name in of) for name in names], device=mask.device)
    kept = is_open[:, level] | (scores < 0 if not gate_penalties else torch.zeros_like(scores, dtype=torch.bool))
    counted = torch.where(kept, scores, 0.0)
    stats = {f"open{i + 1}": float(is_open[:, i].double().mean()) for i in range(1, len(levels)) if len(is_open)}
    if turn_reward is None:
        reward = counted.sum(dim=1)
        return Gated(reward, at_last_action(reward, mask.bool())), stats
    lowest = level == len(levels) - 1
    by_turn = turn_reward.nan_to_num(0.0).to(scores)
    _same_total(by_turn.sum(dim=1), scores[:, lowest].sum(dim=1), levels[-1])
    kept_turns = is_open[:, -1:] | (by_turn < 0 if not gate_penalties else torch.zeros_like(by_turn, dtype=torch.bool))
    by_turn = torch.where(kept_turns, by_turn, 0.0)
    higher = counted[:, ~lowest].sum(dim=1)
    acts = torch.where(mask.bool(), turn, -1)
    dense = at_turn_ends(by_turn, acts) + at_last_action(higher, mask.bool())
    return Gated(by_turn.sum(dim=1) + higher, dense), stats


def _same_total(turns: Tensor, lowest: Tensor, names: Sequence[str]) -> None:
    apart = (turns - lowest).abs() > 1e-4 * (1 + lowest.abs())
    if bool(apart.any()):
        row = int(apart.int().argmax())
        raise ValueError(
            f"turn_reward adds up to {float(turns[row]):.6g} in trajectory {row}, the rewards of the lowest level "
            f"({', '.join(names)}) to {float(lowest[row]):.6g}; give all of the lowest level per turn, and no other"
        )
