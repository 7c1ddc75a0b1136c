"""The importance ratio of the present to the sampling policy, and what bounds it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Level = Literal["token", "sequence", "sequence_token", "geometric"]

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: far outside any clip, far inside float32


def log_ratio(logp: Tensor, old_logp: Tensor, mask: Tensor, *, bound: float = MAX_LOG_RATIO) -> Tensor:
    """Difference log pi - log pi_old of each action, within ±``bound`` (no gradient beyond) and 0 off the mask.

    Args:
        logp, old_logp: (N,T); what they hold off the mask is never read. No gradient reaches ``old_logp``.
        mask: (N,T) true on actions.
        bound: keeps the exponential finite.

    Returns:
        (N,T).
    """
    return (logp - old_logp.detach()).masked_fill(~mask.bool(), 0.0).clamp(-bound, bound)


def importance_ratio(logp: Tensor, old_logp: Tensor, mask: Tensor, level: Level = "token") -> Tensor:
    """Ratio of the present to the sampling policy, for each action or for each trajectory.

    - ``token``: rho_t = pi(a_t) / pi_old(a_t).
    - ``sequence``: s = exp(mean_t log rho_t), the same for all actions of a trajectory.
    - ``sequence_token``: the value of s with the gradient of rho_t: sg[s] rho_t / sg[rho_t].
    - ``geometric``: as ``sequence``; in ``surrogate`` each rho_t is clipped before the mean, not s after it.

    Args:
        logp, old_logp: (N,T) log-probability of each action now and when it was sampled.
        mask: (N,T) true on actions.
        level: one of the above.

    Returns:
        (N,T), finite everywhere and without meaning off the mask.
    """
    return pool(log_ratio(logp, old_logp, mask), mask.bool(), level).exp()


def pool(log_ratios: Tensor, mask: Tensor, level: Level) -> Tensor:
    """Take the log-ratios of actions (N,T) to the level at which they count, see ``importance_ratio``."""
    if level == "token":
        return log_ratios
    mean = log_ratios.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    if level == "sequence_token":
        return mean.detach() + (log_ratios - log_ratios.detach())
    return mean.expand_as(log_ratios)


def clip_by_sign(
    x: Tensor,
    advantage: Tensor,
    *,
    lo_pos: float | None = None,
    hi_pos: float | None = None,
    lo_neg: float | None = None,
    hi_neg: float | None = None,
) -> Tensor:
    """Clamp ``x`` to [lo_pos, hi_pos] where the advantage is positive and to [lo_neg, hi_neg] elsewhere.

    PPO's min(rho A, clip(rho, 1 - eps, 1 + eps) A) is the case hi_pos = 1 + eps, lo_neg = 1 - eps times A: only the
    side on which the objective would keep improving is bounded. A finite hi_neg is the dual clip.

    Args:
        x: (N,T) ratio, or its logarithm with logarithmic bounds.
        advantage: (N,T).
        lo_pos, hi_pos, lo_neg, hi_neg: absolute bounds; ``None`` leaves a side open.

    Returns:
        (N,T); no gradient flows where ``x`` lies outside.
    """
    positive = advantage > 0
    low, high = _by_sign(x, positive, lo_pos, lo_neg, -math.inf), _by_sign(x, positive, hi_pos, hi_neg, math.inf)
    return x if low is None and high is None else x.clamp(low, high)


def sigmoid_gate(ratio: Tensor, advantage: Tensor, tau_pos: float = 1.0, tau_neg: float = 1.05) -> Tensor:
    """Soft bound of the ratio whose slope is 1 at ratio 1 and fades with the distance from it.

    f = (4 / tau) sigmoid(tau (rho - 1)), tau = tau_pos where A > 0 and tau_neg elsewhere

    Args:
        ratio, advantage: (N,T).
        tau_pos, tau_neg: a larger temperature fades faster.

    Returns:
        (N,T); 2 / tau at ratio 1.
    """
    tau = torch.full_like(ratio, tau_neg).masked_fill(advantage > 0, tau_pos)
    return 4.0 / tau * torch.sigmoid(tau * (ratio - 1.0))


def _by_sign(x: Tensor, positive: Tensor, pos: float | None, neg: float | None, absent: float) -> Tensor | None:
    """The bound of each number of ``x``; None where neither sign has one."""
    if pos is None and neg is None:
        return None
    bounds = torch.full_like(x, absent if neg is None else neg)
    return bounds.masked_fill_(positive, absent if pos is None else pos)
