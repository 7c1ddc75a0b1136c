"""Objectives for batches that the policy has moved away from: importance weights with bounds of their own."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

from guerdon.objectives.aggregation import Aggregation, TermAggregation, same_shape, token_mean
from guerdon.objectives.policy import Objective, surrogate
from guerdon.objectives.ratio import importance_ratio
from guerdon.registry import register


@register("objective", paper="Karaman et al. 2026, arXiv 2602.00983", credit_only=True)
def dispo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low_pos: float = 0.2,
    clip_high_pos: float = 10.0,
    clip_low_neg: float = 1.0,
    clip_high_neg: float = 100.0,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """Clipped importance weight on the score, with a window for each sign of the advantage.

    -sg[w] A log pi,  w = clip(rho, 1 - clip_low_pos, 1 + clip_high_pos) where A > 0,
    w = clip(rho, 1 - clip_low_neg, 1 + clip_high_neg) where A < 0

    Every token keeps a gradient. Where A > 0, ratios above 1 explore and ratios below 1 distil; where A < 0, a low
    ceiling lets repetitions grow and a high floor shortens answers. ``cispo`` is the same window for both signs. The
    value of the loss is no objective to compare.

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        clip_low_pos, clip_high_pos: distances from 1 of the window of actions with positive advantage.
        clip_low_neg, clip_high_neg: the same for negative advantage; 1 below is no floor.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats.

    Source: Karaman et al. 2026, arXiv 2602.00983.
    """
    return surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        lo_pos=1 - clip_low_pos,
        hi_pos=1 + clip_high_pos,
        lo_neg=1 - clip_low_neg,
        hi_neg=1 + clip_high_neg,
        gradient="score",
        aggregate=aggregate,
        max_length=max_length,
    )


@register("objective", paper="Zhang et al. 2025, arXiv 2505.02835", credit_only=True)
def stable_reinforce(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    max_ratio: Annotated[float, Field(gt=1)] = 1e3,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """PPO's clip on a ratio that was bounded before, so that no action can blow up the loss.

    -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A),  rho = exp(clamp(log pi - log pi_old, ±log max_ratio))

    PPO's own clip leaves the ratio of an action with A < 0 open upwards, so one that became likely can dominate a
    batch, or overflow. Here it counts at most max_ratio |A|, and has no gradient once it is there.

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        clip_low, clip_high: distances from 1.
        max_ratio: the ratio lies between 1 / max_ratio and this before anything else.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats.

    Source: Zhang et al. 2025, arXiv 2505.02835.
    """
    return surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        hi_pos=1 + clip_high,
        lo_neg=1 - clip_low,
        aggregate=aggregate,
        max_length=max_length,
        max_log_ratio=math.log(max_ratio),
    )


@register("objective", paper="Dong et al. 2025, arXiv 2508.00222", credit_only=True)
def rl_plus(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    external: Tensor,
    *,
    gamma: Annotated[float, Field(ge=0)] = 0.5,
    uniform: Annotated[float, Field(gt=0)] = 1.0,
    clip_low: float | None = None,
    clip_high: float | None = None,
    aggregate: TermAggregation = "sum_over_max_length",
    max_length: int | None = None,
) -> Objective:
    """Policy gradient on the policy's own actions and on demonstrations, which count most where they are unlikely.

    own:       rho A,  rho = pi / pi_old, clipped only if asked for
    external:  rho_m A (1 - sg[pi])^gamma,  rho_m = 2 pi / (1.5 pi_old + 0.5 uniform)

    Who demonstrated is unknown, and taken for a half-and-half mixture of the sampling policy and a uniform one; rho_m
    is the weight under the mixture of that and the sampling policy. Its denominator never vanishes, so it lies in
    [0, 4 / uniform], where pi over the demonstrator's own probability would have no bound. With ``uniform`` 1, which no
    distribution over more than one action has, rho_m is close to 4 pi where pi_old is close to 0: a probability, not
    a ratio. The gradient of an unlikely action is then as small as that.

    A demonstration in a group that is right throughout has no advantage, and teaches nothing. The release also takes
    an entropy bonus of 0.001 (term ``entropy``), no KL penalty, and advantages that are not divided by a standard
    deviation.

    Args:
        logp, advantage, mask: (N,T), see ``surrogate``.
        old_logp: (N,T) log-probability of each action under the sampling policy, of external ones too.
        external: (N,T) true on actions of demonstrations.
        gamma: how much unlikely actions of demonstrations count more; 0 leaves their advantage as it is.
        uniform: probability that the uniform part gives every action.
        clip_low, clip_high: distances from 1 of the clip on the policy's own ratio, as in ``ppo_clip``.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats, over all actions, and the mean rho_m of external ones as ``external_ratio``.

    Source: Dong et al. 2025, arXiv 2508.00222.
    """
    same_shape(mask, logp=logp, old_logp=old_logp, advantage=advantage, external=external)
    external = external.bool() & mask.bool()
    demonstrated = logp.detach().masked_fill(~external, 0.0).exp()
    old = old_logp.detach().masked_fill(~external, 0.0)
    mixture = ((1.5 * old.exp() + 0.5 * uniform) / 2).log()
    explored = (advantage * (1 - demonstrated).clamp(min=0.0) ** gamma).masked_fill(~external, 0.0)
    own, stats = surrogate(
        logp,
        old_logp,
        advantage.masked_fill(external, 0.0),
        mask,
        hi_pos=None if clip_high is None else 1 + clip_high,
        lo_neg=None if clip_low is None else 1 - clip_low,
        aggregate=aggregate,
        max_length=max_length,
    )
    shown, _ = surrogate(logp, mixture, explored, mask, aggregate=aggregate, max_length=max_length)
    ratio = importance_ratio(logp.detach(), mixture, external)
    return own + shown, stats | {"external_ratio": token_mean(ratio, external).item()}
