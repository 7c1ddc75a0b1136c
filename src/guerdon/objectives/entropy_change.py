"""How much an update on an action changes the policy's entropy, and an objective that holds the large changes back."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.objectives.aggregation import Aggregation, same_shape, token_mean
from guerdon.objectives.policy import Objective, surrogate
from guerdon.registry import register

Weights = Literal["exponential", "linear"]

CLOSEST = 1e-8  # distance of a probability from 0 and 1
LEAST_PEAK = 0.02  # changes below it are all small, so that the largest of them is not held back for being the largest


def entropy_change(logp: Tensor, old_logp: Tensor, entropy: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """Estimated change of entropy, up to sign and scale, that a policy-gradient step makes by single actions.

    Omega_t = A_t / p_old  p (1 - p) (log p + H_t),  p = pi(a_t) in [1e-8, 1 - 1e-8]

    To first order the step changes entropy in proportion to -Omega: credit for an action that is likelier than exp(-H)
    costs entropy, credit for one that is less likely gives some, and blame does the opposite.

    Args:
        logp, old_logp: (N,T) log-probability of each action now and when it was sampled.
        entropy: (N,T) of the policy at each action, in nats, from the same evaluation as ``logp``.
        advantage: (N,T) credit of each action.
        mask: (N,T) true on actions; nothing off the mask is read.

    Returns:
        (N,T) without gradient; 0 off the mask and where it is not finite.

    Source: Hao et al. 2025, arXiv 2510.10150, and its code.
    """
    same_shape(mask, logp=logp, old_logp=old_logp, entropy=entropy, advantage=advantage)
    p = logp.detach().exp().clamp(CLOSEST, 1 - CLOSEST)
    omega = advantage.detach() * (-old_logp.detach()).exp() * p * (1 - p) * (p.log() + entropy.detach())
    return torch.where(mask.bool() & omega.isfinite(), omega, 0.0)


def first_order_entropy_change(
    logits: Tensor, tokens: Tensor, advantage: Tensor, ratio: Tensor | None = None, *, lr: float = 1.0
) -> Tensor:
    """Change of entropy, exact to first order, when a policy-gradient step moves the logits of a state by itself.

    dz_v = lr A rho (1[v = a] - pi_v);  dH = -sum_v pi_v (log pi_v + H) dz_v

    It is what ``entropy_change`` estimates from a single action's probability, for tests and for diagnosis.

    Args:
        logits: (...,V) before the step.
        tokens: (...) the action.
        advantage: (...) its credit.
        ratio: (...) pi / pi_old of the action; 1 by default.
        lr: size of the step.

    Returns:
        (...), in nats.

    Source: Hao et al. 2025, arXiv 2510.10150.
    """
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    surprise = torch.where(probs > 0, log_probs, 0.0)
    surprise = surprise - (probs * surprise).sum(dim=-1, keepdim=True)
    chosen = torch.zeros_like(probs).scatter(-1, tokens.unsqueeze(-1), 1.0)
    size = lr * advantage * (1.0 if ratio is None else ratio)
    return -size * (probs * surprise * (chosen - probs)).sum(dim=-1)


def change_weights(
    omega: Tensor,
    mask: Tensor,
    *,
    weights: Weights = "exponential",
    lambda_min: float = 0.8,
    lambda_max: float = 1.2,
) -> Tensor:
    """Weight of each action by how much it changes entropy: the more, the less.

    exponential:  max(lambda_min, e^(-k |Omega|)),  k = -log lambda_min / max(max |Omega|, 0.02)
    linear:       lambda_max - (|Omega| - min) (lambda_max - lambda_min) / (max - min), the mean of both if max = min

    Args:
        omega: (N,T) see ``entropy_change``.
        mask: (N,T) true on actions; over them minimum and maximum are taken, so weights depend on the minibatch.
        weights: one of the above.
        lambda_min: weight of the action that changes entropy most.
        lambda_max: of the one that changes it least, for ``linear``; the other form has 1 where nothing changes.

    Returns:
        (N,T) without gradient, 0 off the mask.

    Source: Hao et al. 2025, arXiv 2510.10150, and its code.
    """
    mask = mask.bool()
    size = omega.detach().abs().masked_fill(~mask, 0.0)
    largest = size.amax() if size.numel() else size.sum()
    if weights == "exponential":
        rate = -math.log(lambda_min) / largest.clamp(min=LEAST_PEAK)
        return (-rate * size).exp().clamp(lambda_min, 1.0).masked_fill(~mask, 0.0)
    smallest = torch.where(mask, size, largest).amin() if size.numel() else largest
    spread = largest - smallest
    share = torch.where(spread > 0, (size - smallest) / spread.clamp(min=torch.finfo(size.dtype).tiny), 0.5)
    return (lambda_max - share * (lambda_max - lambda_min)).masked_fill(~mask, 0.0)


@register("objective", paper="Hao et al. 2025, arXiv 2510.10150")
def steer(
    logp: Tensor,
    old_logp: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    weights: Weights = "exponential",
    lambda_min: Annotated[float, Field(gt=0, le=1)] = 0.8,
    lambda_max: Annotated[float, Field(ge=1)] = 1.2,
    clip_low: Annotated[float, Field(ge=0)] = 0.2,
    clip_high: Annotated[float, Field(ge=0)] = 0.2,
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """PPO's dual clip in which actions that change entropy most weigh least.

    loss = aggregate(lambda_t L_t);  L_t that of ``ppo_clip``, lambda_t that of ``change_weights``

    At the default of 0.8 the effect is small; 0.3 shows it.

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        entropy: (N,T) of the policy at each action, in nats; no gradient reaches it.
        weights, lambda_min, lambda_max: see ``change_weights``. The source's fallback is linear in 0.95 to 1.05.
        clip_low, clip_high: distances from 1; 0.2 and 0.28 in the source's script.
        dual_clip: see ``ppo_clip``; 3 in the source's code and 10 in its script.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats, with the mean ``weight`` and the mean and the largest ``change`` |Omega|.

    Source: Hao et al. 2025, arXiv 2510.10150, and its code.
    """
    omega = entropy_change(logp, old_logp, entropy, advantage, mask)
    factor = change_weights(omega, mask, weights=weights, lambda_min=lambda_min, lambda_max=lambda_max)
    loss, stats = surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        factor,
        hi_pos=1 + clip_high,
        lo_neg=1 - clip_low,
        hi_neg=dual_clip,
        aggregate=aggregate,
        max_length=max_length,
    )
    stats["weight"] = token_mean(factor, mask).item()
    stats["change"] = token_mean(omega.abs(), mask).item()
    stats["largest_change"] = float(omega.abs().amax()) if omega.numel() else 0.0
    return loss, stats
