"""Reads logs of rollouts, whoever wrote them, into one narrow DuckDB table: numbers and hashes, never all the texts."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from guerdon.errors import GuerdonError
from guerdon.monitor.columns import Choices, Layout, Source, assign_roles, narrow, scan
from guerdon.tasks.base import Kind
from guerdon.training.folder import RunFolder, glob_escaped

# DuckDB spills to disk beyond this, so that a log of any size is read within 2 GB.
MEMORY_LIMIT = "1GB"
# A line of JSON may hold a long trajectory.
LARGEST_LINE = 64 * 2**20
# Lines from which the types of a JSON file's columns are guessed.
SAMPLE = 100_000
READERS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}

# Numbers of TRL's log_history, under the names that training gives them.
TRAINER_STATE = {
    "entropy": "entropy/mean",
    "kl": "update/kl/kl",
    "clip_ratio/region_mean": "update/trl/clip_fraction",
    "completions/clipped_ratio": "truncated",
    "completions/mean_length": "length/mean",
    "sampling/importance_sampling_ratio/mean": "update/sampling/ratio",
    "loss": "update/loss",
    "grad_norm": "update/grad_norm",
}


@dataclass
class Log(Layout):
    """A log that has been read.

    The table ``rollouts`` has a row per trajectory: ``step``, ``grp``, ``task``, ``prompt``, ``text``, ``answer``
    (hashes), ``length``, ``reward`` (shaped), ``credit``, ``leak``, ``truncated``, ``version``, ``position``,
    ``fault``, ``scored``, and ``c0``, ``c1``, ... and ``w0``, ... of the components and the watched rewards; null where
    unknown.

    Attributes:
        metrics: numbers of steps that a trainer wrote down.
        scan: SQL of the raw rows, with the whole prompt and text as ``_p`` and ``_t``.
        unreadable: rows that could not be read.
        scratch: where DuckDB may spill.
    """

    path: Path
    kind: Kind
    connection: duckdb.DuckDBPyConnection
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    scan: str | None = None
    rollouts: int = 0
    unreadable: int = 0
    scratch: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """Let go of the table."""
        self.connection.close()
        if self.scratch is not None:
            self.scratch.cleanup()

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a query over ``rollouts``."""
        return self.connection.execute(query, list(parameters)).fetchall()


def open_log(path: str | Path, choices: Choices | None = None, *, memory_limit: str = MEMORY_LIMIT) -> Log:
    """Read a guerdon run, TRL's completions, verl's rollout dumps, or any table with prompts and rewards.

    Args:
        path: a run's folder, a folder of files, or one Parquet, JSON lines or CSV file.

    Raises:
        GuerdonError: when there is nothing to read, a column is missing, or a file is damaged.
    """
    path, choices = Path(path), choices or Choices()
    if not path.exists():
        raise GuerdonError(f"there is no '{path}'; give a run's folder, a folder of rollouts or a file of them")
    metrics, kind = {}, None
    if (path / "recipe.yaml").is_file():
        folder = RunFolder.open(path)
        files = sorted(folder.rollouts_path.glob("step-*.parquet"))
        metrics, kind = _run_metrics(folder), (folder.summary() or {}).get("kind")
    else:
        files = _files(path)
        if path.is_dir() and (state := _newest_trainer_state(path)):
            metrics = _trainer_metrics(state)
    if not files and not metrics:
        raise GuerdonError(
            f"'{path}' holds no rollouts: no file of {', '.join(sorted(READERS))}, no metrics; give a run's folder, "
            "TRL's output_dir, verl's rollout_data_dir, or a file"
        )
    scratch = tempfile.TemporaryDirectory(prefix="guerdon-diagnose-")
    connection = duckdb.connect()
    try:
        connection.execute(f"set memory_limit='{memory_limit}'; set preserve_insertion_order=false")
        connection.execute(f"set temp_directory='{scratch.name}'")
        if files:
            log = _read(path, files, metrics, choices, connection)
        else:
            source = "guerdon" if (path / "recipe.yaml").is_file() else "trl"
            log = Log(source, {}, [], [], choices, path, "language", connection, metrics)
    except Exception as error:
        connection.close()
        scratch.cleanup()
        if isinstance(error, duckdb.Error):
            raise GuerdonError(f"'{path}' cannot be read: {str(error).strip().splitlines()[0]}") from error
        raise
    log.kind, log.scratch = kind or log.kind, scratch
    return log


