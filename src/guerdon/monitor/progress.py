"""Progress on standard error: one line that says whether it learns and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from guerdon.monitor.alarms import Alarm
from guerdon.monitor.charts import compact

# Where there is no terminal, a log file gets a line at most this often (and the first and last step always).
PLAIN_SECONDS = 5.0
_STYLES = {"info": "cyan", "warning": "yellow", "critical": "bold red"}

# What is shown of a step, most telling first: metric, label, and how to write it.
_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("reward/mean", "reward", lambda x: f"{x:.3f}" if abs(x) < 10 else compact(x)),
    ("groups/zero_variance", "useful", lambda x: f"{1 - x:.0%}"),
    ("loss", "loss", lambda x: f"{x:.3f}"),
    ("entropy/mean", "entropy", lambda x: f"{x:.2f}"),
    ("length/mean", "length", lambda x: f"{x:.0f}"),
    ("actions_per_second", "actions/s", compact),
)


class Progress:
    """Shows the phases of a run, step by step, on standard error, so that standard output stays clean.

    A terminal gets one line that is redrawn; anything else gets a plain line every few seconds.

    Args:
        quiet: show nothing but alarms and notes.
        console: where to write; standard error by default.
        plain_seconds: least time between plain lines.
    """

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, plain_seconds: float = PLAIN_SECONDS
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._plain_seconds = plain_seconds
        self._clock = time.monotonic
        self._bar: Bar | None = None
        self._alarms = 0
        self._total = self._done = self._begun_at = 0
        self._description = ""

    def start(self, total: int, description: str, *, done: int = 0) -> None:
        """Begin a phase of ``total`` steps, of which ``done`` lie behind a resumed run."""
        self.stop()
        self._total, self._done, self._begun_at, self._description = total, done, done, description
        self._started, self._next_line, self._alarms = self._clock(), 0.0, 0
        if self._quiet or not self._console.is_terminal:
            return
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn(
                "{task.fields[line]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task(description, total=total, completed=done, line="")
        self._bar.start()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of step number ``step``, counted from 0."""
        self._done = step + 1
        alarms = [f"{self._alarms} alarm{'s' if self._alarms > 1 else ''}"] if self._alarms else []
        line = " · ".join([*alarms, *status(metrics)])
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, line=line)
        elif not self._quiet and (self._clock() >= self._next_line or self._done == self._total):
            self._next_line = self._clock() + self._plain_seconds
            left = self._seconds_left()
            ending = f" · {duration(left)} left" if left else ""
            self._print(Text(f"{self._description} {self._done}/{self._total}{' · ' if line else ''}{line}{ending}"))

    def alarm(self, alarm: Alarm) -> None:
        """Print an alarm above the line and count it in the line; shown in quiet mode too."""
        self._alarms += 1
        self._print(
            Text.assemble(
                (f"{alarm.severity} {alarm.code}", _STYLES[alarm.severity]), f" at step {alarm.step}: {alarm.message}"
            )
        )

    def note(self, text: str) -> None:
        """Print a sentence above the line; shown in quiet mode too."""
        self._print(Text(text))

    def stop(self) -> None:
        """End the phase; the line stays as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: Text) -> None:
        self._console.print(text)

    def _seconds_left(self) -> float:
        behind = self._done - self._begun_at
        return (self._clock() - self._started) / behind * (self._total - self._done) if behind > 0 else 0.0


def status(metrics: Mapping[str, float]) -> list[str]:
    """The few numbers that matter, as far as they exist: ``["reward 0.412", "useful 63%", ...]``.

    ``useful`` is the share of groups whose rewards differ. Faults are named by their kinds where there are any.
    """
    line = [f"{label} {write(metrics[key])}" for key, label, write in _SHOWN if key in metrics]
    if metrics.get("faults"):
        kinds = {key.removeprefix("faults/"): x for key, x in metrics.items() if key.startswith("faults/") and x}
        named = ", ".join(f"{int(x)} {kind}" for kind, x in kinds.items())
        line.append(f"faults {int(metrics['faults'])}{f' ({named})' if named else ''}")
    return line


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def table(
    title: str,
    rows: Sequence[Sequence[object]],
    *,
    columns: Sequence[str] = ("held-out", "before", "after", "change"),
    console: Console | None = None,
) -> None:
    """Print a table on standard error: the first column names, the others right-aligned numbers."""
    grid = Table(title=Text(title), title_justify="left")
    for place, column in enumerate(columns):
        grid.add_column(Text(column), justify="right" if place else "left")
    for row in rows:
        grid.add_row(*(Text(compact(x) if x is None or isinstance(x, float) else str(x)) for x in row))
    (console or Console(stderr=True, highlight=False)).print(grid)
