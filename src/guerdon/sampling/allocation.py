"""Which prompts get how many rollouts, or count how often, given what the rollouts so far have shown."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.special import stdtrit
from torch import Tensor

from guerdon.credit.grouping import first_rows, grouped
from guerdon.seeding import torch_generator


class Refill(NamedTuple):
    """How often each trajectory's group was drawn again, and the weight that this gives it; (N,) each."""

    weight: Tensor
    drawn: Tensor


def prompt_value(reward: Tensor, group: Tensor, *, max_reward: float = 1.0) -> Tensor:
    """How much there is to learn from a prompt: difficulty times indecision.

    V_q = (max_reward - mean_g r) std_g r

    For rewards of 0 and 1 it is largest at a success rate of 1/4.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        max_reward: the largest outcome there can be, not the largest of the batch.

    Returns:
        (N,) value of each trajectory's prompt; exactly 0 where its rewards are all equal.

    Source: Zhuang et al. 2025, arXiv 2512.07478.
    """
    stats = grouped(reward, group)
    return (max_reward - stats.mean()).clamp(min=0.0) * stats.std()


def value_refill(
    reward: Tensor,
    group: Tensor,
    seed: int,
    *,
    max_reward: float = 1.0,
    max_weight: float | None = 2.0,
    by_value: bool = True,
) -> Refill:
    """Fill the slots of groups without a difference in reward with groups that are hard and undecided.

    Each slot goes to one group, with probability V_q / sum V,  V: ``prompt_value``
    weight of a group drawn n times more: min(sqrt(1 + n), max_weight)

    A group drawn again stands for itself once more, so it counts by a weight, and is not normalised anew.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        seed: of the draws.
        max_reward: see ``prompt_value``.
        max_weight: bound of the weight. None does without the damping: the weight is 1 + n.
        by_value: draw by value; otherwise all groups that have a difference are drawn alike.

    Returns:
        Weight and draws of each trajectory's group. Groups without a difference have weight 1, and so has every group
        where none has one.

    Source: Zhuang et al. 2025, arXiv 2512.07478. (That the groups are reused as they are, and the form of the weight,
    are ours.)
    """
    stats = grouped(reward, group)
    useful = ~stats.tied()
    value = prompt_value(reward, group, max_reward=max_reward) if by_value else useful.to(reward.dtype)
    size = stats.total(torch.ones_like(reward)).clamp(min=1)
    per_group = stats.total(value.masked_fill(~useful, 0.0)) / size
    silent = (stats.total((~useful).to(reward.dtype)) > 0).sum().item()
    drawn = torch.zeros_like(per_group)
    if silent and bool((per_group > 0).any()):
        generator = torch_generator(seed, "value_refill")
        picks = torch.multinomial(per_group.cpu().double(), int(silent), replacement=True, generator=generator)
        drawn = torch.bincount(picks, minlength=len(per_group)).to(per_group)
    weight = 1 + drawn if max_weight is None else (1 + drawn).sqrt().clamp(max=max_weight)
    return Refill(stats.spread(weight), stats.spread(drawn))


class Tally(NamedTuple):
    """What is known of each of Q prompts; (Q,) each.

    Attributes:
        group: key of the prompt.
        given: rollouts so far.
        mean, std: of their rewards; the sample standard deviation, 0 for a single rollout.
    """

    group: Tensor
    given: Tensor
    mean: Tensor
    std: Tensor


def tally(reward: Tensor, group: Tensor) -> Tally:
    """Count the rollouts of each prompt and take the moments of their rewards.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.

    Returns:
        One entry per prompt, by key.
    """
    keys, first = first_rows(group)
    stats = grouped(reward, group)
    return Tally(keys, *(x[first] for x in (stats.count().long(), stats.mean(), stats.std())))


def confidence_gain(std: Tensor, count: Tensor, *, alpha: float = 0.05) -> Tensor:
    """How much narrower one more rollout would make the confidence interval of a prompt's mean reward.

    h(n) - h(n + 1),  h(n) = t_{1 - alpha/2, n - 1} std / sqrt(n)

    Args:
        std: (Q,) sample standard deviation of the rewards so far, taken to stay what it is.
        count: (Q,) rollouts so far.
        alpha: one minus the confidence.

    Returns:
        (Q,) in units of the reward; 0 where there is only one rollout, which tells no spread.

    Source: Bamba et al. 2025, arXiv 2510.06672.
    """
    n = np.maximum(count.cpu().numpy(), 2)
    now, then = (stdtrit(k - 1, 1 - alpha / 2) / np.sqrt(k) for k in (n, n + 1))
    return torch.where(count > 1, torch.from_numpy(now - then).to(std) * std, 0.0)


