"""Rewards of different scales brought to one: by percentiles known beforehand, or by what was seen lately."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from guerdon.registry import register
from guerdon.shaping.compose import cells_of, weighted_sum

LEVELS = (0.10, 0.25, 0.50, 0.75, 0.90)
NO_SPREAD = 1e-6  # an interquartile range up to this is no scale
LEAST_SPREAD = 1e-3  # scale of a source whose scores are all but equal
CellPercentiles = Annotated[tuple[float, float, float, float, float], Field(description="p10, p25, p50, p75, p90")]


class Percentiles(NamedTuple):
    """Percentiles of a score on one source: numbers, or tensors that broadcast with the scores."""

    p10: float | Tensor
    p25: float | Tensor
    p50: float | Tensor
    p75: float | Tensor
    p90: float | Tensor


def percentiles(scores: Tensor) -> Percentiles:
    """Percentiles of scores of any shape; those that are not finite don't count.

    Raises:
        ValueError: when no score is finite.
    """
    finite = scores.detach().double()[scores.isfinite()]
    if not len(finite):
        raise ValueError(f"none of {scores.numel()} scores is finite; percentiles need at least one")
    return Percentiles(*torch.quantile(finite, torch.tensor(LEVELS, dtype=torch.float64)).tolist())


def percentile_logistic(scores: Tensor, of: Percentiles, *, steepness: float = 3.0) -> Tensor:
    """Map scores so that the median of their source earns 0.5, and its spread is that of every other source.

    1 / (1 + exp(-steepness (x - p50) / IQR)),  IQR = p75 - p25, or max(p90 - p10, 1e-3) where that is 0

    Strictly monotone, so no score is in a dead zone. At the median the slope is steepness / (4 IQR). A z-score inside
    groups undoes every affine part of it: use it with a baseline over the batch, or without scaling by the deviation.

    Args:
        scores: any shape.
        of: percentiles of the source on held-out data, before training.
        steepness: slope of the logistic per interquartile range.

    Returns:
        In (0,1), in the shape of the scores.

    Source: Su et al. 2025, arXiv 2512.06581. (The scale where IQR is 0, as for scores of 0 and 1, is ours.)
    """
    p10, p25, p50, p75, p90 = (torch.as_tensor(p, dtype=scores.dtype, device=scores.device) for p in of)
    spread = p75 - p25
    spread = torch.where(spread > NO_SPREAD, spread, (p90 - p10).clamp(min=LEAST_SPREAD))
    return torch.sigmoid(steepness * (scores - p50) / spread)


class RunningRescale:
    """Stretches a score over the range in which it has moved lately.

    clip((s - q_low) / (q_high - q_low + eps), 0, 1)  or  sigmoid((s - mean) / (std + eps)), over the last scores

    The range is measured on the batches before, so it is the same for a whole batch. Until ``warmup`` scores have been
    seen, a score is returned as it is. Scores that are not finite pass through and are not remembered.

    Args:
        variant: the first form (``quantile``) or the second (``logistic``).
        window: how many scores are remembered.
        warmup: how many must have been seen.
        low, high: levels of the two quantiles.
        eps: added to the range.

    Raises:
        ValueError: when the warm-up is longer than the window, or the levels are not ascending.

    Source: the idea is Liu et al. 2025, arXiv 2508.12957; both forms are ours.
    """

    def __init__(
        self,
        *,
        variant: Literal["quantile", "logistic"] = "quantile",
        window: int = 1024,
        warmup: int = 64,
        low: float = 0.05,
        high: float = 0.95,
        eps: float = 1e-6,
    ) -> None:
        if not 2 <= warmup <= window:
            raise ValueError(f"warmup is {warmup} and window {window}, wanted 2 <= warmup <= window")
        if not 0 <= low < high <= 1:
            raise ValueError(f"low is {low} and high {high}, wanted 0 <= low < high <= 1")
        self.variant, self.window, self.warmup = variant, window, warmup
        self.low, self.high, self.eps = low, high, eps
        self.seen = torch.zeros(0, dtype=torch.float64)

    def __call__(self, scores: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Stretch a batch of scores (n,), then remember them.

        Returns:
            (n,) stretched scores, and the quantiles ``low`` and ``high`` of what was remembered, once warm.
        """
        stretched, stats = scores, {}
        if len(self.seen) >= self.warmup:
            low, high = torch.quantile(self.seen, torch.tensor([self.low, self.high], dtype=torch.float64)).tolist()
            stats = {"low": low, "high": high}
            if self.variant == "quantile":
                stretched = ((scores - low) / (high - low + self.eps)).clamp(0.0, 1.0)
            else:
                stretched = torch.sigmoid((scores - self.seen.mean().item()) / (self.seen.std().item() + self.eps))
        finite = scores.detach().double().cpu()[scores.isfinite().cpu()]
        self.seen = torch.cat([self.seen, finite])[-self.window :]
        return stretched, stats

    def state_dict(self) -> dict[str, Any]:
        """The remembered scores, oldest first."""
        return {"seen": self.seen.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.seen = torch.tensor(state["seen"], dtype=torch.float64)


class _PerCell(ABC):
    """Weighted sum of rewards, after a map of each cell's own: a cell is one reward on one source of problems."""

    def __init__(self, columns: Sequence[str] | None, source: str | None) -> None:
        self.columns, self.source = columns, source

    def __call__(
        self,
        components: Tensor,
        component_names: Sequence[str],
        component_weights: Tensor,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Map the rewards and add them up.

        Args:
            components: (N,K) raw rewards; NaN does not apply, and contributes 0.
            component_names: names of the K columns.
            component_weights: (K,).
            metadata: what the task knows of the N problems.

        Returns:
            (N,) reward, and what is known of each cell.

        Raises:
            ValueError: when there is no reward of a name in ``columns``, or a problem does not name its source.
        """
        unknown = [name for name in self.columns or () if name not in component_names]
        if unknown:
            raise ValueError(f"no reward '{unknown[0]}' to normalise; known: {', '.join(component_names)}")
        mapped, stats = components.clone(), {}
        sources = cells_of(len(components), self.source, metadata)
        for k, name in enumerate(component_names):
            if self.columns is not None and name not in self.columns:
                continue
            for source, rows in sources.items():
                applies = rows[~components[rows, k].isnan().cpu()]
                if len(applies):
                    cell = f"{name}/{source}" if source else name
                    mapped[applies, k], seen = self._map(cell, components[applies, k])
                    stats |= {f"{cell}/{key}": value for key, value in seen.items()}
        return weighted_sum(mapped, component_weights), stats

    @abstractmethod
    def _map(self, cell: str, scores: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Map the scores (n,) of a cell, and say what is known of it."""


@register("shaping", "percentile_logistic", paper="Su et al. 2025, arXiv 2512.06581")
class PercentileLogistic(_PerCell):
    """Weighted sum of rewards, each mapped so that the median of its source earns 0.5: see ``percentile_logistic``.

    Args:
        cells: percentiles p10, p25, p50, p75, p90 of the policy before RL on held-out data, for every ``reward`` or
            ``reward/source``. A cell that is not listed takes them from the first scores that it sees, which are of
            that same policy.
        columns: names of the rewards to map; all by default.
        source: key in the problems' metadata that names the source (dataset, task); one source by default.
        steepness: slope of the logistic per interquartile range.
        calibration: how many first scores a cell that is not listed takes its percentiles from; until then from as many
            as there are.
        refresh: part by which known percentiles move towards those of each batch; 0 keeps them.

    Source: Su et al. 2025, arXiv 2512.06581. (Taking percentiles from the first scores, and refreshing them, are ours.)
    """

    def __init__(
        self,
        *,
        cells: dict[str, CellPercentiles] | None = None,
        columns: list[str] | None = None,
        source: str | None = None,
        steepness: Annotated[float, Field(gt=0)] = 3.0,
        calibration: Annotated[int, Field(ge=2)] = 512,
        refresh: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        super().__init__(columns, source)
        self.steepness, self.calibration, self.refresh = steepness, calibration, refresh
        self.known: dict[str, Percentiles] = {cell: Percentiles(*p) for cell, p in (cells or {}).items()}
        self.first: dict[str, list[float]] = {}

    def _map(self, cell: str, scores: Tensor) -> tuple[Tensor, dict[str, float]]:
        calibrated = cell in self.known
        of = self.known[cell] if calibrated else self._calibrate(cell, scores)
        if calibrated and self.refresh:
            now = percentiles(scores)
            moved = ((1 - self.refresh) * a + self.refresh * b for a, b in zip(of, now, strict=True))
            self.known[cell] = Percentiles(*moved)
        stats = {"p25": float(of.p25), "p50": float(of.p50), "p75": float(of.p75)}
        return percentile_logistic(scores, of, steepness=self.steepness), stats

    def _calibrate(self, cell: str, scores: Tensor) -> Percentiles:
        seen = self.first.setdefault(cell, [])
        seen += scores.tolist()
        of = percentiles(torch.tensor(seen[: self.calibration], dtype=torch.float64))
        if len(seen) >= self.calibration:
            self.known[cell] = of
            del self.first[cell]
        return of

    def state_dict(self) -> dict[str, Any]:
        """The percentiles of every cell, and the first scores of those that have too few."""
        return {"known": {cell: list(of) for cell, of in self.known.items()}, "first": dict(self.first)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.known = {cell: Percentiles(*of) for cell, of in state["known"].items()}
        self.first = {cell: list(seen) for cell, seen in state["first"].items()}


@register("shaping", "running_rescale", paper="Liu et al. 2025, arXiv 2508.12957")
class RunningRescaleSum(_PerCell):
    """Weighted sum of rewards, each stretched over the range in which it has moved lately: see ``RunningRescale``.

    A reward in a narrow band is drowned by those it is added to; stretched, it is not. Alone in a z-score it gains
    nothing.

    Args:
        columns: names of the rewards to stretch; all by default.
        source: key in the problems' metadata that names the kind of task, for which windows are kept apart.
        variant, window, warmup: see ``RunningRescale``.

    Source: Liu et al. 2025, arXiv 2508.12957. (The form of the stretch is ours.)
    """

    def __init__(
        self,
        *,
        columns: list[str] | None = None,
        source: str | None = None,
        variant: Literal["quantile", "logistic"] = "quantile",
        window: Annotated[int, Field(ge=2)] = 1024,
        warmup: Annotated[int, Field(ge=2)] = 64,
    ) -> None:
        super().__init__(columns, source)
        self.settings: dict[str, Any] = {"variant": variant, "window": window, "warmup": warmup}
        self.windows: dict[str, RunningRescale] = {}

    def _map(self, cell: str, scores: Tensor) -> tuple[Tensor, dict[str, float]]:
        return self.windows.setdefault(cell, RunningRescale(**self.settings))(scores)

    def state_dict(self) -> dict[str, Any]:
        """The windows."""
        return {"windows": {cell: window.state_dict() for cell, window in self.windows.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.windows = {}
        for cell, saved in state["windows"].items():
            self.windows[cell] = RunningRescale(**self.settings)
            self.windows[cell].load_state_dict(saved)
