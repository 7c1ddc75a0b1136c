"""Objectives in which right and wrong answers have branches of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.objectives.aggregation import same_shape
from guerdon.objectives.policy import Objective, surrogate
from guerdon.registry import register


@register("objective", paper="Lyu et al. 2025, arXiv 2502.06781")
def oreal(
    logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    outcome_advantage: Tensor | None = None,
    *,
    positive: float = 1.0,
    negative: float = 0.5,
) -> Objective:
    """Clone what right answers did, and move away from what wrong ones did, each averaged over its own tokens.

    c+ (1 / N+) sum_{A > 0} A_t (-log pi)  -  c- (1 / N-) sum_{A < 0} A_t (pi / sg pi);  sg stops the gradient

    N+ and N- count the actions with positive and with negative credit, also those whose weight is 0: a token reward
    model that trusts little makes small steps. Cloning the right ones among N samples attains what a KL penalty would,
    the reference restricted to right answers. Belongs with credit ``oreal``, and with the term ``kl`` at beta 0.01.

    Args:
        logp: (N,T) log-probability of each action now, differentiable.
        advantage: (N,T) credit of each action, weight included.
        mask: (N,T) true on actions; nothing off the mask is read.
        outcome_advantage: (N,T) the credit before its weight, which says whose average an action enters; the sign of
            ``advantage`` does where there is none.
        positive, negative: c+ and c-, weights of the two branches.

    Returns:
        The loss; the values of its two branches as ``positive`` and ``negative``.

    Source: Lyu et al. 2025, arXiv 2502.06781.
    """
    outcome = advantage if outcome_advantage is None else outcome_advantage
    same_shape(mask, logp=logp, advantage=advantage, outcome_advantage=outcome)
    mask = mask.bool()
    clone, _ = surrogate(logp, logp, advantage, mask & (outcome > 0), gradient="score")
    leave, _ = surrogate(logp, logp, advantage, mask & (outcome < 0))
    stats = torch.stack([clone, leave]).detach().tolist()
    return positive * clone + negative * leave, dict(zip(("positive", "negative"), stats, strict=True))
