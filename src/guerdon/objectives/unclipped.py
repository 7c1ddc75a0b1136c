"""Policy gradients without a ratio, for actions that others chose as well."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from guerdon.objectives.aggregation import Aggregation
from guerdon.objectives.policy import Objective, surrogate
from guerdon.registry import register


@register("objective", paper="R^3L: Reflect-then-Retry Reinforcement Learning", credit_only=True)
def opmd(
    logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    external: Tensor | None = None,
    *,
    tau: Annotated[float, Field(ge=0)] = 1.0,
    aggregate: Aggregation = "token_mean",
    max_length: int | None = None,
) -> Objective:
    """Likelihood weighted by credit, whoever chose the actions: no ratio that could explode, and nothing to clip.

    loss = -aggregate(A log pi) / (1 + tau)

    1 / (1 + tau) is the step that mirror descent takes at temperature tau. Negative credit is unbounded, so it wants
    credit in which failures weigh little, such as ``positive_amplification``.

    Args:
        logp: (N,T) log-probability of each action now, differentiable.
        advantage: (N,T) credit of each action.
        mask: (N,T) true on actions.
        external: (N,T) actions that the present policy did not sample; they count like all others.
        tau: temperature.
        aggregate, max_length: see ``surrogate``.

    Returns:
        The loss, and the mean ``credit`` per action.

    Source: R^3L, Reflect-then-Retry Reinforcement Learning, and its code.
    """
    loss, _ = surrogate(logp, logp, advantage, mask, gradient="score", aggregate=aggregate, max_length=max_length)
    mean = float(advantage.detach().masked_fill(~mask.bool(), 0.0).sum() / mask.sum().clamp(min=1))
    return loss / (1 + tau), {"credit": mean}
