"""PPO for policies that write the action of one environment step as several tokens.

A step of the environment is a turn, its action K tokens, one per dimension. Time, value, ratio and clip belong to the
turn: the policy's probability of an action is the product of those of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.control.turns import at_first
from guerdon.credit.step import GAE, gae
from guerdon.credit.turn import turns_of
from guerdon.objectives.aggregation import same_shape
from guerdon.objectives.policy import Objective, ppo_clip
from guerdon.objectives.ratio import log_ratio
from guerdon.registry import register

PAPER = "Lu et al. 2025, arXiv 2505.18719"


class Decoded(NamedTuple):
    """Actions (...,K) to execute, and whether their tokens (...) meant one."""

    action: Tensor
    valid: Tensor


@dataclass(frozen=True)
class ActionBins:
    """Continuous actions as tokens: each dimension of the range in equal bins, a token per dimension.

    a_k = low_k + (token_k + 1/2) (high_k - low_k) / bins

    Attributes:
        low, high: (K,) bounds of each dimension.
        bins: tokens of each dimension, numbered from 0.
        no_op: (K,) what is executed where a token is none of these; 0 by default.

    Raises:
        ValueError: when there is no bin, or the bounds do not enclose anything.

    Source: Lu et al. 2025, arXiv 2505.18719 (bins as in the policy it trains).
    """

    low: Tensor
    high: Tensor
    bins: int
    no_op: Tensor | None = None

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins is {self.bins}, wanted 1 or more")
        if self.low.shape != self.high.shape or not bool((self.low < self.high).all()):
            low, high = self.low.tolist(), self.high.tolist()
            raise ValueError(f"low is {low} and high {high}; wanted as many of both, and each low below its high")

    def encode(self, action: Tensor) -> Tensor:
        """Tokens (...,K) int64 of actions (...,K); what lies outside the range goes to its outermost bin."""
        share = (action - self.low) / (self.high - self.low)
        return (share * self.bins).floor().long().clamp(0, self.bins - 1)

    def decode(self, token: Tensor) -> Decoded:
        """Actions in the middle of their bins; ``no_op`` as a whole where any token (...,K) is not in [0, bins)."""
        known = (token >= 0) & (token < self.bins)
        action = self.low + (token.clamp(0, self.bins - 1) + 0.5) * (self.high - self.low) / self.bins
        valid = known.all(dim=-1)
        no_op = torch.zeros_like(self.low) if self.no_op is None else self.no_op
        return Decoded(torch.where(valid.unsqueeze(-1), action, no_op), valid)


def turn_reward(success: Tensor, valid: Tensor, *, success_reward: float = 1.0, undecodable: float = 0.0) -> Tensor:
    """What the environment pays a step: ``success_reward`` for a success, ``undecodable`` for an action that is none.

    Args:
        success: (N,M) steps with which the task was completed.
        valid: (N,M) steps whose tokens meant an action.
        success_reward: +1 in the source.
        undecodable: 0 in the source, which offers -1.

    Returns:
        (N,M).

    Source: Lu et al. 2025, arXiv 2505.18719.
    """
    return success_reward * success.to(torch.get_default_dtype()) + undecodable * (~valid.bool()).to(
        torch.get_default_dtype()
    )


def joint_ratio(logp: Tensor, old_logp: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
    """Ratio of the present to the sampling policy for the action of each turn: the product of its tokens' ratios.

    rho_m = exp(sum_{t in m} (log pi(a_t) - log pi_old(a_t)))

    Args:
        logp, old_logp: (N,T) log-probability of each token now and when it was sampled, at the same temperature.
        turn: (N,T) turn of each token, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.

    Returns:
        (N,M), 1 where there is no turn.
    """
    same_shape(mask, logp=logp, old_logp=old_logp, turn=turn)
    turns = turns_of(turn, mask)
    return log_ratio(turns.total(logp), turns.total(old_logp), turns.exists).exp()


@register("credit", paper=PAPER)
def turn_gae(
    dense: Tensor,
    values: Tensor,
    turn: Tensor,
    mask: Tensor,
    bootstrap: Tensor,
    done: Tensor,
    *,
    gamma: float = 0.99,
    lam: float = 0.95,
    whiten: bool = False,
    eps: float = 1e-8,
) -> GAE:
    """Generalised advantage estimation from one turn to the next; the tokens of a turn share credit and target.

    delta_m = r_m + gamma V_{m+1} - V_m;  A_m = delta_m + gamma lam A_{m+1};  returns_m = A_m + V_m

    ``gae`` discounts from token to token, so that a turn of K tokens counts K times; here it counts once. V is read
    before the first token of a turn. Episodes that follow one another in an open environment are trajectories of their
    own: nothing flows back across a reset, and one that was cut, by a time limit or by the end of the rollout, goes on
    in ``bootstrap``. (The release treats a time limit as an end.)

    Args:
        dense: (N,T) reward of each token; what a turn's tokens earned is the turn's reward.
        values: (N,T) critic's value of the state before each token.
        turn: (N,T) turn of each token, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.
        bootstrap: (N,) critic's value of the state after the last turn.
        done: (N,) the episode ended by itself: nothing follows, and ``bootstrap`` is read as 0.
        gamma: discount per turn.
        lam: 0 trusts the critic after one turn, 1 never does.
        whiten: shift and scale the credit to mean 0 and standard deviation 1 over the turns of the batch; not in the
            source.
        eps: added to that standard deviation.

    Returns:
        The advantage and the returns, (N,T) each, the same on all tokens of a turn.

    Source: Lu et al. 2025, arXiv 2505.18719.
    """
    turns = turns_of(turn, mask)
    value = at_first(turns, values)
    credit = gae(turns.total(dense), value, turns.exists, bootstrap, done, gamma=gamma, lam=lam, whiten=whiten, eps=eps)
    return GAE(turns.spread(credit.advantage), turns.spread(credit.returns))


@register("objective", paper=PAPER)
def vla_ppo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    turn: Tensor,
    mask: Tensor,
    step: int | Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    warmup: int = 5,
) -> Objective:
    """PPO's clip on the ratio of whole actions, after some updates in which only the critic learns.

    -mean_m min(rho_m A_m, clip(rho_m, 1 - clip_low, 1 + clip_high) A_m), 0 while step < warmup;  rho_m: joint_ratio

    A critic that knows nothing yet gives credit that is noise, and a policy that was imitated well would unlearn from
    it. The critic is the term ``value`` (``coef: 1``, ``clip: 0.2`` in the source) and needs a model of its own: shared
    layers would be moved by it. Clipping token by token instead bounds each factor of rho_m, and the action may still
    move by the K-th power of that.

    ``old_logp`` has to come from sampling, at the same temperature. In the release it is stored during the first pass
    over the batch, and with its one epoch every ratio is 1 and nothing is ever clipped.

    Args:
        logp: (N,T) log-probability of each token now, differentiable.
        old_logp: (N,T) the same when it was sampled.
        advantage: (N,T) credit, the same on all tokens of a turn; the first one's is read.
        turn: (N,T) turn of each token, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.
        step: number of the batch, from 0.
        clip_low, clip_high: distances of the ratio from 1.
        warmup: batches in which the policy rests.

    Returns:
        The loss, and its stats per turn, see ``surrogate``.

    Source: Lu et al. 2025, arXiv 2505.18719.
    """
    same_shape(mask, logp=logp, old_logp=old_logp, advantage=advantage, turn=turn)
    turns = turns_of(turn, mask)
    now, old = (turns.total(x) for x in (logp, old_logp.detach()))
    credit = at_first(turns, advantage).masked_fill(~turns.exists, 0.0)
    if int(step) < warmup:
        credit = torch.zeros_like(credit)
    return ppo_clip(now, old, credit, turns.exists, clip_low=clip_low, clip_high=clip_high)
