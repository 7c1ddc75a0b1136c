"""Learning from a teacher's words beside one's own deeds: corrected thoughts are imitated, actions are reinforced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.objectives import aggregation
from guerdon.objectives.aggregation import Aggregation, TermAggregation, same_shape
from guerdon.objectives.policy import Objective, surrogate
from guerdon.registry import register


@register("term", paper="Wei et al. 2025, arXiv 2503.08525")
def guided_thought(
    logp: Tensor,
    mask: Tensor,
    external: Tensor,
    *,
    beta: Annotated[float, Field(ge=0)] = 1.0,
    aggregate: TermAggregation = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of corrected thoughts: loss = -beta aggregate(log pi(h*|o)).

    The rows come from source ``thought_buffer`` and hold nothing but the thought. They have no reward and no credit,
    and objectives that don't name ``external`` never see them, so no reward's gradient reaches the teacher's words; nor
    does this term see the policy's own.

    Args:
        logp: (N,T) log-probability of each token now, differentiable.
        mask: (N,T) true on tokens; nothing off the mask is read.
        external: (N,T) tokens of corrected thoughts.
        beta: weight.
        aggregate: see ``aggregation.aggregate``.
        max_length: generation budget in actions, for ``sum_over_max_length``.

    Returns:
        The loss, 0 where there is no thought; the mean ``nll`` in nats and how many ``tokens`` there are.

    Source: Wei et al. 2025, arXiv 2503.08525 (GTR).
    """
    same_shape(mask, logp=logp, external=external)
    taught = mask.bool() & external.bool()
    nll = -logp.masked_fill(~taught, 0.0)
    loss = beta * aggregation.aggregate(nll, taught, aggregate, max_length=max_length)
    mean = aggregation.token_mean(nll.detach(), taught)
    return loss, {"nll": float(mean), "tokens": float(taught.sum())}


@register("objective", paper="Wei et al. 2025, arXiv 2503.08525")
def thought_action_clip(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    turn: Tensor,
    marks: Mapping[str, Tensor] | None = None,
    *,
    thought: str = "thought",
    thought_weight: Annotated[float, Field(ge=0)] = 0.0,
    clip_low: Annotated[float, Field(ge=0)] = 0.2,
    clip_high: Annotated[float, Field(ge=0)] = 0.2,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """Clipped policy gradient on the action of each turn, whose thought counts a little or not at all.

    rho = exp(sum_{t in action} d_t + lambda sum_{t in thought} d_t),  d_t = log pi - log pi_old
    loss = -aggregate(min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)) over turns

    A thought is long and an action short, so with lambda = 1 the thought would decide the ratio. A turn without an
    action has no ratio. The credit of a turn is that of its action's last token.

    Args:
        logp, old_logp, advantage, mask: (N,T), see ``surrogate``.
        turn: (N,T) number of the turn of each token.
        marks: which tokens are thought, under the name ``thought``; without it every token is one of an action.
        thought: name of the mark, as ``segments`` of a recipe gives it.
        thought_weight: lambda. The source's is small; 0 leaves thoughts to their teacher.
        clip_low, clip_high: distances from 1 at which the ratio is cut.
        aggregate, max_length: see ``surrogate``; over turns.

    Returns:
        The loss and the stats of ``surrogate``.

    Source: Wei et al. 2025, arXiv 2503.08525 (GTR); Zhai et al. 2024, arXiv 2405.10292 (the weight).
    """
    same_shape(mask, logp=logp, old_logp=old_logp, advantage=advantage, turn=turn)
    mask = mask.bool()
    known = marks is not None and thought in marks.keys()  # noqa: SIM118  # a TensorDict iterates over rows
    thinking = marks[thought].bool() & mask if marks is not None and known else torch.zeros_like(mask)
    acting = mask & ~thinking
    change = torch.where(mask, logp - old_logp.detach(), 0.0)
    weighed = torch.where(acting, change, thought_weight * change)
    row = torch.arange(len(mask), device=mask.device).unsqueeze(1)
    turn = torch.where(mask, turn, 0)
    key = row * (int(turn.max()) + 1 if turn.numel() else 1) + turn
    of_turn = grouped(weighed, key, mask)
    joint = of_turn.spread(of_turn.total(weighed))
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    last = grouped(torch.where(acting, place, -1).to(logp), key, acting).extreme(largest=True)
    ends = acting & (place == last)
    zero = torch.zeros_like(joint)
    return surrogate(
        joint,
        zero,
        advantage,
        ends,
        hi_pos=1 + clip_high,
        lo_neg=1 - clip_low,
        aggregate=aggregate,
        max_length=max_length,
    )
