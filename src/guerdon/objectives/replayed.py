"""An objective for the policy's own answers of an earlier day."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from guerdon.objectives.aggregation import Aggregation
from guerdon.objectives.policy import Objective, ppo_clip
from guerdon.registry import register


@register("objective", paper="Lu et al. 2025, arXiv 2505.16282", credit_only=True)
def replay_clip(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    external: Tensor,
    *,
    clip_low: Annotated[float, Field(ge=0)] = 0.2,
    clip_high: Annotated[float, Field(ge=0)] = 0.3,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """Clipped policy gradient on fresh and replayed trajectories alike, each by the policy that wrote it.

    loss = -aggregate(min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)),  rho = pi / pi_old

    It is ``ppo_clip`` for batches with replayed rows (source ``success_replay``), whose ``old_logp`` was stored when
    they were sampled: an action that has since become more likely than the clip allows teaches nothing more.

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        external: (N,T) replayed actions. They count like all others; naming the field is what lets them in.
        clip_low, clip_high: distances from 1 at which the ratio is cut.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss and the stats of ``ppo_clip``.

    Source: Lu et al. 2025, arXiv 2505.16282.
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
