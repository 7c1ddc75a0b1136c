"""Divergence from the reference policy, estimated on sampled actions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from guerdon.objectives import aggregation
from guerdon.objectives.aggregation import TermAggregation, same_shape, token_mean
from guerdon.registry import register

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: an action this far off is penalised as much, without gradient


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Estimate log pi - log pi_ref: unbiased, of either sign.

    As a loss it teaches nothing: on samples of pi its expected gradient is 0. As a penalty inside the reward its
    policy gradient is that of the reverse KL.
    """
    return logp - ref_logp


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Estimate (log pi - log pi_ref)^2 / 2: biased in value, never negative.

    As a loss, on samples of pi, its expected gradient is exactly that of the reverse KL(pi || pi_ref).
    """
    return (logp - ref_logp) ** 2 / 2


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Estimate e^x - x - 1 with x = log pi_ref - log pi, clamped to ±20: unbiased, never negative.

    As a loss, on samples of pi, its expected gradient is that of the forward KL(pi_ref || pi), not of the reverse KL
    that its value estimates; the two agree to first order near pi = pi_ref.
    """
    x = (ref_logp - logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return x.expm1() - x


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@register("term", paper="Schulman 2020; Shao et al. 2024, arXiv 2402.03300")
def kl(
    logp: Tensor,
    ref_logp: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.04,
    estimator: Literal["k1", "k2", "k3"] = "k3",
    aggregate: TermAggregation = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Penalty for leaving the reference policy.

    loss = beta aggregate(k),  x = log pi_ref - log pi:  k1 = -x;  k2 = x^2 / 2;  k3 = e^x - x - 1

    On samples of pi, value and gradient answer different questions. Values: k1 and k3 are unbiased estimates of
    KL(pi || pi_ref), k2 is not. Expected gradients: k2's is exactly that of KL(pi || pi_ref); k3's is that of
    KL(pi_ref || pi); k1's is 0, so k1 is for measuring only. ``k3`` is the default because GRPO uses it; ``k2``
    is the loss that descends the reverse KL. On stale samples all of this holds up to the importance ratio.

    Args:
        logp: (N,T) log-probability of each action now, differentiable.
        ref_logp: (N,T) log-probability of each action under the reference; no gradient reaches it.
        mask: (N,T) true on actions; nothing off the mask is read.
        beta: weight of the penalty; 0.04 in GRPO.
        estimator: ``k1``, ``k2`` or ``k3``.
        aggregate: see ``aggregation.aggregate``.
        max_length: generation budget in actions, for ``sum_over_max_length``.

    Returns:
        The loss, and the mean estimate per action as ``kl``, in nats.

    Source: Schulman 2020, Approximating KL divergence; Shao et al. 2024, arXiv 2402.03300.
    """
    same_shape(mask, logp=logp, ref_logp=ref_logp)
    off = ~mask.bool()
    estimate = ESTIMATORS[estimator](logp.masked_fill(off, 0.0), ref_logp.detach().masked_fill(off, 0.0))
    loss = beta * aggregation.aggregate(estimate, mask, aggregate, max_length=max_length)
    return loss, {"kl": token_mean(estimate.detach(), mask).item()}
