"""Masks over weights, and training under one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from guerdon.training.optim import Updates


@dataclass(frozen=True)
class MaskSet:
    """One boolean mask per named tensor: what sparsifies weights, gradients and an optimiser's moments alike.

    Attributes:
        masks: for every name a mask of the tensor's shape, true where it is kept; a tensor without one is kept whole.
    """

    masks: dict[str, Tensor]

    @classmethod
    def of_change(
        cls,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        *,
        tol: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> MaskSet:
        """The entries that differ by more than ``tol`` once both are rounded to ``dtype``."""
        return cls({name: changed(before[name], after[name], tol=tol, dtype=dtype) for name in before})

    @property
    def density(self) -> float:
        """Share of entries that are kept."""
        return sum(int(m.sum()) for m in self.masks.values()) / sum(m.numel() for m in self.masks.values())

    @torch.no_grad()
    def clear(self, name: str, x: Tensor) -> None:
        """Set the entries of a tensor off its mask to 0, in place."""
        if name in self.masks:
            x.masked_fill_(~self.masks[name], 0.0)

    @torch.no_grad()
    def restore(self, name: str, x: Tensor, original: Tensor) -> None:
        """Set the entries of a tensor off its mask to those of another, in place."""
        if name in self.masks:
            x.copy_(torch.where(self.masks[name], x, original))

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse masks that do not fit.

        Raises:
            ValueError: naming the mask that has no tensor, or another shape than its tensor.
        """
        for name, mask in self.masks.items():
            if name not in tensors:
                raise ValueError(f"mask '{name}' belongs to no tensor; there are {', '.join(list(tensors)[:5])}, ...")
            if mask.shape != tensors[name].shape:
                raise ValueError(f"mask '{name}' has shape {tuple(mask.shape)}, want {tuple(tensors[name].shape)}")

    def save(self, path: str | Path) -> None:
        """Write the masks to a safetensors file."""
        save_file({name: mask.contiguous() for name, mask in self.masks.items()}, path)

    @classmethod
    def load(cls, path: str | Path) -> MaskSet:
        """Read what ``save`` wrote."""
        return cls({name: mask.bool() for name, mask in load_file(path).items()})


def changed(before: Tensor, after: Tensor, *, tol: float, dtype: torch.dtype) -> Tensor:
    """Where two tensors differ by more than ``tol``, after both are rounded to ``dtype``."""
    return (after.to(dtype).double() - before.to(dtype).double()).abs() > tol


class MaskedUpdates:
    """An optimiser under a mask: gradients, moments and changes of weights exist on the mask only.

    Masking gradients is not enough: moments that were there before, and weight decay, move weights without a gradient.
    So the moments are cleared off the mask too, and what the step changed there is put back.
    """

    def __init__(self, inner: Updates, masks: MaskSet) -> None:
        masks.check(inner.parameters)
        self.inner, self.masks = inner, masks

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self.inner.parameters

    def step(self, lr: float) -> float:
        """A step of the inner optimiser on the mask; the norm is that of the masked gradient."""
        before = {name: self.parameters[name].detach().clone() for name in self.masks.masks}
        for name in before:
            grad = self.parameters[name].grad
            if grad is not None:
                self.masks.clear(name, grad)
        norm = self.inner.step(lr)
        for name, original in before.items():
            self.masks.restore(name, self.parameters[name], original)
        for name, moment in self.moments():
            self.masks.clear(name, moment)
        return norm

    def forget(self) -> None:
        self.inner.forget()

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.inner.moments()

    def settled(self) -> AbstractContextManager[None]:
        return self.inner.settled()

    def warm(self) -> Updates:
        """The inner optimiser's: a warm start comes before the mask."""
        return self.inner.warm()

    def state_dict(self) -> dict[str, Tensor]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.inner.load_state_dict(state)


def masked_finetune(optimizer: Updates, masks: MaskSet) -> MaskedUpdates:
    """Train only the entries of a mask: everything off it stays bit for bit as it is.

    theta <- theta + m * step(m * gradient), with moments m * moment

    In a recipe: ``optimizer: {mask: FILE}``, with a file that ``MaskSet.save`` wrote.

    Args:
        optimizer: any optimiser of the training loop.
        masks: which entries to train; tensors without a mask are trained whole.

    Raises:
        ValueError: when a mask fits no parameter.

    Source: Mukherjee et al. 2025, arXiv 2505.11711.
    """
    return MaskedUpdates(optimizer, masks)
