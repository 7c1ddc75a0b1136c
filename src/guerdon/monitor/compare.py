"""Several runs over each other: those that differ by their seed only are one line with a band."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from guerdon.monitor.charts import COLORS, DASHES, Series, line_chart
from guerdon.monitor.curves import Band, Panel, evaluations, finite
from guerdon.training.folder import RunFolder

# What says nothing of how a run learns: its name, where and how often it is saved, and the seed.
APART = ("name", "runs_dir", "seed", "logging", "checkpoint")
# Below this many seeds a standard error is itself hardly known, so the band is their whole range.
SEEDS = 5
# More lines than styles can't be told apart.
LINES = COLORS * DASHES
SEPARATORS = "-_. "
MAIN = (
    "reward/mean watch/ reward/ groups/zero_variance length/mean truncated entropy/mean kl update/loss update/grad_norm"
).split()

Points = dict[float, float]


@dataclass(frozen=True)
class Member:
    """One run: what it left behind, read once.

    Attributes:
        settings: its recipe by path, ``training.steps`` and the like.
        points: its metrics by name, each as y by x; held-out ones by steps done, from ``before`` to ``after``.
    """

    name: str
    status: str
    steps: int
    settings: Mapping[str, str]
    points: Mapping[str, Points]

    @classmethod
    def read(cls, folder: RunFolder) -> Member:
        """Read a run's folder."""
        columns, summary = folder.metrics(), folder.summary() or {}
        steps = columns["step"]
        points: dict[str, Points] = {f"eval/{name}": ys for name, ys in evaluations(columns, summary).items()}
        for name, ys in columns.items():
            if name not in ("step", "time") and not name.startswith("eval/"):
                found = {x: y for x, y in zip(steps, ys, strict=True) if y is not None and math.isfinite(y)}
                points |= {name: found} if found else {}
        return cls(
            folder.name,
            summary.get("status", "unfinished"),
            summary.get("steps", max(steps, default=-1) + 1),
            flat(folder.settings()),
            points,
        )


@dataclass(frozen=True)
class Condition:
    """Runs that differ by their seed only."""

    name: str
    members: Sequence[Member]
    style: int

    @property
    def css(self) -> str:
        """Classes of its line."""
        return Series("", (), (), self.style).style

    @property
    def seeds(self) -> str:
        """The seeds of its runs."""
        return ", ".join(member.settings.get("seed", "–") for member in self.members)

    def line(self, metric: str) -> Series | None:
        """Mean over the runs that have the metric, at each x that all of them have, with the band of their spread."""
        having = [member.points[metric] for member in self.members if metric in member.points]
        if not having:
            return None
        xs = sorted(set(having[0]).intersection(*having[1:]))
        columns = [[points[x] for points in having] for x in xs]
        bands: Band = [spread(ys) for ys in columns]
        return Series(self.name, xs, [statistics.fmean(ys) for ys in columns], self.style, bands) if xs else None

    def final(self, metric: str) -> tuple[float, tuple[float, float], int] | None:
        """Mean of the last values of a metric over the runs that have it, their range, and how many they are."""
        last = [list(m.points[metric].values())[-1] for m in self.members if metric in m.points]
        return (statistics.fmean(last), (min(last), max(last)), len(last)) if last else None


