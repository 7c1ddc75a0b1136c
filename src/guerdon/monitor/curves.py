"""The pictures of one run's metrics: which lines share one, with what band of uncertainty, in which order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from guerdon.monitor.charts import Marker, Series, line_chart

# Lines that share a picture have ranges within this factor of each other, so that none is drowned.
SAME_SCALE = 10.0
# Alarms beyond these crowd the pictures; the list names them all.
MARKERS = 20
SHARE = (0.0, 1.0)

Columns = Mapping[str, Sequence[Any]]
Band = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One picture with its heading, a sentence on how to read it, and its lines for the legend."""

    title: str
    note: str
    chart: Markup
    series: Sequence[Series]


class Curves:
    """The pictures of a run's metrics.

    Args:
        columns: metrics by name, as ``RunFolder.metrics`` gives them.
        summary: the run's last word, or nothing.
        alarms: those that were raised; they are marked in every picture.
        recipe: the run's settings, as far as they can be read.

    Attributes:
        main: the telling ones.
        further: one for each other metric that changes.
        constants: the other metrics, which never change.
    """

    def __init__(
        self,
        columns: Columns,
        summary: Mapping[str, Any],
        alarms: Sequence[Mapping[str, Any]],
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self._columns = {n: ys for n, ys in columns.items() if n not in ("step", "time") and finite(ys)}
        self._steps = list(columns["step"])
        self._summary = summary
        self._recipe = recipe or {}
        self._markers = [
            Marker(a["step"], f"step {a['step']}: {a['code']}", a.get("severity", "warning")) for a in alarms[:MARKERS]
        ]
        self._drawn: set[str] = set()
        self.main = self._main()
        rest = [name for name in self._columns if name not in self._drawn]
        values = {name: finite(self._columns[name]) for name in rest}
        self.constants = {name: ys[0] for name, ys in values.items() if min(ys) == max(ys)}
        changing = [name for name in rest if name not in self.constants]
        self.further = [panel for n in changing for panel in self._panels(n, "", {n: self._columns[n]})]

    def _main(self) -> list[Panel]:
        """The curves that tell whether it learns, in the order of asking."""
        useful = [None if x is None else 1 - x for x in self._columns.get("groups/zero_variance", ())]
        groups = {"with differing rewards": useful} if useful else {}
        groups |= self._pick(("groups/all_min", "all fail"), ("groups/all_max", "all succeed"), always=True)
        self._drawn |= {"groups/zero_variance", "reward/min", "reward/max"}
        kl = {n.removeprefix("update/"): n for n in self._columns if n.rpartition("/")[2] in ("kl", "approx_kl")}
        return [
            *self._evaluation(),
            *self._rewards(),
            *self._panels("Groups", "only groups with differing rewards teach a group estimator", groups, SHARE),
            *self._panels("Reward spread", "standard deviation over the batch", self._pick(("reward/std", "reward"))),
            *self._panels(
                "Length", "actions per trajectory", self._pick(("length/mean", "mean"), ("length/max", "longest"))
            ),
            *self._panels("Cut at the limit", "share of trajectories", self._pick(("truncated", "cut")), SHARE),
            *self._panels("Entropy", "nats per action", self._pick(("entropy/mean", "entropy"))),
            *self._panels("KL divergence", "nats per action", self._pick(*((n, label) for label, n in kl.items()))),
            *self._panels("Loss", "what is minimised", self._pick(("update/loss", "loss"))),
            *self._panels("Gradient norm", "before clipping", self._pick(("update/grad_norm", "norm"))),
            *self._panels("Throughput", "actions per second", self._pick(("actions_per_second", "actions/s"))),
            *self._panels("Reward faults", "failed calls per step", self._faults()),
        ]

    def _rewards(self) -> list[Panel]:
        """The reward, what is watched beside it, and what it consists of."""
        components = self._named("reward/", "/mean")
        watched = {f"{n} (watch only)": c for n, c in self._named("watch/", "/mean").items()}
        reward = self._pick(("reward/mean", "reward"), always=True)
        bands = {name: band for name in components if (band := self._standard_errors(f"reward/{name}"))}
        bands |= {"reward": band} if (band := self._standard_errors("reward")) else {}
        told = "; band: ± one standard error over the batch's trajectories" if bands else ""
        panels = self._panels("Training reward", f"mean over the batch, after shaping{told}", reward, bands=bands)
        if watched:
            note = "a reward that rises while what is only watched falls is being exploited"
            panels += self._panels("Optimised and watched", note, reward | watched)
        if len(components) > 1 or list(components.values()) != [self._columns.get("reward/mean")]:
            panels += self._panels("Reward components", f"mean of each, before shaping{told}", components, bands=bands)
        return panels

    def _standard_errors(self, name: str) -> Band:
        """One standard error of the mean around ``NAME/mean``, where spread and number of trajectories are known."""
        columns = (self._columns.get(key, ()) for key in (f"{name}/mean", f"{name}/std", "trajectories"))
        band = []
        for mean, std, n in zip(*columns, strict=False):
            known = len(finite([mean, std])) == 2 and n
            error = std / math.sqrt(n) if known else math.nan
            band.append((mean - error, mean + error) if known else (math.nan, math.nan))
        return band

    def _faults(self) -> dict[str, Sequence[Any]]:
        """Faults by kind, zero where a step had none of a kind; all of them where kinds were not counted."""
        kinds = self._named("faults/", "")
        every = self._pick(("faults", "all"))
        if len(kinds) < 2:
            return every
        return every | {kind: [0.0 if y is None else y for y in ys] for kind, ys in kinds.items()}

    def _evaluation(self) -> list[Panel]:
        """Held-out metrics by training steps done, with the evaluations before and after training."""
        self._named("eval/", "")
        lines = evaluations({"step": self._steps, **self._columns}, self._summary)
        note, bands = "on problems that training never sees", {}
        problems = setting(self._recipe, "evaluation.problems")
        if isinstance(problems, int) and problems > 0:
            shares = {name: ys for name, ys in lines.items() if self._is_share(name, ys.values())}
            bands = {name: [share_interval(y, problems) for y in ys.values()] for name, ys in shares.items()}
            note += f"; band: 68\u00a0% interval of a share of {problems} problems" if bands else ""
        return self._panels("Held-out evaluation", note, lines, x_label="steps done", bands=bands)

    def _is_share(self, name: str, ys: Iterable[float]) -> bool:
        """Whether a held-out metric is known to be a mean of numbers within [0, 1].

        The variance of such numbers is at most mean * (1 - mean); a reward that exceeds it in training is another.
        """
        if name == "faults" or not all(0 <= y <= 1 for y in ys):
            return False
        if name in ("sampled", "greedy"):
            ends = finite([*self._columns.get("reward/min", ()), *self._columns.get("reward/max", ())])
            return not self._recipe.get("shaping") and bool(ends) and min(ends) >= 0 and max(ends) <= 1
        component = name.removeprefix("sampled/").removeprefix("greedy/")
        moments = [self._columns.get(f"reward/{component}/{key}", ()) for key in ("mean", "std")]
        pairs = [(m, s) for m, s in zip(*moments, strict=False) if m is not None and s is not None]
        return bool(pairs) and all(s * s <= m * (1 - m) + 1e-6 for m, s in pairs)

    def _named(self, prefix: str, suffix: str) -> dict[str, Sequence[Any]]:
        """Columns ``prefix NAME suffix`` by NAME."""
        found = {}
        for column, ys in self._columns.items():
            name = column.removeprefix(prefix).removesuffix(suffix)
            if name and column == f"{prefix}{name}{suffix}":
                found[name] = ys
                self._drawn.add(column)
        return found

    def _pick(self, *named: tuple[str, str], always: bool = False) -> dict[str, Sequence[Any]]:
        """The columns that exist, under their labels; those that never change only ``always``."""
        found = {column: label for column, label in named if column in self._columns}
        shown = [c for c in found if always or len(ys := finite(self._columns[c])) == 1 or min(ys) < max(ys)]
        self._drawn |= set(shown)
        return {found[column]: self._columns[column] for column in shown}

    def _panels(
        self,
        title: str,
        note: str,
        lines: Mapping[str, Sequence[Any] | Mapping[float, float]],
        y_range: tuple[float, float] | None = None,
        x_label: str = "step",
        bands: Mapping[str, Band] | None = None,
    ) -> list[Panel]:
        """The lines in as few pictures as their scales allow; none for no lines."""
        made = []
        for names in _by_scale({n: list(ys.values()) if isinstance(ys, Mapping) else ys for n, ys in lines.items()}):
            series = []
            for color, name in enumerate(names):
                ys = lines[name]
                xs = list(ys) if isinstance(ys, Mapping) else self._steps
                ys = list(ys.values()) if isinstance(ys, Mapping) else ys
                series.append(Series(name, xs, ys, color, (bands or {}).get(name)))
            label = f"{title}: {', '.join(names)}"
            chart = line_chart(series, label=label, markers=self._markers, y_range=y_range, x_label=x_label)
            if chart:
                made.append(Panel(title, note, chart, series))
        return made


def _by_scale(lines: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """Names of lines in sets whose largest magnitudes lie within ``SAME_SCALE`` of each other, in their own order."""
    sets: list[tuple[float, float, list[str]]] = []
    for name, ys in lines.items():
        size = max((abs(y) for y in finite(ys)), default=0.0)
        for place, (low, high, names) in enumerate(sets):
            if not size or not high or max(high, size) <= SAME_SCALE * min(low, size):
                sets[place] = (min(low, size) if size and low else low or size, max(high, size), [*names, name])
                break
        else:
            sets.append((size, size, [name]))
    return [names for _, _, names in sets]


def finite(ys: Iterable[float | None]) -> list[float]:
    """The values that are numbers, in their order."""
    return [y for y in ys if y is not None and math.isfinite(y)]


def evaluations(columns: Columns, summary: Mapping[str, Any]) -> dict[str, dict[float, float]]:
    """Held-out metrics by the number of training steps done, with those before and after training."""
    logged = {n.removeprefix("eval/"): ys for n, ys in columns.items() if n.startswith("eval/") and finite(ys)}
    before, after = (summary.get("eval", {}).get(key, {}) for key in ("before", "after"))
    end, lines = summary.get("steps", 0), {}
    for name in dict.fromkeys([*before, *after, *logged]):
        pairs = zip(columns["step"], logged.get(name, ()), strict=False)
        points = {step + 1: y for step, y in pairs if y is not None}
        points |= {0: before[name]} if name in before else {}
        points |= {end: after[name]} if name in after else {}
        lines[name] = dict(sorted(points.items()))
    return lines


def share_interval(share: float, n: int) -> tuple[float, float]:
    """The 68 % Wilson interval of a share of ``n``: about ± one standard error, also near 0 and 1, where that is 0."""
    centre, half = share + 1 / (2 * n), math.sqrt(share * (1 - share) / n + 1 / (4 * n * n))
    return (centre - half) / (1 + 1 / n), (centre + half) / (1 + 1 / n)


def setting(recipe: Mapping[str, Any], path: str) -> Any:
    """A value of a recipe by its path, such as ``evaluation.problems``; None where there is none."""
    value: Any = recipe
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
