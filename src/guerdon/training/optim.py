"""The optimiser and its learning-rate schedule; its state as plain tensors for the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw

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
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.state: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Clip, update at ``lr``, clear gradients; return the gradient norm before clipping.

        A gradient that is not finite changes nothing.
        """
        trained = {name: p for name, p in self.parameters.items() if p.grad is not None}
        gradients = [p.grad for p in trained.values() if p.grad is not None]
        total = get_total_norm(gradients)
        norm = total.item()
        if math.isfinite(norm):
            states = [self.state.get(name) or self._begin(name) for name in trained]
            divisor = total / self.grad_clip if self.grad_clip is not None and norm > self.grad_clip else None
            # The class torch.optim.AdamW takes longer to call this than a small network takes to be updated.
            adamw(
                list(trained.values()),
                gradients,
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                grad_scale=divisor,
                amsgrad=False,
                maximize=False,
                lr=lr,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=self.eps,
                weight_decay=self.weight_decay,
            )
        for p in trained.values():
            p.grad = None
        return norm

    def _begin(self, name: str) -> dict[str, Tensor]:
        p = self.parameters[name]
        self.state[name] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
        return self.state[name]

    def forget(self) -> None:
        """Clear all moments."""
        self.state.clear()

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """First and second moments."""
        for name, state in self.state.items():
            for key in ("exp_avg", "exp_avg_sq"):
                yield name, state[key]

    def settled(self) -> AbstractContextManager[None]:
        """Nothing to do: the weights are always what training has arrived at."""
        return nullcontext()

    def warm(self) -> Optimizer:
        """This one."""
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and counts as ``PARAMETER/KEY`` tensors."""
        return {f"{name}/{key}": value for name, state in self.state.items() for key, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave."""
        self.state.clear()
        for key, value in state.items():
            name, _, slot = key.rpartition("/")
            self.state.setdefault(name, {})[slot] = value.clone()
