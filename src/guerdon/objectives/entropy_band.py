"""Learning from the tokens at which a text forks, and keeping their entropy near its middle."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.objectives.aggregation import Aggregation, same_shape, token_mean
from guerdon.objectives.divergence import kl
from guerdon.objectives.policy import Objective, surrogate
from guerdon.registry import register

Share = Annotated[float, Field(ge=0, le=1)]


def fork_mask(entropy: Tensor, mask: Tensor, *, share: float = 0.2) -> Tensor:
    """The actions of highest entropy of each trajectory: max(1, floor(share L)) of L.

    Args:
        entropy: (N,T) entropy of the policy at each action; only its order is read.
        mask: (N,T) true on actions; nothing off the mask is read.
        share: of the actions of a trajectory.

    Returns:
        (N,T) bool. Of equal entropies the earlier ones are taken.

    Source: Wu et al. 2025, arXiv 2511.17938.
    """
    mask = mask.bool()
    length = mask.sum(dim=1, keepdim=True)
    count = torch.minimum((share * length + 1e-6).floor().clamp(min=1).to(length), length)
    order = entropy.detach().masked_fill(~mask, float("-inf")).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(mask.shape[1], device=mask.device).expand_as(order))
    return mask & (place < count)


def entropy_band_penalty(
    entropy: Tensor, fork: Tensor, *, low: float = 0.1, high: float = 0.5, least: int = 3
) -> Tensor:
    """How far the entropy of fork tokens lies outside of a band between two of their own quantiles.

    max(0, H - h_high) + max(0, h_low - H);  h_low and h_high are quantiles over the fork tokens of the trajectory

    With ``high`` 0.5 half of the fork tokens lie above the band, whatever their entropies: the penalty draws them
    together, and holds them nowhere.

    Args:
        entropy: (N,T) entropy of the policy at each action, in nats, differentiable.
        fork: (N,T) true on fork tokens; nothing else is read.
        low, high: the quantiles, interpolated linearly; no gradient passes through them.
        least: fork tokens that a trajectory needs to have a band.

    Returns:
        (N,T), 0 off the fork tokens.

    Source: Wu et al. 2025, arXiv 2511.17938.
    """
    count = fork.sum(dim=1, keepdim=True)
    banded = fork & (count >= least)
    ordered = entropy.detach().masked_fill(~fork, float("inf")).sort(dim=1).values
    bounds = [_quantile(ordered, count, q) for q in (low, high)]
    own = torch.where(banded, entropy, bounds[0])
    outside = (own - bounds[1]).clamp(min=0) + (bounds[0] - own).clamp(min=0)
    return torch.where(banded, outside, 0.0)


@register("objective", paper="Wu et al. 2025, arXiv 2511.17938")
def spine(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    share: Share = 0.2,
    kl_beta: Annotated[float, Field(ge=0)] = 0.01,
    band_beta: Annotated[float, Field(ge=0)] = 0.01,
    band_low: Share = 0.1,
    band_high: Share = 0.5,
    clip_low: Annotated[float, Field(ge=0)] = 0.2,
    clip_high: Annotated[float, Field(ge=0)] = 0.2,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """PPO on the fork tokens alone, with a band for their entropy and an anchor.

    loss = mean over fork tokens of (L_t + kl_beta KL(pi || pi_ref) + band_beta band_t);  L_t that of ``ppo_clip``

    Made for rewards by majority vote, under which uniform updates make answers short and sure. The other tokens get
    neither gradient nor anchor. The source's weights of KL and band were found nowhere: these are guesses, and so is
    that means are taken over fork tokens. KL is estimated by k3.

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        ref_logp: (N,T) log-probability of each action under the policy before it was adapted.
        entropy: (N,T) of the policy at each action, in nats, differentiable.
        share: see ``fork_mask``.
        kl_beta, band_beta: weights.
        band_low, band_high: quantiles, see ``entropy_band_penalty``.
        clip_low, clip_high: distances from 1.
        aggregate, max_length: see ``surrogate``; over fork tokens.

    Returns:
        The loss and its stats over fork tokens, with their share ``forks``, mean ``fork_entropy``, ``band`` and ``kl``.

    Source: Wu et al. 2025, arXiv 2511.17938, by two accounts of it that agree.
    """
    same_shape(mask, logp=logp, old_logp=old_logp, ref_logp=ref_logp, entropy=entropy, advantage=advantage)
    fork = fork_mask(entropy, mask, share=share)
    loss, stats = surrogate(
        logp,
        old_logp,
        advantage,
        fork,
        hi_pos=1 + clip_high,
        lo_neg=1 - clip_low,
        aggregate=aggregate,
        max_length=max_length,
    )
    anchor, seen = kl(logp, ref_logp, fork, beta=kl_beta)
    band = token_mean(entropy_band_penalty(entropy, fork, low=band_low, high=band_high), fork)
    stats["forks"] = token_mean(fork.to(logp), mask).item()
    stats["fork_entropy"] = token_mean(entropy.detach(), fork).item()
    stats["band"], stats["kl"] = band.item(), seen["kl"]
    return loss + anchor + band_beta * band, stats


def _quantile(ordered: Tensor, count: Tensor, q: float) -> Tensor:
    """Quantile (N,1) of the first ``count`` (N,1) numbers of sorted rows (N,T); 0 where there is none."""
    if not ordered.shape[1]:
        return ordered.new_zeros(len(ordered), 1)
    place = q * (count - 1).clamp(min=0).to(ordered)
    below, above = place.floor().long(), place.ceil().long()
    lower, upper = ordered.gather(1, below), ordered.gather(1, above)
    between = torch.where(above > below, lower + (upper - lower) * (place - below), lower)
    return torch.where(count > 0, between, 0.0)
