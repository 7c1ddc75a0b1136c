"""How much each prompt should weigh, given how hard it is and how well the reward model still separates its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

Sign = Literal[1, -1]


def not_outlying(x: Tensor, *, tau: float = 3.0) -> Tensor:
    """Which numbers lie within tau median absolute deviations of the median: |x - med| <= tau med|x - med|.

    Args:
        x: (n,); one that is not finite is an outlier, and no part of the medians.
        tau: width of the band. Where more than half of the numbers are equal, only those are inside.

    Returns:
        (n,) bool.

    Source: Cheng et al. 2025, arXiv 2503.18991; the rule is Hampel 1974.
    """
    finite = x.isfinite()
    if not bool(finite.any()):
        return finite
    distance = (x - x[finite].quantile(0.5)).abs()
    return finite & (distance <= tau * distance[finite].quantile(0.5))


def dynamic_scale(
    hardness: Tensor | None,
    gap: Tensor | None = None,
    usual_gap: Tensor | None = None,
    *,
    hardness_sign: Sign = 1,
    gap_sign: Sign = 1,
) -> Tensor:
    """Give more weight to answers that lie far from the demonstration, and where the reward separates the two well.

    alpha_i = s(hardness_i) / s(mean_B hardness) * s(gap_i) / s(usual_gap_i),  s(x) = 1 / (1 + exp(-sign x))

    It is meant for advantages: on rewards a z-score inside the group would cancel it. Take its mean over the answers
    to a prompt first, as credit ``dynamic_scale`` does, or the group's credit no longer adds up to 0. It is a constant
    to the gradient.

    Args:
        hardness: (N,) distance of each answer from the demonstration, in [0,1]; None leaves its part out.
        gap: (N,) mean gap of the batch between demonstration and answer, in the reward of the answer's category; None
            leaves its part out.
        usual_gap: (N,) the same as it has been so far.
        hardness_sign, gap_sign: -1 gives less weight where there was more. A wide gap can mean that the policy is far
            from the demonstrations, or that the reward model is sure of itself.

    Returns:
        (N,) factors; 1 where the hardness is that of the batch, and the gap the usual one.

    Raises:
        ValueError: when neither part is given, or a gap without the usual one.

    Source: Cheng et al. 2025, arXiv 2503.18991.
    """
    if (gap is None) != (usual_gap is None) or (hardness is None and gap is None):
        raise ValueError("dynamic_scale needs the hardness, or the gap with the usual gap, or all three")
    parts = []
    if hardness is not None:
        parts.append(torch.sigmoid(hardness_sign * hardness) / torch.sigmoid(hardness_sign * hardness.mean()))
    if gap is not None and usual_gap is not None:
        parts.append(torch.sigmoid(gap_sign * gap) / torch.sigmoid(gap_sign * usual_gap))
    return torch.stack(parts).prod(dim=0).detach()


class UsualGap:
    """Mean gap between demonstrations and answers in every category: of a batch without its outliers, and so far.

    Args:
        tau: outliers lie beyond this many median absolute deviations.
        momentum: weight of what was before in the running mean; the first batch starts it.

    Source: Cheng et al. 2025, arXiv 2503.18991. (Outlier rule and momentum are ours.)
    """

    def __init__(self, *, tau: float = 3.0, momentum: float = 0.9) -> None:
        self.tau, self.momentum = tau, momentum
        self.mean: dict[str, float] = {}

    def __call__(self, gap: Tensor, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Take a batch into account.

        Args:
            gap: (N,) of each answer.
            rows: the rows of each category.

        Returns:
            For each answer (N,) the mean of its category in this batch, and the running mean before it.
        """
        now, usual = torch.zeros_like(gap), torch.zeros_like(gap)
        for category, where in rows.items():
            inside = gap[where][not_outlying(gap[where], tau=self.tau)]
            if not len(inside):  # nothing finite: both stay 0, so the factor is 1
                continue
            mean = inside.mean().item()
            before = self.mean.get(category, mean)
            now[where], usual[where] = mean, before
            self.mean[category] = self.momentum * before + (1 - self.momentum) * mean
        return now, usual

    def state_dict(self) -> dict[str, Any]:
        """The running means."""
        return {"mean": dict(self.mean)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.mean = dict(state["mean"])
