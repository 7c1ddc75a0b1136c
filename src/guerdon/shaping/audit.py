"""What a reward pays to those who do nothing: asked before training, not after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RANGE = 0.5  # a penalty range above this share of the positive range is worth a warning


@dataclass(frozen=True)
class Audit:
    """What constant policies earn beside the policy that training starts from.

    Attributes:
        constant: expected reward of each constant policy, by its name, under each prior.
        start: expected reward of the starting policy under each prior.
        oracle: expected reward of the best answer to every item under each prior.
        passes: whether the starting policy earns more than every constant one, under every prior.
        penalty_share: range of the penalties over range of the positive rewards.
        smallest_penalty, largest_penalty: factors on all penalties between which the audit passes: 0 where it passes
            without any, infinite where it passes with ever larger ones, both nan where it never passes.
        messages: what is wrong, in words.
    """

    constant: dict[str, dict[str, float]]
    start: dict[str, float]
    oracle: dict[str, float]
    passes: bool
    penalty_share: float
    smallest_penalty: float
    largest_penalty: float
    messages: tuple[str, ...]


def audit_constant_policies(
    positive: Tensor, penalty: Tensor, label: Tensor, start: Tensor, *, names: Sequence[str] | None = None
) -> Audit:
    """Ask whether always giving the same answer pays better than what training starts from.

    J(policy) = mean_i sum_a policy(a | i) (positive_{i,a} + lambda penalty_{i,a}),  lambda = 1 here

    A policy gradient on a reward that fails this audit ends at the constant answer, whatever the items say. Both the
    prior of the data and a balanced prior, in which every label weighs the same, are asked. Answers that are always
    allowed, such as the shortest one, have columns of their own.

    The start's lead over a constant policy is linear in lambda, so the factors that pass are an interval whose ends
    are known exactly.

    Args:
        positive: (I,A) what each answer to each item earns, without penalties; 0 or more.
        penalty: (I,A) what it loses; 0 or less.
        label: (I,) int64, class of each item, for the balanced prior.
        start: (I,A) probabilities of the starting policy, each row adding up to 1.
        names: names of the answers.

    Raises:
        ValueError: when shapes differ, a penalty is positive, a positive reward negative, or a row of ``start`` does
            not add up to 1.

    Source: after the résumé scorer trained by gentle GRPO, whose first penalties made rejecting everything the best
    policy; the audit is our construction.
    """
    positive, penalty, start = positive.double(), penalty.double(), start.double()
    _refuse(positive, penalty, label, start)
    answers = list(names or (f"always {a}" for a in range(positive.shape[1])))
    counts = torch.bincount(label)[label].double()
    priors = {"data": torch.ones_like(counts) / len(label), "balanced": 1 / counts / len(label.unique())}
    weights = torch.stack(list(priors.values()))

    def lead(reward: Tensor) -> Tensor:
        """(priors, answers) what the start earns beyond each constant policy."""
        return (weights @ (start * reward).sum(dim=1)).unsqueeze(1) - weights @ reward

    total = positive + penalty
    constant = {
        name: dict(zip(priors, (weights @ total[:, a]).tolist(), strict=True)) for a, name in enumerate(answers)
    }
    begun = dict(zip(priors, (weights @ (start * total).sum(dim=1)).tolist(), strict=True))
    best = dict(zip(priors, (weights @ total.amax(dim=1)).tolist(), strict=True))
    share = float((penalty.max() - penalty.min()) / (positive.max() - positive.min()).clamp(min=1e-12))
    passes = bool((lead(total) > 0).all())
    safe = _safe_factors(lead(positive), lead(penalty))
    return Audit(constant, begun, best, passes, share, *safe, _messages(constant, begun, passes, share, safe))


def _safe_factors(lead: Tensor, slope: Tensor) -> tuple[float, float]:
    """The open interval of factors f >= 0 in which every lead + f slope is positive; nan where there is none."""
    crossing = -lead / slope
    low = max([0.0, *crossing[slope > 0].tolist()])
    high = min([math.inf, *crossing[slope < 0].tolist()])
    if low >= high or bool((lead[slope == 0] <= 0).any()):
        return math.nan, math.nan
    return low, high


def _messages(
    constant: dict[str, dict[str, float]],
    start: dict[str, float],
    passes: bool,
    share: float,
    safe: tuple[float, float],
) -> tuple[str, ...]:
    low, high = safe
    out = []
    advice = "no factor on the penalties changes that; begin with a better policy"
    if low < high:
        bounds = [f"more than {low:.3g}"] * (low > 0) + [f"less than {high:.3g}"] * (high < math.inf)
        advice = f"multiply the penalties by {' and '.join(bounds)}"
    for prior, earned in start.items():
        best = max(constant, key=lambda name: constant[name][prior])
        if constant[best][prior] >= earned:
            out.append(
                f"under the {prior} prior '{best}' earns {constant[best][prior]:.3g}, the start {earned:.3g}: training "
                f"will end at it; {advice}"
            )
    if passes and share > RANGE:
        out.append(
            f"penalties range over {share:.2g} of what can be earned, which is more than {RANGE:g}: "
            f"the audit still passes up to {high:.3g} times these penalties"
        )
    return tuple(out)


def _refuse(positive: Tensor, penalty: Tensor, label: Tensor, start: Tensor) -> None:
    shape = tuple(positive.shape)
    for name, x in (("penalty", penalty), ("start", start)):
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, positive {shape}; both are (items, answers)")
    if tuple(label.shape) != shape[:1]:
        raise ValueError(f"label has shape {tuple(label.shape)}, wanted one class per item ({shape[0]},)")
    if bool((positive < 0).any()) or bool((penalty > 0).any()):
        raise ValueError("positive rewards must be 0 or more and penalties 0 or less; split the reward by sign")
    if not torch.allclose(start.sum(dim=1), torch.ones_like(start[:, 0]), atol=1e-4):
        raise ValueError("rows of start must add up to 1; give the starting policy's probabilities")
