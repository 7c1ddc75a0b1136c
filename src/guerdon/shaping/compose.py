"""Several raw rewards become one."""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.registry import register


@register("shaping")
def weighted_sum(components: Tensor, component_weights: Tensor) -> Tensor:
    """Weighted sum of the raw rewards: r_i = sum_k w_k r_{i,k}.

    A component that is NaN does not apply to that trajectory and contributes 0; the weights are not renormalised.
    A later z-score (credit ``grpo``) cancels a factor common to all weights, not their proportions.

    Args:
        components: (N,K) raw rewards, one column each.
        component_weights: (K,).

    Returns:
        (N,) reward; 0 where no component applies.
    """
    applies = ~components.isnan()
    return torch.where(applies, components, 0.0) @ component_weights.to(components.dtype)
