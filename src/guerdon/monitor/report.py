"""The report of a run: one HTML file that needs nothing else, readable while the run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from guerdon import __version__
from guerdon.monitor.charts import Marker, Series, compact, line_chart
from guerdon.monitor.progress import duration
from guerdon.monitor.samples import sample_steps
from guerdon.training.folder import RunFolder, atomic_write

# Lines that share a picture have ranges within this factor of each other, so that none is drowned.
SAME_SCALE = 10.0
# Alarms beyond these crowd the pictures; the list names them all.
MARKERS = 20
SHARE = (0.0, 1.0)

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Panel:
    """One picture with its heading, a sentence on how to read it, and its lines for the legend."""

    title: str
    note: str
    chart: Markup
    series: Sequence[Series]


@dataclass(frozen=True)
class Change:
    """A held-out metric at the beginning and at the end."""

    name: str
    before: float | None
    after: float | None

    @property
    def difference(self) -> float | None:
        """What training changed."""
        return None if self.before is None or self.after is None else self.after - self.before


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run's folder, whatever the run has got to, and return its path.

    Raises:
        GuerdonError: when there is no run at ``run_dir``, or the file cannot be written.
    """
    folder = RunFolder.open(run_dir)
    page = render_report(folder)
    atomic_write(folder.report_path, lambda file: file.write(page.encode("utf-8", "replace")))
    return folder.report_path


def render_report(folder: RunFolder) -> str:
    """The report as HTML; everything the policy or the user wrote is escaped."""
    columns, summary, alarms = folder.metrics(), folder.summary() or {}, folder.alarms()
    faults = fault_rows(folder.faults())
    samples = sample_steps(folder)
    steps = summary.get("steps", max(columns["step"], default=-1) + 1)
    seconds = summary.get("seconds", max((t for t in columns["time"] if t is not None), default=0.0))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, signed=_signed, span=_span)
    curves = Curves(columns, summary, alarms)
    page = environment.get_template("report.html.j2").render(
        name=folder.name,
        kind=summary.get("kind") or (samples[0].kind if samples else None),
        status=summary.get("status", "unfinished"),
        steps=steps,
        duration=duration(seconds),
        weights=summary.get("weights_sha256"),
        changes=changes(summary.get("eval", {}), columns),
        alarms=alarms,
        faults=faults,
        curves=curves,
        samples=samples,
        recipe=folder.recipe_path.read_text(encoding="utf-8", errors="replace"),
        version=__version__,
    )
    return visible(page)


def changes(evaluations: Mapping[str, Mapping[str, float]], columns: Columns) -> list[Change]:
    """Held-out metrics before and after; of a run without an end, the first and last one logged."""
    before, after = evaluations.get("before", {}), evaluations.get("after", {})
    logged = {name.removeprefix("eval/"): _finite(ys) for name, ys in columns.items() if name.startswith("eval/")}
    out = []
    for name in dict.fromkeys([*before, *after, *logged]):
        seen = logged.get(name, [])
        first = before.get(name, seen[0] if seen and not before else None)
        last = after.get(name, seen[-1] if seen and not after else None)
        out.append(Change(name, first, last))
    return out


@dataclass(frozen=True)
class FaultRow:
    """The faults of one kind of one reward, with the first of them."""

    reward: str
    kind: str
    count: int
    steps: int
    message: str
    text: str | None


def fault_rows(faults: Sequence[Mapping[str, Any]]) -> list[FaultRow]:
    """Faults counted by reward and kind, most frequent first."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for fault in faults:
        found.setdefault((fault["reward"], fault["kind"]), []).append(fault)
    rows = [
        FaultRow(reward, kind, len(seen), len({f["step"] for f in seen}), seen[0]["message"], seen[0].get("text"))
        for (reward, kind), seen in found.items()
    ]
    return sorted(rows, key=lambda row: (-row.count, row.reward, row.kind))


def visible(text: str) -> str:
    """Text with control characters, which a page would swallow, as their pictures."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)


