"""Weights of rewards that change while training runs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.registry import register

Favour = Literal["stagnant", "improving"]


class SlopeWeights:
    """Weights that follow how fast each reward is being learned.

    b_k: least-squares slope of the last ``window`` batch means of reward k against the batch's number
    w*_k = K exp(-b_k / T) / sum_j exp(-b_j / T);  w_k <- momentum w_k + (1 - momentum) w*_k

    The weights add up to K, and are all 1 until the window is full. A reward that falls has a negative slope and gets
    the most weight. Where a largest reward is known, one that has reached it within ``slack`` gets none of the target:
    its slope is 0 as well, but it is not stuck.

    Args:
        names: names of the rewards, for the mapping that ``update`` takes and gives.
        window: batches over which a slope is taken.
        momentum: share of the old weights that stays.
        temperature: T, in reward per batch; by default the median of the present |b_k|, plus 1e-8.
        favour: ``stagnant`` gives weight to what is not being learned; ``improving`` turns the sign round, as one
            replica does. The source says that the weights balance the rewards.
        largest: the reward's attainable maximum; unknown by default.
        slack: distance from it at which a reward is saturated.

    Raises:
        ValueError: when the window is too short for a slope, or the temperature not positive.

    Source: Deep GraphRAG (DW-GRPO), whose constants are those of replicas: window 20, momentum 0.8.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        window: int = 20,
        momentum: float = 0.8,
        temperature: float | None = None,
        favour: Favour = "stagnant",
        largest: float | None = None,
        slack: float = 0.02,
    ) -> None:
        if window < 2:
            raise ValueError(f"window is {window}, wanted at least 2 batches to take a slope over; 20 is usual")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature is {temperature}, wanted above 0, or none to follow the slopes")
        self.names, self.window, self.momentum, self.temperature = list(names), window, momentum, temperature
        self.favour: Favour = favour
        self.largest, self.slack = largest, slack
        self.history: deque[list[float]] = deque(maxlen=window)
        self.weights = [1.0] * len(self.names)

    def update(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Take the batch means of the rewards by name, and return the weights to use from here on.

        nan, a reward that nothing in the batch was given, repeats what it was before; as long as one of them has
        never been given, batches are not counted.
        """
        before = self.history[-1] if self.history else [float("nan")] * len(self.names)
        seen = [float(stats[name]) for name in self.names]
        means = [old if math.isnan(new) else new for new, old in zip(seen, before, strict=True)]
        if any(math.isnan(mean) for mean in means):
            return dict(zip(self.names, self.weights, strict=True))
        self.history.append(means)
        if len(self.history) == self.window:
            target = self._target(torch.tensor(list(self.history), dtype=torch.float64))
            self.weights = [
                self.momentum * old + (1 - self.momentum) * new
                for old, new in zip(self.weights, target.tolist(), strict=True)
            ]
        return dict(zip(self.names, self.weights, strict=True))

    def slopes(self) -> Tensor:
        """(K,) least-squares slopes of what is in the window, per batch."""
        return _slopes(torch.tensor(list(self.history), dtype=torch.float64))

    def _target(self, history: Tensor) -> Tensor:
        slope = _slopes(history)
        temperature = self.temperature or float(slope.abs().quantile(0.5)) + 1e-8
        sign = -1.0 if self.favour == "stagnant" else 1.0
        unsaturated = torch.ones_like(slope, dtype=torch.bool)
        if self.largest is not None:
            unsaturated = history[-1] < self.largest - self.slack
            if not bool(unsaturated.any()):
                return torch.ones_like(slope)
        scores = (sign * slope / temperature).masked_fill(~unsaturated, float("-inf"))
        return len(slope) * torch.softmax(scores, dim=0)

    def state_dict(self) -> dict[str, Any]:
        """The window and the weights."""
        return {"history": list(self.history), "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.history = deque(state["history"], maxlen=self.window)
        self.weights = list(state["weights"])


@register("shaping", "slope_weights")
class SlopeWeightedSum:
    """Sum of the rewards, weighted by how little each is being learned: the reward of DW-GRPO.

    r_i = sum_k w_k v_k r_{i,k},  w: ``SlopeWeights``, v: the weights of the recipe

    The weights of a batch come from the batches before it. Follow it with a credit that normalises the sum
    (``grpo``): one that normalises each reward by itself (``gdpo``, ``mrn``) does not read the sum.

    Args:
        window, momentum, temperature, favour, largest, slack: see ``SlopeWeights``.
    """

    def __init__(
        self,
        *,
        window: Annotated[int, Field(ge=2)] = 20,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.8,
        temperature: Annotated[float, Field(gt=0)] | None = None,
        favour: Favour = "stagnant",
        largest: float | None = None,
        slack: float = 0.02,
    ) -> None:
        self.options: dict[str, Any] = {"window": window, "momentum": momentum, "temperature": temperature}
        self.options |= {"favour": favour, "largest": largest, "slack": slack}
        self.controller: SlopeWeights | None = None
        self.step = -1
        self.used: list[float] = []

    def __call__(
        self, components: Tensor, component_names: Sequence[str], component_weights: Tensor, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Weigh a batch, then take it into account, once per step.

        Args:
            components: (N,K) raw rewards; NaN, a reward that does not apply, counts 0 and is left out of the mean.
            component_names: their names.
            component_weights: (K,) weights of the recipe.
            step: the training step.

        Returns:
            (N,) reward, and the weight of every component by its name.
        """
        if self.controller is None:
            self.controller = SlopeWeights(component_names, **self.options)
        if step != self.step:
            self.used = list(self.controller.weights)
            means = components.nanmean(dim=0).tolist()
            self.controller.update(dict(zip(component_names, means, strict=True)))
            self.step = step
        weights = components.new_tensor(self.used) * component_weights.to(components)
        reward = components.masked_fill(components.isnan(), 0.0) @ weights
        return reward, dict(zip(component_names, self.used, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The controller's memory and the weights of the last step."""
        if self.controller is None:
            return {}
        state = {"names": self.controller.names, "controller": self.controller.state_dict()}
        return state | {"step": self.step, "used": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.controller = SlopeWeights(state["names"], **self.options)
        self.controller.load_state_dict(state["controller"])
        self.step, self.used = state["step"], state["used"]


def _slopes(history: Tensor) -> Tensor:
    """(K,) least-squares slopes of the columns of (W,K) against the row."""
    time = torch.arange(len(history), dtype=history.dtype)
    time = time - time.mean()
    return time @ history / (time @ time)
