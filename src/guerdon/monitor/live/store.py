"""Finds the runs below a folder and says how each stands, from file footers and small files.

A run is looked up by its name among those that were found; no path is ever made from what a request says. Nothing
outside the folder is read: a run that reaches out of it by a symbolic link is not listed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow.parquet as pq

from guerdon.errors import GuerdonError

if TYPE_CHECKING:
    from guerdon.training.folder import RunFolder

# Runs lie in RUNS_DIR or in a few levels of folders below it; deeper folders are data, not runs.
DEPTH = 4
# A listing that is this young is given again: a page asks several times while it is built.
FRESH_SECONDS = 0.25
# Without an end on record, a run counts as running while its files change: at least every two minutes (a metrics file
# waits for seconds, a slow step for minutes), or within so many of its own mean steps.
PATIENCE_SECONDS, PATIENCE_STEPS = 120.0, 20.0
# recipe.yaml is written by guerdon and takes a few kB; the facts of a list are not worth reading more.
RECIPE_BYTES = 1 << 20

# What a run may say of its end.
ENDED = ("finished", "stopped", "interrupted")
METRICS, ROLLOUTS = "metrics.parquet", "rollouts"
FILES = ("recipe.yaml", METRICS, "alarms.jsonl", "faults.jsonl", "summary.json", ROLLOUTS)
# What each part of a run's page is made from.
PARTS: dict[str, tuple[str, ...]] = {
    "standing": FILES,
    "header": ("recipe.yaml", METRICS, "alarms.jsonl", "summary.json", ROLLOUTS),
    "alarms": ("alarms.jsonl",),
    "faults": ("faults.jsonl",),
    "curves": ("recipe.yaml", METRICS, "alarms.jsonl", "summary.json"),
    "recipe": ("recipe.yaml",),
    "microscope": (ROLLOUTS,),
}

Stamp = tuple[int, int, int]


class NoSuchRun(GuerdonError):
    """A run that is not below the folder, or that reaches out of it."""


@dataclass(frozen=True)
class RunRow:
    """How one run stands.

    Attributes:
        name: relative to the folder, with ``/`` between its parts.
        status: ``running``, ``finished``, ``stopped`` by an alarm, ``interrupted``, or ``unfinished`` for one that
            ended without a word.
        task: name of the task, as of ``policy`` and ``credit``; empty where the recipe can't be read.
        steps: steps done.
        planned: steps that the recipe asks for.
        reward: mean shaped reward of the last step.
        seconds: of training.
        alarms: how many were raised, and the severity of the ``worst``.
        started, changed: when the run began and when it last wrote, in seconds since the epoch.
        parts: a version of each part of the page, which changes when its files do.
        stamps: time, size and identity of each file.
    """

    name: str
    status: str
    task: str = ""
    policy: str = ""
    credit: str = ""
    steps: int = 0
    planned: int | None = None
    reward: float | None = None
    seconds: float = 0.0
    alarms: int = 0
    worst: str = ""
    started: float = 0.0
    changed: float = 0.0
    parts: Mapping[str, str] = field(default_factory=dict)
    stamps: Mapping[str, Stamp] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name as one segment of an address."""
        return quote(self.name, safe="")

    @property
    def version(self) -> str:
        """Changes whenever anything about the run does."""
        return self.parts["standing"]


