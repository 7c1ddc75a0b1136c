"""How much of a model an update changed: which entries, and of what rank."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.sparsity.masks import MaskSet, changed


@dataclass(frozen=True)
class Sparsity:
    """Shares of entries that an update left alone.

    Attributes:
        overall: over all entries.
        by_matrix: for every tensor.
        by_layer: for every layer, the tensors whose names agree up to their first number; others stand alone.
        tol, dtype: how an unchanged entry was told. In float32 hardly anything is unchanged, so a share without them
            says nothing.
    """

    overall: float
    by_matrix: dict[str, float]
    by_layer: dict[str, float]
    tol: float
    dtype: torch.dtype


class MaskOverlap(NamedTuple):
    """Overlap of two masks, and what chance would give.

    Attributes:
        of_first, of_second: |I1 & I2| / |I1| and |I1 & I2| / |I2|; nan for an empty mask.
        chance_first, chance_second: |I2| / n and |I1| / n, the expectation for masks drawn independently.
    """

    of_first: float
    of_second: float
    chance_first: float
    chance_second: float


def update_sparsity(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    *,
    tol: float = 1e-5,
    dtype: torch.dtype = torch.bfloat16,
) -> Sparsity:
    """Share of entries that an update left alone, at the precision in which a model is served.

    sparsity = 1 - #{|after - before| > tol} / n, both rounded to ``dtype`` first

    Tensors that share memory (tied embeddings) count once, under their first name.

    Args:
        before, after: weights by name.
        tol: absolute change below which an entry counts as unchanged.
        dtype: precision in which they are compared.

    Raises:
        ValueError: when the two do not hold the same names and shapes.

    Source: Mukherjee et al. 2025, arXiv 2505.11711.
    """
    names = _distinct(before, after)
    moved = {name: changed(before[name], after[name], tol=tol, dtype=dtype) for name in names}
    layers: dict[str, list[Tensor]] = {}
    for name, mask in moved.items():
        layers.setdefault(_layer(name), []).append(mask)
    return Sparsity(
        overall=_unchanged(list(moved.values())),
        by_matrix={name: _unchanged([mask]) for name, mask in moved.items()},
        by_layer={layer: _unchanged(masks) for layer, masks in layers.items()},
        tol=tol,
        dtype=dtype,
    )


def mask_overlap(first: MaskSet, second: MaskSet) -> MaskOverlap:
    """How much two masks have in common, beside what chance would give.

    Args:
        first, second: masks of the same tensors.

    Raises:
        ValueError: when their names or shapes differ.

    Source: Mukherjee et al. 2025, arXiv 2505.11711.
    """
    names = _distinct(first.masks, second.masks)
    n = sum(first.masks[name].numel() for name in names)
    a, b, both = (
        sum(int(x.sum()) for x in masks)
        for masks in (
            [first.masks[name] for name in names],
            [second.masks[name] for name in names],
            [first.masks[name] & second.masks[name] for name in names],
        )
    )
    nan = float("nan")
    return MaskOverlap(both / a if a else nan, both / b if b else nan, b / n, a / n)


def update_rank(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, rtol: float = 1e-5) -> dict[str, float]:
    """Rank of each matrix's update as a share of the largest possible; 0 where nothing changed.

    rank(after - before) / min(rows, columns), counting singular values above ``rtol`` times the largest

    The weights are compared as they are: an update of rank one has full rank once it is rounded.

    Args:
        before, after: weights by name; tensors that are not matrices are left out.
        rtol: relative size below which a singular value counts as 0.

    Raises:
        ValueError: when the two do not hold the same names and shapes.

    Source: Mukherjee et al. 2025, arXiv 2505.11711.
    """
    out = {}
    for name in _distinct(before, after):
        if before[name].ndim != 2:
            continue
        values = torch.linalg.svdvals(after[name].double() - before[name].double())
        out[name] = int((values > rtol * values[0]).sum()) / len(values) if values[0] > 0 else 0.0
    return out


def _unchanged(masks: list[Tensor]) -> float:
    return 1 - sum(int(m.sum()) for m in masks) / max(1, sum(m.numel() for m in masks))


def _layer(name: str) -> str:
    found = re.match(r"(?:.*?\.)?\d+(?=\.|$)", name)
    return found.group() if found else name


def _distinct(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of what both hold, each piece of memory once."""
    if before.keys() != after.keys():
        raise ValueError(f"only one of the two holds {sorted(before.keys() ^ after.keys())[:5]}; give the same tensors")
    seen: set[tuple[int, tuple[int, ...]]] = set()
    names = []
    for name, x in before.items():
        if x.shape != after[name].shape:
            raise ValueError(f"'{name}' has shape {tuple(x.shape)} before and {tuple(after[name].shape)} after")
        place = (x.data_ptr(), tuple(x.shape))
        if x.numel() and place not in seen:
            seen.add(place)
            names.append(name)
    return names
