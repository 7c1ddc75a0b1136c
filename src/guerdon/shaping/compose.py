"""Several raw rewards become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

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


@register("shaping", paper="Xu et al. 2025, arXiv 2505.24164")
def mixed(
    components: Tensor,
    component_weights: Tensor,
    metadata: Sequence[Mapping[str, Any]],
    *,
    normalise: Literal["none", "type"] = "none",
    task_type: str = "task_type",
    eps: float = 1e-4,
) -> Tensor:
    """Weighted sum of rewards of which each kind of task has its own, if need be on one scale for all kinds.

    r_i = sum_k w_k r_{i,k} over the rewards that apply;  type: (r_i - mean_type r) / (std_type r + eps)

    A batch of several kinds of task has several scales of reward, and under a baseline over the batch the kind whose
    rewards spread most decides. A z-score inside groups (credit ``grpo``) undoes what ``type`` does: it is for credits
    that compare with the batch or don't divide by the spread of the group.

    Args:
        components: (N,K) raw rewards; NaN where a reward does not apply to that kind of task.
        component_weights: (K,).
        metadata: what the task knows of the N problems.
        normalise: ``type`` whitens the sum among the samples of one kind in the batch; a kind's only sample gets 0.
        task_type: key in the metadata that names the kind of task.
        eps: added to the standard deviation.

    Returns:
        (N,) reward; 0 where no component applies.

    Raises:
        ValueError: when a problem's metadata lack the key, under ``type``.

    Source: Xu et al. 2025, arXiv 2505.24164. (Whitening by kind is ours.)
    """
    from guerdon.credit.grouping import whiten  # credits know rewards, and a reward knows this module

    total = weighted_sum(components, component_weights)
    if normalise == "none":
        return total
    kind = torch.empty(len(total), dtype=torch.int64, device=total.device)
    for number, rows in enumerate(cells_of(len(total), task_type, metadata).values()):
        kind[rows] = number
    return whiten(total, kind, ~components.isnan().all(dim=1), eps=eps)


def cells_of(n: int, source: str | None, metadata: Sequence[Mapping[str, Any]] | None) -> dict[str, Tensor]:
    """Rows of each source: by the value that the problems' metadata have under ``source``; all rows under "" if None.

    Raises:
        ValueError: when a problem's metadata lack the key.
    """
    if source is None:
        return {"": torch.arange(n)}
    rows: dict[str, list[int]] = {}
    for row, known in enumerate(metadata or [{}] * n):
        if source not in known:
            raise ValueError(
                f"the metadata of sample {row} have no '{source}'; known: {', '.join(map(str, known)) or 'nothing'}"
            )
        rows.setdefault(str(known[source]), []).append(row)
    return {name: torch.tensor(found) for name, found in rows.items()}
