"""Divergence penalties whose strength is controlled from batch to batch.

What a batch shows (its KL, entropy, reward) sets the strength for the next one, so all updates on one batch see the
same strength. Within a step everything is accumulated; the step number says when a new one begins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from guerdon.controllers import PID, BatchMeans
from guerdon.objectives import divergence
from guerdon.objectives.aggregation import TermAggregation, same_shape, token_mean
from guerdon.registry import register

RELAXED = {"warmup": 1.5, "climbing": 1.2, "converged": 1.0, "plateau": 0.8}


@register("term", "kl_pid", paper="Ziegler et al. 2019, arXiv 1909.08593; Stooke et al. 2020, arXiv 2007.03964")
class PIDKL:
    """The penalty ``kl`` with a coefficient that keeps the mean KL of a batch near a target.

    e = clip(KL / target - 1, -1, 1);  coefficient = clip(beta exp(kp e + ki sum e + kd (e - e_before)), low, high)

    Control acts on the logarithm, so the coefficient stays positive and can cross orders of magnitude; with only ``ki``
    it is the adaptive coefficient of Ziegler et al. But for the coefficient it is the term ``kl``.

    Args:
        target: mean KL per action to hold, in nats, as ``estimator`` measures it.
        beta: coefficient during the first batch, and where the control is centred.
        kp, ki, kd: gains, see ``controllers.PID``.
        low, high: bounds of the coefficient.
        estimator: ``k2`` or ``k3`` of ``kl``; ``k1`` has no gradient to steer.
        aggregate, max_length: see ``aggregation.aggregate``.

    Raises:
        ValueError: when target or the bounds are not positive, or beta lies outside them.

    Source: Ziegler et al. 2019, arXiv 1909.08593; Stooke et al. 2020, arXiv 2007.03964.
    """

    def __init__(
        self,
        *,
        target: float = 0.05,
        beta: float = 0.04,
        kp: float = 0.5,
        ki: float = 0.05,
        kd: float = 0.0,
        low: float = 1e-4,
        high: float = 10.0,
        estimator: Literal["k2", "k3"] = "k3",
        aggregate: TermAggregation = "token_mean",
        max_length: int | None = None,
    ) -> None:
        if not target > 0:
            raise ValueError(f"target is {target}, wanted > 0: the mean KL per action to hold; for none use term 'kl'")
        if not 0 < low <= beta <= high:
            raise ValueError(f"low, beta, high are {low}, {beta}, {high}, wanted 0 < low <= beta <= high")
        self.target, self.low, self.high, self.first = target, low, high, beta
        limit = math.log(high / low) / ki if ki > 0 else math.inf
        self.pid = PID(kp, ki, kd, target=1.0, limit=limit)
        self.beta, self.means = beta, BatchMeans()
        self.settings = {"estimator": estimator, "aggregate": aggregate, "max_length": max_length}

    def __call__(self, logp: Tensor, ref_logp: Tensor, mask: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        """Penalty for leaving the reference policy; arguments as for ``kl``, and the number of the training step.

        Returns:
            The loss, and ``kl`` of this batch, the ``beta`` in use, and the ``error`` that it answers.
        """
        before = self.means.begin(step)
        if "kl" in before:
            output = self.pid.update({"measured": min(max(before["kl"] / self.target, 0.0), 2.0)})["output"]
            centred = math.log(self.first) + output
            self.beta = math.exp(min(max(centred, math.log(self.low)), math.log(self.high)))
        loss, stats = divergence.kl(logp, ref_logp, mask, beta=self.beta, **self.settings)
        self.means.add(float(mask.sum()), kl=stats["kl"])
        return loss, {"kl": stats["kl"], "beta": self.beta, "error": self.pid.error}

    def state_dict(self) -> dict[str, Any]:
        """The coefficient, the controller and what was measured of the current step."""
        return {"beta": self.beta, "pid": self.pid.state_dict(), "means": self.means.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.beta = state["beta"]
        self.pid.load_state_dict(state["pid"])
        self.means.load_state_dict(state["means"])


@dataclass
class RewardThreshold:
    """How much KL is allowed, given how the reward has been moving: a controller from ``reward`` to ``threshold``.

    m <- .95 m + .05 r (the first r at first);  u = PID of (m - m_before) towards ``velocity``, 0 for the first reward
    threshold = clip((base + u) relaxation, 0.1, 0.6)

    The relaxation depends on the phase: ``warmup`` (fewer than ``window`` rewards) 1.5; ``climbing`` (the mean of the
    last window above that of the window before it by more than 0.01) 1.2; ``converged`` (standard deviation of the last
    window below .02 and mean above .7) 1.0; else ``plateau`` 0.8. The two windows must not overlap, so nothing climbs
    before twice ``window`` rewards are known.

    Args:
        base: threshold at rest, in nats per action.
        window: number of rewards that tell a phase.
        velocity: gain of the smoothed reward per batch at which the threshold rests.
        pid: the controller of the smoothed reward's velocity.
        smooth: the memory: the smoothed reward.
        rewards: the memory: the last rewards, at most two windows.
    """

    base: float = 0.3
    window: int = 50
    velocity: float = 0.001
    pid: PID = field(default_factory=lambda: PID(0.3, 0.01, 0.05, limit=1.0))
    smooth: float | None = None
    rewards: list[float] = field(default_factory=list)

    @property
    def phase(self) -> str:
        """``warmup``, ``climbing``, ``converged`` or ``plateau``."""
        if len(self.rewards) < self.window:
            return "warmup"
        recent, earlier = self.rewards[-self.window :], self.rewards[-2 * self.window : -self.window]
        mean = float(np.mean(recent))
        if len(earlier) == self.window and mean > np.mean(earlier) + 0.01:
            return "climbing"
        return "converged" if np.std(recent) < 0.02 and mean > 0.7 else "plateau"

    def update(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Take the batch's mean ``reward``; return the ``threshold`` and the ``relaxation`` in it."""
        reward, adjustment = stats["reward"], 0.0
        self.rewards = [*self.rewards, reward][-2 * self.window :]
        if self.smooth is None:
            self.smooth = reward
        else:
            gained = 0.05 * (reward - self.smooth)
            self.smooth += gained
            adjustment = self.pid.update({"measured": gained - self.velocity})["output"]
        relaxation = RELAXED[self.phase]
        return {"threshold": min(max((self.base + adjustment) * relaxation, 0.1), 0.6), "relaxation": relaxation}

    def state_dict(self) -> dict[str, Any]:
        return {"smooth": self.smooth, "rewards": list(self.rewards), "pid": self.pid.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.smooth, self.rewards = state["smooth"], list(state["rewards"])
        self.pid.load_state_dict(state["pid"])


@register("term", "entropy_gated_kl", paper="Maity 2026, arXiv 2602.04651")
class EntropyGatedKL:
    """Penalty on KL above a threshold that follows the reward, stronger where the policy has little entropy left.

    s <- .9 s + .1 KL;  P = coef (s - threshold)^2 max(0.5, entropy_floor / (H + 0.1)) if s > threshold, else 0

    KL, H and the reward are means over the batch before; the threshold is that of ``RewardThreshold``. The loss has the
    value P and the gradient dP/ds grad KL, for over time s moves by as much as the KL does. The gradient of the KL is
    that of ``k2``, the reverse KL's; the KL is measured by ``k1``. The release adds P as a number, which has no
    gradient: there the penalty is seen in the logs and changes nothing.

    Args:
        coef: weight of the penalty.
        threshold: KL per action that is free when the reward rests, in nats.
        entropy_floor: entropy per action below which the penalty grows, in nats; 2.0 is for a language model's large
            vocabulary, a small one needs less.
        window: batches that tell a phase of training.

    Source: Maity 2026, arXiv 2602.04651.
    """

    def __init__(
        self, *, coef: float = 0.1, threshold: float = 0.3, entropy_floor: float = 2.0, window: int = 50
    ) -> None:
        self.coef, self.entropy_floor = coef, entropy_floor
        self.allowed = RewardThreshold(base=threshold, window=window)
        self.means = BatchMeans()
        self.kl_short = self.kl_long = self.penalty = self.slope = 0.0
        self.threshold, self.relaxation = min(max(threshold * RELAXED["warmup"], 0.1), 0.6), RELAXED["warmup"]

    def gate(self, entropy: float) -> float:
        """Factor of the penalty at a mean entropy per action, in nats."""
        return max(0.5, self.entropy_floor / (entropy + 0.1))

    def update(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Take ``kl``, ``entropy`` and ``reward`` of a batch; return the next one's ``penalty`` and its ``slope``."""
        self.kl_short = 0.9 * self.kl_short + 0.1 * stats["kl"]
        self.kl_long = 0.99 * self.kl_long + 0.01 * stats["kl"]
        allowed = self.allowed.update(stats)
        self.threshold, self.relaxation = allowed["threshold"], allowed["relaxation"]
        excess = max(0.0, self.kl_short - self.threshold)
        weight = self.coef * self.gate(stats["entropy"])
        self.penalty, self.slope = weight * excess**2, 2 * weight * excess
        return {"penalty": self.penalty, "slope": self.slope}

    def __call__(
        self, logp: Tensor, ref_logp: Tensor, entropy: Tensor, mask: Tensor, reward: Tensor, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The penalty that the batches before this one call for.

        Args:
            logp: (N,T) log-probability of each action now, differentiable.
            ref_logp: (N,T) log-probability of each action under the reference; no gradient reaches it.
            entropy: (N,T) entropy of the policy at each action, in nats; only its mean is read.
            mask: (N,T) true on actions; nothing off the mask is read.
            reward: (N,) outcome of each trajectory, on the scale on which .7 is high.
            step: number of the training step.

        Returns:
            The loss, and ``kl`` and ``entropy`` of this batch, ``kl_short``, ``kl_long``, ``threshold``,
            ``relaxation``, ``penalty`` and its ``slope``.
        """
        same_shape(mask, logp=logp, ref_logp=ref_logp, entropy=entropy)
        before = self.means.begin(step)
        if {"kl", "entropy", "reward"} <= before.keys():
            self.update(before)
        loss, kl = _penalised(logp, ref_logp, mask, self.penalty, self.slope)
        mean_entropy = token_mean(entropy.detach(), mask).item()
        self.means.add(float(mask.sum()), kl=kl, entropy=mean_entropy)
        self.means.add(len(reward), reward=float(reward.detach().mean()) if len(reward) else 0.0)
        seen = {"kl": kl, "entropy": mean_entropy}
        return loss, seen | {name: getattr(self, name) for name in (*self._MEMORY[:-1], "relaxation")}

    _MEMORY = ("kl_short", "kl_long", "threshold", "penalty", "slope", "relaxation")

    def state_dict(self) -> dict[str, Any]:
        """The controller, what it decided, and what was measured of the current step."""
        decided = {name: getattr(self, name) for name in self._MEMORY}
        return decided | {"allowed": self.allowed.state_dict(), "means": self.means.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        for name in self._MEMORY:
            setattr(self, name, state[name])
        self.allowed.load_state_dict(state["allowed"])
        self.means.load_state_dict(state["means"])


@register("term", "asymmetric_kl", paper="Maity 2026, arXiv 2602.04651")
class AsymmetricKL:
    """Penalty on KL above a threshold and on KL that rises; none for a policy that is vaguer than the reference.

    P = coef (KL - threshold)_+^2 + rise v_+^2,  v = (KL - KL_{window} batches ago) / window

    KL is the mean over the batch before, by ``k1``, which may be negative. The loss has the value P and the gradient
    dP/dKL grad KL with dP/dKL = 2 coef (KL - threshold)_+ + 2 rise v_+ / window; see ``EntropyGatedKL``.

    Args:
        coef: weight of the distance.
        threshold: KL per action that is free, in nats.
        rise: weight of the velocity.
        window: batches over which the velocity is taken; 0 until so many have passed.

    Source: Maity 2026, arXiv 2602.04651.
    """

    def __init__(self, *, coef: float = 0.1, threshold: float = 0.3, rise: float = 5.0, window: int = 50) -> None:
        self.coef, self.threshold, self.rise, self.window = coef, threshold, rise, window
        self.history: list[float] = []
        self.means = BatchMeans()
        self.penalty = self.slope = self.velocity = 0.0

    def update(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Take ``kl`` of one batch; return the ``penalty`` for the next, and its ``slope``."""
        self.history = [*self.history, stats["kl"]][-(self.window + 1) :]
        full = len(self.history) > self.window
        self.velocity = (self.history[-1] - self.history[0]) / self.window if full else 0.0
        excess, rising = max(0.0, stats["kl"] - self.threshold), max(0.0, self.velocity)
        self.penalty = self.coef * excess**2 + self.rise * rising**2
        self.slope = 2 * self.coef * excess + 2 * self.rise * rising / self.window
        return {"penalty": self.penalty, "slope": self.slope}

    def __call__(self, logp: Tensor, ref_logp: Tensor, mask: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        """The penalty that the batches before this one call for; arguments as for ``kl``, and the training step.

        Returns:
            The loss, and ``kl`` of this batch, ``velocity``, ``penalty`` and its ``slope``.
        """
        same_shape(mask, logp=logp, ref_logp=ref_logp)
        before = self.means.begin(step)
        if "kl" in before:
            self.update(before)
        loss, kl = _penalised(logp, ref_logp, mask, self.penalty, self.slope)
        self.means.add(float(mask.sum()), kl=kl)
        return loss, {"kl": kl, "velocity": self.velocity, "penalty": self.penalty, "slope": self.slope}

    def state_dict(self) -> dict[str, Any]:
        """The controller, what it decided, and what was measured of the current step."""
        decided = {name: getattr(self, name) for name in ("penalty", "slope", "velocity")}
        return decided | {"history": list(self.history), "means": self.means.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.penalty, self.slope, self.velocity = state["penalty"], state["slope"], state["velocity"]
        self.history = list(state["history"])
        self.means.load_state_dict(state["means"])


def _penalised(logp: Tensor, ref_logp: Tensor, mask: Tensor, penalty: float, slope: float) -> tuple[Tensor, float]:
    """A loss with the value ``penalty`` and ``slope`` times the gradient of the reverse KL; and the KL measured."""
    off = ~mask.bool()
    ours, theirs = logp.masked_fill(off, 0.0), ref_logp.detach().masked_fill(off, 0.0)
    kl = token_mean(divergence.k2(ours, theirs), mask)
    measured = token_mean(divergence.k1(ours.detach(), theirs), mask).item()
    return penalty + slope * (kl - kl.detach()), measured
