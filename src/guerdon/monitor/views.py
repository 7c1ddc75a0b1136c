"""The pieces of a run's page as HTML: the report is put together from them, and the live page shows them while it runs.

Everything that a policy or a user wrote is escaped. Charts and pictures have boxes of a fixed shape, so that a piece
can be replaced by a later one of itself and nothing moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from guerdon.monitor import microscope as scope
from guerdon.monitor.charts import Series, line_chart, number, signed, span
from guerdon.monitor.compare import Comparison
from guerdon.monitor.curves import Columns, Curves, finite
from guerdon.monitor.progress import duration
from guerdon.training.folder import RunFolder

TEMPLATES = Path(__file__).parent / "templates"
# Control characters have pictures in Unicode; the second block of them and the marks of direction have none.
_PICTURES: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= {code: f"[U+{code:04X}]" for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_PICTURES[0x7F] = 0x2421


@cache
def environment() -> Environment:
    """What renders the templates: escapes every value, and refuses names that are not given."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=number, signed=signed, span=span)
    return made


@cache
def stylesheet() -> str:
    """Colours and layout of all pieces, light and dark."""
    return (TEMPLATES / "theme.css").read_text(encoding="utf-8")


def visible(text: str) -> str:
    """Text with the characters made visible that a page swallows or that reorder what stands around them."""
    return text.translate(_PICTURES)


def header(folder: RunFolder, *, standing: bool = True) -> Markup:
    """What was trained, with held-out metrics before and after, and, by its ``standing``, how far it got."""
    columns, summary = folder.metrics(), folder.summary() or {}
    seconds = summary.get("seconds", max((t for t in columns["time"] if t is not None), default=0.0))
    return _render(
        "header",
        name=folder.name,
        standing=standing,
        kind=summary.get("kind") or scope.kind_of(folder),
        status=summary.get("status", "unfinished"),
        steps=summary.get("steps", max(columns["step"], default=-1) + 1),
        duration=duration(seconds),
        alarms=len(folder.alarms()),
        parts=main_parts(folder.settings()),
        changes=changes(summary.get("eval", {}), columns),
    )


def alarms(folder: RunFolder) -> Markup:
    """The alarms that were raised, in their order."""
    return _render("alarms", alarms=folder.alarms())


def faults(folder: RunFolder) -> Markup:
    """Failed reward calls by reward and kind; nothing where there are none."""
    return _render("faults", faults=fault_rows(folder.faults()))


def curves(folder: RunFolder) -> Markup:
    """The telling metrics over the steps, and folded the other ones."""
    found = Curves(folder.metrics(), folder.summary() or {}, folder.alarms(), folder.settings())
    return _render("curves", curves=found)


def recipe(folder: RunFolder) -> Markup:
    """The recipe, folded."""
    return _render("recipe", recipe=folder.recipe_path.read_text(encoding="utf-8", errors="replace"))


def microscope(
    folder: RunFolder, *, step: int | None = None, first: int = 0, count: int = 3, sort: scope.Sort = "spread"
) -> Markup:
    """Groups of rollouts of a saved step side by side, every action with its credit.

    Args:
        step: one that was saved; the last by default.
        first: groups to pass over.
        count: groups to show.
        sort: see ``microscope_page``.

    Raises:
        GuerdonError: when the step was not saved.
    """
    return rollouts(scope.microscope_page(folder, step=step, first=first, count=count, sort=sort))


def rollouts(page: scope.Page | None) -> Markup:
    """A page of the microscope that was read already, for who needs its numbers too."""
    return _render("microscope", page=page, scale=scale_swatches(page), charts=episode_charts)


def comparison(folders: Sequence[RunFolder]) -> Markup:
    """Several runs over each other: what differs in their recipes, how they end, and their curves."""
    return _render("comparison", comparison=Comparison(folders))


def _render(part: str, **context: Any) -> Markup:
    return Markup(visible(environment().get_template(f"parts/{part}.html.j2").render(**context)))


def main_parts(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The names of what a run consists of, by stage."""

    def name(value: Any) -> str:
        if isinstance(value, Mapping):
            return str(value.get("name", ""))
        return ", ".join(filter(None, map(name, value))) if isinstance(value, list) else str(value or "")

    stages = ("task", "policy", "rewards", "shaping", "credit", "objective")
    return {stage: names for stage in stages if (names := name(recipe.get(stage)))}


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


def changes(evaluations: Mapping[str, Mapping[str, float]], columns: Columns) -> list[Change]:
    """Held-out metrics before and after; of a run without an end, the first and last one logged."""
    before, after = evaluations.get("before", {}), evaluations.get("after", {})
    logged = {name.removeprefix("eval/"): finite(ys) for name, ys in columns.items() if name.startswith("eval/")}
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


def fault_rows(found: Sequence[Mapping[str, Any]]) -> list[FaultRow]:
    """Faults counted by reward and kind, most frequent first."""
    by_kind: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for fault in found:
        by_kind.setdefault((fault["reward"], fault["kind"]), []).append(fault)
    rows = [
        FaultRow(reward, kind, len(seen), len({f["step"] for f in seen}), seen[0]["message"], seen[0].get("text"))
        for (reward, kind), seen in by_kind.items()
    ]
    return sorted(rows, key=lambda row: (-row.count, row.reward, row.kind))


def scale_swatches(page: scope.Page | None) -> list[tuple[str, str]]:
    """CSS class and label of each colour of the credit scale, from the lowest to the highest."""
    if page is None or not page.scale:
        return []
    depths = range(1, scope.SHADES + 1)
    ends = [page.scale * depth / scope.SHADES for depth in depths]
    below = [(f"n{depth}", number(-end)) for depth, end in zip(depths, ends, strict=True)]
    return [*reversed(below), ("z", "0"), *((f"p{d}", number(end)) for d, end in zip(depths, ends, strict=True))]


def episode_charts(rollout: scope.Rollout) -> list[tuple[str, Markup]]:
    """A control episode over its steps: what each earned, and the credit of each action."""
    steps = list(range(len(rollout.credit)))
    pictures = [(f"{name} per step", values) for name, values in rollout.dense.items()]
    pictures += [("credit per step", rollout.credit)] if any(c is not None for c in rollout.credit) else []
    charts = []
    for color, (label, values) in enumerate(pictures):
        series = Series(label, steps[: len(values)], values, color)
        charts.append(
            (
                label,
                line_chart(
                    [series], label=f"trajectory {rollout.row}: {label}", x_label="action", x_range=(0, steps[-1])
                ),
            )
        )
    return charts
