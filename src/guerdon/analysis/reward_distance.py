"""How far the best policy moves when a reward changes a little.

Problems are tables: S states, A actions, rewards (...,S,A) and transition probabilities (...,S,A,S'), where the
leading dimensions may hold any number of problems at once. Without transitions every state is a problem of one step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.seeding import torch_generator

MAX_ITERATIONS = 1000  # policy iteration ends after a handful; more means that it cycles


class CliffReport(NamedTuple):
    """How stable the best policy of a reward is; leading dimensions are those of the problems.

    Attributes:
        optimal: (...,S,A) which actions are best, to within the tolerance.
        degeneracy: (...,S) how many they are; above 1 an arbitrarily small edit of the reward selects any of them.
        gap: (...) smallest distance over states of the best action value from the second best; 0 at a tie.
        radius: (...) gap (1 - gamma) / 2: no edit smaller than this everywhere changes the greedy policy.
        greedy_tv: (...) largest total variation, over random edits and states, between the greedy policies before and
            after.
        soft_tv: (...) the same for the policies with entropy weight ``temperature``.
        soft_bound: norm / (2 temperature (1 - gamma)), which ``soft_tv`` can't exceed for any edit of that norm.
    """

    optimal: Tensor
    degeneracy: Tensor
    gap: Tensor
    radius: Tensor
    greedy_tv: Tensor
    soft_tv: Tensor
    soft_bound: float


class Sweep(NamedTuple):
    """What happens to the best policy along a path of reward weights, W points long.

    Attributes:
        greedy, soft: (W,...,S,A) the policies at each point.
        greedy_tv, soft_tv: (W-1,...) largest total variation over states between neighbouring points.
        gap: (W,...) smallest distance of the best action value from the second best.
    """

    greedy: Tensor
    soft: Tensor
    greedy_tv: Tensor
    soft_tv: Tensor
    gap: Tensor


def action_values(
    reward: Tensor, transitions: Tensor | None = None, *, gamma: float = 0.0, temperature: float = 0.0
) -> Tensor:
    """Values of the actions under the best policy, by policy iteration; exact up to rounding.

    Q(s,a) = R(s,a) + gamma sum_s' P(s'|s,a) V(s'),  V = max_a Q or, with a temperature, V = tau logsumexp_a(Q / tau)

    The best policy is greedy in Q, or softmax(Q / tau): the one that maximises reward plus tau times its entropy.

    Args:
        reward: (...,S,A).
        transitions: (...,S,A,S) probabilities; None for problems of one step, whose Q is R.
        gamma: discount, in [0,1).
        temperature: weight of the entropy; 0 for none.

    Returns:
        (...,S,A), float64.

    Raises:
        ValueError: when shapes or gamma don't fit, or transitions don't sum to 1.
        RuntimeError: when the iteration does not end.
    """
    reward = reward.double()
    if transitions is None:
        if gamma:
            raise ValueError(f"gamma is {gamma} without transitions; give (...,S,A,S) transitions, or gamma 0")
        return reward
    states, actions = reward.shape[-2:]
    if transitions.shape[-3:] != (states, actions, states):
        raise ValueError(
            f"transitions has shape {tuple(transitions.shape)}, reward {tuple(reward.shape)}; "
            f"wanted (..., {states}, {actions}, {states})"
        )
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma is {gamma}, wanted at least 0 and below 1")
    step = transitions.double()
    if not torch.allclose(step.sum(dim=-1), torch.ones((), dtype=torch.float64)) or bool((step < 0).any()):
        raise ValueError("transitions hold negative numbers or don't sum to 1 over next states; normalise them")
    identity = torch.eye(states, dtype=torch.float64)
    value = torch.zeros_like(reward[..., 0])
    for _ in range(MAX_ITERATIONS):
        policy = best_policy(reward + gamma * _ahead(step, value), temperature)
        earned = (policy * reward).sum(dim=-1) - temperature * torch.special.xlogy(policy, policy).sum(dim=-1)
        moves = torch.einsum("...sa,...sat->...st", policy, step)
        previous, value = value, torch.linalg.solve(identity - gamma * moves, earned)
        if (value - previous).abs().amax() <= 1e-12 * (1 + value.abs().amax()) / (1 - gamma):
            return reward + gamma * _ahead(step, value)
    raise RuntimeError(f"policy iteration did not settle within {MAX_ITERATIONS} rounds (temperature {temperature})")


def best_policy(values: Tensor, temperature: float = 0.0) -> Tensor:
    """Policy (...,S,A) for action values (...,S,A): softmax(Q / temperature), or at 0 the first of the best actions."""
    if temperature:
        return torch.softmax(values / temperature, dim=-1)
    return torch.nn.functional.one_hot(values.argmax(dim=-1), values.shape[-1]).to(values.dtype)


def total_variation(policy: Tensor, other: Tensor) -> Tensor:
    """Half the absolute difference of two policies (...,S,A), at the state (...) where it is largest."""
    return ((policy - other).abs().sum(dim=-1) / 2).amax(dim=-1)


def cliff_report(
    reward: Tensor,
    transitions: Tensor | None = None,
    *,
    gamma: float = 0.0,
    temperature: float = 0.1,
    norm: float = 0.01,
    draws: int = 32,
    tol: float = 1e-9,
    seed: int = 0,
) -> CliffReport:
    """Say where a small edit of the reward can flip the best policy, and try random edits.

    An edit of size d everywhere moves no action value by more than d / (1 - gamma). The greedy policy therefore
    survives all edits with d < gap (1 - gamma) / 2, and where actions tie it survives none. The policy with entropy
    weight tau moves by at most d / (2 tau (1 - gamma)) in total variation: it has no cliffs, and pays by being random.

    Args:
        reward: (...,S,A); without transitions, action values serve as well.
        transitions: (...,S,A,S) probabilities; None for problems of one step.
        gamma: discount.
        temperature: entropy weight of the soft policies, above 0.
        norm: size of the edits: each adds or takes this much at every state and action, at random.
        draws: how many edits are tried on each problem.
        tol: action values closer than this count as tied.
        seed: of the edits.

    Returns:
        The report. What random edits reach is a lower bound on what the worst edit would.

    Raises:
        ValueError: when an argument is out of range or shapes don't fit.

    Source: Xu 2025, arXiv 2507.20150 (whose statements are re-derived here in total variation, per state).
    """
    if not temperature > 0 or not norm >= 0 or draws < 1:
        raise ValueError(
            f"temperature is {temperature}, norm {norm} and draws {draws}; wanted above 0, at least 0, at least 1"
        )
    values = action_values(reward, transitions, gamma=gamma)
    gap = _gap(values, tol)
    signs = torch.randint(0, 2, (draws, *reward.shape), generator=torch_generator(seed, "cliff")).double() * 2 - 1
    edited = reward.double() + norm * signs

    def largest_move(tau: float) -> Tensor:
        before = best_policy(action_values(reward, transitions, gamma=gamma, temperature=tau), tau)
        after = best_policy(action_values(edited, transitions, gamma=gamma, temperature=tau), tau)
        return total_variation(before, after).amax(dim=0)

    optimal = values >= values.amax(dim=-1, keepdim=True) - tol
    return CliffReport(
        optimal=optimal,
        degeneracy=optimal.sum(dim=-1),
        gap=gap,
        radius=gap * (1 - gamma) / 2,
        greedy_tv=largest_move(0.0),
        soft_tv=largest_move(temperature),
        soft_bound=norm / (2 * temperature * (1 - gamma)),
    )


def weight_sweep(
    rewards: Tensor,
    weights: Tensor,
    transitions: Tensor | None = None,
    *,
    gamma: float = 0.0,
    temperature: float = 0.1,
    tol: float = 1e-9,
) -> Sweep:
    """Follow the best policy while the weights of several rewards change.

    Only the effective reward counts: R(s,a) = sum_k w_k(s) R_k(s,a). Its greedy policy stands still but for jumps,
    where two actions change places; its soft policy follows smoothly.

    Args:
        rewards: (K,...,S,A), one table per reward.
        weights: (W,K), or (W,K,S) where they differ between states: one row per point of the path.
        transitions, gamma, temperature, tol: see ``cliff_report``.

    Returns:
        The policies along the path, and how far they move from point to point.

    Raises:
        ValueError: when there is not one weight per reward.

    Source: Xu 2025, arXiv 2507.20150.
    """
    kinds = rewards.shape[0]
    if weights.ndim not in (2, 3) or weights.shape[1] != kinds:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)} for {kinds} rewards; wanted (W, {kinds}) or per state"
        )
    per_state = weights.double() if weights.ndim == 3 else weights.double().unsqueeze(-1)
    per_state = per_state.expand(*per_state.shape[:2], rewards.shape[-2])
    effective = torch.einsum("wks,k...sa->w...sa", per_state, rewards.double())
    values = action_values(effective, transitions, gamma=gamma)
    soft_values = action_values(effective, transitions, gamma=gamma, temperature=temperature)
    greedy, soft = best_policy(values), best_policy(soft_values, temperature)
    return Sweep(
        greedy=greedy,
        soft=soft,
        greedy_tv=total_variation(greedy[1:], greedy[:-1]),
        soft_tv=total_variation(soft[1:], soft[:-1]),
        gap=_gap(values, tol),
    )


def _ahead(step: Tensor, value: Tensor) -> Tensor:
    """Expected value (...,S,A) of the next state."""
    return torch.einsum("...sat,...t->...sa", step, value)


def _gap(values: Tensor, tol: float) -> Tensor:
    """Smallest distance (...) over states between the best and the second best action; 0 within the tolerance."""
    if values.shape[-1] < 2:
        raise ValueError("there is only one action, so nothing can change places; give (...,S,A) with A of at least 2")
    best, second = values.topk(2, dim=-1).values.unbind(dim=-1)
    distance = (best - second).amin(dim=-1)
    return torch.where(distance > tol, distance, 0.0)
