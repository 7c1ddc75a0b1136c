"""A few telling trajectories of a run: groups of the first and the last saved step, best beside worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from guerdon.monitor.charts import png
from guerdon.tasks.base import Kind
from guerdon.training.folder import RunFolder

GROUPS = 3
MEMBERS = 4
# A control policy's trajectories are numbers, of which a table shows more.
TABLE_ROWS = 12
# Longer texts are cut in the report; the run's Parquet files hold them whole.
TEXT_LENGTH = 3000

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Trajectory:
    """One trajectory as the report shows it.

    Attributes:
        text: what the policy wrote, at most ``TEXT_LENGTH`` characters.
        hidden: how many characters are left out.
        image: PNG address of a flow policy's sample.
        components: raw rewards by name; None where they don't apply.
        details: what rewards said beside them.
        advantage: smallest and largest credit of an action.
        ending: why it ended.
    """

    row: int
    group: int
    text: str | None
    hidden: int
    image: str | None
    reward: float | None
    components: dict[str, float | None]
    details: dict[str, str]
    advantage: tuple[float, float] | None
    length: int
    ending: str
    fault: str | None


@dataclass(frozen=True)
class Group:
    """Trajectories from one start, best first."""

    prompt: str | None
    answer: str | None
    size: int
    trajectories: list[Trajectory]


@dataclass(frozen=True)
class Sample:
    """What is shown of one saved step."""

    step: int
    kind: Kind
    groups: list[Group]
    size: int


def sample_steps(folder: RunFolder) -> list[Sample]:
    """Telling trajectories of the first and the last saved step."""
    steps = folder.rollout_steps()
    samples = [sample_step(step, folder.rollouts(step)) for step in sorted({*steps[:1], *steps[-1:]})]
    return [sample for sample in samples if sample.groups]


def sample_step(step: int, table: pa.Table) -> Sample:
    """Choose from a table of ``rollout_table``: the groups whose rewards differ most, from best to worst.

    Where no group differs (or each has one member), groups are taken evenly from the best to the worst.
    """
    kind = kind_of(table)
    rewards = [-math.inf if r is None or math.isnan(r) else r for r in table["reward"].to_pylist()]
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(table["group"].to_pylist()):
        groups.setdefault(group, []).append(row)
    if kind == "control":
        groups, members, limit = {0: list(range(table.num_rows))} if table.num_rows else {}, TABLE_ROWS, 1
    else:
        members, limit = MEMBERS, GROUPS
    chosen = []
    for group in _telling(groups, rewards, limit):
        ranked = sorted(groups[group], key=lambda row: (-rewards[row], row))
        rows = table.take(_evenly(ranked, members)).to_pylist()
        scale = pixel_range([x for row in rows for x in row.get("image") or ()])
        shown = [_trajectory(row, scale) for row in rows]
        chosen.append(Group(_cut(rows[0]["prompt"])[0], _cut(rows[0]["answer"])[0], len(ranked), shown))
    return Sample(step, kind, chosen, table.num_rows)


def kind_of(table: pa.Table) -> Kind:
    """Which kind of policy wrote a table of trajectories."""
    if "image" in table.column_names:
        return "flow"
    return "control" if table["text"].null_count == table.num_rows else "language"


def pixel_range(pixels: Sequence[float]) -> tuple[float, float]:
    """What counts as black and white: -1 and 1 for samples centred on 0, else 0 and 1."""
    return (-1.0, 1.0) if min(pixels, default=0.0) < -0.25 else (0.0, 1.0)


def _telling(groups: Mapping[int, Sequence[int]], rewards: Sequence[float], limit: int) -> list[int]:
    """Keys of the groups to show."""
    spread, mean = {}, {}
    for group, rows in groups.items():
        finite = [rewards[row] for row in rows if math.isfinite(rewards[row])] or [0.0]
        spread[group], mean[group] = max(finite) - min(finite), sum(finite) / len(finite)
    if any(spread.values()):
        return sorted(groups, key=lambda group: (-spread[group], group))[:limit]
    return _evenly(sorted(groups, key=lambda group: (-mean[group], group)), limit)


def _evenly(items: Sequence[int], n: int) -> list[int]:
    """At most ``n`` items from first to last, at equal distances."""
    if len(items) <= n:
        return list(items)
    if n == 1:
        return [items[0]]
    return [items[round(k * (len(items) - 1) / (n - 1))] for k in range(n)]


def _trajectory(row: Row, scale: tuple[float, float]) -> Trajectory:
    text, hidden = _cut(row["text"])
    components = {name.removeprefix("reward/"): x for name, x in row.items() if name.startswith("reward/")}
    components |= {f"{n.removeprefix('watch/')} (watch only)": x for n, x in row.items() if n.startswith("watch/")}
    said = {name.removeprefix("detail/"): x for name, x in row.items() if name.startswith("detail/") and x}
    details = {f"{name} says": _cut(x)[0] or "" for name, x in said.items()}
    credit = [c for c in row["credit"] or () if c is not None]
    return Trajectory(
        row=row["row"],
        group=row["group"],
        text=text,
        hidden=hidden,
        image=_image(row, scale),
        reward=row["reward"],
        components=components,
        details=details,
        advantage=(min(credit), max(credit)) if credit else None,
        length=row["length"],
        ending="cut" if row["truncated"] else "ended" if row["done"] else "open",
        fault=row["fault"],
    )


def _cut(text: str | None) -> tuple[str | None, int]:
    return (None, 0) if text is None else (text[:TEXT_LENGTH], max(0, len(text) - TEXT_LENGTH))


def _image(row: Row, scale: tuple[float, float]) -> str | None:
    """The sample as a picture: of its own height and width, else square if it can be, else one line."""
    pixels, shape = row.get("image"), row.get("image_shape") or []
    if not pixels:
        return None
    side = math.isqrt(len(pixels))
    height, width = shape[-2:] if len(shape) > 1 else (side, side) if side * side == len(pixels) else (1, len(pixels))
    low, high = scale
    return png([(x - low) / (high - low) for x in pixels[: height * width]], height, width)
