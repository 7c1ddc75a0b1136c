"""Credit that follows a risk measure of the outcome instead of its mean."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import center, group_std, per_action
from guerdon.registry import register
from guerdon.shaping.quantiles import Papers, QuantileTracker, bundle

Baseline = Literal["zero", "quantile_gap", "batch_mean"]
Risk = Literal["averse", "seeking"]

SMALL_STD = 1e-3  # a smaller spread says nothing about the scale, which then stays 1
SMALL_SUM = 1e-6  # deviations that add up to less can't be shared out in proportion


def risk_influence(
    score: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    *,
    alpha: float = 0.2,
    beta: float = 0.8,
    omega: float = 1.5,
    risk: Risk = "averse",
) -> Tensor:
    """How much a score adds to a mixture of risk measures of its distribution, up to a constant.

    averse:  [omega (-(q_a - S)+ / alpha) + ((S - q_a)+ - (S - q_b)+) / (beta - alpha)] / (1 + omega)
    seeking: [omega (S - q_b)+ / (1 - beta) + ((S - q_a)+ - (S - q_b)+) / (beta - alpha)] / (1 + omega)

    The first is the influence function of (omega CVaR_alpha + RVaR_{alpha:beta}) / (1 + omega): the means of the
    worst part alpha of the scores and of the part between alpha and beta. What exceeds q_b counts no more, so solved
    problems stop pulling. The second puts the weight on the best part 1 - beta instead.

    Args:
        score: any shape.
        low, high: the quantiles q_a and q_b of the scores, broadcast against them.
        alpha, beta: levels of the two quantiles, 0 < alpha < beta < 1.
        omega: weight of the tail.
        risk: which tail.

    Returns:
        The shape of ``score``.

    Source: Ren et al. 2025, arXiv 2510.00911.
    """
    middle = ((score - low).clamp(min=0) - (score - high).clamp(min=0)) / (beta - alpha)
    if risk == "averse":
        tail = -(low - score).clamp(min=0) / alpha
    else:
        tail = (score - high).clamp(min=0) / (1 - beta)
    return (omega * tail + middle) / (1 + omega)


@register("credit", "riskpo", paper="Ren et al. 2025, arXiv 2510.00911", needs_group=True)
class RiskPO:
    """Credit that lifts the worst outcomes of bundles of prompts, and stops pulling at what is solved.

    Prompts are bundled (``bundle``) and their j-th answers added up to a paper's score S. With the quantiles q of S,
    A = (influence of S - baseline) / spread of S in the bundle, see ``risk_influence``; a paper's credit goes to its
    answers. Bundles exist because single 0/1 scores have their quantiles on 0 and 1, where the influence is blind.

    A bundle whose scores are (nearly) equal is not scaled: the release divides it by 1e-6. A last bundle of fewer
    prompts is measured by its own quantiles and does not enter the tracked ones.

    Args:
        size: prompts per bundle.
        alpha, beta: levels of the lower and the upper quantile; beta 0.9 on easier data.
        omega: weight of the tail.
        risk: ``averse`` weighs the lower tail; ``seeking`` the upper one, for comparison.
        baseline: taken from the influence: nothing (``zero``), the largest value of the middle part, after which
            no credit of risk ``averse`` is above 0, the default of the release (``quantile_gap``), or the mean over
            the batch's papers (``batch_mean``). Only the last centres the credit.
        quantiles: ``track`` uses running quantiles from before the batch, ``batch`` each bundle's own, ``mix`` the mean
            of both. Before the first batch all use the bundle's own.
        rate: largest move of a running quantile per batch, in units of the score.
        share: how a paper's credit A goes to its answers. ``uniform``: A to each. ``std``: A over the spread of the
            rewards of the answer's prompt. ``sum-mean``: A (r_i - mean_g r) / sum over the paper of the same, as in the
            published script; where that sum is negative, wrong answers get the credit of right ones, so it warns.

    Source: Ren et al. 2025, arXiv 2510.00911.
    """

    def __init__(
        self,
        *,
        size: Annotated[int, Field(ge=1)] = 5,
        alpha: Annotated[float, Field(ge=0.05, lt=1)] = 0.2,
        beta: Annotated[float, Field(gt=0, le=0.95)] = 0.8,
        omega: Annotated[float, Field(ge=0)] = 1.5,
        risk: Risk = "averse",
        baseline: Baseline = "zero",
        quantiles: Literal["track", "batch", "mix"] = "track",
        rate: Annotated[float, Field(gt=0)] = 0.1,
        share: Literal["uniform", "std", "sum-mean"] = "uniform",
        eps: float = 1e-6,
    ) -> None:
        if not alpha < beta:
            raise ValueError(f"alpha is {alpha} and beta {beta}, wanted alpha < beta; 0.2 and 0.8 are the source's")
        if share == "sum-mean":
            warnings.warn(
                "riskpo: share 'sum-mean' gives a right answer negative credit where the other answers of its paper "
                "fall short of their means by more; 'uniform' does not",
                stacklevel=2,
            )
        self.size, self.alpha, self.beta, self.omega = size, alpha, beta, omega
        self.risk: Risk = risk
        self.baseline, self.quantiles, self.share, self.eps = baseline, quantiles, share, eps
        self.tracker = QuantileTracker(rate=rate)

    def __call__(self, reward: Tensor, group: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Hand out the credit of one batch, then let it move the tracked quantiles.

        Args:
            reward: (N,) outcome of each trajectory.
            group: (N,) key of the trajectories that share a prompt; prompts that follow one another are bundled.
            mask: (N,T) true on actions.

        Returns:
            (N,T) credit on the actions of trajectory i, 0 elsewhere and for answers in no paper; and the means over
            papers of the quantiles used, ``quantile_low`` and ``quantile_high``, and of the ``score``.
        """
        papers = bundle(group, size=self.size)
        score = papers.total(reward)
        low, high = self._quantiles(score, papers)
        levels = {"alpha": self.alpha, "beta": self.beta, "omega": self.omega}
        influence = risk_influence(score, low, high, risk=self.risk, **levels)
        spread = _spread(score, papers.bundle, self.eps)
        credit = (influence - self._offset(influence, low, high)) / spread
        shared = self._shared(credit, reward, group, papers)
        self.tracker.update(score[papers.full])
        stats = {"quantile_low": low.mean().item(), "quantile_high": high.mean().item(), "score": score.mean().item()}
        return per_action(shared, mask), stats

    def state_dict(self) -> dict[str, Any]:
        """The tracked quantiles."""
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.tracker.load_state_dict(state)

    def _quantiles(self, score: Tensor, papers: Papers) -> tuple[Tensor, Tensor]:
        """The lower and the upper quantile by which each paper (M,) is measured."""
        own = _own_quantiles(score, papers.bundle, (self.alpha, self.beta))
        low, high = self.tracker.at(self.alpha), self.tracker.at(self.beta)
        if self.quantiles == "batch" or low is None or high is None:
            return own
        tracked = torch.full_like(score, low), torch.full_like(score, high)
        if self.quantiles == "mix":
            tracked = (tracked[0] + own[0]) / 2, (tracked[1] + own[1]) / 2
        return torch.where(papers.full, tracked[0], own[0]), torch.where(papers.full, tracked[1], own[1])

    def _offset(self, influence: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The baseline of each paper (M,)."""
        if self.baseline == "zero":
            return torch.zeros_like(influence)
        if self.baseline == "batch_mean":
            return influence.mean().expand_as(influence)
        return (high - low) / ((self.beta - self.alpha) * (1 + self.omega))

    def _shared(self, credit: Tensor, reward: Tensor, group: Tensor, papers: Papers) -> Tensor:
        """Credit (N,) of each answer, from that of its paper (M,)."""
        if self.share == "uniform":
            return papers.spread(credit)
        if self.share == "std":
            return papers.spread(credit) / _spread(reward, group, self.eps)
        above = center(reward, group)
        total = papers.total(above)
        divisible = total.abs() > SMALL_SUM
        even = credit / papers.total(torch.ones_like(reward)).clamp(min=1)
        factor = torch.where(divisible, credit / torch.where(divisible, total, 1.0), 0.0)
        return papers.spread(factor) * above + papers.spread(torch.where(divisible, 0.0, even))


def _spread(x: Tensor, key: Tensor, eps: float) -> Tensor:
    """Standard deviation of each entry's group, plus eps; 1 where it is too small to be a scale."""
    std = group_std(x, key)
    return torch.where(std > SMALL_STD, std, 1.0) + eps


def _own_quantiles(score: Tensor, key: Tensor, levels: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """For each score (M,) two quantiles of the scores with the same key; keys come sorted, numbered from 0."""
    size = torch.bincount(key)
    nth = torch.arange(len(key), device=key.device) - (size.cumsum(0) - size)[key]
    table = score.new_full((len(size), int(size.max())), float("nan"))
    table[key, nth] = score
    low, high = torch.nanquantile(table, score.new_tensor(levels), dim=1)
    return low[key], high[key]
