"""What steers a coefficient while training runs: measured in one batch, frozen for the next, saved with the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Controller(Protocol):
    """Turns what was measured in a batch into the values that hold for the next one."""

    def update(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Take the measurements of one batch and return the values to use from here on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The memory, as JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        ...


@dataclass
class PID:
    """Proportional, integral and derivative control of one number.

    e = measured - target;  I <- clip(I + e, -limit, limit);  output = kp e + ki I + kd (e - e_before)

    The error before the first one is taken to be 0.

    Args:
        kp, ki, kd: gains on the error, on its sum, and on its change since the last update.
        target: what the measured number should be.
        limit: bound of the sum, so that a long time out of reach does not have to be paid back (anti-windup).
        integral, error: the memory: the sum so far, and the last error.

    Source: Åström and Hägglund 1995, PID Controllers; for penalties in RL Stooke et al. 2020, arXiv 2007.03964.
    """

    kp: float
    ki: float
    kd: float
    target: float = 0.0
    limit: float = math.inf
    integral: float = 0.0
    error: float = 0.0

    def update(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Take ``measured`` and return the ``output`` and the ``error``."""
        error = stats["measured"] - self.target
        self.integral = min(max(self.integral + error, -self.limit), self.limit)
        output = self.kp * error + self.ki * self.integral + self.kd * (error - self.error)
        self.error = error
        return {"output": output, "error": error}

    def state_dict(self) -> dict[str, Any]:
        return {"integral": self.integral, "error": self.error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.integral, self.error = state["integral"], state["error"]


@dataclass
class BatchMeans:
    """Means over the minibatches of one training step, handed out when the next step begins.

    What it steers therefore stays the same through all updates on one batch.

    Args:
        step: the step that is being measured; None before the first.
        sums: for every name the sum so far, and of how many.
    """

    step: int | None = None
    sums: dict[str, list[float]] = field(default_factory=dict)

    def begin(self, step: int) -> dict[str, float]:
        """Means of the step before, if ``step`` is the first seen of a new one; else nothing."""
        if step == self.step:
            return {}
        means = {name: total / count for name, (total, count) in self.sums.items() if count}
        self.step, self.sums = step, {}
        return means

    def add(self, count: float, **means: float) -> None:
        """Count the means of one minibatch, each over ``count`` things; one that is not finite is left out."""
        for name, mean in means.items():
            if not math.isfinite(mean):
                continue
            total, seen = self.sums.get(name, [0.0, 0.0])
            self.sums[name] = [total + mean * count, seen + count]

    def state_dict(self) -> dict[str, Any]:
        """The memory, as JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.step, self.sums = state["step"], {name: list(pair) for name, pair in state["sums"].items()}
