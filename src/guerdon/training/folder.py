"""What a run leaves behind: one folder of plain files that DuckDB reads in place.

``recipe.yaml`` (resolved) · ``metrics.parquet`` (one row per step) · ``rollouts/step-000012.parquet`` (one row per
trajectory) · ``alarms.jsonl`` · ``faults.jsonl`` · ``summary.json`` · ``checkpoints/`` · ``loggers/`` ·
``report.html``.
Every file but the append-only ``.jsonl`` is replaced atomically, so a reader never meets half a file.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from guerdon.errors import GuerdonError
from guerdon.rewards.base import Fault
from guerdon.rollouts import Rollouts
from guerdon.training.rollout_table import rollout_table

# A run killed between flushes repeats these steps anyway, from a checkpoint, before which everything is flushed.
FLUSH_SECONDS = 2.0
# metrics.parquet is rewritten whole; waiting this many times the last write keeps it below 2 % of the run.
FLUSH_PATIENCE = 50.0
# Characters of a faulted sample's text that are kept at every step.
FAULT_TEXT = 500

Rows = dict[str, list[Any]]


class RunFolder:
    """Reads and writes the folder of one run.

    Use ``create`` for a fresh run and ``open`` for one that exists; opening changes nothing on disk, so a report
    may read a folder that a run is writing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name
        self.recipe_path = self.path / "recipe.yaml"
        self.metrics_path = self.path / "metrics.parquet"
        self.rollouts_path = self.path / "rollouts"
        self.checkpoints_path = self.path / "checkpoints"
        self.loggers_path = self.path / "loggers"
        self.alarms_path = self.path / "alarms.jsonl"
        self.faults_path = self.path / "faults.jsonl"
        self.summary_path = self.path / "summary.json"
        self.report_path = self.path / "report.html"
        self._rows: Rows | None = None
        self._saved_rows = 0
        self._clock = time.monotonic
        self._origin = self._clock()
        self._next_flush = 0.0

    @classmethod
    def create(cls, path: str | os.PathLike[str], recipe_yaml: str, *, overwrite: bool = False) -> RunFolder:
        """Make the folder of a fresh run and write its resolved recipe.

        Args:
            overwrite: remove what an earlier run left there; files that guerdon did not write stay.

        Raises:
            GuerdonError: when the folder holds a run that has begun and ``overwrite`` is false, or cannot be written.
        """
        folder = cls(path)
        if folder.recipe_path.exists():
            if not overwrite and folder._has_begun():
                raise GuerdonError(
                    f"'{folder.path}' already holds a run; give this one another name, continue that one with "
                    f"`guerdon train --resume {folder.path}`, or ask to overwrite it"
                )
            folder._clear()
        try:
            for directory in (folder.path, folder.rollouts_path, folder.checkpoints_path):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder.path, error) from error
        atomic_write(folder.recipe_path, lambda file: file.write(recipe_yaml.encode()))
        folder._rows = {"step": [], "time": []}
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open the folder of a run that was started before.

        Raises:
            GuerdonError: when there is no run at ``path``.
        """
        folder = cls(path)
        if not folder.recipe_path.is_file():
            raise GuerdonError(f"'{folder.path}' is not a run: it has no recipe.yaml; give the folder of a run")
        return folder

    def settings(self) -> Mapping[str, Any]:
        """The recipe as plain values; empty where it can't be read as such."""
        try:
            read = yaml.safe_load(self.recipe_path.read_text(encoding="utf-8", errors="replace"))
        except yaml.YAMLError:
            return {}
        return read if isinstance(read, Mapping) else {}

    # Metrics ----------------------------------------------------------------------------------------------

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of a step; a second call for the same step adds to its row.

        Columns appear as they come and are null where missing; NaN stays NaN. ``time`` is seconds of training.

        Raises:
            GuerdonError: when ``step`` lies before the last one, or the file cannot be written.
        """
        rows = self._loaded()
        if rows["step"] and step < rows["step"][-1]:
            raise GuerdonError(
                f"metrics of step {step} come after those of step {rows['step'][-1]}; "
                f"call truncate({step - 1}) before repeating steps"
            )
        if not rows["step"] or step > rows["step"][-1]:
            for column in rows.values():
                column.append(None)
        rows["step"][-1] = int(step)
        rows["time"][-1] = self._clock() - self._origin
        for name, value in metrics.items():
            if name not in ("step", "time"):
                rows.setdefault(name, [None] * len(rows["step"]))[-1] = float(value)
        self._saved_rows = min(self._saved_rows, len(rows["step"]) - 1)
        if self._clock() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Write ``metrics.parquet`` if rows are waiting; call it before every checkpoint and at the end.

        Raises:
            GuerdonError: when the file cannot be written; the one before it stays intact.
        """
        if self._rows is None or self._saved_rows == len(self._rows["step"]):
            return
        began = self._clock()
        self._write_metrics()
        now = self._clock()
        self._next_flush = now + max(FLUSH_SECONDS, FLUSH_PATIENCE * (now - began))

    def metrics(self) -> dict[str, list[Any]]:
        """Columns by name, rows in step order, None where a metric is missing."""
        if self._rows is not None:
            return {name: list(column) for name, column in self._rows.items()}
        if not self.metrics_path.is_file():
            return {"step": [], "time": []}
        return pq.read_table(self.metrics_path).to_pydict()

    def truncate(self, after_step: int) -> None:
        """Forget everything of steps after ``after_step``, so that a resumed run repeats them without a trace.

        Drops rows of metrics, rollout files, alarms, faults, the summary and files left half-written. The clock goes on
        from the last row that stays.
        """
        kept = sum(step <= after_step for step in self._loaded()["step"])
        self._rows = {name: column[:kept] for name, column in self._loaded().items()}
        self._rows = {n: c for n, c in self._rows.items() if n in ("step", "time") or any(v is not None for v in c)}
        self._restart_clock()
        if self.metrics_path.exists():
            self._write_metrics()
        for step, file in self._rollout_files().items():
            if step > after_step:
                file.unlink()
        for path in (self.alarms_path, self.faults_path):
            if path.exists():
                kept_lines = [json.dumps(row) + "\n" for row in _read_lines(path) if row["step"] <= after_step]
                atomic_write(path, lambda file, lines=kept_lines: file.write("".join(lines).encode()))
        self.summary_path.unlink(missing_ok=True)
        for directory in (self.path, self.rollouts_path):
            for leftover in directory.glob(".*.tmp"):
                leftover.unlink()

    def _loaded(self) -> Rows:
        if self._rows is None:
            self._rows = self.metrics()
            self._saved_rows = len(self._rows["step"])
            self._restart_clock()
        return self._rows

    def _restart_clock(self) -> None:
        assert self._rows is not None
        self._origin = self._clock() - (self._rows["time"][-1] if self._rows["time"] else 0.0)

    def _write_metrics(self) -> None:
        assert self._rows is not None
        types = {"step": pa.int64()}
        columns = {name: pa.array(column, types.get(name, pa.float64())) for name, column in self._rows.items()}
        table = pa.table(columns)
        atomic_write(self.metrics_path, lambda file: pq.write_table(table, file))
        self._saved_rows = len(self._rows["step"])

    # Rollouts ---------------------------------------------------------------------------------------------

    def write_rollouts(
        self,
        step: int,
        rollouts: Rollouts,
        *,
        faults: Iterable[Fault] = (),
        scored: Rollouts | None = None,
        token_text: Sequence[Sequence[str]] | None = None,
    ) -> Path:
        """Write the trajectories of a step, one row each, to ``rollouts/step-000012.parquet``; columns as in
        ``rollout_table``.

        Raises:
            GuerdonError: when the file cannot be written.
        """
        table = rollout_table(step, rollouts, faults=faults, scored=scored, token_text=token_text)
        path = self.rollouts_path / f"step-{step:06d}.parquet"
        atomic_write(path, lambda file: pq.write_table(table, file, compression="zstd"))
        return path

    def rollout_steps(self) -> list[int]:
        """Steps whose trajectories were saved."""
        return sorted(self._rollout_files())

    def rollouts(self, step: int | None = None) -> pa.Table:
        """Saved trajectories of one step, or of all, ordered by step and row.

        Raises:
            GuerdonError: when the step was not saved.
        """
        files = self._rollout_files()
        if step is not None and step not in files:
            raise GuerdonError(f"'{self.path}' has no rollouts of step {step}; it has those of {sorted(files)}")
        chosen = list(files.values()) if step is None else [files[step]]
        if not chosen:
            return pa.table({})
        query = "select * from read_parquet($1, union_by_name=true) order by step, row"
        with duckdb.connect() as connection:
            return connection.sql(query, params=[[glob_escaped(file) for file in chosen]]).to_arrow_table()

    def _rollout_files(self) -> dict[int, Path]:
        return {int(f.stem.removeprefix("step-")): f for f in sorted(self.rollouts_path.glob("step-*.parquet"))}

    # Alarms, summary --------------------------------------------------------------------------------------

    def add_alarm(self, alarm: Mapping[str, Any]) -> None:
        """Append an alarm (``step``, ``code``, ``severity``, ``message``, ``evidence``) to ``alarms.jsonl``."""
        _append_lines(self.alarms_path, [dict(alarm)])

    def alarms(self) -> list[dict[str, Any]]:
        """Alarms in the order they were raised; a last line torn by a kill is left out."""
        return _read_lines(self.alarms_path)

    def add_faults(self, step: int, faults: Iterable[Fault], scored: Rollouts) -> None:
        """Append the faults of a step to ``faults.jsonl``: ``step``, ``row``, ``group``, ``task_id``, ``reward``,
        ``kind``, ``message`` and the beginning of the ``text``, so that the sample can be found where none was saved.

        Args:
            scored: the batch in which the faults count their rows.
        """
        groups, task_ids = scored.group.tolist(), scored.task_id.tolist()
        rows = []
        for fault in faults:
            text = None if scored.text is None else str(scored.text[fault.row])[:FAULT_TEXT]
            rows.append(
                {
                    **{"step": step, "row": fault.row, "group": groups[fault.row], "task_id": task_ids[fault.row]},
                    **{"reward": fault.reward, "kind": fault.kind, "message": fault.message, "text": text},
                }
            )
        if rows:
            _append_lines(self.faults_path, rows)

    def faults(self) -> list[dict[str, Any]]:
        """Faults in the order of steps; a last line torn by a kill is left out."""
        return _read_lines(self.faults_path)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the run's last word: ``run``, ``kind``, ``steps``, ``seconds``, ``eval`` (``before`` and ``after``),
        ``alarms``, ``weights_sha256`` and ``status`` (``finished``, ``interrupted`` or ``stopped``)."""
        text = json.dumps(dict(summary), indent=2) + "\n"
        atomic_write(self.summary_path, lambda file: file.write(text.encode()))

    def summary(self) -> dict[str, Any] | None:
        """What ``write_summary`` wrote, or None while the run has not ended."""
        return json.loads(self.summary_path.read_text(encoding="utf-8")) if self.summary_path.is_file() else None

    def _has_begun(self) -> bool:
        """Whether there is anything to lose: metrics, rollouts or checkpoints."""
        kept = (self.rollouts_path, self.checkpoints_path)
        return self.metrics_path.exists() or any(d.is_dir() and any(d.iterdir()) for d in kept)

    def _clear(self) -> None:
        """Remove what a run leaves behind, and nothing else."""
        for directory in (self.rollouts_path, self.checkpoints_path, self.loggers_path):
            shutil.rmtree(directory, ignore_errors=True)
        lines = (self.alarms_path, self.faults_path)
        for file in (*lines, self.metrics_path, self.summary_path, self.report_path, self.recipe_path):
            file.unlink(missing_ok=True)


def atomic_write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace a file in one step: write beside it, force to disk, rename.

    Raises:
        GuerdonError: when the disk refuses; what was at ``path`` before stays intact.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        raise _unwritable(path, error) from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a file, empty where there is none."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def _unwritable(path: Path, error: OSError) -> GuerdonError:
    run = path.parent.parent if path.parent.name in ("rollouts", "checkpoints") else path.parent
    kept = "its previous version is intact" if path.exists() else "it was not there before"
    return GuerdonError(
        f"cannot write '{path}': {error.strerror or error}; {kept} and nothing else was lost; "
        f"free space or fix permissions there, then continue with `guerdon train --resume {run}`"
    )


def glob_escaped(path: Path) -> str:
    """A path that DuckDB takes literally even where it contains wildcards."""
    return "".join(f"[{c}]" if c in "[*?" else c for c in str(path))
