"""Take back most of what training changed, and keep what it changed most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from guerdon.sparsity.masks import MaskSet


def largest_changes(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    *,
    keep: float = 0.25,
    scope: Literal["global", "tensor"] = "global",
) -> MaskSet:
    """Mark the entries that training changed most: exactly ceil(keep n) of the n entries, of all or of each tensor.

    Args:
        base, tuned: weights by name, before and after; tensors that are not floating have no mask.
        keep: share of the entries, in [0,1].
        scope: whether entries compete with all others (``global``) or within their tensor.

    Raises:
        ValueError: when keep is out of range, the names or shapes differ, or a change is not finite.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep}, wanted a share in [0,1]; 0.25 is the source's")
    if base.keys() != tuned.keys():
        odd = sorted(base.keys() ^ tuned.keys())[0]
        raise ValueError(f"weight '{odd}' is in only one of base and tuned; give two states of one model")
    sizes = {name: change_of(name, base[name], tuned[name]) for name in base if base[name].is_floating_point()}
    if scope == "tensor":
        return MaskSet({name: _top(size, keep) for name, size in sizes.items()})
    if not sizes:
        return MaskSet({})
    chosen = _top(torch.cat([size.flatten() for size in sizes.values()]), keep)
    parts = chosen.split([size.numel() for size in sizes.values()])
    return MaskSet({name: part.view(sizes[name].shape) for name, part in zip(sizes, parts, strict=True)})


def change_of(name: str, base: Tensor, tuned: Tensor) -> Tensor:
    """Size of the change of each entry, in single precision at least."""
    if base.shape != tuned.shape:
        raise ValueError(f"weight '{name}' has shape {tuple(base.shape)} before and {tuple(tuned.shape)} after")
    exact = torch.promote_types(base.dtype, torch.float32)
    size = (tuned.to(exact) - base.to(exact)).abs()
    if not bool(size.isfinite().all()):
        raise ValueError(f"weight '{name}' changed by something that is not finite; merge sound checkpoints")
    return size


def _top(size: Tensor, keep: float) -> Tensor:
    """The ceil(keep n) largest entries; which of several equal ones is left open."""
    mask = torch.zeros(size.numel(), dtype=torch.bool, device=size.device)
    mask[size.flatten().topk(math.ceil(keep * size.numel() - 1e-9)).indices] = True
    return mask.view(size.shape)


@torch.no_grad()
def selective_merge(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    *,
    keep: float = 0.25,
    scale: float = 0.7,
    scope: Literal["global", "tensor"] = "global",
) -> dict[str, Tensor]:
    """Add a scaled-down part of what training changed to the weights before it: the largest changes alone.

    theta = theta_base + scale m (theta_tuned - theta_base),  m: the share ``keep`` of entries with the largest change

    It is meant to give back accuracy that training for brevity has cost, and to keep most of the brevity.

    Args:
        base, tuned: weights by name, before and after; tensors that are not floating are those of base.
        keep: share of the entries whose change is kept, rounded up.
        scale: factor of the change.
        scope: whether entries compete with all others (``global``) or within their ``tensor``. The source does not say
            which; ``global`` is inferred.

    Returns:
        New tensors by name, of the types of base.

    Raises:
        ValueError: when keep is out of range, the names or shapes differ, or a change is not finite.

    Source: Liu et al. 2025, arXiv 2510.15110.
    """
    masks = largest_changes(base, tuned, keep=keep, scope=scope).masks
    merged = {}
    for name, start in base.items():
        if name not in masks:
            merged[name] = start.clone()
            continue
        exact = torch.promote_types(start.dtype, torch.float32)
        change = tuned[name].to(exact) - start.to(exact)
        merged[name] = torch.where(masks[name], start.to(exact) + scale * change, start.to(exact)).to(start.dtype)
    return merged
