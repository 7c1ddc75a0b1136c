"""A step is tried, and shortened where it would change the policy too much."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from guerdon.objectives.aggregation import token_mean
from guerdon.objectives.divergence import k3
from guerdon.policies.base import Policy
from guerdon.rollouts import Rollouts


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """A copy of the trainable weights."""
    return {name: p.detach().clone() for name, p in policy.trainable().items()}


@torch.no_grad()
def shorten(
    policy: Policy, before: Mapping[str, Tensor], rollouts: Rollouts, logp: Tensor, *, limit: float
) -> dict[str, float]:
    """Scale the step just taken by ``limit`` / KL where the KL it causes on the batch exceeds ``limit``.

    theta <- before + min(1, limit / KL) (theta - before),  KL = mean over actions of k3(before || after)

    The KL grows with the square of a step, so it ends below the limit rather than at it. The optimiser's moments keep
    what they saw.

    Args:
        policy: after the step.
        before: its trainable weights before the step.
        rollouts: the batch that the step learned from.
        logp: (N,T) log-probability of its actions before the step.
        limit: largest KL per action, in nats.

    Returns:
        ``step_kl`` of the trial, and the ``step_scale`` that was applied.

    Source: Maity 2026, arXiv 2602.04651, which describes it; the release never calls it.
    """
    mask = rollouts.mask
    after = policy.evaluate(rollouts).logp
    kl = token_mean(k3(logp.detach().masked_fill(~mask, 0.0), after.masked_fill(~mask, 0.0)), mask).item()
    scale = limit / kl if kl > limit else 1.0
    if scale < 1:
        for name, p in policy.trainable().items():
            p.copy_(before[name] + scale * (p - before[name]))
    return {"step_kl": kl, "step_scale": scale}
