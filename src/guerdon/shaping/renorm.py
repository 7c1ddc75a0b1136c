"""Scores of steps and the outcome on one scale, so that no step of a failed episode pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from guerdon.errors import RecipeError, nearest
from guerdon.registry import register
from guerdon.rollouts import at_turn_ends

HALF = 0.5


class Renormed(NamedTuple):
    """Reward of each trajectory (N,) and of each action (N,T), which adds up to it."""

    reward: Tensor
    dense: Tensor


def principle_score(score: Tensor, most: Tensor) -> tuple[Tensor, dict[str, float]]:
    """What a judge gave of what there was to give: score / most in [0,1], and one half where that can't be read.

    Args:
        score: any shape; NaN where the judge's answer could not be parsed.
        most: the bound that the judge states for it, likewise.

    Returns:
        The shape of ``score``; and ``unreadable``, the share of one halves that no judge gave.

    Source: Xu et al. 2025, arXiv 2509.25598.
    """
    readable = score.isfinite() & most.isfinite() & (most > 0)
    share = torch.where(readable, score, 0.0) / torch.where(readable, most, 1.0)
    unreadable = float((~readable).double().mean()) if score.numel() else 0.0
    return torch.where(readable, share.clamp(0.0, 1.0), HALF), {"unreadable": unreadable}


def renorm(process: Tensor, outcome: Tensor, steps: Tensor, *, centre: Tensor | float = 1.0) -> Tensor:
    """Process score of each step plus the outcome of its episode, less the sum of their centres.

    r_{i,m} = p_{i,m} + o_i - c;  with c = 1, (p - 1/2) + (o - 1/2)

    With p and o in [0,1] and c = 1 no step of a wrong episode (o = 0) pays, and none of a right one (o = 1) costs. The
    shift is a price per step. It cancels in advantages only where all episodes have as many steps; where the policy
    chooses how many to take it shortens wrong episodes, which is what it is for.

    Args:
        process: (N,M) score of each step.
        outcome: (N,).
        steps: (N,M) which steps are scored; nothing else is read.
        centre: c; 0 adds the two up as they are.

    Returns:
        (N,M) 0 off the steps.

    Source: Xu et al. 2025, arXiv 2509.25598.
    """
    return torch.where(steps, process + outcome.unsqueeze(1) - centre, torch.zeros((), dtype=process.dtype))


@register("shaping", "renorm", paper="Xu et al. 2025, arXiv 2509.25598")
class ReNorm:
    """Reward of steps by process score and outcome together: see ``renorm``. The answer earns the outcome alone.

    The answer is the last turn of an episode that ended by itself; in one that was cut there is none, and every turn is
    a step. Best read by ``gae`` on turns or tokens. (What the answer earns is inferred.)

    Args:
        outcome: name of the outcome among the rewards. All others must come per turn: they are the process score.
        centre: what is taken from the sum of both: a number, 1 for scores and outcomes about one half; or ``running``,
            one half and the running mean of the outcomes, where far more or fewer than half of them are right. That
            follows the policy, so the sign of a step's reward no longer tells a right episode from a wrong one.
        rate: weight of a batch in the running mean; before the first batch it is one half.

    Source: Xu et al. 2025, arXiv 2509.25598. (The running mean is ours.)
    """

    def __init__(
        self,
        *,
        outcome: str,
        centre: float | Literal["running"] = 1.0,
        rate: Annotated[float, Field(gt=0, le=1)] = 0.05,
    ) -> None:
        self.outcome, self.centre, self.rate = outcome, centre, rate
        self.mean = HALF

    def __call__(
        self,
        components: Tensor,
        component_names: Sequence[str],
        turn_reward: Tensor,
        mask: Tensor,
        turn: Tensor,
        done: Tensor,
    ) -> tuple[Renormed, dict[str, float]]:
        """Reward the steps of one batch, then let it move the running mean.

        Args:
            components: (N,K) raw rewards, of which the outcome is read; NaN counts as 0.
            component_names: names of the columns.
            turn_reward: (N,M) process score of each turn, in [0,1]; one half where it is NaN.
            mask: (N,T) true on actions.
            turn: (N,T) turn of each action, -1 off actions.
            done: (N,) the episode ended by itself.

        Returns:
            Rewards of trajectories and actions; and the ``centre`` that was used, the mean reward of a ``step``, and
            the share of steps whose score was ``unreadable``.

        Raises:
            RecipeError: when no reward has the name of the outcome.
        """
        names = list(component_names)
        if self.outcome not in names:
            raise RecipeError(f"renorm: no reward is called '{self.outcome}'{nearest(self.outcome, names)}")
        from guerdon.credit.turn import turns_of  # credits know rewards, and a reward knows this package

        outcome = components[:, names.index(self.outcome)].nan_to_num(0.0)
        turns = turns_of(turn, mask, turn_reward.shape[1])
        last = turns.exists & (turns.exists.flip(1).cumsum(dim=1).flip(1) == 1)
        answer = last & done.bool().unsqueeze(1)
        steps = turns.exists & ~answer
        score = turn_reward.to(outcome)
        process, _ = principle_score(score, torch.ones_like(score))
        centre = HALF + self.mean if self.centre == "running" else float(self.centre)
        by_turn = renorm(process, outcome, steps, centre=centre) + torch.where(answer, outcome.unsqueeze(1), 0.0)
        if len(outcome):
            self.mean += self.rate * (float(outcome.mean()) - self.mean)
        unreadable = float((score.isnan() & steps).sum() / steps.sum().clamp(min=1))
        step = float(by_turn[steps].mean()) if bool(steps.any()) else 0.0
        acts = torch.where(turns.mask, turn, -1)
        stats = {"centre": centre, "step": step, "unreadable": unreadable}
        return Renormed(by_turn.sum(dim=1), at_turn_ends(by_turn, acts)), stats

    def state_dict(self) -> dict[str, Any]:
        """The running mean of the outcomes."""
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.mean = state["mean"]
