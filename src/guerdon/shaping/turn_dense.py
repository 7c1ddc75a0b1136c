"""Rewards of turns on the scale of the outcome."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.turn import turns_of
from guerdon.registry import register
from guerdon.rewards.likelihood import TokenReward
from guerdon.rollouts import at_turn_ends


@register("shaping")
def turn_dense(
    turn_reward: Tensor, turn: Tensor, mask: Tensor, done: Tensor, *, most: Annotated[int, Field(ge=1)]
) -> tuple[TokenReward, dict[str, float]]:
    """Divide what turns earn so that an episode that is won earns 1 in all, and one that is lost its share.

    r_m = raw_m / D;  D = number of turns with a positive reward where the episode was won, else ``most``

    A game that pays for each of its steps pays more, the more steps it has; divided, games of all lengths are on one
    scale, and a detour that is paid for twice is worth no more. Rewards of 1 per step are taken for granted: with
    others the total of a won episode is their mean. A reward stands at the last action of its turn, never at what the
    environment said next. Negative rewards are divided as well.

    Args:
        turn_reward: (N,M) raw reward of each turn; nan counts as 0.
        turn: (N,T) turn of each action, -1 off actions.
        mask: (N,T) true on actions.
        done: (N,) the episode ended by itself; it was won where its last turn also has a positive reward.
        most: positive rewards that the task can give.

    Returns:
        Rewards of actions and of trajectories; and the share of trajectories that were ``won``, and of positive rewards
        that stand behind the last turn there is, and are lost (``behind``).

    Source: A Practitioner's Guide to Multi-turn Agentic Reinforcement Learning, its code (dense reward).
    """
    raw = turn_reward.nan_to_num(0.0)
    turns = turns_of(turn, mask, raw.shape[1])
    last = turns.exists & (turns.exists.flip(1).cumsum(dim=1).flip(1) == 1)
    positive = (raw > 0) & turns.exists
    won = done.bool() & (positive & last).any(dim=1)
    count = torch.where(won, positive.sum(dim=1), most).clamp(min=1).to(raw.dtype)
    by_turn = torch.where(turns.exists, raw / count.unsqueeze(1), 0.0)
    behind = ((raw > 0) & ~turns.exists).sum() / (raw > 0).sum().clamp(min=1)
    stats = {"won": float(won.double().mean()) if len(won) else 0.0, "behind": float(behind)}
    acts = torch.where(turns.mask, turn, -1)
    return TokenReward(at_turn_ends(by_turn, acts), by_turn.sum(dim=1)), stats
