"""The critic's loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss

from guerdon.objectives import aggregation
from guerdon.objectives.aggregation import TermAggregation, same_shape
from guerdon.registry import register


@register("term", paper="Schulman et al. 2017, arXiv 1707.06347")
def value(
    value_prediction: Tensor,
    values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    coef: float = 0.5,
    clip: float | None = None,
    aggregate: TermAggregation = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Half squared error of the critic, optionally pessimistic about moving far in one step.

    loss = coef aggregate(max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2) / 2);  without clip the first square

    The factor 1/2 is inside: ``coef`` 0.5 gives 0.25 (v - R)^2 per action, as the common PPO implementations do,
    and ``coef`` 1 gives the half squared error.

    Args:
        value_prediction: (N,T) critic's value now, differentiable.
        values: (N,T) critic's value when the batch was sampled.
        returns: (N,T) target.
        mask: (N,T) true on actions; nothing off the mask is read.
        coef: weight of the loss.
        clip: distance c from the old value; no clipping by default.
        aggregate: see ``aggregation.aggregate``.
        max_length: generation budget in actions, for ``sum_over_max_length``.

    Returns:
        The loss, and ``explained_variance`` = 1 - Var(R - v_old) / Var(R): 1 for a perfect critic, 0 for a constant
        one, negative for a harmful one, nan where the returns do not vary.

    Source: Schulman et al. 2017, arXiv 1707.06347.
    """
    same_shape(mask, value_prediction=value_prediction, values=values, returns=returns)
    mask = mask.bool()
    prediction, old, target = (x.masked_fill(~mask, 0.0) for x in (value_prediction, values.detach(), returns.detach()))
    error = mse_loss(prediction, target, reduction="none")
    if clip is not None:
        near = old + (prediction - old).clamp(-clip, clip)
        error = torch.maximum(error, mse_loss(near, target, reduction="none"))
    loss = coef / 2 * aggregation.aggregate(error, mask, aggregate, max_length=max_length)
    return loss, {"explained_variance": explained_variance(old[mask], target[mask])}


@register("term", paper="Maity 2026, arXiv 2602.04651")
def huber_value(
    value_prediction: Tensor,
    values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    coef: float = 0.5,
    delta: float = 0.5,
    clip: float = 0.2,
    aggregate: TermAggregation = "token_mean",
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Huber loss of the critic, half of it on a value that stays near the old one, so that outliers pull less.

    loss = coef aggregate([h(v - R) + h(clip(v, v_old - c, v_old + c) - R)] / 2)
    h(e) = e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2)

    Args:
        value_prediction: (N,T) critic's value now, differentiable.
        values: (N,T) critic's value when the batch was sampled.
        returns: (N,T) target.
        mask: (N,T) true on actions; nothing off the mask is read.
        coef: weight of the loss.
        delta: error beyond which the loss is linear.
        clip: distance c from the old value beyond which the second half has no gradient.
        aggregate: see ``aggregation.aggregate``.
        max_length: generation budget in actions, for ``sum_over_max_length``.

    Returns:
        The loss, and ``explained_variance`` of the old values as in ``value``.

    Source: Maity 2026, arXiv 2602.04651.
    """
    same_shape(mask, value_prediction=value_prediction, values=values, returns=returns)
    mask = mask.bool()
    prediction, old, target = (x.masked_fill(~mask, 0.0) for x in (value_prediction, values.detach(), returns.detach()))
    near = old + (prediction - old).clamp(-clip, clip)
    halves = [huber_loss(x, target, reduction="none", delta=delta) for x in (prediction, near)]
    loss = coef * aggregation.aggregate((halves[0] + halves[1]) / 2, mask, aggregate, max_length=max_length)
    return loss, {"explained_variance": explained_variance(old[mask], target[mask])}


def explained_variance(prediction: Tensor, target: Tensor) -> float:
    """Share of the target's variance that the prediction explains; nan where the target does not vary."""
    if len(target) == 0:
        return float("nan")
    total, left = torch.stack([target, target - prediction]).var(dim=1, correction=0).tolist()
    return 1 - left / total if total > 0 else float("nan")
