"""Policies fitted to advantages by regression, on data of any origin."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guerdon.credit.turn import turns_of
from guerdon.objectives.aggregation import same_shape
from guerdon.objectives.policy import Objective
from guerdon.registry import register


@register("objective", paper="Wang et al. 2026, arXiv 2603.19685")
def log_ratio_regression(
    logp: Tensor,
    ref_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    turn: Tensor,
    external: Tensor | None = None,
    *,
    beta: float = 1.0,
    granularity: Literal["turn", "token"] = "turn",
) -> Objective:
    """Let the log-ratio to the reference be what the advantage says it should.

    L = mean (beta log(pi(a|s) / pi_ref(a|s)) - A)^2,  over turns, whose log-ratio is the sum over their tokens

    At its optimum pi is pi_ref exp(A / beta), which a policy that has to add up to 1 can meet where the advantages are
    those of the optimum. Unlike a clipped ratio it needs no data of the present policy, and unlike a weighted
    likelihood it also pushes bad actions down.

    Args:
        logp: (N,T) log-probability of each action now, differentiable.
        ref_logp: (N,T) the same under the reference, the policy before RL.
        advantage: (N,T) of each action; of a turn, that of its last.
        mask: (N,T) true on actions; nothing off the mask is read.
        turn: (N,T) turn of each action, -1 off actions.
        external: not read; named so that actions that the present policy did not sample are learned from too.
        beta: how far an advantage moves the policy: the smaller, the farther. Inferred.
        granularity: whether a turn is one action, or each token.

    Returns:
        The loss, and the mean absolute ``log_ratio``.

    Source: Wang et al. 2026, arXiv 2603.19685 (mean squared error on the log-ratio).
    """
    same_shape(mask, logp=logp, ref_logp=ref_logp, advantage=advantage, turn=turn)
    mask = mask.bool()
    ratio = torch.where(mask, logp - ref_logp.detach(), 0.0)
    wanted, units = torch.where(mask, advantage.detach(), 0.0), mask
    if granularity == "turn":
        turns = turns_of(turn, mask)
        position = torch.where(turns.mask, torch.arange(mask.shape[1], device=mask.device), -1)
        last = position.new_full(turns.exists.shape, -1).scatter_reduce(1, turns.index, position, "amax")
        ratio, wanted, units = turns.total(ratio), wanted.gather(1, last.clamp(min=0)), turns.exists
    squares = torch.where(units, (beta * ratio - wanted).square(), 0.0)
    count = units.sum().clamp(min=1)
    size = float(torch.where(units, ratio.detach().abs(), 0.0).sum() / count)
    return squares.sum() / count, {"log_ratio": size}
