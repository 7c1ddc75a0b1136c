"""Tables for people, rows for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from guerdon import registry
from guerdon.errors import RecipeError, nearest
from guerdon.monitor.progress import duration, table
from guerdon.training.run import Result


def show_result(result: Result, console: Console) -> None:
    """How a run ended: before and after, alarms, and where to read on."""
    before, after = result.eval.get("before", {}), result.eval.get("after", {})
    rows = [
        (name, f"{value:.3f}", *((f"{after[name]:.3f}", f"{after[name] - value:+.3f}") if name in after else ("", "")))
        for name, value in before.items()
    ]
    table(f"{Path(result.run).name}: {result.steps} steps in {duration(result.seconds)}", rows, console=console)
    for alarm in result.alarms:
        console.print(f"{alarm['severity']}: step {alarm['step']}: {alarm['message']}", markup=False)
    if result.status != "finished":
        console.print(f"{result.status} and saved; continue with: guerdon train --resume {result.run}")
    console.print(f"report: {Path(result.run) / 'report.html'}")


def show_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """A table of one number per name, on standard output."""
    rows = [(name, f"{value:.4f}") for name, value in metrics.items()]
    table(title, rows, columns=("held-out", "value"), console=Console())


def method_rows(stage: str | None = None) -> list[dict[str, Any]]:
    """Every registered method, or those of one stage.

    Raises:
        RecipeError: for a stage that does not exist.
    """
    if stage is not None and stage not in registry.HOMES:
        raise RecipeError(f"no stage '{stage}'{nearest(stage, registry.HOMES)}")
    return [
        {
            "stage": method.stage,
            "name": method.name,
            "aliases": list(method.aliases),
            "summary": method.summary,
            "needs": list(method.requires),
            "uses": list(method.optional),
            "produces": list(method.produces),
            "options": {
                name: None if option.is_required() else repr(option.default)
                for name, option in method.options.model_fields.items()
            },
            "paper": method.paper,
            "home": method.home,
        }
        for key in ([stage] if stage else registry.HOMES)
        for method in registry.methods(key)
    ]


def show_methods(rows: list[dict[str, Any]]) -> None:
    """One table per stage, on standard output."""
    console = Console()
    for stage in dict.fromkeys(row["stage"] for row in rows):
        grid = Table(title=stage, title_justify="left", title_style="bold", expand=True)
        grid.add_column("name", no_wrap=True)
        grid.add_column("what it does", ratio=3)
        grid.add_column("fields it needs", ratio=2)
        grid.add_column("paper", ratio=2)
        for row in (r for r in rows if r["stage"] == stage):
            grid.add_row(row["name"], row["summary"], " ".join(row["needs"]), row["paper"])
        console.print(grid)
