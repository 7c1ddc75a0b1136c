"""The optimiser and its learning-rate schedule; its state as plain tensors for the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Schedule = Literal["constant", "linear", "cosine"]


def scheduled(peak: float, step: int, steps: int, *, warmup: int, schedule: Schedule, floor: float = 0.0) -> float:
    """Learning rate of update ``step`` of ``steps``: linear warm-up, then the schedule down to ``floor * peak``."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return peak * (floor + (1 - floor) * (1 - progress))
    if schedule == "cosine":
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    return peak


class Updates(Protocol):
    """What turns gradients into weights, by whatever rule."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name."""
        ...

    def step(self, lr: float) -> float:
        """Update from the gradients, clear them, and return their norm."""
        ...

    def forget(self) -> None:
        """Start over from the weights as they stand."""
        ...

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """What has accumulated of each parameter's gradients, by the parameter's name."""
        ...

    def settled(self) -> AbstractContextManager[None]:
        """The trainable weights are what training has arrived at, where they are something else while it runs."""
        ...

    def warm(self) -> Updates:
        """The optimiser of a warm start on the same parameters."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The memory, as a flat dict of tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave."""
        ...


class Optimizer:
    """AdamW over named parameters, with gradient clipping and a state that is a flat dict of tensors."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip: float | None = 1.0,
    ) -> None:
        self.parameters = dict(parameters)
        self.grad_clip = grad_clip
        self.inner = torch.optim.AdamW(
            list(self.parameters.values()), lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )

    def step(self, lr: float) -> float:
        """Clip, update at ``lr``, clear gradients; return the gradient norm before clipping.

        A gradient that is not finite changes nothing.
        """
        limit = self.grad_clip if self.grad_clip is not None else math.inf
        norm = float(nn.utils.clip_grad_norm_(list(self.parameters.values()), limit))
        if math.isfinite(norm):
            for group in self.inner.param_groups:
                group["lr"] = lr
            self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        return norm

    def forget(self) -> None:
        """Clear all moments."""
        self.inner.state.clear()

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """First and second moments."""
        for name, p in self.parameters.items():
            for key, value in self.inner.state.get(p, {}).items():
                if key != "step":
                    yield name, value

    def settled(self) -> AbstractContextManager[None]:
        """Nothing to do: the weights are always what training has arrived at."""
        return nullcontext()

    def warm(self) -> Optimizer:
        """This one."""
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and counts as ``PARAMETER/KEY`` tensors."""
        state: dict[str, Tensor] = {}
        for name, p in self.parameters.items():
            state |= {f"{name}/{key}": value for key, value in self.inner.state.get(p, {}).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave."""
        self.inner.state.clear()
        for key, value in state.items():
            name, _, slot = key.rpartition("/")
            self.inner.state[self.parameters[name]][slot] = value.clone()
