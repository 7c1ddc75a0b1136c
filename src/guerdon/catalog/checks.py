"""What a claim's run leaves on record: checks, and the curves behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Curves:
    """What was seen on the way: for every name a line of (mean, lowest, highest) over the seeds.

    Attributes:
        axis: what the lines show.
        steps: the step of each point.
        lines: for every name, one (mean, lowest, highest) per point.
    """

    axis: str
    steps: list[int]
    lines: dict[str, list[tuple[float, float, float]]]


@dataclass(frozen=True)
class Check:
    """One thing that a claim expected, and what it saw.

    Attributes:
        what: what was looked at.
        kind: ``exact`` for what must hold by derivation, ``learning`` for an effect over seeds, ``error`` for a claim
            that did not run to its end.
        expected, seen: in words or numbers.
        holds: whether it was so.
        method, baseline: one number per seed.
        interval: bootstrap interval of the mean gain of the method over its baseline.
        curves: for a plot.
    """

    what: str
    kind: Literal["exact", "learning", "error"]
    expected: str
    seen: str
    holds: bool
    method: list[float] | None = None
    baseline: list[float] | None = None
    interval: tuple[float, float] | None = None
    curves: Curves | None = None
