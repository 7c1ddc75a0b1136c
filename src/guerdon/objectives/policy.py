"""One general policy-gradient objective, and the published objectives that are settings of it.

``surrogate`` composes a ratio and its bounds (``ratio``) with a reduction (``aggregation``). A published objective
names its setting and nothing else; a further one needs no loop of its own.

Bounds of ``surrogate`` are absolute: ``hi_pos = 1.2`` keeps the ratio of actions with positive advantage at or
below 1.2, and ``None`` leaves a side open. The registered objectives take distances from 1 (``clip_low``,
``clip_high``), as the papers do.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from guerdon.objectives import aggregation
from guerdon.objectives.aggregation import Aggregation, same_shape
from guerdon.objectives.ratio import MAX_LOG_RATIO, Level, clip_by_sign, log_ratio, pool, sigmoid_gate
from guerdon.registry import register

Objective = tuple[Tensor, dict[str, float]]


def surrogate(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    weight: Tensor | None = None,
    *,
    level: Level = "token",
    lo_pos: float | None = None,
    hi_pos: float | None = None,
    lo_neg: float | None = None,
    hi_neg: float | None = None,
    gate: Literal["clip", "sigmoid"] = "clip",
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    gradient: Literal["ratio", "score"] = "ratio",
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Objective:
    """Policy-gradient loss: bounded ratio, times advantage, times weight, reduced to a scalar.

    loss = -aggregate(weight f(rho) A)              gradient = ratio
    loss = -aggregate(weight sg[f(rho)] A log pi)   gradient = score; sg stops the gradient

    f clips the ratio by the sign of A, then, with ``gate: sigmoid``, bounds it softly. With ``score`` an action
    outside its bounds keeps a gradient; the value of the loss is then not an objective to compare.

    Args:
        logp: (N,T) log-probability of each action now, differentiable.
        old_logp: (N,T) the same when it was sampled. A mixture, or ``logp`` detached (ratio 1), serves as well.
        advantage: (N,T) credit of each action, taken as constant.
        mask: (N,T) true on actions; nothing off the mask is read.
        weight: (N,T) constant factor of each action, 1 by default. It does not enter the divisor of the aggregation.
        level: unit of the ratio, see ``importance_ratio``.
        lo_pos, hi_pos, lo_neg, hi_neg: absolute bounds on the ratio, see ``clip_by_sign``.
        gate: whether the soft bound ``sigmoid_gate`` follows the clip.
        tau_pos, tau_neg: temperatures of the soft bound.
        gradient: through the ratio, or through log pi with the ratio as a constant weight.
        aggregate: see ``aggregation.aggregate``. ``valid_token_mean`` counts the trajectories that have any credit.
        max_length: generation budget in actions, for ``sum_over_max_length``.
        max_log_ratio: log-ratios are clamped to ± this before anything else, without gradient beyond.

    Returns:
        The loss, and the mean ``ratio``, the ``clip_fraction`` (share of actions with credit whose ratio is cut) and
        ``approx_kl`` (mean of rho - 1 - log rho, an estimate of KL(old || now) per action).

    Raises:
        ValueError: when shapes differ.
        RecipeError: when the aggregation lacks what it needs.
    """
    same_shape(mask, logp=logp, old_logp=old_logp, advantage=advantage)
    mask = mask.bool()
    advantage = advantage.detach().masked_fill(~mask, 0.0)
    per_token = log_ratio(logp, old_logp, mask, bound=max_log_ratio)
    bounds = {"lo_pos": lo_pos, "hi_pos": hi_pos, "lo_neg": lo_neg, "hi_neg": hi_neg}
    if level == "geometric":
        log_bounds = {side: math.log(bound) if bound else None for side, bound in bounds.items()}
        bounded = clip_by_sign(per_token, advantage, **log_bounds)
        cut = bounded != per_token
        ratio = clipped = pool(bounded, mask, level).exp()
    else:
        ratio = pool(per_token, mask, level).exp()
        clipped = clip_by_sign(ratio, advantage, **bounds)
        cut = clipped != ratio
    factor = sigmoid_gate(clipped, advantage, tau_pos, tau_neg) if gate == "sigmoid" else clipped
    gain = factor * advantage
    if gradient == "score":
        gain = gain.detach() * logp
    if weight is not None:
        gain = gain * weight.detach().masked_fill(~mask, 0.0)
    credited = advantage != 0
    useful = credited.any(dim=1) if aggregate == "valid_token_mean" else None
    loss = -aggregation.aggregate(gain, mask, aggregate, max_length=max_length, useful=useful)
    with torch.no_grad():
        shares = torch.stack([ratio, (cut & credited).to(ratio.dtype), per_token.expm1() - per_token])
        values = (shares.masked_fill(~mask, 0.0).sum(dim=(1, 2)) / mask.sum().clamp(min=1)).tolist()
    return loss, dict(zip(("ratio", "clip_fraction", "approx_kl"), values, strict=True))


@register("objective", paper="Schulman et al. 2017, arXiv 1707.06347", credit_only=True)
def ppo_clip(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """Clipped surrogate of PPO.

    -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)

    GRPO is this with ``aggregate: seq_mean``, Dr. GRPO with ``aggregate: sum_over_max_length``; NGRPO sets the two
    distances to 0.16 and 0.24.

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        clip_low, clip_high: distances from 1.
        dual_clip: the ratio of an action with negative advantage counts as at most this (> 1), so that one action
            that became likely can't dominate (Ye et al. 2019, arXiv 1912.09729; 3 there).
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats.

    Source: Schulman et al. 2017, arXiv 1707.06347.
    """
    return surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        hi_pos=1 + clip_high,
        lo_neg=1 - clip_low,
        hi_neg=dual_clip,
        aggregate=aggregate,
        max_length=max_length,
    )


@register("objective", paper="Yu et al. 2025, arXiv 2503.14476", credit_only=True)
def dapo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """PPO's clip with a higher ceiling, so that unlikely actions can grow, and every token weighing the same.

    Args and returns as ``ppo_clip``. Source: Yu et al. 2025, arXiv 2503.14476.
    """
    return ppo_clip(
        logp,
        old_logp,
        advantage,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        aggregate=aggregate,
        max_length=max_length,
    )


@register("objective", paper="Zheng et al. 2025, arXiv 2507.18071", credit_only=True)
def gspo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    aggregate: Aggregation = "seq_mean",
    max_length: int | None = None,
) -> Objective:
    """PPO's clip on the length-normalised ratio of the whole trajectory.

    -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),  s = exp(mean_t log rho_t)

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``; one advantage per trajectory is meant.
        clip_low, clip_high: distances from 1; s varies far less than a token's ratio.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats.

    Source: Zheng et al. 2025, arXiv 2507.18071.
    """
    return surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        level="sequence",
        hi_pos=1 + clip_high,
        lo_neg=1 - clip_low,
        aggregate=aggregate,
        max_length=max_length,
    )


@register("objective", paper="Zheng et al. 2025, arXiv 2507.18071", credit_only=True)
def gspo_token(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    aggregate: Aggregation = "seq_mean",
    max_length: int | None = None,
) -> Objective:
    """GSPO with the ratio of the trajectory in value and of the token in gradient, so that credit may vary by token.

    With one advantage per trajectory its value and gradient are those of ``gspo``.

    Args and returns as ``gspo``. Source: Zheng et al. 2025, arXiv 2507.18071.
    """
    return surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        level="sequence_token",
        hi_pos=1 + clip_high,
        lo_neg=1 - clip_low,
        aggregate=aggregate,
        max_length=max_length,
    )


@register("objective", paper="MiniMax 2025, arXiv 2506.13585", credit_only=True)
def cispo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float | None = None,
    clip_high: float = 4.0,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """Clipped importance weight on the score, so that no token loses its gradient.

    -sg[clip(rho, 1 - clip_low, 1 + clip_high)] A log pi

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        clip_low: distance of the floor from 1; no floor by default, as in the paper.
        clip_high: distance of the cap from 1. The paper leaves it open; the default is the absolute cap of 5 of
            ScaleRL (arXiv 2510.13786). Trainers disagree: some take the cap itself (cap = 1 + clip_high), others
            default to 0.2 on both sides.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats.

    Source: MiniMax 2025, arXiv 2506.13585.
    """
    lo, hi = None if clip_low is None else 1 - clip_low, 1 + clip_high
    return surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        lo_pos=lo,
        hi_pos=hi,
        lo_neg=lo,
        hi_neg=hi,
        gradient="score",
        aggregate=aggregate,
        max_length=max_length,
    )


@register("objective", paper="Gao et al. 2025, arXiv 2511.20347", credit_only=True)
def sapo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    aggregate: Aggregation = "seq_mean",
    max_length: int | None = None,
) -> Objective:
    """Soft gate instead of a clip: off-policy actions fade, and negative ones fade faster.

    -f(rho) A,  f = (4 / tau) sigmoid(tau (rho - 1))

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        tau_pos, tau_neg: see ``sigmoid_gate``.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats; nothing is ever cut.

    Source: Gao et al. 2025, arXiv 2511.20347.
    """
    return surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        gate="sigmoid",
        tau_pos=tau_pos,
        tau_neg=tau_neg,
        aggregate=aggregate,
        max_length=max_length,
    )


@register("objective", paper="Zhao et al. 2025, arXiv 2507.20673", credit_only=True)
def gmpo(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
    aggregate: Aggregation = "seq_mean",
    max_length: int | None = None,
) -> Objective:
    """Geometric mean of the clipped token ratios, which single outliers hardly move.

    -A exp(mean_t l_t),  l_t = min(log rho_t, clip_high) where A > 0, max(log rho_t, -clip_low) where A < 0

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``; one advantage per trajectory is meant.
        clip_low, clip_high: distances of log rho from 0.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats.

    Source: Zhao et al. 2025, arXiv 2507.20673.
    """
    return surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        level="geometric",
        hi_pos=math.exp(clip_high),
        lo_neg=math.exp(-clip_low),
        aggregate=aggregate,
        max_length=max_length,
    )


@register("objective", paper="Williams 1992", credit_only=True)
def reinforce(
    logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Tensor:
    """Plain policy gradient: -A log pi, without a ratio, for one update per batch.

    Args:
        logp: (N,T) log-probability of each action now, differentiable.
        advantage: (N,T) credit of each action.
        mask: (N,T) true on actions.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss.

    Source: Williams 1992, Simple statistical gradient-following algorithms for connectionist RL.
    """
    loss, _ = surrogate(logp, logp, advantage, mask, gradient="score", aggregate=aggregate, max_length=max_length)
    return loss
