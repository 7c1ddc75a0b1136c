"""One saved step of a run, asked with DuckDB for no more than is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from guerdon.tasks.base import Kind
from guerdon.training.folder import RunFolder


def step_files(folder: RunFolder) -> dict[int, Path]:
    """The file of each saved step of a run, in order."""
    return {int(f.stem.removeprefix("step-")): f for f in sorted(folder.rollouts_path.glob("step-*.parquet"))}


class StepFile:
    """The trajectories of one step.

    Args:
        connection: what asks.
        path: the file, as ``rollout_table`` lays it out.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path) -> None:
        self._connection = connection
        escaped = "".join(f"[{c}]" if c in "[*?" else c for c in str(path))
        self._from = f"read_parquet('{escaped.replace(chr(39), chr(39) * 2)}')"
        # NaN would count as the largest of all rewards. (isnan answers false where a file's statistics know of no NaN.)
        self._reward = "case when isfinite(reward) then reward end"

    def _ask(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.sql(query).fetchall()

    def kind(self) -> Kind:
        """Which kind of policy wrote them."""
        columns = {name for name, *_ in self._ask(f"describe select * from {self._from}")}
        if "image" in columns:
            return "flow"
        return "language" if self._ask(f'select count("text") from {self._from}')[0][0] else "control"

    def count(self) -> int:
        """How many there are."""
        return self._ask(f"select count(*) from {self._from}")[0][0]

    def groups(self) -> list[tuple[int, float | None, float | None]]:
        """Key, spread and mean reward of each group, in the order in which they were sampled."""
        return self._ask(
            f'select "group", max({self._reward}) - min({self._reward}), avg({self._reward}) from {self._from} '
            'group by "group" order by min("row")'
        )

    def members(self, groups: Sequence[int]) -> dict[int, list[int]]:
        """Rows of the groups, best first."""
        found: dict[int, list[int]] = {group: [] for group in groups}
        if groups:
            keys = ", ".join(str(int(group)) for group in groups)
            query = f'select "group", "row" from {self._from} where "group" in ({keys}) '
            for group, row in self._ask(f'{query} order by {self._reward} desc nulls last, "row"'):
                found[group].append(row)
        return found

    def ranked(self) -> list[int]:
        """All rows, best first."""
        ranked = self._ask(f'select "row" from {self._from} order by {self._reward} desc nulls last, "row"')
        return [row for (row,) in ranked]

    def rows(self, numbers: Iterable[int]) -> dict[int, Mapping[str, Any]]:
        """Whole rows by their number."""
        wanted = ", ".join(str(int(number)) for number in numbers)
        if not wanted:
            return {}
        table = self._connection.sql(f'select * from {self._from} where "row" in ({wanted})').to_arrow_table()
        return {row["row"]: row for row in table.to_pylist()}
