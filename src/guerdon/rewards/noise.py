"""Wrong rewards on purpose, to find out how much noise a training bears."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guerdon.seeding import torch_generator

Unit = Literal["group", "sample"]


def flipped(group: Tensor, seed: int, *, p: float, per: Unit = "group") -> Tensor:
    """Which trajectories have their reward flipped.

    Args:
        group: (N,) key of the trajectories that share a start.
        seed: for the coins; give another one every step.
        p: probability of a flip, in [0,1].
        per: ``group``: one coin for all members; ``sample``: one for each.

    Returns:
        (N,) bool.

    Raises:
        ValueError: when p is no probability.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}, wanted a probability in [0,1]")
    generator = torch_generator(seed, "flip_noise")
    if per == "sample":
        return (torch.rand(len(group), generator=generator) < p).to(group.device)
    keys, slot = torch.unique(group, return_inverse=True)
    return (torch.rand(len(keys), generator=generator) < p).to(group.device)[slot]


def flip_noise(reward: Tensor, group: Tensor, seed: int, *, p: float, per: Unit = "group") -> Tensor:
    """Turn rewards in [0,1] upside down at random.

    r_i -> 1 - r_i with probability p

    A flip of a whole group turns its z-scores round, so their expectation is (1 - 2p) times what it would be without
    noise: learning slows down, stops at p = 0.5 and runs backwards beyond. A flip of single samples makes each group's
    mean and spread noisy as well.

    Args:
        reward: (N,) in [0,1]; NaN, a reward that does not apply, stays NaN.
        group: (N,) key of the trajectories that share a start.
        seed: for the coins; give another one every step.
        p: probability of a flip, in [0,1].
        per: ``group``: one coin for all members, as in the source; ``sample``: one for each. Say which in a report.

    Returns:
        (N,).

    Raises:
        ValueError: when p is no probability.

    Source: Lv et al. 2025, arXiv 2505.22653.
    """
    return torch.where(flipped(group, seed, p=p, per=per), 1 - reward, reward)
