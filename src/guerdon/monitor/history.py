"""What the detectors remember of a run: recent numbers, how it began, what was best, and what is being reported."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

# Steps that a share or a mean is taken over: long enough to outlast an unlucky batch.
WINDOW = 10
# A component that is constant for fewer steps than this may still be waiting for its first success.
LONG_WINDOW = 20
# How a run began is told by its first steps.
START_STEPS = 5
# Statements of shares need this many trajectories, or one more or less changes them by several percent.
ENOUGH_TRAJECTORIES = 30

_PREFIXES = (
    *("reward/", "watch/", "groups/", "text/", "length/", "components/", "advantage/", "update/", "entropy/"),
    *("faults", "trajectories", "truncated", "staleness", "judge/"),
)


class History:
    """Numbers of the last steps by name, and the few of the steps before that are still needed.

    Args:
        steps: how many steps there are in all, where that is known; fewer than a window make the windows shorter.
        formats: names of the components that measure form; by their names if None.
    """

    def __init__(self, steps: int | None = None, *, formats: Collection[str] | None = None) -> None:
        known = max(steps or LONG_WINDOW, 1)
        self.window, self.long = min(WINDOW, known), min(LONG_WINDOW, known)
        self.start_steps = max(1, min(START_STEPS, known // 3))
        self._formats = formats
        self.active: dict[str, int] = {}
        self.steps = 0
        self.trajectories = 0.0
        self.varied: set[str] = set()
        self._recent: dict[str, deque[float]] = {}
        self._matches: dict[tuple[str, str], list[str]] = {}
        self._start: dict[str, list[float]] = {}
        self._range: dict[str, list[float]] = {}
        self._peak: dict[str, dict[str, list[float]]] = {}

    def remember(self, metrics: Mapping[str, float]) -> None:
        """Take in the numbers of a step."""
        self.steps += 1
        self.trajectories += metrics.get("trajectories", 0.0)
        for key in ("reward/min", "reward/max"):
            self._widen("reward", metrics.get(key))
        for name, value in metrics.items():
            if not name.startswith(_PREFIXES) or not math.isfinite(value):
                continue
            if name not in self._recent:
                self._recent[name] = deque(maxlen=self.long)
                self._matches.clear()
            self._recent[name].append(float(value))
            if len(start := self._start.setdefault(name, [])) < self.start_steps:
                start.append(float(value))
            if name.endswith("/std") and value > 0:
                self.varied.add(name.removesuffix("/std"))
            if name.endswith("/mean") and name.count("/") == 2:
                self._widen(name.removesuffix("/mean"), value)
        self._climb()

    def names(self, prefix: str = "", suffix: str = "") -> list[str]:
        """Names of what has been seen, in the order it came."""
        if (prefix, suffix) not in self._matches:
            found = [name for name in self._recent if name.startswith(prefix) and name.endswith(suffix)]
            self._matches[prefix, suffix] = found
        return self._matches[prefix, suffix]

    def middles(self, prefix: str, suffix: str) -> list[str]:
        """The NAMEs of all ``prefix NAME suffix``."""
        found = (name[len(prefix) : len(name) - len(suffix)] for name in self.names(prefix, suffix))
        return [name for name in found if name]

    def components(self) -> list[str]:
        """Names of the reward's components."""
        return self.middles("reward/", "/mean")

    def measures_form(self, component: str) -> bool:
        """Whether a component looks at the form of an answer rather than at its content."""
        if self._formats is not None:
            return component in self._formats
        return "format" in component.lower() or component in ("tags", "json_schema")

    def last(self, name: str, count: int | None = None) -> list[float]:
        """The last values, at most ``count`` (a window by default)."""
        return list(self._recent.get(name, ()))[-(count or self.window) :]

    def mean(self, name: str, window: int | None = None) -> float | None:
        """Mean over a window; None before it is full, or before it holds enough trajectories."""
        window = min(window or self.window, self.long)
        values = self._recent.get(name, ())
        if len(values) < window or 0 < self.trajectories < ENOUGH_TRAJECTORIES:
            return None
        return sum(list(values)[-window:]) / window

    def error(self, name: str) -> float:
        """Standard error of the mean over the window, from how its values scatter; 0 for a window of one."""
        return _error(self.last(name))

    def start(self, name: str) -> float | None:
        """Mean over the first steps; None before they are over."""
        values = self._start.get(name, ())
        return sum(values) / len(values) if len(values) >= self.start_steps else None

    def ends(self, name: str = "reward") -> tuple[float, float] | None:
        """Smallest and largest reward ever seen; of a component or watched reward, of its means."""
        return tuple(self._range[name]) if name in self._range else None  # type: ignore[return-value]

    def place(self, name: str, value: float) -> float:
        """Where a value of ``reward``, ``reward/NAME`` or ``watch/NAME`` lies in its range, which spans [0, 1] too."""
        low, high = self.width(name)
        return (value - low) / (high - low)

    def width(self, name: str) -> tuple[float, float]:
        """The range of ``reward``, ``reward/NAME`` or ``watch/NAME``: what was seen of it, and [0, 1]."""
        low, high = self.ends(name) or (0.0, 1.0)
        return min(low, 0.0), max(high, 1.0)

    def peak(self, name: str) -> dict[str, tuple[float, float]] | None:
        """Mean and error of a watched reward (``watch/NAME/mean``) where it was best, and of ``reward/mean`` then."""
        found = self._peak.get(name)
        return None if found is None else {key: (x[0], x[1]) for key, x in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that is remembered; JSON-serialisable."""
        return {
            "recent": {name: list(values) for name, values in self._recent.items()},
            "start": {name: list(values) for name, values in self._start.items()},
            "range": {name: list(ends) for name, ends in self._range.items()},
            "peak": {name: {k: list(v) for k, v in found.items()} for name, found in self._peak.items()},
            "active": dict(self.active),
            "varied": sorted(self.varied),
            "steps": self.steps,
            "trajectories": self.trajectories,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self._recent = {name: deque(values, self.long) for name, values in state["recent"].items()}
        self._matches.clear()
        self._start = {name: list(values) for name, values in state["start"].items()}
        self._range = {name: list(ends) for name, ends in state["range"].items()}
        self._peak = {name: {k: list(v) for k, v in found.items()} for name, found in state["peak"].items()}
        self.active, self.varied = dict(state["active"]), set(state["varied"])
        self.steps, self.trajectories = state["steps"], state["trajectories"]

    def _widen(self, name: str, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            ends = self._range.setdefault(name, [value, value])
            self._range[name] = [min(ends[0], value), max(ends[1], value)]

    def _climb(self) -> None:
        """Remember how things stood where each watched reward was best."""
        reward = self.mean("reward/mean")
        for name in self.names("watch/", "/mean"):
            now = self.mean(name)
            if now is None or reward is None or (name in self._peak and now <= self._peak[name]["gold"][0]):
                continue
            self._peak[name] = {"gold": [now, self.error(name)], "reward": [reward, self.error("reward/mean")]}


def _error(values: list[float]) -> float:
    n = len(values)
    if n < 2:
        return 0.0
    mean = sum(values) / n
    return math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)