def _read(
    path: Path,
    files: Sequence[Path],
    metrics: dict[int, dict[str, float]],
    choices: Choices,
    connection: duckdb.DuckDBPyConnection,
) -> Log:
    raw, types = _typed(files, connection)
    source = _source(path, types)
    roles, components, watch = assign_roles(path, source, types, choices)
    log = Log(source, roles, components, watch, choices, path, "language", connection, metrics)
    log.scan = scan(raw, log, types)
    connection.execute(f"create table rollouts as {narrow(log, log.scan, types, files)}")
    where = "text is null and prompt is null and not scored"
    log.unreadable = log.rows(f"select count(*) from rollouts where {where}")[0][0] if source != "guerdon" else 0
    if log.unreadable:
        connection.execute(f"delete from rollouts where {where}")
    log.rollouts = log.rows("select count(*) from rollouts")[0][0]
    if source == "guerdon" and not log.rows("select 1 from rollouts where text is not null limit 1"):
        log.kind = "flow" if "image" in types else "control"
    if not log.rollouts and not metrics:
        raise GuerdonError(f"'{path}' holds no rollouts: its files are empty or unreadable")
    return log


# What there is to read ------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    """The files of a log: of the kind of which there are most, in natural order; empty ones left out."""
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise GuerdonError(f"'{path}' is no file of {', '.join(sorted(READERS))}")
        found = [path]
    else:
        completions = path / "completions"
        place = completions if completions.is_dir() and any(completions.glob("*.parquet")) else path
        found = [f for f in place.rglob("*") if f.is_file() and f.suffix.lower() in READERS]
    found = [f for f in found if f.stat().st_size]
    kinds = [READERS[f.suffix.lower()] for f in found]
    most = max(set(kinds), key=lambda kind: (kinds.count(kind), kind), default=None)
    return sorted((f for f, kind in zip(found, kinds, strict=True) if kind == most), key=_natural)


def _natural(file: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]


def _reader(files: Sequence[Path], more: str = "") -> str:
    """The table function that reads files of one kind, with further options."""
    names = ", ".join(_literal(glob_escaped(file)) for file in files)
    kind = READERS[files[0].suffix.lower()]
    if kind == "parquet":
        return f"read_parquet([{names}], union_by_name=true, filename='_file')"
    if kind == "csv":
        return f"read_csv([{names}], union_by_name=true, filename='_file', header=true, null_padding=true{more})"
    return (
        f"read_json([{names}], format='newline_delimited', ignore_errors=true, filename='_file', "
        f"maximum_object_size={LARGEST_LINE}{more})"
    )


def _typed(files: Sequence[Path], connection: duckdb.DuckDBPyConnection) -> tuple[str, dict[str, str]]:
    """The table function that reads the files, and the types of their columns.

    Of text files, types are guessed from the first rows, and not to be relied on: rewards that are whole numbers there
    may not be later on, nor are texts dates because the first ones are.
    """
    kind = READERS[files[0].suffix.lower()]
    first = _reader(files, f", union_by_name=true, sample_size={SAMPLE}" if kind == "jsonl" else "")
    types = {name: str(of) for name, of, *_ in connection.execute(f"describe select * from {first}").fetchall()}
    if kind == "parquet":
        return first, types
    if kind == "csv":
        return _reader(files, ", all_varchar=true"), types
    types = {name: _WHOLE.sub("DOUBLE", _MOMENT.sub("VARCHAR", of)) for name, of in types.items()}
    listed = ", ".join(f"{_literal(name)}: {_literal(of)}" for name, of in types.items() if name != "_file")
    return _reader(files, f", columns={{{listed}}}"), types


_WHOLE = re.compile(r"\b(BIGINT|INTEGER|HUGEINT|UBIGINT)\b")
_MOMENT = re.compile(r"\b(DATE|TIME|TIMESTAMP|UUID)\b")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _source(path: Path, types: Mapping[str, str]) -> Source:
    if (path / "recipe.yaml").is_file():
        return "guerdon"
    if {"prompt", "completion", "advantage"} <= types.keys():
        return "trl"
    return "verl" if {"input", "output", "score"} <= types.keys() else "table"


def _run_metrics(folder: RunFolder) -> dict[int, dict[str, float]]:
    columns = folder.metrics()
    found: dict[int, dict[str, float]] = {step: {} for step in columns.pop("step")}
    for name, values in columns.items():
        for step, value in zip(found, values, strict=True):
            if value is not None:
                found[step][name] = value
    return found


def _newest_trainer_state(path: Path) -> Path | None:
    found = [*path.glob("trainer_state.json"), *path.glob("checkpoint-*/trainer_state.json")]
    return max(found, key=lambda file: (_last_step(file), str(file)), default=None)


def _last_step(file: Path) -> int:
    return json.loads(file.read_text(encoding="utf-8")).get("global_step", 0)


def _trainer_metrics(file: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for row in json.loads(file.read_text(encoding="utf-8")).get("log_history", ()):
        known = ((ours, row.get(theirs)) for theirs, ours in TRAINER_STATE.items())
        named = {name: value for name, value in known if isinstance(value, int | float)}
        if named and "step" in row:
            found.setdefault(int(row["step"]), {}).update(named)
    return found
