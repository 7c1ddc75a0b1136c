"""Learning from episodes of any origin, subgoal by subgoal: a bound to maximise, and the cloning that stands for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from guerdon.control.turns import at_first
from guerdon.credit.step import GAE
from guerdon.credit.turn import returns_to_go, turns_of
from guerdon.objectives.aggregation import same_shape, token_mean
from guerdon.objectives.policy import Objective
from guerdon.registry import register

PAPER = "Wu et al. 2025, arXiv 2502.07949"


class SubgoalBound(NamedTuple):
    """What each trajectory says of the bound (N,), and each of its segments (N,M); 0 where there is no segment."""

    total: Tensor
    segments: Tensor


def sgc_elbo(
    segment_return: Tensor, logp: Tensor, ref_logp: Tensor, segment: Tensor, mask: Tensor, *, alpha: float = 1.0
) -> SubgoalBound:
    """Subgoal-conditioned evidence lower bound, of which trajectories of the policy give an unbiased estimate.

    ELBO = sum_i E[log p(O | tau_i, sg_i)] - KL(p_pi(tau_i | sg_i) || p_ref(tau_i | g)),  log p(O | tau_i) = R_i / alpha

    In its place stands R_i / alpha - sum_{t in i} (log pi(a_t | s_t, sg_i) - log pi_ref(a_t | s_t, g)). Where subgoals
    are met in their order and their returns add up to that of the goal, the sum over segments is the bound of the goal:
    then nothing is lost by learning each subgoal by itself. The divergence is the reverse one, from the policy.

    Args:
        segment_return: (N,M) return R_i of each segment.
        logp: (N,T) log-probability of each action under the policy, which sees the subgoal.
        ref_logp: (N,T) the same under the reference, which sees the goal.
        segment: (N,T) number of the segment of each action, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.
        alpha: temperature above 0 of optimality.

    Returns:
        The estimates. They are differentiable, but the gradient of their mean is not that of the bound: the policy also
        decides which trajectories there are.

    Raises:
        ValueError: when alpha is not above 0.

    Source: Wu et al. 2025, arXiv 2502.07949.
    """
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}, wanted greater than 0")
    same_shape(mask, logp=logp, ref_logp=ref_logp, segment=segment)
    parts = turns_of(segment, mask, segment_return.shape[1])
    ratio = parts.total(torch.where(mask.bool(), logp - ref_logp, 0.0))
    bound = torch.where(parts.exists, segment_return / alpha - ratio, 0.0)
    return SubgoalBound(bound.sum(dim=1), bound)


@register("credit", paper=PAPER)
def step_filter(
    dense: Tensor,
    values: Tensor,
    turn: Tensor,
    mask: Tensor,
    bootstrap: Tensor,
    done: Tensor,
    *,
    gamma: float = 0.9,
    margin: float = 0.05,
) -> tuple[GAE, dict[str, float]]:
    """How far each step brought success nearer, between 0 and 1; the objective ``vsc_rl`` clones those above 0.

    A_m = clip(V(s_{m+1}) - V(s_m) - margin + r_m + G_m, 0, 1),  G_m = r_m + gamma G_{m+1}

    V is a probability of success (``success_loss``), the smaller of two critics' where there are two, which is what the
    margin and the clip are made for. A step of an episode that succeeds is kept unless V falls by more than its return
    makes up for; one of an episode that fails is kept if V rises by more than the margin. Each subgoal is an episode of
    its own (``guerdon.tasks.subgoals``).

    Args:
        dense: (N,T) reward of each action; what a turn's actions earned is the turn's reward.
        values: (N,T) chance of success in the state before each action; that of a turn's first action is read.
        turn: (N,T) turn of each action, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.
        bootstrap: (N,) V of the state after the last turn.
        done: (N,) the episode ended by itself: ``bootstrap`` is read as 0.
        gamma: discount per turn of the return.
        margin: what V must rise by where nothing was earned.

    Returns:
        A of the turn on each of its actions (N,T), 0 elsewhere, and what a critic of success is to tell, 1[G_m > 0];
        and the share of actions ``kept``. (The source's critics are classifiers, see ``success_loss``; the term
        ``value`` fits the same chance by squared error.)

    Source: Wu et al. 2025, arXiv 2502.07949 (r is in G as well, as specified).
    """
    turns = turns_of(turn, mask)
    exists, v = turns.exists, at_first(turns, values).masked_fill(~turns.exists, 0.0)
    reward = turns.total(dense)
    following = bootstrap.to(v.dtype).masked_fill(done.bool(), 0.0)
    after = []
    for m in range(v.shape[1] - 1, -1, -1):  # holes take no time
        after.append(following)
        following = torch.where(exists[:, m], v[:, m], following)
    rise = torch.stack(after[::-1], dim=1) - v
    returns = _returns(reward, exists, gamma)
    credit = (rise - margin + reward + returns).clamp(0.0, 1.0)
    spread = turns.spread(torch.where(exists, credit, 0.0))
    kept = float((spread > 0).sum()) / max(int(turns.mask.sum()), 1)
    return GAE(spread, turns.spread((exists & (returns > 0)).to(v.dtype))), {"kept": kept}


@register("objective", paper=PAPER)
def vsc_rl(
    logp: Tensor, advantage: Tensor, mask: Tensor, external: Tensor | None = None, *, imitation: float = 1.0
) -> Objective:
    """Clone the steps that brought success nearer, and what the reference does.

    L = -mean_t [A_t > 0] log pi(a_t | s_t, sg) - imitation mean_ref log pi(a_ref | s, sg)

    The bound ``sgc_elbo`` has the reverse divergence, KL(pi || pi_ref); the second part is cross-entropy on actions of
    the reference, which is the forward one, KL(pi_ref || pi), but for a constant: it keeps all that the reference does,
    where the reverse one would keep to something that it does. There is no ratio, and any data will do.

    Args:
        logp: (N,T) log-probability of each action now, differentiable.
        advantage: (N,T) of each action, as ``step_filter`` gives it; only its sign counts.
        mask: (N,T) true on actions; nothing off the mask is read.
        external: (N,T) actions of the reference; none by default.
        imitation: weight of the second part.

    Returns:
        The loss, and the parts ``filtered`` and ``imitation``.

    Source: Wu et al. 2025, arXiv 2502.07949.
    """
    same_shape(mask, logp=logp, advantage=advantage)
    mask = mask.bool()
    reference = torch.zeros_like(mask) if external is None else external.bool() & mask
    own = mask & ~reference
    good = (torch.where(own, advantage, 0.0) > 0).to(logp.dtype)
    filtered = -token_mean(torch.where(own, logp, 0.0) * good, own)
    cloned = -token_mean(logp, reference)
    loss = filtered + imitation * cloned
    return loss, {"filtered": float(filtered.detach()), "imitation": float(cloned.detach())}


def success_loss(logits: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of a critic that tells whether an episode will succeed: sigmoid(logit) against 1[return > 0].

    Args:
        logits: (N,T) of success, seen from the state before each action, differentiable.
        returns: (N,T) return from there on, as it came.
        mask: (N,T) true on actions; nothing off the mask is read.

    Returns:
        A scalar, in nats per action.

    Source: Wu et al. 2025, arXiv 2502.07949, for the instruction and for steps alike.
    """
    same_shape(mask, logits=logits, returns=returns)
    mask = mask.bool()
    target = (returns.masked_fill(~mask, 0.0) > 0).to(logits.dtype)
    loss = binary_cross_entropy_with_logits(logits.masked_fill(~mask, 0.0), target, reduction="none")
    return token_mean(loss, mask)


def _returns(reward: Tensor, exists: Tensor, gamma: float) -> Tensor:
    """Discounted returns to go of turns (N,M) among which there may be holes, which take no time."""
    order = (~exists).long().argsort(dim=1, stable=True)
    return torch.empty_like(reward).scatter(1, order, returns_to_go(reward.gather(1, order), gamma))
