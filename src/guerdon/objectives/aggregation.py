"""How the numbers of single actions become one loss."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from guerdon.errors import RecipeError, nearest

TermAggregation = Literal["seq_mean", "token_mean", "sum_over_max_length"]
Aggregation = Literal["seq_mean", "token_mean", "sum_over_max_length", "valid_token_mean"]


def aggregate(
    x: Tensor, mask: Tensor, mode: Aggregation, *, max_length: int | None = None, useful: Tensor | None = None
) -> Tensor:
    """Reduce one number per action to a scalar.

    - ``seq_mean``: mean over trajectories of the mean over their actions (GRPO). Trajectories without an action
      are left out. An action of a short trajectory weighs more.
    - ``token_mean``: sum over all actions / number of actions (DAPO). Every action weighs the same.
    - ``sum_over_max_length``: sum over all actions / (N max_length) (Dr. GRPO). A constant divisor, so that neither
      the lengths of the batch nor its padding change the weight of an action.
    - ``valid_token_mean``: ``token_mean`` over the trajectories that are ``useful``.

    Args:
        x: (N,T); what it holds off the mask is never read.
        mask: (N,T) true on actions.
        mode: one of the above.
        max_length: the generation budget in actions, for ``sum_over_max_length``.
        useful: (N,) true for the trajectories that count, for ``valid_token_mean``.

    Returns:
        A scalar; 0 with zero gradient where nothing counts.

    Raises:
        RecipeError: when the mode is unknown or lacks what it needs.
    """
    if mode not in get_args(Aggregation):
        raise RecipeError(f"no aggregation '{mode}'{nearest(mode, get_args(Aggregation))}")
    mask = mask.bool()
    if mode == "valid_token_mean":
        if useful is None:
            raise RecipeError("aggregate 'valid_token_mean' needs to know which trajectories are useful; give 'useful'")
        mask = mask & useful.unsqueeze(1)
    x = x.masked_fill(~mask, 0.0)
    if mode == "sum_over_max_length":
        if max_length is None or max_length < 1:
            raise RecipeError(
                f"aggregate 'sum_over_max_length' needs 'max_length', got {max_length}; "
                "set it to the largest number of actions a trajectory can have, or use 'token_mean'"
            )
        return x.sum() / (max(len(x), 1) * max_length)
    if mode == "seq_mean":
        length = mask.sum(dim=1)
        return (x.sum(dim=1) / length.clamp(min=1)).sum() / (length > 0).sum().clamp(min=1)
    return x.sum() / mask.sum().clamp(min=1)


def token_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` over the actions of the batch."""
    return aggregate(x, mask, "token_mean")


def same_shape(mask: Tensor, **fields: Tensor) -> None:
    """Refuse fields that are not (N,T) like the mask, before broadcasting hides it.

    Raises:
        ValueError: naming the field, its shape and the shape of the mask.
    """
    for name, x in fields.items():
        if x.shape != mask.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, mask {tuple(mask.shape)}; they must agree")
