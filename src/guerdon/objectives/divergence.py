"""Divergence from the reference policy, estimated on sampled actions."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

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


MAX_STORED_LOG_RATIO = 10.0  # u = 2e4, of an action that was stored: one of them must not be all that a batch says

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


def forward_kl(log_u: Tensor) -> Tensor:
    """Estimate u - ln u - 1 of KL(pi_ref || pi), on samples of pi_ref; u = pi / pi_ref."""
    return log_u.expm1() - log_u


def js(log_u: Tensor) -> Tensor:
    """Estimate u ln u - (u + 1) ln((u + 1) / 2) of twice the Jensen-Shannon divergence, on samples of pi_ref."""
    u = log_u.exp()
    return u * log_u - (u + 1) * (functional.softplus(log_u) - math.log(2))


def alpha_divergence(log_u: Tensor, alpha: float = 0.2) -> Tensor:
    """Estimate (u^(1 - alpha) - (1 - alpha) u - alpha) / (alpha (alpha - 1)), on samples of pi_ref.

    Its expectation is (1 - sum pi_ref^alpha pi^(1 - alpha)) / (alpha (1 - alpha)): the forward KL as alpha nears 1, the
    reverse KL as it nears 0.
    """
    power = ((1 - alpha) * log_u).expm1() - (1 - alpha) * log_u.expm1()
    return power / (alpha * (alpha - 1))


@register("term", paper="Li et al. 2025, arXiv 2509.07430")
def f_divergence(
    logp: Tensor,
    old_logp: Tensor,
    mask: Tensor,
    external: Tensor,
    *,
    kind: Literal["forward_kl", "js", "alpha"] = "forward_kl",
    eta: float = 0.01,
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    aggregate: TermAggregation = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Penalty for unlearning what stored samples of the reference show: a divergence that covers all of its modes.

    loss = eta aggregate(f(u)),  u = pi / pi_ref on actions that pi_ref took, log u <= 10

    forward_kl: f = u - ln u - 1;  js: f = u ln u - (u + 1) ln((u + 1) / 2);
    alpha: f = (u^(1 - alpha) - (1 - alpha) u - alpha) / (alpha (alpha - 1))

    All f are >= 0, and 0 at u = 1. The samples come from the reference and the ratio has it below: with samples of pi
    the same forms would measure something else. Per action f is a divergence of the next action alone; their mean over
    prefixes that the reference wrote is not the divergence of whole answers.

    Args:
        logp: (N,T) log-probability of each action now, differentiable.
        old_logp: (N,T) log-probability of each external action under whoever took it: the policy before training, for
            answers of source ``rehearsal``.
        mask: (N,T) true on actions.
        external: (N,T) true on stored actions; only these count.
        kind: which divergence. The published weights are 0.01 to 0.05 for ``forward_kl`` and ``alpha``, 0.05 to 0.2
            for ``js``.
        eta: weight of the penalty.
        alpha: of the alpha-divergence.
        aggregate: see ``aggregation.aggregate``.
        max_length: generation budget in actions, for ``sum_over_max_length``.

    Returns:
        The loss, the mean of f per stored action as ``divergence``, and how many there are as ``actions``.

    Source: Li et al. 2025, arXiv 2509.07430. (The bound is ours: the release has none. Below there is none on purpose:
    the forward KL's gradient at u near 0 is what brings a forgotten action back.)
    """
    same_shape(mask, logp=logp, old_logp=old_logp, external=external)
    stored = mask.bool() & external.bool()
    log_u = logp.masked_fill(~stored, 0.0) - old_logp.detach().masked_fill(~stored, 0.0)
    log_u = log_u.clamp(max=MAX_STORED_LOG_RATIO)
    f = {"forward_kl": forward_kl, "js": js, "alpha": lambda x: alpha_divergence(x, alpha)}[kind](log_u)
    rows = stored.any(dim=1)
    loss = eta * aggregation.aggregate(f[rows], stored[rows], aggregate, max_length=max_length)
    return loss, {"divergence": token_mean(f.detach(), stored).item(), "actions": float(stored.sum())}


@register("term", paper="Li et al. 2025, arXiv 2509.07430")
def jensen_shannon(
    logp: Tensor,
    ref_logp: Tensor,
    mask: Tensor,
    step: int,
    external: Tensor | None = None,
    *,
    eta: float = 0.1,
    every: Annotated[int, Field(ge=1)] = 1,
    aggregate: TermAggregation = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Jensen-Shannon divergence from the reference by its definition: each half on the samples that it is about.

    loss = eta (aggregate(k(pi_ref, M) on stored actions) + aggregate(k(pi, M) on the policy's own)),
    M = (pi + pi_ref) / 2;  k(p, q) = q / p - 1 - ln(q / p)

    On stored actions value and gradient are those of KL(pi_ref || M). On the policy's own the value estimates
    KL(pi || M); the gradient leaves out that the samples themselves depend on the policy. Own answers need the
    reference model; ``f_divergence`` with ``kind: js`` does without.

    Args:
        logp, ref_logp, mask: (N,T), as for ``kl``.
        step: training step.
        external: (N,T) true on stored actions of the reference; without it all actions are the policy's own.
        eta: weight of either half.
        every: the policy's own answers count in one step of so many. (The release takes one micro-batch in ten.)
        aggregate: see ``aggregation.aggregate``.
        max_length: generation budget in actions, for ``sum_over_max_length``.

    Returns:
        The loss, and the mean of k over ``stored`` and over ``own`` actions.

    Source: Li et al. 2025, arXiv 2509.07430.
    """
    same_shape(mask, logp=logp, ref_logp=ref_logp)
    mask = mask.bool()
    stored = torch.zeros_like(mask) if external is None else mask & external.bool()
    own = mask & ~stored
    logp, ref = logp.masked_fill(~mask, 0.0), ref_logp.detach().masked_fill(~mask, 0.0)
    middle = torch.logaddexp(logp, ref) - math.log(2)
    estimate = k3(torch.where(stored, ref, logp), middle)
    halves = [(stored, 1.0), (own, 1.0 if step % every == 0 else 0.0)]
    loss = torch.zeros((), dtype=logp.dtype, device=logp.device)
    for part, share in halves:
        rows = part.any(dim=1)
        loss = loss + eta * share * aggregation.aggregate(estimate[rows], part[rows], aggregate, max_length=max_length)
    seen = estimate.detach()
    return loss, {"stored": token_mean(seen, stored).item(), "own": token_mean(seen, own).item()}
