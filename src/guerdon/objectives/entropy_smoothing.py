"""An entropy bonus for episodes of many turns that keeps the entropy of each turn near what it has been so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.objectives.aggregation import same_shape, token_mean
from guerdon.registry import register

Form = Literal["hinge", "indicator"]
Unit = Literal["token", "turn"]

LEAST_MEAN = 1e-6


@dataclass
class EntropyHistory:
    """Mean entropy of each turn over all iterations so far; an iteration that did not reach a turn does not count.

    The source pads the turns that an iteration did not reach with 0, which drags the mean of late turns down.

    Args:
        sums, counts: the memory: for each turn the sum of its means, and of how many iterations.
    """

    sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def update(self, step_entropies: Sequence[float] | Tensor) -> None:
        """Store the mean entropy of each turn of an iteration, in nats; nan for one that was not reached."""
        seen = torch.as_tensor(step_entropies, dtype=torch.float64).tolist()
        missing = len(seen) - len(self.sums)
        self.sums += [0.0] * missing
        self.counts += [0] * missing
        for turn, entropy in enumerate(seen):
            if math.isfinite(entropy):
                self.sums[turn] += entropy
                self.counts[turn] += 1

    def mean(self, step: Tensor) -> Tensor:
        """Mean entropy (...) of turns (...), by number; nan where there is no history."""
        if not self.sums:
            return torch.full(step.shape, math.nan, dtype=torch.float64, device=step.device)
        known = torch.tensor(self.sums, dtype=torch.float64) / torch.tensor(self.counts, dtype=torch.float64)
        at = step.clamp(0, len(known) - 1)
        inside = (step >= 0) & (step < len(known))
        return torch.where(inside, known.to(step.device)[at], math.nan)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": list(self.sums), "counts": list(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.counts = list(state["sums"]), list(state["counts"])


def phase_weight(step: float, steps: float) -> float:
    """Weight of the penalty in training step ``step`` of ``steps``.

    w = 1 - 0.2 (1 - e^(-2x)), x = step / (steps / 2), in the first half;
    w = 0.8 e^(-3x), x = (step - steps / 2) / (steps / 2), after it

    Source: Xu et al. 2025, arXiv 2509.22576, and its code.
    """
    half = steps / 2
    if step <= half:
        return 1 - 0.2 * (1 - math.exp(-2 * step / half))
    return 0.8 * math.exp(-3 * (step - half) / half)


def smoothing_penalty(
    entropy: Tensor,
    usual: Tensor,
    *,
    kappa_low: float = 0.8,
    kappa_high: float = 1.2,
    alpha: float = 0.1,
    form: Form = "hinge",
) -> Tensor:
    """Penalty of entropies that lie outside of kappa_low to kappa_high times the usual.

    hinge:      alpha (max(0, H - kappa_high h) + max(0, kappa_low h - H)) / max(h, 1e-6)
    indicator:  alpha [not kappa_low h < H < kappa_high h]

    The indicator is the source's: a constant, which is seen in the loss and has no gradient. The hinge is ours.

    Args:
        entropy: (...) H, differentiable.
        usual: (...) h; nan for what has no history, which costs nothing.
        kappa_low, kappa_high: bounds, in the usual.
        alpha: height of the indicator, slope of the hinge per unit of H / h.
        form: one of the above.

    Returns:
        (...).

    Source: Xu et al. 2025, arXiv 2509.22576, and its code.
    """
    known = usual.isfinite()
    usual = torch.where(known, usual, 0.0).to(entropy)
    entropy = torch.where(known, entropy, 0.0)
    low, high = kappa_low * usual, kappa_high * usual
    if form == "indicator":
        outside = known & ~((low < entropy) & (entropy < high))
        return alpha * outside.to(entropy)
    excess = (entropy - high).clamp(min=0) + (low - entropy).clamp(min=0)
    return torch.where(known, alpha * excess / usual.clamp(min=LEAST_MEAN), 0.0)


@register("term", "epo", paper="Xu et al. 2025, arXiv 2509.22576")
class EPO:
    """Entropy bonus with a penalty on entropies that leave what their turn has had so far.

    loss = -beta (mean H - coef w(step) mean P);  w that of ``phase_weight``, P that of ``smoothing_penalty``

    The usual of a turn is the mean of its mean entropy over all training steps before this one. P is 0 while there is
    none, and in a minibatch whose longest episode has not come as far as half of ``max_turns``.

    Args:
        beta: weight of the bonus.
        coef: weight of the penalty, in bonuses.
        kappa_low, kappa_high: see ``smoothing_penalty``; the source's published runs have 0 and 2.
        alpha: the same; 0.05 and 0.1 in the source's runs.
        form: ``hinge``, or ``indicator`` as in the source's code, which changes no gradient.
        unit: whether each token or the mean of each turn of an episode is held to the bounds.
        steps: training steps of the whole schedule.
        max_turns: of an episode; the most that was seen by default.

    Source: Xu et al. 2025, arXiv 2509.22576, and its code. (The hinge is ours; see also ``EntropyHistory``.)
    """

    def __init__(
        self,
        *,
        beta: float = 0.001,
        coef: Annotated[float, Field(ge=0)] = 1.0,
        kappa_low: Annotated[float, Field(ge=0)] = 0.8,
        kappa_high: Annotated[float, Field(ge=0)] = 1.2,
        alpha: Annotated[float, Field(ge=0)] = 0.1,
        form: Form = "hinge",
        unit: Unit = "token",
        steps: Annotated[float, Field(gt=0)] = 150,
        max_turns: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        if kappa_low > kappa_high:
            raise ValueError(f"kappa_low is {kappa_low}, above kappa_high {kappa_high}; wanted kappa_low <= kappa_high")
        self.beta, self.coef, self.unit, self.steps, self.max_turns = beta, coef, unit, steps, max_turns
        self.bounds: dict[str, Any] = {"kappa_low": kappa_low, "kappa_high": kappa_high, "alpha": alpha, "form": form}
        self.history = EntropyHistory()
        self.step: int | None = None
        self.now: list[list[float]] = []

    def __call__(self, entropy: Tensor, mask: Tensor, turn: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        """The bonus and the penalty.

        Args:
            entropy: (N,T) entropy of the policy at each action, in nats, differentiable.
            mask: (N,T) true on actions; nothing off the mask is read.
            turn: (N,T) number of the turn of each action.
            step: number of the training step; a new one closes the iteration before.

        Returns:
            The loss; the mean ``entropy`` and ``penalty``, the phase's ``weight``, and the share of actions ``outside``
            of the bounds.
        """
        same_shape(mask, entropy=entropy, turn=turn)
        mask, turn = mask.bool(), torch.where(mask.bool(), turn, -1)
        entropy = entropy.masked_fill(~mask, 0.0)
        if step != self.step:
            self.history.update([total / count if count else math.nan for total, count in self.now])
            self.step, self.now = step, []
        mean, weight = token_mean(entropy, mask), phase_weight(step, self.steps)
        held = self._of_turns(entropy, mask, turn) if self.unit == "turn" else entropy
        usual = self.history.mean(turn) if self._late(turn) else torch.full_like(entropy, math.nan)
        penalty = token_mean(smoothing_penalty(held, usual, **self.bounds), mask)
        with torch.no_grad():
            marks = smoothing_penalty(held, usual, **self.bounds | {"form": "indicator", "alpha": 1.0})
            outside = token_mean(marks, mask).item()
        self._observe(entropy.detach(), mask, turn)
        loss = -self.beta * (mean - self.coef * weight * penalty)
        return loss, {"entropy": mean.item(), "penalty": penalty.item(), "weight": weight, "outside": outside}

    def _late(self, turn: Tensor) -> bool:
        longest = self.max_turns or len(self.history.sums)
        return turn.numel() > 0 and int(turn.max()) >= longest // 2

    @staticmethod
    def _of_turns(entropy: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        rows = torch.arange(len(mask), device=mask.device).unsqueeze(1)
        keys = rows * (int(turn.max()) + 1 if turn.numel() else 1) + turn.clamp(min=0)
        groups = grouped(entropy, keys, mask)
        count = groups.spread(groups.total(mask.to(entropy)))
        return groups.spread(groups.total(entropy)) / count.clamp(min=1)

    def _observe(self, entropy: Tensor, mask: Tensor, turn: Tensor) -> None:
        """Add a minibatch to the means of this iteration."""
        longest = int(turn.max()) + 1 if turn.numel() else 0
        at, seen = turn[mask], entropy[mask].double()
        total = torch.zeros(longest, dtype=torch.float64, device=seen.device).index_add_(0, at, seen).tolist()
        count = torch.bincount(at, minlength=longest).tolist()
        self.now += [[0.0, 0.0] for _ in range(longest - len(self.now))]
        for place, (more, n) in enumerate(zip(total, count, strict=True)):
            self.now[place] = [self.now[place][0] + more, self.now[place][1] + n]

    def state_dict(self) -> dict[str, Any]:
        """The history, and what was measured of the current step."""
        return {"history": self.history.state_dict(), "step": self.step, "now": [list(pair) for pair in self.now]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.history.load_state_dict(state["history"])
        self.step, self.now = state["step"], [list(pair) for pair in state["now"]]
