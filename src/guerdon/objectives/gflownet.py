"""Generative flow networks: policies that find each solution in proportion to its reward, by balancing flows.

A trajectory (N,T) of right-padded transitions passes through states 0 to L, its length; what belongs to states is
(N,T+1). P_F is the policy, P_B a distribution over the parents of each state, F the flow through a state, R the reward
of a terminal, and E = -log R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.credit.grouping import center, grouped
from guerdon.objectives.aggregation import same_shape, token_mean
from guerdon.objectives.policy import Objective
from guerdon.registry import register


def terminal_energy(energy: Tensor, mask: Tensor, done: Tensor) -> Tensor:
    """All of a trajectory's energy on its last transition, none where it was cut.

    With it ``fl_db`` is ordinary detailed balance, and ``fl_subtb`` ordinary sub-trajectory balance.

    Args:
        energy: (N,T) E(s') - E(s) of each transition.
        mask: (N,T) true on transitions.
        done: (N,) whether the trajectory ends in a terminal.

    Returns:
        (N,T).
    """
    mask = _transitions(mask, energy=energy)
    last = mask & (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True)) & done.bool().unsqueeze(1)
    return torch.where(last, energy.masked_fill(~mask, 0.0).sum(dim=1, keepdim=True), 0.0)


def fl_db(log_flow: Tensor, logp: Tensor, log_pb: Tensor, energy: Tensor, mask: Tensor, done: Tensor) -> Tensor:
    """Detailed balance of every transition, with the energy that is already known taken out of the flow.

    mean over transitions of [log F~(s) + log P_F(s'|s) - log F~(s') - log P_B(s|s') + E(s') - E(s)]^2
    F(s) = exp(-E(s)) F~(s)

    The energy must be a function of the state, with E(s_0) = 0, or P_B matters. Every transition teaches, those of cut
    trajectories too. log F~ is 0 at terminals, whatever ``log_flow`` says there; the release learns it.

    Args:
        log_flow: (N,T+1) log F~ of each state, differentiable.
        logp: (N,T) log P_F of each transition, differentiable.
        log_pb: (N,T) log P_B of each transition.
        energy: (N,T) E(s') - E(s) of each transition.
        mask: (N,T) true on transitions, without holes; nothing off it is read.
        done: (N,) whether the trajectory ends in a terminal; false where it was cut.

    Returns:
        The loss.

    Raises:
        ValueError: when shapes don't agree, or a mask has holes.

    Source: Pan et al. 2023, arXiv 2302.01687.
    """
    mask = _transitions(mask, logp=logp, log_pb=log_pb, energy=energy)
    flow = _pinned(log_flow, mask, done)
    gained = torch.where(mask, logp - log_pb + energy, 0.0)
    return token_mean((flow[:, :-1] - flow[:, 1:] + gained) ** 2, mask)


def fl_subtb(
    log_flow: Tensor, logp: Tensor, log_pb: Tensor, energy: Tensor, mask: Tensor, done: Tensor, *, lam: float = 0.9
) -> Tensor:
    """Balance of all stretches of a trajectory, with the energy that is already known taken out of the flow.

    mean over trajectories of sum_{m<n} lam^(n-m) [log F~(s_m) - log F~(s_n) + sum log P_F - log P_B + E(s') - E(s)]^2
    / sum_{m<n} lam^(n-m)

    Args:
        log_flow, logp, log_pb, energy, mask, done: see ``fl_db``.
        lam: weight of a transition more; towards 0 it is detailed balance, and without bound trajectory balance.

    Returns:
        The loss.

    Raises:
        ValueError: when shapes don't agree, or a mask has holes.

    Source: Pan et al. 2023, arXiv 2302.01687. (The spec takes the form from general knowledge.)
    """
    mask = _transitions(mask, logp=logp, log_pb=log_pb, energy=energy)
    gained = torch.where(mask, logp - log_pb + energy, 0.0)
    residual, steps = _stretches(_pinned(log_flow, mask, done) - _before(gained), mask)
    weight = torch.where(steps > 0, lam ** (steps - 1).clamp(min=0).to(logp.dtype), 0.0)
    each = (weight * residual**2).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=1e-12)
    return each.sum() / mask.any(dim=1).sum().clamp(min=1)


def subtb_terminating(
    log_reward: Tensor, logp: Tensor, stop_logp: Tensor, mask: Tensor, *, span: int | None = None
) -> Tensor:
    """Balance of all stretches where each state may stop, so that flows follow from rewards and need no network.

    mean over trajectories of sum_{m<n} [log R(s_m) - log R(s_n) + sum log P_F + log P_F(T|s_n) - log P_F(T|s_m)]^2

    Every state has one history, so P_B is 1. Use it only where each prefix has a reward.

    Args:
        log_reward: (N,T+1) log R of stopping at each state.
        logp: (N,T) log P_F of each transition, not counting the stop; differentiable.
        stop_logp: (N,T+1) log P_F of stopping at each state, differentiable.
        mask: (N,T) true on transitions, without holes; nothing off it is read.
        span: longest stretch; 1 is detailed balance.

    Returns:
        The loss.

    Raises:
        ValueError: when shapes don't agree, or a mask has holes.

    Source: Kang et al. 2025, arXiv 2503.06514; the form is inferred.
    """
    mask = _transitions(mask, logp=logp)
    states = _states(mask)
    same_shape(states, log_reward=log_reward, stop_logp=stop_logp)
    level = torch.where(states, log_reward - stop_logp, 0.0)
    residual, steps = _stretches(level - _before(torch.where(mask, logp, 0.0)), mask)
    chosen = (steps > 0) if span is None else (steps > 0) & (steps <= span)
    return torch.where(chosen, residual**2, 0.0).sum() / mask.any(dim=1).sum().clamp(min=1)


def learned_log_reward(logp: Tensor, log_pb: Tensor, mask: Tensor, log_z: Tensor | float = 0.0) -> Tensor:
    """The reward for which a trajectory is in balance: log R^ = log Z + sum log P_F - sum log P_B.

    Args:
        logp: (N,T) log P_F of each transition, differentiable.
        log_pb: (N,T) log P_B of each transition.
        mask: (N,T) true on transitions; nothing off it is read.
        log_z: scalar or (N,); an order does not identify it.

    Returns:
        (N,).

    Source: Chen and Mauch 2023, arXiv 2310.00386.
    """
    same_shape(mask, logp=logp, log_pb=log_pb)
    return log_z + torch.where(mask.bool(), logp - log_pb, 0.0).sum(dim=1)


def order_preserving(log_reward: Tensor, score: Tensor, partner: Tensor) -> Tensor:
    """Teach a learned reward the order of scores, and nothing else of them.

    mean of - y log s(D) - (1 - y) log s(-D),  D = log R^(x) - log R^(x'),  s the logistic function
    y = 1 where x scores above its partner x', 0 where below, 1/2 where they tie

    Ties count: they hold equals together. The learned reward sharpens by itself as the order is learned.

    Args:
        log_reward: (N,) log R^, differentiable; see ``learned_log_reward``.
        score: (N,) any scale.
        partner: (N,) index of what each is compared with, such as a random permutation.

    Returns:
        The loss; log 2 for each tie that is held.

    Source: Chen and Mauch 2023, arXiv 2310.00386.
    """
    gap = log_reward - log_reward[partner]
    target = (torch.sign(score - score[partner]) + 1).to(gap.dtype) / 2
    return torch.nn.functional.binary_cross_entropy_with_logits(gap, target)


def front_preserving(log_reward: Tensor, front: Tensor, group: Tensor | None = None) -> Tensor:
    """Teach a learned reward that what nothing dominates comes first.

    - mean over groups of 1/|front| sum_{x in front} log softmax(log R^)(x)

    Args:
        log_reward: (N,) log R^, differentiable; see ``learned_log_reward``.
        front: (N,) bool, on the Pareto front of its group; see ``guerdon.optimize.pareto.non_dominated``.
        group: (N,) what is compared with one another; the whole batch by default.

    Returns:
        The loss. A group without a front counts nothing.

    Source: Chen and Mauch 2023, arXiv 2310.00386.
    """
    front = front.bool()
    stats = grouped(log_reward, group)
    high = stats.extreme(largest=True).detach()
    log_softmax = log_reward - high - stats.spread(stats.total((log_reward - high).exp())).log()
    members = stats.total(front.to(log_reward.dtype))
    each = stats.total(torch.where(front, log_softmax, 0.0)) / members.clamp(min=1)
    return -each.sum() / (members > 0).sum().clamp(min=1)


def step_logp(logp: Tensor, thought: Tensor, *, lam: float) -> Tensor:
    """Log-probability of steps in which thoughts count less than what is done: lam on the tokens of thoughts, 1 else.

    Summed over a step it is log pi(action | thought, state) + lam log pi(thought | state).

    Args:
        logp: (N,T).
        thought: (N,T) bool, tokens of thoughts.
        lam: in (0,1].

    Returns:
        (N,T).

    Source: Kang et al. 2025, arXiv 2503.06514.
    """
    return torch.where(thought.bool(), lam * logp, logp)


@register("objective", "var_tb", paper="Kang et al. 2025, arXiv 2503.06514", needs_group=True)
def var_tb(
    logp: Tensor,
    mask: Tensor,
    group: Tensor,
    reward: Tensor,
    external: Tensor | None = None,
    *,
    eps: float = 1e-3,
    temperature: float = 1.0,
) -> Objective:
    """Make answers to a prompt as likely, relative to one another, as their rewards are.

    mean of (z - mean_g z)^2,  z = log(R + eps) / temperature - sum_t log P_F(a_t)

    It is 0 exactly where P_F is proportional to the reward on the answers of each group; the normaliser is their mean,
    so no network learns it. There is no ratio, so answers of any origin do. Log-probabilities are summed over an
    answer, for their mean would be another distribution. Name any credit, it is not read.

    Args:
        logp: (N,T) log-probability of each action now, differentiable; every text is reached in one way, so P_B is 1.
        mask: (N,T) true on actions; nothing off the mask is read.
        group: (N,) key of the answers to the same prompt; one alone teaches nothing.
        reward: (N,) R, from 0; below, it counts as 0.
        external: (N,T) actions that the present policy did not sample; they are learned from like all others.
        eps: added to the reward, the flow that a wrong answer keeps. The source only asks for R > 0.
        temperature: below 1 sharpens the reward.

    Returns:
        The loss, and ``log_z``, the mean of z.

    Source: Kang et al. 2025, arXiv 2503.06514; the form is inferred.
    """
    same_shape(mask, logp=logp)
    mask = mask.bool()
    acted = mask.any(dim=1)
    log_reward = (reward.clamp(min=0.0) + eps).log() / temperature
    z = log_reward - torch.where(mask, logp, 0.0).sum(dim=1)
    loss = (center(z, group, acted) ** 2).sum() / acted.sum().clamp(min=1)
    seen = torch.where(acted, z.detach(), 0.0).sum() / acted.sum().clamp(min=1)
    return loss, {"log_z": float(seen)}


def _transitions(mask: Tensor, **fields: Tensor) -> Tensor:
    """The mask as bool, once it is known to be whole and of the fields' shape."""
    same_shape(mask, **fields)
    mask = mask.bool()
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        row = int((mask[:, 1:] & ~mask[:, :-1]).any(dim=1).nonzero()[0])
        raise ValueError(f"the mask of trajectory {row} has holes; wanted its transitions first, then padding")
    return mask


def _states(mask: Tensor) -> Tensor:
    """(N,T+1) true on the states of each trajectory; one without transitions has none."""
    return torch.cat([mask[:, :1], mask], dim=1)


def _pinned(log_flow: Tensor, mask: Tensor, done: Tensor) -> Tensor:
    """(N,T+1) log F~, 0 at terminals and off the states."""
    states = _states(mask)
    same_shape(states, log_flow=log_flow)
    place = torch.arange(states.shape[1], device=mask.device)
    terminal = (place == mask.sum(dim=1, keepdim=True)) & done.bool().unsqueeze(1)
    return torch.where(states & ~terminal, log_flow, 0.0)


def _before(gained: Tensor) -> Tensor:
    """(N,T+1) what was gained before each state."""
    return torch.cat([torch.zeros_like(gained[:, :1]), gained.cumsum(dim=1)], dim=1)


def _stretches(level: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(N,T+1,T+1) level_m - level_n of every pair of states, and n - m where both exist and m < n, 0 elsewhere."""
    states = _states(mask)
    place = torch.arange(states.shape[1], device=mask.device)
    both = states.unsqueeze(2) & states.unsqueeze(1)
    steps = torch.where(both, place - place.unsqueeze(1), 0).clamp(min=0)
    return torch.where(steps > 0, level.unsqueeze(2) - level.unsqueeze(1), 0.0), steps
