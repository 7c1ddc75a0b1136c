"""A diagnosis as a table, with rollouts beneath it."""

from __future__ import annotations

import threading
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from guerdon.monitor.diagnose import Diagnosed, Diagnosis
from guerdon.monitor.pathologies import pathology, remedies
from guerdon.monitor.views import visible

WIDTH = 120  # of tables that don't go to a terminal
TABLE_WIDTH = 100  # a narrower terminal gets a paragraph for each finding
STYLES = {"info": "cyan", "warning": "yellow", "critical": "bold red"}
# Progress is shown of what takes longer than this.
PATIENCE = 2.0


class Patience:
    """Says what is being done on standard error, once it has taken two seconds."""

    def __init__(self, console: Console, *, quiet: bool = False, seconds: float = PATIENCE) -> None:
        self._console, self._quiet = console, quiet
        self._timer = threading.Timer(seconds, self._show)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._doing, self._late = "", False
        self._status = console.status("")

    def tell(self, doing: str) -> None:
        """Begin something."""
        with self._lock:
            self._doing = doing
            if self._late:
                self._say()

    def _show(self) -> None:
        with self._lock:
            self._late = True
            if self._console.is_terminal:
                self._status.start()
            self._say()

    def _say(self) -> None:
        if self._console.is_terminal:
            self._status.update(Text(self._doing))
        else:
            self._console.print(Text(self._doing))

    def __enter__(self) -> Patience:
        if not self._quiet:
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._late = False
            self._status.stop()


def show_diagnosis(diagnosis: Diagnosis, *, examples: bool = False, console: Console | None = None) -> None:
    """Print what was read, a row per finding, and what is healthy or could not be looked for."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    console.print(Text(_read(diagnosis.source)))
    if diagnosis.findings and console.width >= TABLE_WIDTH:
        console.print(_table(diagnosis.findings))
    for finding in diagnosis.findings if console.width < TABLE_WIDTH else ():
        console.print(_paragraph(finding), "")
    for finding in diagnosis.findings if examples else ():
        if finding.examples:
            console.print(_examples(finding))
    console.print(Text.assemble(("healthy: ", "green"), ", ".join(diagnosis.healthy) or "nothing that was looked for"))
    lacking: dict[str, list[str]] = {}
    for code, lack in diagnosis.unchecked.items():
        lacking.setdefault(lack, []).append(code)
    for lack, codes in lacking.items():
        console.print(Text.assemble(("unchecked: ", "dim"), f"{', '.join(codes)} ({lack})"))
    if examples is False and any(finding.examples for finding in diagnosis.findings):
        console.print(Text("--examples shows rollouts, --json everything", style="dim"))


def _read(source: dict[str, Any]) -> str:
    """What was read, and which column was taken for what."""
    steps = source["steps"]
    line = f"{source['path']} ({source['format']}): {source['rollouts']:,} rollouts, "
    line += f"{steps['count']} steps from {steps['first']} to {steps['last']}" if steps["count"] > 1 else "one step"
    if source["unreadable"]:
        line += f"; {source['unreadable']:,} rows could not be read"
    if source["format"] == "guerdon":
        return visible(line)
    taken = [f"{role} is '{name}'" for role, name in source["columns"].items()]
    taken += [f"reward is {' + '.join(source['rewards'])}"] if source["rewards"] else []
    taken += [f"gold is {', '.join(source['watched'])}"] if source["watched"] else []
    return visible(f"{line}\ncolumns: {', '.join(taken)}" if taken else line)


def _table(findings: list[Diagnosed]) -> Table:
    grid = Table(expand=True, show_lines=True)
    for title, ratio in (("code", None), ("where", None), ("evidence", 3), ("why it hurts", 2), ("what to do", 3)):
        grid.add_column(title, ratio=ratio, no_wrap=ratio is None, overflow="fold")
    for finding in findings:
        grid.add_row(
            Text.assemble(finding.code, "\n", (finding.severity, STYLES[finding.severity])),
            Text(f"{_span(finding.steps)}\n{finding.share:.0%} of {finding.share_of}"),
            Text(visible(finding.message)),
            Text(pathology(finding.code).why),
            _remedies(finding),
        )
    return grid


def _paragraph(finding: Diagnosed) -> Text:
    where = f"{_span(finding.steps)}, {finding.share:.0%} of {finding.share_of}"
    return Text.assemble(
        (f"{finding.severity} {finding.code}", STYLES[finding.severity]),
        f" ({where})\n{visible(finding.message)}.\n",
        (f"{pathology(finding.code).why}\n", "dim"),
        _remedies(finding),
    )


def _span(steps: tuple[int, int]) -> str:
    return f"step {steps[0]}" if steps[0] == steps[1] else f"steps {steps[0]}–{steps[1]}"


def _remedies(finding: Diagnosed) -> Text:
    text = Text(visible(finding.change))
    for remedy in remedies(finding.code):
        text.append(f"\n{remedy['system']} ", style="bold").append(f"({remedy['status']})", style="dim")
    return text


def _examples(finding: Diagnosed) -> Table:
    grid = Table(title=Text(f"{finding.code}: rollouts"), title_justify="left", expand=True)
    for name, ratio in (("step", None), ("reward", None), ("prompt", 2), ("text", 3)):
        grid.add_column(name, ratio=ratio, overflow="fold")
    for row in finding.examples:
        reward = "" if row["reward"] is None else f"{row['reward']:.4g}"
        if "scores" in row:
            reward = ", ".join(f"{score:.4g}" for score in row["scores"])
        if row.get("times", 1) > 1:
            reward += f"\n{row['times']} times"
        prompt, text = (visible(row[name] or "") for name in ("prompt", "text"))
        grid.add_row(Text(str(row["step"])), Text(reward), Text(prompt), Text(text))
    return grid
