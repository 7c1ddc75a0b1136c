"""The one grouping primitive: statistics over any integer key.

Every estimator that compares trajectories, steps or siblings calls these. A key is an integer tensor of the
same shape as the values: prompt (N,), turn index, anchor state or prefix (N,M), sibling set; or ``None`` for
the whole batch. Keys need not be contiguous or sorted, groups may be ragged, and entries whose ``valid`` is
false neither contribute nor receive anything but zero, whatever they hold.

Sums are taken from each group's smallest member. A group of equal values therefore has exactly its value as
mean and exactly 0 as deviation, and a large common offset costs no precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Singleton = Literal["zero", "raw"]


@dataclass(frozen=True)
class Grouped:
    """Values gathered by key: the sums from which every group statistic follows.

    Built by ``grouped``. Results have the shape of the values, and are 0 where ``valid`` is false. ``index`` is
    the slot of each entry, flattened, or ``None`` for the whole batch; some of the ``groups`` slots may be empty.
    """

    values: Tensor
    valid: Tensor
    index: Tensor | None
    groups: int

    def total(self, x: Tensor) -> Tensor:
        """Sum of ``x`` over the valid members of each slot: (groups,)."""
        return self._sum(torch.where(self.valid, x, 0))

    def spread(self, per_group: Tensor) -> Tensor:
        """Hand each valid entry the number of its slot."""
        if self.index is None:
            out = per_group.expand(self.values.shape)
        else:
            out = per_group[self.index].reshape(self.values.shape)
        return torch.where(self.valid, out, torch.zeros((), dtype=out.dtype, device=out.device))

    def count(self) -> Tensor:
        """Number of valid members of each entry's group."""
        return self.spread(self._size)

    def mean(self) -> Tensor:
        """Mean over the valid members of each entry's group."""
        return self.spread(self._low + self._mean_above)

    def deviation(self) -> Tensor:
        """How far each entry lies from the mean of its group."""
        return self._deviation

    def std(self, ddof: int = 1) -> Tensor:
        """Standard deviation of each entry's group; 0 where the group has at most ``ddof`` members."""
        squares = self._sum(self._deviation**2)
        variance = torch.where(self._size > ddof, squares / (self._size - ddof).clamp(min=1), 0.0)
        # The root of a positive stand-in keeps the gradient finite where the variance is 0.
        root = torch.where(variance > 0, variance, 1.0).sqrt()
        return self.spread(torch.where(variance > 0, root, 0.0))

    def tied(self) -> Tensor:
        """Whether all valid members of each entry's group have the same value; true for a group of one."""
        return self.spread(self._mean_above == 0)

    def others_mean(self) -> Tensor:
        """Mean of the other valid members of each entry's group; an entry alone gets its own value."""
        others = self.count() - 1
        rest = (self.spread(self._sum(self._above)) - self._above) / others.clamp(min=1)
        return torch.where(others == 0, self.values, self.spread(self._low) + rest)

    def extreme(self, largest: bool) -> Tensor:
        """Largest or smallest valid value of each entry's group."""
        return self.spread(self._extreme(largest))

    @cached_property
    def _size(self) -> Tensor:
        return self._sum(self.valid.to(self.values.dtype))

    @cached_property
    def _low(self) -> Tensor:
        """Smallest valid value of each slot; its gradient would cancel."""
        return self._extreme(largest=False).detach()

    @cached_property
    def _above(self) -> Tensor:
        """How far each entry lies above the smallest of its group."""
        return self.values - self.spread(self._low)

    @cached_property
    def _mean_above(self) -> Tensor:
        return self._sum(self._above) / self._size.clamp(min=1)

    @cached_property
    def _deviation(self) -> Tensor:
        return self._above - self.spread(self._mean_above)

    def _sum(self, x: Tensor) -> Tensor:
        """Sum over each slot of what is 0 off the valid entries."""
        if self.index is None:
            return x.sum().reshape(1)
        return x.new_zeros(self.groups).index_add_(0, self.index, x.reshape(-1))

    def _extreme(self, largest: bool) -> Tensor:
        fill = float("-inf") if largest else float("inf")
        flat = torch.where(self.valid, self.values, fill).reshape(-1)
        start = flat.new_full((self.groups,), fill)
        if self.index is not None:
            return start.scatter_reduce(0, self.index, flat, "amax" if largest else "amin")
        if flat.numel() == 0:
            return start
        return flat.amax(0, keepdim=True) if largest else flat.amin(0, keepdim=True)


