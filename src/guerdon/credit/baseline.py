"""Credit against a baseline: the outcome minus what was to be expected; every action gets its trajectory's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import center, first_rows, group_mean, grouped, per_action
from guerdon.credit.prior import PredictorOption, PromptPrior
from guerdon.registry import register


@register("credit", paper="Li et al. 2023, arXiv 2310.10505")
def remax(reward: Tensor, greedy_reward: Tensor, mask: Tensor) -> Tensor:
    """Reward minus that of the greedy trajectory from the same start.

    A_i = r_i - r_greedy(i)

    Args:
        reward: (N,) outcome of each trajectory.
        greedy_reward: (N,) outcome of one greedy trajectory from the same start.
        mask: (N,T) true on actions.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere.

    Source: Li et al. 2023, arXiv 2310.10505.
    """
    return per_action(reward - greedy_reward, mask)


@register("credit", paper="Hao et al. 2025, arXiv 2505.23585", needs_group=True)
def opo(reward: Tensor, group: Tensor, length: Tensor, mask: Tensor) -> Tensor:
    """Reward minus the length-weighted mean of the group: the least-variance baseline for on-policy training.

    A_i = r_i - b,  b = sum_g l r / sum_g l

    It is optimal when the squared norm of a trajectory's score grows in proportion to its length.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        length: (N,) number of actions.
        mask: (N,T) true on actions.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere and in a group of one.

    Source: Hao et al. 2025, arXiv 2505.23585.
    """
    centred = center(reward, group)
    weight = length.to(reward.dtype)
    # b - mean_g r, from centred rewards so that equal ones cancel exactly.
    shift = group_mean(weight * centred, group) / group_mean(weight, group).clamp(min=1e-8)
    return per_action(centred - shift, mask)


def shrinkage_weight(mean: Tensor, prior: Tensor, count: Tensor, variance: Tensor) -> Tensor:
    """How much of a baseline should be the prior, the rest being the mean of the rollouts.

    w = min(1, (s^2/n) / (V - mean r)^2)

    Where the prior's error d is known, w = (s^2/n) / (s^2/n + d^2) has the least squared error. In its place stands
    max(0, (V - mean r)^2 - s^2/n): a prior within one standard error of the mean is trusted in full, and one that
    conflicts with it is dropped.

    Args:
        mean: mean reward of the rollouts, of any shape.
        prior: what was expected.
        count: rollouts; without any the weight is 1.
        variance: s^2 of the reward, above 0.

    Returns:
        In [0,1], in the shape of the mean.

    Source: Zhang et al. 2026, arXiv 2603.10848. (The closed form is ours: the source states the principle.)
    """
    error = variance / count.clamp(min=1)
    weight = error / torch.maximum(error, (prior - mean) ** 2)
    return torch.where(count > 0, weight, 1.0)


@register("credit", "shrinkage_baseline", paper="Zhang et al. 2026, arXiv 2603.10848")
class ShrinkageBaseline:
    """Reward minus a mix of what was expected of the prompt and what its few rollouts gave.

    A_i = r_i - b,  b = w V + (1 - w) mean_g r,  w: ``shrinkage_weight``

    V is what ``PromptPrior`` expects of the problem. Credit is not divided by the spread of the group, which for four
    rollouts is 0 more often than not.

    Args:
        prior, rate, key, predictor: see ``PromptPrior``.
        leave_one_out: take r_i out of its own baseline and weight, without which the gradient is biased.
        variance: where s^2 comes from: V (1 - V), for rewards of 0 and 1, or the sample of the group.
        floor: least s^2.
        scale: divide by the standard deviation of the credit over the batch.

    Source: Zhang et al. 2026, arXiv 2603.10848.
    """

    def __init__(
        self,
        *,
        prior: float = 0.5,
        rate: Annotated[float, Field(ge=0, le=1)] = 0.3,
        key: str | None = None,
        predictor: PredictorOption = None,
        leave_one_out: bool = False,
        variance: Literal["prior", "sample"] = "prior",
        floor: Annotated[float, Field(gt=0)] = 0.01,
        scale: bool = False,
    ) -> None:
        self.known = PromptPrior(prior=prior, rate=rate, key=key, predictor=predictor)
        self.leave_one_out, self.variance, self.floor, self.scale = leave_one_out, variance, floor, scale

    def __call__(
        self,
        reward: Tensor,
        group: Tensor,
        mask: Tensor,
        task_id: Tensor,
        prompt: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Credit of each action, and a look at the outcome for the next time.

        Args:
            reward: (N,) outcome of each trajectory.
            group: (N,) key of the trajectories that share a start.
            mask: (N,T) true on actions.
            task_id: (N,) stable identity of the problem.
            prompt: N prompts; a predictor needs them.
            metadata: what the task knows of the N problems; ``key`` needs it.

        Returns:
            (N,T) A_i on the actions of trajectory i, 0 elsewhere; the mean ``prior_weight`` w, and the mean distance of
            V from the mean reward as ``prior_gap``.

        Raises:
            RecipeError: when a predictor lacks prompts, or a problem's metadata have no such key.
        """
        problems, first = first_rows(task_id)
        rows: list[int] = first.tolist()
        asked = None if prompt is None else [prompt[i] for i in rows]
        told = None if metadata is None else [metadata[i] for i in rows]
        prior = self.known.expected(problems.tolist(), asked, told).to(reward)[torch.searchsorted(problems, task_id)]
        self.known.learn(problems.tolist(), group_mean(reward, task_id)[first], asked)
        stats = grouped(reward, group)
        if self.leave_one_out:
            count, mean = stats.count() - 1, stats.others_mean()
        else:
            count, mean = stats.count(), stats.mean()
        spread = prior * (1 - prior) if self.variance == "prior" else stats.std() ** 2
        weight = shrinkage_weight(mean, prior, count, spread.clamp(min=self.floor))
        credit = reward - (weight * prior + (1 - weight) * mean)
        if self.scale:
            credit = credit / (grouped(credit, None).std() + 1e-8)
        seen = {"prior_weight": weight.mean().item(), "prior_gap": (prior - stats.mean()).abs().mean().item()}
        return per_action(credit, mask), seen

    def state_dict(self) -> dict[str, Any]:
        """What is expected of each problem."""
        return self.known.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.known.load_state_dict(state)
