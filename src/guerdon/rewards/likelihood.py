"""Scores that the policy's own likelihoods give."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from guerdon.registry import register
from guerdon.rewards.base import batched, reward
from guerdon.rollouts import at_last_action


@reward(paper="Li et al. 2026, arXiv 2602.05281")
@batched
def low_prob_confidence(old_logp: Tensor, mask: Tensor, *, share: float = 0.2) -> Tensor:
    """Geometric mean of the probabilities of the least likely actions: how sure the policy was where it mattered.

    c_i = exp(mean of log pi_old over the ceil(share T_i) actions of trajectory i with the smallest probability)

    Most tokens of a text follow from those before; the mean over all of them would hide the few at which the policy
    had a choice. As a reward it favours the beaten track, so it serves best with ``watch: true``, or in ``progrpo``,
    which subtracts it.

    Args:
        old_logp: (N,T) log-probability of each action when it was sampled, in nats.
        mask: (N,T) true on actions; nothing off the mask is read.
        share: part of the actions that counts, above 0 and at most 1; rounded up, so at least one action does.

    Returns:
        (N,) in [0,1]; 1 where nothing was done.

    Raises:
        ValueError: when the share lies outside (0,1].

    Source: Li et al. 2026, arXiv 2602.05281.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, wanted above 0 and at most 1; 0.2 is the source's")
    length = mask.sum(dim=1, keepdim=True)
    # The subtrahend undoes floating-point excess: 0.07 * 100 must count 7 actions, not 8.
    count = torch.ceil(share * length.double() - 1e-9).long()
    lowest = old_logp.masked_fill(~mask.bool(), float("inf")).sort(dim=1).values
    counted = torch.arange(mask.shape[1], device=mask.device) < count
    return (lowest.masked_fill(~counted, 0.0).sum(dim=1) / count.squeeze(1).clamp(min=1)).exp()


class TokenReward(NamedTuple):
    """Reward of each action (N,T), 0 off the mask, and of each trajectory (N,), their sum."""

    dense: Tensor
    reward: Tensor


@register("shaping", paper="Zhong et al. 2024, arXiv 2404.18922")
def rto_token_reward(
    reward: Tensor,
    anchor_logp: Tensor,
    ref_logp: Tensor,
    old_logp: Tensor,
    mask: Tensor,
    *,
    beta_anchor: float = 0.05,
    beta_ref: float = 0.01,
    beta_reward: float = 1.0,
    max_anchor: Annotated[float | None, Field(gt=0)] = 0.05,
    max_reward: Annotated[float | None, Field(gt=0)] = 10.0,
) -> TokenReward:
    """Reward every token by how much more a preference-tuned model likes it than the reference does.

    r_t = clamp(beta_anchor log(pi_anchor / pi_ref)(y_t), ±max_anchor) - beta_ref log(pi_old / pi_ref)(y_t)
          + [t = T] beta_reward clamp(r, ±max_reward)

    A model tuned by DPO holds in log(pi_anchor / pi_ref) a soft advantage of every token: summed over an answer it is
    the reward that the pairs tell of, up to a constant of the prompt. The clamp gives that up in order to bound what a
    fault of the anchor can do; keep the first term small beside the last. Best read by ``gae`` with gamma 1 and lam
    0.95. The section ``preference`` of a recipe makes the anchor.

    Args:
        reward: (N,) outcome, of an earlier shaping method; normalised, if its scale is not known.
        anchor_logp, ref_logp, old_logp: (N,T) log-probability of each action under the preference-tuned model, under
            the reference, and under the policy that sampled it.
        mask: (N,T) true on actions, the end token among them; nothing off the mask is read.
        beta_anchor, beta_ref, beta_reward: weights of the three terms.
        max_anchor: largest size of the first term at one action, after its weight; no bound if null.
        max_reward: largest size of the outcome, before its weight; no bound if null.

    Returns:
        The reward of each action, and their sum.

    Source: Zhong et al. 2024, arXiv 2404.18922.
    """
    from guerdon.objectives.aggregation import same_shape  # objectives know credits, and a credit knows this module

    same_shape(mask, anchor_logp=anchor_logp, ref_logp=ref_logp, old_logp=old_logp)
    mask = mask.bool()
    liked = beta_anchor * (anchor_logp - ref_logp)
    if max_anchor is not None:
        liked = liked.clamp(-max_anchor, max_anchor)
    outcome = reward if max_reward is None else reward.clamp(-max_reward, max_reward)
    dense = (liked - beta_ref * (old_logp - ref_logp)).masked_fill(~mask, 0.0)
    dense = dense + beta_reward * at_last_action(outcome, mask)
    return TokenReward(dense, dense.sum(dim=1))
