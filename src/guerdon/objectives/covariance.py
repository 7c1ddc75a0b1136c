"""Objectives that hold back the few actions whose likelihood and advantage rise together, which burn entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.objectives import aggregation
from guerdon.objectives.aggregation import Aggregation, token_mean
from guerdon.objectives.policy import Objective, surrogate
from guerdon.objectives.ratio import clip_by_sign, importance_ratio, log_ratio
from guerdon.registry import register
from guerdon.seeding import torch_generator


def token_covariance(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """Share of each action in the covariance of log-probability and advantage.

    cov_t = (log pi_t - mean log pi)(A_t - mean A), means over the actions of the batch

    Args:
        logp, advantage: (N,T); what they hold off the mask is never read.
        mask: (N,T) true on actions.

    Returns:
        (N,T) without gradient, -inf off the mask. The step that follows lowers entropy in proportion to its mean.
    """
    off = ~mask.bool()
    logp, advantage = logp.detach().masked_fill(off, 0.0), advantage.detach().masked_fill(off, 0.0)
    product = (logp - token_mean(logp, mask)) * (advantage - token_mean(advantage, mask))
    return product.masked_fill(off, float("-inf"))


@register("objective", paper="Cui et al. 2025, arXiv 2505.22617")
def clip_cov(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    step: int | Tensor,
    *,
    share: float = 2e-4,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    seed: int = 0,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """PPO's clip in which a few random actions of high covariance get no gradient.

    Among the unclipped actions with cov_low < cov_t < cov_high, max(1, floor(share n)) are drawn, n the number of
    actions of the batch; their loss is 0, and they stay in the divisor.

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        step: training step; with ``seed`` it decides the draw, so that a repeated step draws the same actions.
        share: of the actions of the batch to hold back.
        cov_low, cov_high: open interval of ``token_covariance`` to draw from.
        clip_low, clip_high: distances from 1.
        seed: of the draw.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats, with ``selected_fraction``, the share of actions held back.

    Source: Cui et al. 2025, arXiv 2505.22617.
    """
    ratio = importance_ratio(logp.detach(), old_logp, mask)
    unclipped = clip_by_sign(ratio, advantage, hi_pos=1 + clip_high, lo_neg=1 - clip_low) == ratio
    cov = token_covariance(logp, advantage, mask)
    candidates = ((cov > cov_low) & (cov < cov_high) & unclipped).flatten().nonzero().squeeze(1)
    order = torch.randperm(len(candidates), generator=torch_generator(seed, int(step), "clip_cov"))
    drawn = candidates[order[: _quota(mask, share)].to(candidates.device)]
    held_back = torch.zeros_like(cov).flatten().index_fill_(0, drawn, 1.0).reshape(cov.shape)
    loss, stats = surrogate(
        logp,
        old_logp,
        advantage,
        mask,
        1.0 - held_back,
        hi_pos=1 + clip_high,
        lo_neg=1 - clip_low,
        aggregate=aggregate,
        max_length=max_length,
    )
    return loss, stats | {"selected_fraction": token_mean(held_back, mask).item()}


@register("objective", paper="Cui et al. 2025, arXiv 2505.22617")
def kl_cov(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    share: float = 2e-4,
    kl_coef: float = 1.0,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """Unclipped surrogate in which the actions of highest covariance pay for moving.

    -rho A + kl_coef |log pi - log pi_old| [t among the max(1, floor(share n)) of largest cov_t], n actions

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        share: of the actions of the batch to penalise.
        kl_coef: weight of the penalty.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and its stats, with ``selected_fraction``, the share of actions penalised. The penalty has no
        gradient on an action that has not moved, so the first update of a batch is that of the plain surrogate.

    Source: Cui et al. 2025, arXiv 2505.22617.
    """
    cov = token_covariance(logp, advantage, mask)
    top = cov.flatten().topk(_quota(mask, share)).indices
    selected = torch.zeros_like(cov).flatten().index_fill_(0, top, 1.0).reshape(cov.shape)
    penalty = kl_coef * selected * log_ratio(logp, old_logp, mask).abs()
    loss, stats = surrogate(logp, old_logp, advantage, mask, aggregate=aggregate, max_length=max_length)
    useful = (advantage != 0).logical_and(mask).any(dim=1)
    loss = loss + aggregation.aggregate(penalty, mask, aggregate, max_length=max_length, useful=useful)
    return loss, stats | {"selected_fraction": token_mean(selected, mask).item()}


def _quota(mask: Tensor, share: float) -> int:
    """How many actions a share of the batch is: at least one, none where there is no action."""
    actions = int(mask.sum())
    return min(actions, max(1, int(share * actions)))
