"""Tables of claims and systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from guerdon.catalog.entries import STATUSES, CatalogError, System, symptoms, systems_for
from guerdon.catalog.results import ClaimResult

WIDTH = 120  # of tables that don't go to a terminal
COLOURS = {
    **{"works": "green", "not reproduced": "yellow", "not-reproduced": "yellow", "fails": "red"},
    **{"stale": "magenta", "open": "dim"},
}


def chosen(names: Sequence[str], *, everything: bool, family: str | None, quick: bool) -> list[str]:
    """Paths of the claims that the options of the command name.

    Raises:
        CatalogError: when they name none.
    """
    from guerdon.claims import runner

    if not (names or everything or family or quick):
        raise CatalogError("give the names of claims, or --all, --quick or --family; 'guerdon claims list' shows them")
    paths = [runner.find(name) for name in names] if names else runner.claim_paths()
    if family is not None:
        paths = [path for path in paths if path.startswith(f"{family}/")]
    if quick:
        paths = [path for path in paths if runner.load(path).claim.quick]
    if not paths:
        raise CatalogError(f"no claim matches (family {family}, quick {quick}); 'guerdon claims list' shows them all")
    return paths


def claim_row(path: str) -> dict[str, Any]:
    """What ``guerdon claims list --json`` prints of a claim."""
    from guerdon.claims import runner

    entry = runner.load(path)
    return {
        "name": path.rpartition("/")[2],
        "family": entry.family,
        "system": entry.claim.system,
        "description": " ".join(entry.description.partition("\n\n")[0].split()),
        "mutation": entry.claim.mutation.what,
        "seeds": entry.claim.seeds,
        "quick": entry.claim.quick,
    }


def answer_rows(symptom: str) -> list[dict[str, Any]]:
    """The systems that answer a symptom, and what their claims saw."""
    return [{**system.row(), "evidence": evidence(system)} for system in systems_for(symptom)]


def evidence(system: System) -> str:
    """The check that tells most of a system's claim, in a line."""
    result = system.result
    if result is None or result.evidence is None:
        return ""
    return f"{result.evidence.what}: {result.evidence.seen}"


def show_answers(symptom: str, rows: Sequence[dict[str, Any]]) -> None:
    """What a symptom is, and a row per system that answers it."""
    meant = next(s for s in symptoms() if s.name == symptom)
    console = _console()
    console.print(Text(f"{meant.name}: {meant.meaning}\nHow a run shows it: {meant.seen}"))
    grid = _grid(("system", None), ("where", 2), ("what its claim saw", 3), ("status", None))
    for row in rows:
        grid.add_row(row["name"], Text(row["home"].replace(", ", "\n")), Text(row["evidence"]), _state(row["status"]))
    console.print(grid)


def show_claims(rows: Sequence[dict[str, Any]]) -> None:
    """A row per claim."""
    grid = _grid(("claim", None), ("what it shows", 3), ("its mutation", 2), ("seeds", None), ("quick", None))
    for row in rows:
        texts = (row["name"], row["description"], row["mutation"], str(row["seeds"]), "yes" if row["quick"] else "")
        grid.add_row(*map(Text, texts))
    _console().print(grid)


def show_systems(rows: Sequence[dict[str, Any]]) -> None:
    """A row per system, and how many have each status."""
    grid = _grid(("no.", None), ("name", None), ("title", 3), ("family", None), ("status", None))
    for row in rows:
        texts = (str(row["id"]), row["name"], row["title"], row["family"])
        grid.add_row(*map(Text, texts), _state(row["status"]))
    console = _console()
    console.print(grid)
    counts = {state: sum(row["status"] == state for row in rows) for state in STATUSES}
    console.print(" · ".join(f"{count} {state}" for state, count in counts.items() if count))


def line(result: ClaimResult) -> Text:
    """A finished claim in one line."""
    held = sum(check.holds for check in result.checks)
    return Text.assemble(
        f"{result.claim:44s} {held:2d} of {len(result.checks):2d} checks {result.seconds:7.1f} s  ",
        _state(result.verdict),
    )


def show_results(results: Sequence[ClaimResult]) -> None:
    """One row per claim: the first check that does not hold, or else the one that tells most."""
    grid = _grid(("claim", None), ("what", 4), ("expected", 3), ("seen, with its interval", 5), ("verdict", None))
    for result in results:
        shown = next((check for check in result.checks if not check.holds), result.evidence)
        if shown is not None:
            cells = map(Text, (shown.what, shown.expected, shown.seen))
            grid.add_row(result.claim.rpartition("/")[2], *cells, _state(result.verdict))
    _console().print(grid)


def show_checks(result: ClaimResult) -> None:
    """One row per check of a claim."""
    title = f"{result.claim}: {result.verdict}" + (f" (broken: {result.mutation})" if result.broken else "")
    grid = _grid(("what", 3), ("expected", 2), ("seen, with its interval", 3), ("", None))
    grid.title, grid.title_justify = Text(title), "left"
    for check in result.checks:
        mark = Text("holds", style="green") if check.holds else Text("fails", style="red")
        grid.add_row(*map(Text, (check.what, check.expected, check.seen)), mark)
    _console().print(grid)


def _grid(*columns: tuple[str, int | None]) -> Table:
    """A table whose columns with a ratio share what the others leave."""
    grid = Table(expand=True)
    for title, ratio in columns:
        grid.add_column(title, ratio=ratio, no_wrap=ratio is None)
    return grid


def _state(state: str) -> Text:
    return Text(state, style=COLOURS[state])


def _console() -> Console:
    """The terminal; a file or a pipe has no width, and gets room for sentences."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, WIDTH))