def grouped(values: Tensor, key: Tensor | None, valid: Tensor | None = None) -> Grouped:
    """Gather ``values`` by ``key``.

    Args:
        values: float tensor of any shape.
        key: integer tensor of the same shape; ``None`` makes the whole batch one group.
        valid: bool tensor of the same shape; everything is valid by default.

    Raises:
        TypeError: when values are not floating or keys are not integers.
        ValueError: when shapes differ.
    """
    if not values.is_floating_point():
        raise TypeError(f"values have dtype {values.dtype}, wanted a floating one; call .float() on them")
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid.bool()
    if valid.shape != values.shape:
        raise ValueError(f"valid has shape {tuple(valid.shape)}, values {tuple(values.shape)}; they must agree")
    index, groups = (None, 1) if key is None else _slots(key, values)
    return Grouped(values.masked_fill(~valid, 0.0), valid, index, groups)


def group_mean(values: Tensor, key: Tensor | None, valid: Tensor | None = None) -> Tensor:
    """Mean of each entry's group, in the shape of ``values``."""
    return grouped(values, key, valid).mean()


def group_std(values: Tensor, key: Tensor | None, valid: Tensor | None = None, *, ddof: int = 1) -> Tensor:
    """Standard deviation of each entry's group, in the shape of ``values``."""
    return grouped(values, key, valid).std(ddof)


def center(values: Tensor, key: Tensor | None, valid: Tensor | None = None, *, singleton: Singleton = "zero") -> Tensor:
    """Subtract the group mean: x - mean_g x.

    A group of one gives 0 (``zero``) or keeps its value (``raw``). Equal values give exactly 0.
    """
    stats = grouped(values, key, valid)
    return _keep_singletons(stats, stats.deviation(), singleton)


def whiten(
    values: Tensor,
    key: Tensor | None,
    valid: Tensor | None = None,
    *,
    eps: float = 1e-4,
    ddof: int = 1,
    singleton: Singleton = "zero",
) -> Tensor:
    """Centre and scale: (x - mean_g x) / (std_g x + eps).

    A group of one gives 0 (``zero``), or keeps its value as if its mean were 0 and std 1 (``raw``). Equal values
    give exactly 0, also when ``eps`` is 0.
    """
    stats = grouped(values, key, valid)
    scale = stats.std(ddof) + eps
    out = stats.deviation() / torch.where(scale > 0, scale, 1.0)
    return _keep_singletons(stats, out, singleton)


def leave_one_out_mean(values: Tensor, key: Tensor | None, valid: Tensor | None = None) -> Tensor:
    """Mean of the other members of each entry's group; an entry alone in its group gets its own value.

    (sum_g x - x_i) / (n_g - 1)
    """
    return grouped(values, key, valid).others_mean()


def first_rows(key: Tensor) -> tuple[Tensor, Tensor]:
    """Each key (N,) once, in order, and the row where it stands first."""
    keys, index = torch.unique(key, return_inverse=True)
    rows = torch.arange(len(key), device=key.device)
    return keys, rows.new_full(keys.shape, len(key)).scatter_reduce(0, index, rows, "amin")


def per_action(x: Tensor, mask: Tensor) -> Tensor:
    """Hand every action the number of its trajectory: x (N,) and mask (N,T) give (N,T), exactly 0 off the mask."""
    return torch.where(mask.bool(), x.unsqueeze(1), torch.zeros((), dtype=x.dtype, device=x.device))


def _keep_singletons(stats: Grouped, out: Tensor, singleton: Singleton) -> Tensor:
    return torch.where(stats.count() == 1, stats.values, out) if singleton == "raw" else out


def _slots(key: Tensor, values: Tensor) -> tuple[Tensor, int]:
    """Number the keys from 0: by their offset when they lie close together, by sorting otherwise."""
    if key.is_floating_point() or key.is_complex():
        raise TypeError(f"key has dtype {key.dtype}, wanted an integer one")
    if key.shape != values.shape:
        raise ValueError(f"key has shape {tuple(key.shape)}, values {tuple(values.shape)}; they must agree")
    flat = key.reshape(-1).long()
    if flat.numel() == 0:
        return flat, 0
    low, high = (int(bound) for bound in torch.aminmax(flat))
    if high - low < 2 * flat.numel():
        return flat - low, high - low + 1
    unique, index = torch.unique(flat, return_inverse=True)
    return index, len(unique)
