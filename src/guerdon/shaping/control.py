"""Rewards mixed by a control vector of each problem, so that one policy learns every trade-off between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.registry import register
from guerdon.shaping.compose import weighted_sum


def controls_of(metadata: Sequence[Mapping[str, Any]], dimensions: int, *, key: str = "control") -> Tensor:
    """Control vectors (N,K) of problems, from their metadata.

    Raises:
        ValueError: when a problem has none, or one of another length.
    """
    for row, known in enumerate(metadata):
        vector = known.get(key)
        if not isinstance(vector, Sequence | Tensor) or len(vector) != dimensions:
            seen = "nothing" if vector is None else f"{vector!r:.60}"
            raise ValueError(f"the metadata of sample {row} have {seen} under '{key}', wanted {dimensions} numbers")
    return torch.stack([torch.as_tensor(known[key], dtype=torch.get_default_dtype()) for known in metadata])


@register("shaping", paper="Li et al. 2024, arXiv 2412.14626")
def control_sum(
    components: Tensor,
    component_names: Sequence[str],
    component_weights: Tensor,
    metadata: Sequence[Mapping[str, Any]],
    *,
    dimensions: list[str] | None = None,
    key: str = "control",
    limit: Annotated[float, Field(gt=0)] = 1.0,
    eps: Annotated[float, Field(ge=0)] = 1e-6,
) -> Tensor:
    """Sum of rewards, each standardised and multiplied by what the problem's control vector says of it.

    r_i = sum_k w_k control_{i,k} (r_{i,k} - mean r_k) / (std r_k + eps) + sum_j w_j r_{i,j}

    k runs over the dimensions that are controlled, j over the other rewards; means and deviations are those of the
    batch, so that no dimension dominates by its scale. The control must act on the policy (``DimensionController``), or
    its problems ask for opposite things in the same words. Credit should keep the size of the reward (``dr_grpo``): a
    z-score within groups makes a small control as strong as a large one.

    Args:
        components: (N,K) raw rewards; one that is NaN does not apply, and contributes 0.
        component_names: names of the columns.
        component_weights: (K,).
        metadata: of the N problems; each holds a control vector.
        dimensions: names of the controlled rewards, in the order of the vector; all by default.
        key: where the metadata hold the vector.
        limit: controls count as at most this, in either direction.
        eps: added to the deviation.

    Returns:
        (N,) reward.

    Raises:
        ValueError: for a name that is no reward's, or a vector that is missing or of another length.

    Source: Li et al. 2024, arXiv 2412.14626; its composition is inferred.
    """
    names = list(component_names) if dimensions is None else dimensions
    unknown = [name for name in names if name not in component_names]
    if unknown:
        raise ValueError(f"no reward '{unknown[0]}' to control; known: {', '.join(component_names)}")
    control = controls_of(metadata, len(names), key=key).to(components).clamp(-limit, limit)
    mixed = components.clone()
    for place, name in enumerate(names):
        k = list(component_names).index(name)
        applies = ~components[:, k].isnan()
        stats = grouped(components[:, k].nan_to_num(0.0), None, applies)
        mixed[:, k] = control[:, place] * stats.deviation() / (stats.std() + eps)
    return weighted_sum(mixed, component_weights)
