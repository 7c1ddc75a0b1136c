"""Bounds on what scores of steps can add up to, so that repeating correct but useless steps earns nothing.

Scores of steps reach it as they reach the credits of ``credit.process``: a reward with one number per action (or per
turn) gives each step's score at the step's last action, and a score of exactly 0 ends no step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.process import steps_of
from guerdon.errors import RecipeError
from guerdon.registry import register
from guerdon.rewards.likelihood import TokenReward
from guerdon.rollouts import at_last_action

_PAPER = "On Designing Effective RL Reward at Training Time for LLM Reasoning, 2024"


def clip_process(score: Tensor, ends: Tensor, *, eta: float) -> Tensor:
    """Scores of steps of which none can earn: x_k = min(p_k - eta, 0).

    With eta at about the median most steps give 0 and bad ones a penalty, so that more steps never earn more. Fewer do
    cost less, which ``delta_process`` undoes.

    Args:
        score: (N,T) p at the ends of steps; nothing else is read.
        ends: (N,T) true there.
        eta: score from which on a step costs nothing.

    Returns:
        (N,T) x at the ends, 0 elsewhere.

    Source: On Designing Effective RL Reward at Training Time for LLM Reasoning, 2024 (PR-Clip).
    """
    return torch.where(ends.bool(), (score - eta).clamp(max=0.0), 0.0)


def delta_process(score: Tensor, ends: Tensor) -> Tensor:
    """Each score less that of the next step: d_k = x_k - x_{k+1}, and the last as it is.

    sum_{j >= k} d_j = x_k: from any step on, the steps together earn that step's score, however many follow. A step
    loses where the next one scores higher. The identity holds without discount (gamma 1) alone.

    Args:
        score: (N,T) x at the ends of steps; nothing else is read.
        ends: (N,T) true there.

    Returns:
        (N,T) d at the ends, 0 elsewhere.

    Source: On Designing Effective RL Reward at Training Time for LLM Reasoning, 2024 (PR-Delta).
    """
    ends = ends.bool()
    x = torch.where(ends, score, 0.0)
    width = x.shape[1]
    place = torch.arange(width, device=x.device)
    following = torch.where(ends, place, width).flip(1).cummin(dim=1).values.flip(1)
    after = torch.nn.functional.pad(following, (0, 1), value=width)[:, 1:]
    return torch.where(ends, x - torch.nn.functional.pad(x, (0, 1)).gather(1, after), 0.0)


@register("shaping", "pr_clip_delta", paper=_PAPER)
class ClipDelta:
    """Success, and scores of steps that can't be farmed: clipped first, then each less the next.

    r = alpha d_k at the last action of step k, + c at the last action

    What is to come from step k on is alpha x_k + c, however many steps follow. The last step is the answer itself: its
    score counts for nothing, and an answer without steps before it earns c alone. It stands behind ``weighted_sum``,
    which says what the rewards are; for credit by step read it with ``gae`` and gamma 1.

    Args:
        outcome: name of the reward that is c, given once per answer. Its weight in the recipe applies.
        alpha: weight of the steps, beside their reward's own. The source prints none.
        eta: score from which on a step costs nothing; by default the median score of the first batch, kept from then
            on. The source says that most steps should give 0, and prints none.
        clip, delta: what is done to scores; without both they are added up, which is what this is to prevent.
        final_scored: whether the last score is that of the answer step, and dropped.

    Source: On Designing Effective RL Reward at Training Time for LLM Reasoning, 2024. (alpha and the median are ours.)
    """

    def __init__(
        self,
        *,
        outcome: str,
        alpha: Annotated[float, Field(ge=0)] = 0.1,
        eta: float | None = None,
        clip: bool = True,
        delta: bool = True,
        final_scored: bool = True,
    ) -> None:
        self.outcome, self.alpha, self.eta = outcome, alpha, eta
        self.clip, self.delta, self.final_scored = clip, delta, final_scored

    def __call__(
        self,
        mask: Tensor,
        components: Tensor,
        component_names: Sequence[str],
        component_weights: Tensor,
        dense: Tensor | None = None,
    ) -> tuple[TokenReward, dict[str, float]]:
        """Rewards of the actions of a batch.

        Args:
            mask: (N,T) true on actions.
            components, component_names, component_weights: (N,K) rewards, their names and weights.
            dense: (N,T) reward of each action: scores of steps, and the outcome at the last action.

        Returns:
            Reward of each action, 0 off the mask, and their sum; the share of steps whose reward is not 0
            (``nonzero``), and ``eta``.

        Raises:
            RecipeError: when no reward has the name ``outcome``, or no shaping method stands before this one.
        """
        if dense is None:
            raise RecipeError(
                "shaping 'pr_clip_delta' reads 'dense', which there is once rewards are summed; list 'weighted_sum' "
                "before it: shaping: [weighted_sum, {name: pr_clip_delta, ...}]"
            )
        mask = mask.bool()
        steps = steps_of(dense, mask, components, component_names, component_weights, outcome=self.outcome)
        ends = steps.ends
        if self.final_scored:
            ends = ends & (ends.flip(1).cumsum(dim=1).flip(1) > 1)
        if self.eta is None and bool(ends.any()):
            self.eta = float(steps.score[ends].double().quantile(0.5))
        x = torch.where(ends, steps.score, 0.0)
        if self.clip and self.eta is not None:
            x = clip_process(x, ends, eta=self.eta)
        if self.delta:
            x = delta_process(x, ends)
        weight = component_weights[list(component_names).index(self.outcome)].to(x)
        rewards = self.alpha * x + at_last_action(steps.outcome * weight, mask)
        stats = {"nonzero": float((x != 0).sum() / ends.sum().clamp(min=1))}
        stats |= {} if self.eta is None else {"eta": self.eta}
        return TokenReward(rewards, rewards.sum(dim=1)), stats

    def state_dict(self) -> dict[str, Any]:
        """The median of the first batch."""
        return {"eta": self.eta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.eta = state["eta"]
