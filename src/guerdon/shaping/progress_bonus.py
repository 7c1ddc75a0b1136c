"""A bonus for what a turn makes better than the turn before it."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.turn import turns_of
from guerdon.registry import register
from guerdon.rewards.likelihood import TokenReward
from guerdon.rollouts import at_turn_ends


@register("shaping", paper="Kumar et al. 2024, arXiv 2409.12917")
def progress_bonus(
    turn_reward: Tensor,
    turn: Tensor,
    mask: Tensor,
    step: int,
    *,
    alpha: float = 10.0,
    bonus_to: Literal["second", "both"] = "second",
    first_stage: Annotated[int, Field(ge=0)] = 0,
) -> tuple[TokenReward, dict[str, float]]:
    """Pay an attempt for what it improves on the attempt before, b_m = alpha (r_m - r_{m-1}).

    return of turn m:  sum_{u >= m} r_u + b_m  (``second``),  sum_{u >= m} (r_u + b_u)  (``both``)

    Attempts that are only added up are learned as "answer well, then repeat it". With ``both`` the first attempt is
    credited with the bonus as well: of two attempts its return is then (1 + alpha) r_2 + (1 - alpha) r_1, which pays
    for wrong first answers. With ``second`` each bonus counts for its own turn: given the first answer, -alpha r_1 is
    a constant, so the second attempt is learned from 1 + alpha times as strongly.

    In the first steps (stage I) only the last attempt counts and there is no bonus; hold the first attempt near the
    reference by term ``first_turn_kl`` meanwhile. Use a credit that reads returns of turns (``turn_rloo``): over the
    whole trajectory the bonuses of ``second`` cancel, and a credit of whole trajectories sees none.

    Args:
        turn_reward: (N,M) reward of each attempt; nan counts as 0.
        turn: (N,T) turn of each action, -1 off actions.
        mask: (N,T) true on actions.
        step: training step.
        alpha: weight of the bonus.
        bonus_to: whose returns it enters: those of its own turn, or of all turns up to it, as a sum over the episode
            does.
        first_stage: steps of stage I.

    Returns:
        Rewards of actions, whose sums to go are the returns above, and of trajectories; and the mean ``first`` and
        ``last`` reward, and ``gain``, their difference.

    Source: Kumar et al. 2024, arXiv 2409.12917 (SCoRe), from a reproduction that lists its equations. Attempts beyond
    two are ours.
    """
    raw = turn_reward.nan_to_num(0.0)
    turns = turns_of(turn, mask, raw.shape[1])
    raw = torch.where(turns.exists, raw, 0.0)
    last = turns.exists & (turns.exists.flip(1).cumsum(dim=1).flip(1) == 1)
    bonus = torch.zeros_like(raw)
    bonus[:, 1:] = torch.where(turns.exists[:, 1:], alpha * (raw[:, 1:] - raw[:, :-1]), 0.0)
    if step < first_stage:
        by_turn = torch.where(last, raw, 0.0)
    elif bonus_to == "both":
        by_turn = raw + bonus
    else:  # what a turn is paid beyond its rewards is taken back from the turn before, so that sums to go lose it
        by_turn = raw + bonus - torch.nn.functional.pad(bonus, (0, 1))[:, 1:]
    first, end = (float(x.sum() / max(len(raw), 1)) for x in (raw[:, :1], raw[last]))
    stats = {"first": first, "last": end, "gain": end - first}
    acts = torch.where(turns.mask, turn, -1)
    return TokenReward(at_turn_ends(by_turn, acts), by_turn.sum(dim=1)), stats