class Curves:
    """The pictures of a run's metrics.

    Attributes:
        main: the telling ones.
        further: one for each other metric that changes.
        constants: the other metrics, which never change.
    """

    def __init__(self, columns: Columns, summary: Mapping[str, Any], alarms: Sequence[Mapping[str, Any]]) -> None:
        self._columns = {n: ys for n, ys in columns.items() if n not in ("step", "time") and _finite(ys)}
        self._steps = list(columns["step"])
        self._summary = summary
        self._markers = [
            Marker(a["step"], f"step {a['step']}: {a['code']}", a.get("severity", "warning")) for a in alarms[:MARKERS]
        ]
        self._drawn: set[str] = set()
        self.main = self._main()
        rest = [name for name in self._columns if name not in self._drawn]
        values = {name: _finite(self._columns[name]) for name in rest}
        self.constants = {name: ys[0] for name, ys in values.items() if min(ys) == max(ys)}
        changing = [name for name in rest if name not in self.constants]
        self.further = [panel for n in changing for panel in self._panels(n, "", {n: self._columns[n]})]

    def _main(self) -> list[Panel]:
        """The curves that tell whether it learns, in the order of asking."""
        rewards = self._named("reward/", "/mean")
        watched = {f"{n} (watch only)": c for n, c in self._named("watch/", "/mean").items()}
        useful = [None if x is None else 1 - x for x in self._columns.get("groups/zero_variance", ())]
        groups = {"with differing rewards": useful} if useful else {}
        groups |= self._pick(("groups/all_min", "all fail"), ("groups/all_max", "all succeed"), always=True)
        self._drawn |= {"groups/zero_variance", "reward/min", "reward/max"}
        kl = {n.removeprefix("update/"): n for n in self._columns if n.rpartition("/")[2] in ("kl", "approx_kl")}
        reward = self._pick(("reward/mean", "reward"), always=True)
        if [*rewards.values(), *watched.values()] == [self._columns.get("reward/mean")]:
            rewards = {}  # one component, and nothing shaped it
        return [
            *self._evaluation(),
            *self._panels("Training reward", "mean over the batch, after shaping", reward),
            *self._panels("Reward components", "mean of each, before shaping", rewards | watched),
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

    def _faults(self) -> dict[str, Sequence[Any]]:
        """Faults by kind, zero where a step had none of a kind; all of them where kinds were not counted."""
        kinds = self._named("faults/", "")
        every = self._pick(("faults", "all"))
        if len(kinds) < 2:
            return every
        return every | {kind: [0.0 if y is None else y for y in ys] for kind, ys in kinds.items()}

    def _evaluation(self) -> list[Panel]:
        """Held-out metrics by training steps done, with the evaluations before and after training."""
        logged = self._named("eval/", "")
        before, after = (self._summary.get("eval", {}).get(key, {}) for key in ("before", "after"))
        end = self._summary.get("steps", 0)
        lines = {}
        for name in dict.fromkeys([*before, *after, *logged]):
            points = {step + 1: y for step, y in zip(self._steps, logged.get(name, ()), strict=False) if y is not None}
            points |= {0: before[name]} if name in before else {}
            points |= {end: after[name]} if name in after else {}
            lines[name] = dict(sorted(points.items()))
        return self._panels("Held-out evaluation", "on problems that training never sees", lines, x_label="steps done")

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
        shown = [c for c in found if always or len(ys := _finite(self._columns[c])) == 1 or min(ys) < max(ys)]
        self._drawn |= set(shown)
        return {found[column]: self._columns[column] for column in shown}

    def _panels(
        self,
        title: str,
        note: str,
        lines: Mapping[str, Sequence[Any] | Mapping[int, float]],
        y_range: tuple[float, float] | None = None,
        x_label: str = "step",
    ) -> list[Panel]:
        """The lines in as few pictures as their scales allow; none for no lines."""
        made = []
        for names in _by_scale({n: list(ys.values()) if isinstance(ys, Mapping) else ys for n, ys in lines.items()}):
            series = []
            for color, name in enumerate(names):
                ys = lines[name]
                xs = list(ys) if isinstance(ys, Mapping) else self._steps
                series.append(Series(name, xs, list(ys.values()) if isinstance(ys, Mapping) else ys, color))
            label = f"{title}: {', '.join(names)}"
            chart = line_chart(series, label=label, markers=self._markers, y_range=y_range, x_label=x_label)
            if chart:
                made.append(Panel(title, note, chart, series))
        return made


def _by_scale(lines: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """Names of lines in sets whose largest magnitudes lie within ``SAME_SCALE`` of each other, in their own order."""
    sets: list[tuple[float, float, list[str]]] = []
    for name, ys in lines.items():
        size = max((abs(y) for y in _finite(ys)), default=0.0)
        for place, (low, high, names) in enumerate(sets):
            if not size or not high or max(high, size) <= SAME_SCALE * min(low, size):
                sets[place] = (min(low, size) if size and low else low or size, max(high, size), [*names, name])
                break
        else:
            sets.append((size, size, [name]))
    return [names for _, _, names in sets]


def _finite(ys: Iterable[float | None]) -> list[float]:
    return [y for y in ys if y is not None and math.isfinite(y)]


def _number(x: float | None) -> str:
    """A number with a true minus."""
    return compact(x).replace("-", "−", 1) if x is not None and x < 0 else compact(x)


def _signed(x: float) -> str:
    """A number that shows its sign also where it is positive."""
    return _number(x) if x < 0 else f"+{compact(x)}"


def _span(ends: tuple[float, float] | None) -> str:
    """A range as ``−0.5 to 1``, or the one number that it holds as far as it is shown."""
    if ends is None:
        return "–"
    low, high = (_number(x) for x in ends)
    return low if low == high else f"{low} to {high}"
