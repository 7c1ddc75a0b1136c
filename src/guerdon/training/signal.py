"""From scored rollouts to the credit of each action: shaping and credit in their order, in whichever loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from guerdon.objectives.aggregation import token_mean
from guerdon.registry import Bound
from guerdon.rollouts import Fields, Rollouts
from guerdon.seeding import derive


@dataclass(frozen=True)
class Signal:
    """What turns components into credit.

    Attributes:
        shaping, credit: bound methods, in order.
        names, weights: of the components that training sees; K strings and (K,).
        seed: of the run; what methods draw derives from it and the step.
    """

    shaping: Sequence[Bound]
    credit: Sequence[Bound]
    names: tuple[str, ...]
    weights: Tensor
    seed: int = 0

    def shape(self, rollouts: Rollouts, step: int) -> tuple[Rollouts, dict[str, float]]:
        """Run the shaping methods in order; the last to give ``reward`` decides the outcome."""
        stats: dict[str, float] = {}
        for bound in self.shaping:
            outcome = bound(self._fields(rollouts, step))
            for name, value in outcome.fields.items():
                setattr(rollouts, name, value)
            stats |= {f"shaping/{bound.name}/{key}": float(value) for key, value in outcome.stats.items()}
        return rollouts, stats

    def assign_credit(self, rollouts: Rollouts, step: int) -> tuple[Rollouts, dict[str, float]]:
        """Turn shaped outcomes into the credit of each action; the first method estimates it, the others adjust it.

        Credit (N,) is spread over the trajectory's actions.
        """
        stats: dict[str, float] = {}
        for bound in self.credit:
            outcome = bound(self._fields(rollouts, step))
            for name, value in outcome.fields.items():
                spread = value.unsqueeze(1) * rollouts.mask if value.ndim == 1 else value
                setattr(rollouts, name, spread)
            size = token_mean(rollouts.advantage.abs(), rollouts.mask)  # type: ignore[union-attr]  # a credit gives one
            stats[f"credit/{bound.name}/abs_mean"] = float(size)
            stats |= {f"credit/{bound.name}/{key}": float(value) for key, value in outcome.stats.items()}
        return rollouts, stats

    def _fields(self, rollouts: Rollouts, step: int) -> Fields:
        seed = derive(self.seed, step, "credit")
        return Fields(rollouts, step=step, seed=seed, component_names=self.names, component_weights=self.weights)