class ConfidenceAllocator:
    """Gives the next rollouts to the prompts whose mean reward they would make known best.

    score = ``confidence_gain`` + bonus sqrt(ln(1 + T) / n),  T: rollouts given so far, n: of them to this prompt

    Every prompt gets a first share. Then, in each further phase, the spread of its rewards is estimated anew and the
    phase's rollouts go one by one to the largest score. Prompts whose rewards are all equal have no spread: only the
    bonus brings them back.

    Args:
        initial: rollouts of every prompt in the first phase, 2 at least.
        budget: rollouts per prompt over all phases, on average.
        phases: number of phases, the first one included.
        bonus: weight of having been tried little. For rewards of 0 and 1, and some ten rollouts each, 0.1 balances the
            gain; at 1 the bonus alone decides, and all prompts get the same.
        alpha: one minus the confidence.

    Source: Bamba et al. 2025, arXiv 2510.06672. (The size of the bonus, and alpha, are ours.)
    """

    def __init__(
        self,
        *,
        initial: Annotated[int, Field(ge=2)] = 4,
        budget: Annotated[float, Field(gt=0)] = 8.0,
        phases: Annotated[int, Field(ge=1)] = 3,
        bonus: Annotated[float, Field(ge=0)] = 0.1,
        alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05,
    ) -> None:
        self.initial, self.budget, self.phases, self.bonus, self.alpha = initial, budget, phases, bonus, alpha

    def score(self, known: Tally) -> Tensor:
        """(Q,) score of each prompt."""
        total = known.given.sum().double()
        tried = (torch.log1p(total) / known.given).sqrt().to(known.std)
        return confidence_gain(known.std, known.given, alpha=self.alpha) + self.bonus * tried

    def share(self, prompts: int, phase: int) -> int:
        """Rollouts that a phase after the first (``phase`` 1, 2, ...) gives: equal parts of what is left."""
        rest, later = max(round(self.budget * prompts) - self.initial * prompts, 0), self.phases - 1
        if not 1 <= phase <= later:
            return 0
        begin, end = (-(-rest * k // later) for k in (phase - 1, phase))
        return end - begin

    def __call__(self, known: Tally, amount: int) -> Tensor:
        """Share out some rollouts.

        Args:
            known: what is known of the prompts.
            amount: rollouts to share out.

        Returns:
            (Q,) how many each prompt gets.
        """
        most = int(known.given.max()) + amount
        counts = torch.arange(1, most + 1)
        gain = confidence_gain(torch.ones(most, dtype=torch.float64), counts, alpha=self.alpha).numpy()
        given, spread = known.given.cpu().numpy().copy(), known.std.double().cpu().numpy()
        before, total = given.copy(), given.sum()
        for extra in range(amount):
            tried = np.sqrt(np.log1p(total + extra) / given)
            given[(gain[given - 1] * spread + self.bonus * tried).argmax()] += 1
        return torch.from_numpy(given - before).to(known.given)


class OneStepBudget:
    """Asks for one more rollout of a prompt for as long as it makes the baseline better by more than it costs.

    m(n) = (s^2/n) d^2 / (s^2/n + d^2);  go on while m(n) - m(n + 1) > cost and n < most

    m is the mean squared error of ``shrinkage_baseline`` at its best weight, with d^2 = max(0, (V - mean r)^2 - s^2/n)
    for the squared error of the prior V and s^2 = V (1 - V), at least ``floor``, for the variance of the reward. So
    prompts on which prior and rollouts disagree get more.

    Args:
        cost: what a rollout costs, as squared error of the baseline.
        most: largest number of rollouts of a prompt.
        floor: least variance of the reward.

    Source: Zhang et al. 2026, arXiv 2603.10848. (The closed forms and the cost are ours: the source states the
    principle.)
    """

    def __init__(
        self,
        *,
        cost: Annotated[float, Field(ge=0)] = 0.002,
        most: Annotated[int, Field(ge=1)] = 16,
        floor: Annotated[float, Field(gt=0)] = 0.01,
    ) -> None:
        self.cost, self.most, self.floor = cost, most, floor

    def __call__(self, mean: Tensor, count: Tensor, prior: Tensor) -> Tensor:
        """Say which prompts should get one more rollout.

        Args:
            mean: (Q,) mean reward so far.
            count: (Q,) rollouts so far, 1 at least.
            prior: (Q,) what was expected, in [0,1].

        Returns:
            (Q,) bool.
        """
        variance = (prior * (1 - prior)).clamp(min=self.floor)
        bias = ((prior - mean) ** 2 - variance / count).clamp(min=0.0)
        now, then = (variance / n * bias / (variance / n + bias) for n in (count, count + 1))
        return (now - then > self.cost) & (count < self.most)
