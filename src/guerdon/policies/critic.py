"""Critics that a policy can carry instead of a plain linear head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call


def soft_min(first: Tensor, second: Tensor, temperature: float = 0.3) -> Tensor:
    """Smooth minimum of two values: -a (log(exp(-x/a) + exp(-y/a)) - log 2).

    It lies between the minimum, which it becomes as a goes to 0, and the mean, which it nears as a grows; equal values
    give themselves.
    """
    pair = torch.stack([first, second])
    return -temperature * (torch.logsumexp(-pair / temperature, dim=0) - math.log(2))


class SoftMinCritic(nn.Module):
    """Two value heads on normalised features, joined by a smooth minimum, and a slow copy of them.

    v_j = U_j GELU(W_j LayerNorm(h) + b_j) + c_j, W_j from D to D/4;  V = soft_min(v_1, v_2)

    Where the heads disagree the value is low, so that what is overestimated by chance is not chased. The slow copy
    goes a share ``polyak`` of the way to the heads after every update; it gives the values of a sampled batch. (The
    release keeps such a copy and never reads it.)

    Args:
        width: size D of the features.
        temperature: a of the smooth minimum.
        polyak: share of the way that the slow copy goes per update.

    Source: Maity 2026, arXiv 2602.04651.
    """

    def __init__(self, width: int, *, temperature: float = 0.3, polyak: float = 0.05) -> None:
        super().__init__()
        self.temperature, self.polyak = temperature, polyak
        self.heads = _Heads(width)
        for name, p in self.heads.named_parameters():
            self.register_buffer(_slow(name), p.detach().clone())
        self.reads_slow = False

    def forward(self, features: Tensor) -> Tensor:
        """Features (...,D) to values (...,1), of the slow copy inside ``slow_critics``."""
        if self.reads_slow:
            copy = {name: self.get_buffer(_slow(name)) for name, _ in self.heads.named_parameters()}
            first, second = functional_call(self.heads, copy, (features,))
        else:
            first, second = self.heads(features)
        return soft_min(first, second, self.temperature)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the slow copy towards the heads."""
        for name, p in self.heads.named_parameters():
            self.get_buffer(_slow(name)).lerp_(p, self.polyak)


class _Heads(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(1, width // 4)
        self.norm = nn.LayerNorm(width)
        self.first = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, 1))
        self.second = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, 1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        normal = self.norm(features)
        return self.first(normal), self.second(normal)


def _slow(name: str) -> str:
    return f"slow_{name.replace('.', '_')}"


def follow(module: nn.Module) -> None:
    """Move the slow copies of all critics in ``module`` towards their heads; to be called after every update."""
    for critic in soft_critics(module):
        critic.follow()


@contextmanager
def slow_critics(module: nn.Module) -> Iterator[None]:
    """Read the slow copies of all critics in ``module`` inside the block; other critics stay as they are."""
    critics = soft_critics(module)
    for critic in critics:
        critic.reads_slow = True
    try:
        yield
    finally:
        for critic in critics:
            critic.reads_slow = False


def soft_critics(module: nn.Module) -> list[SoftMinCritic]:
    """All critics in ``module`` that have a slow copy."""
    return [part for part in module.modules() if isinstance(part, SoftMinCritic)]