class Comparison:
    """What several runs have in common and where they part.

    Attributes:
        conditions: runs that differ by more than their seed, each with its seeds.
        differing: settings that are not the same in all conditions: the value of each, in their order.
        metrics: held-out metrics of the table.
    """

    def __init__(self, folders: Sequence[RunFolder]) -> None:
        members = [Member.read(folder) for folder in folders]
        by_settings: dict[str, list[Member]] = {}
        for member in members:
            kept = {key: value for key, value in member.settings.items() if key.partition(".")[0] not in APART}
            by_settings.setdefault(json.dumps(kept, sort_keys=True), []).append(member)
        names = _distinct([common_name([m.name for m in found]) for found in by_settings.values()])
        self.conditions = [
            Condition(name, found, style)
            for style, (name, found) in enumerate(zip(names, by_settings.values(), strict=True))
        ]
        keys = dict.fromkeys(key for member in members for key in member.settings if key.partition(".")[0] not in APART)
        values = {key: [c.members[0].settings.get(key) for c in self.conditions] for key in keys}
        self.differing = {
            key: ["–" if value is None else value for value in found]
            for key, found in values.items()
            if len(set(found)) > 1 and not _follows(key, values)
        }
        self.runs = len(members)
        self._every = [set(member.points) for member in members]
        known = list(dict.fromkeys(name for member in members for name in member.points))
        self._shared = [name for name in known if all(name in found for found in self._every)]
        self._others = [name for name in known if name not in set(self._shared)]
        self.metrics = [name for name in [*self._shared, *self._others] if name.startswith("eval/")]

    @property
    def drawn(self) -> Sequence[Condition]:
        """The conditions that are drawn: all, or as many as can be told apart."""
        return self.conditions[:LINES]

    @property
    def note(self) -> str:
        """What the bands are."""
        sizes = {len(condition.members) for condition in self.conditions}
        if max(sizes, default=0) < 2:
            return ""
        few, many = min(sizes - {1}, default=0) < SEEDS, max(sizes) >= SEEDS
        told = ["from the lowest to the highest seed"] if few else []
        told += [f"± one standard error over the seeds{f', from {SEEDS} seeds on' if few else ''}"] if many else []
        return f"Lines are means over seeds, where all of them have a value; bands: {', or '.join(told)}."

    @cached_property
    def main(self) -> list[Panel]:
        """The telling metrics that all runs share."""
        held_out = [name for name in self._shared if name.startswith("eval/")]
        return self._panels([*held_out, *_telling(self._shared)])

    @cached_property
    def further(self) -> list[Panel]:
        """The other metrics that all share and that differ somewhere."""
        main = {*_telling(self._shared), *self.metrics}
        return self._panels([name for name in self._shared if name not in main])

    @cached_property
    def others(self) -> list[Panel]:
        """Metrics that only some of the runs have."""
        return self._panels(self._others)

    def _panels(self, names: Iterable[str]) -> list[Panel]:
        made = []
        for name in names:
            lines = [line for condition in self.drawn if (line := condition.line(name)) is not None]
            if len({y for line in lines for y in finite(line.y)}) < 2:
                continue
            held_out = name.startswith("eval/")
            title = f"held-out {name.removeprefix('eval/')}" if held_out else name
            chart = line_chart(
                lines, label=f"{title} of {len(lines)} runs", x_label="steps done" if held_out else "step"
            )
            made.append(Panel(title, "", chart, lines))
        return made


def spread(ys: Sequence[float]) -> tuple[float, float]:
    """The band of one x: the range of fewer than ``SEEDS`` values, else their mean ± one standard error."""
    if len(ys) < SEEDS:
        return min(ys), max(ys)
    mean, error = statistics.fmean(ys), statistics.stdev(ys) / math.sqrt(len(ys))
    return mean - error, mean + error


def flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A recipe's values as text by path; lists by their named items, or as a whole."""
    out: dict[str, str] = {}
    for key, value in recipe.items():
        path = f"{prefix}{key}"
        if isinstance(value, list) and value and all(isinstance(x, Mapping) and "name" in x for x in value):
            names = [str(x.get("label") or x["name"]) for x in value]
            out[path] = ", ".join(names)
            for name, item in zip(names, value, strict=True):
                out |= flat({k: v for k, v in item.items() if k != "name"}, f"{path}.{name}.")
        elif isinstance(value, Mapping) and value:
            out |= flat(value, f"{path}.")
        else:
            out[path] = value if isinstance(value, str) else json.dumps(value, default=str)
    return out


def common_name(names: Sequence[str]) -> str:
    """What the names of a condition's runs begin with, in whole words; else the first name, and how many there are."""
    if len(names) == 1:
        return names[0]
    prefix = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False)))
    if prefix[-1:].isalpha() and any(name[len(prefix) : len(prefix) + 1].isalpha() for name in names):
        prefix = prefix[: max(prefix.rfind(c) for c in SEPARATORS) + 1]
    prefix = prefix.rstrip("0123456789").rstrip(SEPARATORS).removesuffix("seed").rstrip(SEPARATORS)
    return prefix or f"{names[0]} and {len(names) - 1} more"


def _follows(key: str, values: Mapping[str, Sequence[str | None]]) -> bool:
    """Whether some conditions lack a setting, and the rest agree, because they lack the part that it belongs to."""
    if len({value for value in values[key] if value is not None}) > 1:
        return False
    parts = key.split(".")
    owners = [owner for k in range(1, len(parts)) for owner in (".".join(parts[:k]), ".".join([*parts[:k], "name"]))]
    return any(len(set(values[owner])) > 1 for owner in owners if owner in values and owner != key)


def _telling(names: Sequence[str]) -> list[str]:
    """The metrics that tell whether a run learns, in the order of asking."""
    out: dict[str, None] = {}
    for wanted in MAIN:
        for name in names:
            means = wanted.endswith("/") and name.startswith(wanted) and name.endswith("/mean") and name.count("/") == 2
            kl = wanted == "kl" and name.rpartition("/")[2] in ("kl", "approx_kl")
            if name == wanted or means or kl:
                out[name] = None
    return list(out)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which none occurs twice."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out
