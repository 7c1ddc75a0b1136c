"""Objectives that learn from any answers, whoever wrote them, through what a value function expects."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.objectives.aggregation import aggregate, same_shape
from guerdon.objectives.divergence import k3
from guerdon.objectives.policy import Objective
from guerdon.registry import register


class SoftBellman(NamedTuple):
    """How far each state (N,T) is from consistency, 0 off the states, and which positions are states.

    Both residuals have the same value: ``critic`` is differentiable in V alone, ``policy`` in the log-probabilities of
    the state's own step alone.
    """

    critic: Tensor
    policy: Tensor
    states: Tensor


def soft_bellman(
    logp: Tensor,
    ref_logp: Tensor,
    value_prediction: Tensor,
    reward: Tensor,
    mask: Tensor,
    turn: Tensor,
    *,
    beta: float = 0.03,
    granularity: Literal["token", "step"] = "token",
) -> SoftBellman:
    """Residuals V(s_t) + beta sum_{i >= t} l_i - r of the soft Bellman equation, with l_i = log(pi / pi_ref)(a_i).

    They are 0 at every state for the optimum of E[r] - beta KL(pi || pi_ref) and its value, and for no other policy
    that is consistent on answers of full coverage.

    Args:
        logp: (N,T) log-probability of each action now, differentiable.
        ref_logp: (N,T) the same under the reference.
        value_prediction: (N,T) critic's value of the state before each action, differentiable.
        reward: (N,) outcome.
        mask: (N,T) true on actions; nothing off the mask is read.
        turn: (N,T) number of the step of each action, rising along an answer.
        beta: temperature.
        granularity: ``token``: every action starts from a state. ``step``: the first action of each step does, and l is
            summed over the step.

    Source: Wang et al. 2024, arXiv 2412.16145.
    """
    same_shape(mask, logp=logp, ref_logp=ref_logp, value_prediction=value_prediction, turn=turn)
    mask = mask.bool()
    step_log_ratio = torch.where(mask, logp - ref_logp.detach(), 0.0)
    fixed = step_log_ratio.detach()
    to_come = fixed.sum(dim=1, keepdim=True) - fixed.cumsum(dim=1) + fixed
    states = mask
    if granularity == "step":
        states = _step_starts(mask, turn)
        row = torch.arange(len(mask), device=mask.device).unsqueeze(1)
        span = int(turn.max()) + 2 if turn.numel() else 1
        of_step = grouped(step_log_ratio, row * span + turn + 1, mask)
        step_log_ratio = of_step.spread(of_step.total(step_log_ratio))
    value = torch.where(states, value_prediction, 0.0)
    target = (reward.unsqueeze(1) - beta * to_come).detach()
    own_step = beta * (step_log_ratio - step_log_ratio.detach())
    critic, policy = (torch.where(states, x - target, 0.0) for x in (value, value.detach() + own_step))
    return SoftBellman(critic, policy, states)


@register("objective", paper="Wang et al. 2024, arXiv 2412.16145")
def oreo(
    logp: Tensor,
    ref_logp: Tensor,
    value_prediction: Tensor,
    reward: Tensor,
    mask: Tensor,
    turn: Tensor,
    ref_kl: Tensor | None = None,
    external: Tensor | None = None,
    *,
    beta: float = 0.03,
    kl_weight: float = 0.01,
    granularity: Literal["token", "step"] = "token",
) -> Objective:
    """Make policy and value consistent with the outcome at every state, on answers of any origin.

    L_V = mean_t (V(s_t) + beta sum_{i >= t} sg l_i - r)^2,  l_i = log(pi / pi_ref)(a_i), sg stops the gradient
    L_pi = mean_t (sg V(s_t) + beta (l_t + sg sum_{i > t} l_i) - r)^2 + kl_weight KL(pi || pi_ref)

    Means are taken over the states of an answer, then over answers. Neither pairs nor likelihoods of whoever wrote the
    answers are needed; a wrong step is found where V falls. The gradient of each l_i enters at its own state only:
    otherwise every state would push the whole rest of the answer. There is no ratio and no credit; name any credit,
    it is not read. Where V is a head of the policy's model, both losses reach the shared layers in one update; the
    source takes the critic's step first, on a model of its own.

    Args:
        logp, ref_logp, value_prediction, reward, mask, turn: see ``soft_bellman``.
        ref_kl: (N,T) KL(pi || pi_ref) over the whole vocabulary. Without it the estimate k3 of the sampled actions
            stands in, on those that the policy sampled itself, for on others it estimates nothing.
        external: (N,T) actions that the present policy did not sample; they are learned from like all others.
        beta: temperature of the optimum that is looked for.
        kl_weight: weight of the divergence that regularises beyond that.
        granularity: see ``soft_bellman``.

    Returns:
        The loss; its parts ``critic`` and ``policy``, the mean ``kl`` per action, and ``start_value``, the mean V of
        first states.

    Source: Wang et al. 2024, arXiv 2412.16145.
    """
    mask = mask.bool()
    residual = soft_bellman(logp, ref_logp, value_prediction, reward, mask, turn, beta=beta, granularity=granularity)
    critic, policy = (aggregate(x**2, residual.states, "seq_mean") for x in (residual.critic, residual.policy))
    sampled = mask if external is None else mask & ~external
    if ref_kl is None:
        off = ~sampled
        kl = aggregate(k3(logp.masked_fill(off, 0.0), ref_logp.detach().masked_fill(off, 0.0)), sampled, "seq_mean")
    else:
        kl = aggregate(ref_kl, mask, "seq_mean")
    first = mask & (mask.cumsum(dim=1) == 1)
    start = aggregate(value_prediction.detach(), first, "token_mean")
    told = torch.stack([critic, policy, kl, start]).detach().tolist()
    loss = critic + policy + kl_weight * kl
    return loss, dict(zip(("critic", "policy", "kl", "start_value"), told, strict=True))


def _step_starts(mask: Tensor, turn: Tensor) -> Tensor:
    """(N,T) true at the first action of every step."""
    seen = torch.where(mask, turn, -1).cummax(dim=1).values
    before = torch.cat([seen.new_full((len(seen), 1), -1), seen[:, :-1]], dim=1)
    return mask & (turn > before)