class RunStore:
    """The runs below a folder, or the one run that the folder is.

    Listing reads each file once and again when its time, size or identity changes.

    Args:
        root: folder to look in; of a run's own folder, only this run is shown.
        clock: seconds since the epoch.

    Raises:
        GuerdonError: when there is no such folder.
    """

    def __init__(self, root: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        path = Path(root)
        if not path.is_dir():
            raise GuerdonError(f"no folder '{path}' to look for runs in; give the folder that holds them, such as runs")
        self.root = path.resolve()
        self.only: str | None = None
        if (self.root / "recipe.yaml").is_file():
            self.root, self.only = self.root.parent, self.root.name
        self._clock = clock
        self._lock = threading.Lock()
        self._facts: dict[tuple[str, str], tuple[Stamp | None, Any]] = {}
        self._within: dict[str, tuple[dict[str, Stamp], bool]] = {}
        self._rows: dict[str, RunRow] = {}
        self._listed = -FRESH_SECONDS

    def rows(self, *, fresh: bool = False) -> dict[str, RunRow]:
        """Every run by name; as of this moment if ``fresh``, else of a moment ago."""
        with self._lock:
            if fresh or time.monotonic() - self._listed >= FRESH_SECONDS:
                found = dict(self._found())
                self._facts = {key: value for key, value in self._facts.items() if key[0] in found}
                self._within = {name: value for name, value in self._within.items() if name in found}
                self._rows = {name: self._row(name, stamps) for name, stamps in found.items()}
                self._listed = time.monotonic()
            return self._rows

    def row(self, name: str) -> RunRow:
        """How the run of that name stands.

        Raises:
            NoSuchRun: when there is none.
        """
        row = self.rows().get(name) or self.rows(fresh=True).get(name)
        if row is None:
            raise NoSuchRun(f"there is no run of that name below '{self.root.name}'")
        return row

    def folder(self, name: str) -> RunFolder:
        """The run's folder, for its views to read.

        Raises:
            NoSuchRun: when there is none, or one of its files lies outside the folder.
        """
        from guerdon.training.folder import RunFolder

        path = self.root / self.row(name).name
        if not self._inside(path):
            raise NoSuchRun("this run reaches out of the folder by a symbolic link and is not shown")
        return RunFolder.open(path)

    # Finding ----------------------------------------------------------------------------------------------

    def _found(self) -> Iterator[tuple[str, dict[str, Stamp]]]:
        """Names of runs, with the stamps of their files."""
        if self.only is not None:
            paths: Iterator[str] = iter([self.only])
        else:
            paths = self._walk("", 1)
        for name in paths:
            stamps = self._stamps(name)
            if "recipe.yaml" not in stamps:
                continue
            known = self._within.get(name)
            if known is None or known[0] != stamps:
                known = self._within[name] = (stamps, self._inside(self.root / name))
            if known[1]:
                yield name, stamps

    def _walk(self, below: str, depth: int) -> Iterator[str]:
        """Names of folders that hold a recipe; links to folders are not followed, for what they lead to is listed where
        it lies."""
        try:
            with os.scandir(self.root / below) as entries:
                folders = sorted(e.name for e in entries if _plain(e.name) and e.is_dir(follow_symlinks=False))
        except OSError:
            return
        for folder in folders:
            name = f"{below}/{folder}" if below else folder
            if os.path.isfile(f"{self.root}/{name}/recipe.yaml"):
                yield name
            elif depth < DEPTH:
                yield from self._walk(name, depth + 1)

    def _stamps(self, name: str) -> dict[str, Stamp]:
        stamps = {}
        for file in FILES:
            with suppress(OSError):
                found = os.stat(f"{self.root}/{name}/{file}")
                stamps[file] = (found.st_mtime_ns, found.st_size, found.st_ino)
        return stamps

    def _inside(self, path: Path) -> bool:
        """Whether nothing that a view reads of a run is a link to somewhere outside the folder."""
        links = [path / file for file in FILES if (path / file).is_symlink()]
        with suppress(OSError), os.scandir(path / ROLLOUTS) as entries:
            links += [Path(entry.path) for entry in entries if entry.is_symlink()]
        return all(link.resolve().is_relative_to(self.root) for link in [path, *links])

    # Facts ------------------------------------------------------------------------------------------------

    def _row(self, name: str, stamps: Mapping[str, Stamp]) -> RunRow:
        recipe = self._fact(name, "recipe.yaml", stamps, _recipe_facts, {})
        metrics = self._fact(name, METRICS, stamps, _metrics_facts, {})
        summary = self._fact(name, "summary.json", stamps, _summary_facts, {})
        alarms, worst = self._fact(name, "alarms.jsonl", stamps, _alarm_facts, (0, ""))
        changed = max(stamp[0] for stamp in stamps.values()) / 1e9
        facts = {**recipe, **metrics, **summary}
        status = facts.pop("status", None)
        if status is None:
            pace = facts.get("seconds", 0.0) / max(1, facts.get("steps", 0))
            alive = self._clock() - changed <= max(PATIENCE_SECONDS, PATIENCE_STEPS * pace)
            status = "running" if alive else "unfinished"
        known = self._rows.get(name)
        if known is not None and known.status == status and known.stamps == stamps:
            return known
        versions = {part: digest(*(stamps.get(file) for file in files)) for part, files in PARTS.items()}
        # A run that falls silent changes its status though no file changes.
        versions |= {part: digest(versions[part], status) for part in ("standing", "header")}
        return RunRow(
            name=name,
            status=status,
            alarms=alarms,
            worst=worst,
            started=stamps["recipe.yaml"][0] / 1e9,
            changed=changed,
            parts=versions,
            stamps=stamps,
            **facts,
        )

    def _fact(
        self, name: str, file: str, stamps: Mapping[str, Stamp], read: Callable[[Path], Any], missing: Any
    ) -> Any:
        """What ``read`` finds in a file, remembered until the file changes; ``missing`` where it can't be read."""
        stamp = stamps.get(file)
        known = self._facts.get((name, file))
        if known is not None and known[0] == stamp:
            return known[1]
        value = missing
        if stamp is not None:
            with suppress(Exception):  # whatever is wrong with a file costs what it says, and no other run
                value = read(self.root / name / file)
        self._facts[name, file] = (stamp, value)
        return value


def _plain(name: str) -> bool:
    """Whether a folder may be a run: not hidden, and named in characters that a page can show."""
    return not name.startswith(".") and name.isprintable()


def digest(*parts: Any) -> str:
    """A short name for some values, the same in every process."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()


def finite(seconds: float | None) -> float:
    """A duration that can be written: 0 for none, NaN and infinity."""
    return float(seconds) if seconds is not None and math.isfinite(seconds) else 0.0


def _recipe_facts(path: Path) -> dict[str, Any]:
    """A few keys of a resolved recipe, by lines: reading 500 recipes as YAML takes a second."""
    with path.open("rb") as file:
        text = file.read(RECIPE_BYTES).decode("utf-8", "replace")
    found: dict[str, Any] = {}
    for fact, section, key in (
        ("task", "task", "name"),
        ("policy", "policy", "name"),
        ("credit", "credit", "name"),
        ("planned", "training", "steps"),
    ):
        match = re.search(rf"^{section}:\n(?:[ -] .*\n)*?[ -] {key}: (.*)$", text, re.MULTILINE)
        if match is not None:
            found[fact] = match[1].strip("'\"")
    planned = found.pop("planned", "")
    return found | ({"planned": int(planned)} if planned.isdecimal() else {})


def _metrics_facts(path: Path) -> dict[str, Any]:
    """Steps done, seconds and the last reward, from the last row alone."""
    with pq.ParquetFile(path, memory_map=False) as file:
        if not file.num_row_groups:
            return {}
        names = set(file.schema_arrow.names)
        columns = [name for name in ("step", "time", "reward/mean") if name in names]
        last = file.read_row_group(file.num_row_groups - 1, columns=columns, use_threads=False)
    if not last.num_rows:
        return {}
    row = last.slice(last.num_rows - 1).to_pylist()[0]
    reward = row.get("reward/mean")
    return {
        "steps": int(row["step"]) + 1,
        "seconds": finite(row["time"]),
        "reward": None if reward is None else float(reward),
    }


def _summary_facts(path: Path) -> dict[str, Any]:
    summary = json.loads(path.read_text(encoding="utf-8"))
    facts = {"steps": int(summary["steps"]), "seconds": finite(summary["seconds"])}
    return facts | ({"status": summary["status"]} if summary["status"] in ENDED else {})


def _alarm_facts(path: Path) -> tuple[int, str]:
    """How many alarms there are and the severity of the worst."""
    ranks = ("", "info", "warning", "critical")
    count, worst = 0, 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, AttributeError):
            severity = json.loads(line).get("severity")
            count, worst = count + 1, max(worst, ranks.index(severity) if severity in ranks else 0)
    return count, ranks[worst]
