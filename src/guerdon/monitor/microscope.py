"""Rollouts of one saved step under the microscope: groups side by side, every action with its credit.

Only the rows that are shown are read, so a page of a large step costs as much as one of a small step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import duckdb

from guerdon.errors import GuerdonError
from guerdon.monitor.charts import number, png
from guerdon.monitor.step_file import StepFile, step_files
from guerdon.monitor.transcript import transcript
from guerdon.tasks.base import Kind
from guerdon.training.folder import RunFolder

Sort = Literal["spread", "best", "worst", "row"]
# Rollouts of a group that are shown side by side; as many as fit a page's width.
MEMBERS = 4
# A control policy's step is many short lines of numbers, of which the table shows so many.
TABLE_ROWS = 12
# What is longer is cut in the page; the run's Parquet files hold it whole.
TOKENS, CHARACTERS, LABEL = 500, 4000, 40
# Depths of colour on each side of 0.
SHADES = 4
# Frames of a denoising strip; of more steps as many are shown, evenly.
FRAMES = 16

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """One action's text with its numbers.

    Attributes:
        place: its position in the trajectory.
        shade: CSS class of its credit: ``p1`` to ``p4`` above 0, ``n1`` to ``n4`` below, ``z`` for 0, empty for none.
        label: what hovering tells.
    """

    text: str
    place: int
    credit: float | None
    shade: str
    label: str
    special: bool


@dataclass(frozen=True)
class Said:
    """A turn of a conversation: what the policy wrote, and what it was answered.

    Attributes:
        cut: characters of the answer that are left out.
        unread: tokens of the answer where its text is not known.
    """

    number: int
    pieces: Sequence[Piece]
    heard: str | None
    cut: int
    unread: int


@dataclass(frozen=True)
class Frame:
    """A state of a denoising strip, and the credit of the step that led to it."""

    step: int
    image: str
    credit: float | None
    shade: str


@dataclass(frozen=True)
class Rollout:
    """One trajectory as a page shows it.

    Attributes:
        turns: its text by turns; empty where there is none, or no tokens were kept.
        text: its whole text where ``turns`` do not hold it, cut.
        hidden: actions or characters that are left out.
        image: PNG address of a flow policy's sample.
        frames: the states on the way to it.
        same_credit: the credit of every action, if it is the same, and the colour it has.
        credit: of each action; None off the mask.
        dense: per-action rewards by name.
        ending: ``cut``, ``ended`` or ``open``.
    """

    row: int
    group: int
    reward: float | None
    components: dict[str, float | None]
    details: dict[str, str]
    turns: Sequence[Said]
    text: str | None
    hidden: int
    image: str | None
    frames: Sequence[Frame]
    same_credit: float | None
    same_shade: str
    credit: Sequence[float | None]
    dense: dict[str, Sequence[float | None]]
    length: int
    ending: str
    fault: str | None

    @property
    def advantage(self) -> tuple[float, float] | None:
        """Smallest and largest credit of an action."""
        known = _known(self.credit)
        return (min(known), max(known)) if known else None


@dataclass(frozen=True)
class Group:
    """Trajectories from one start, best first.

    Attributes:
        prompt_cut: characters of the prompt that are left out.
        size: how many there are, of which ``rollouts`` are shown.
        spread: difference between the best and the worst reward.
    """

    key: int
    prompt: str | None
    prompt_cut: int
    answer: str | None
    size: int
    spread: float | None
    rollouts: Sequence[Rollout]


@dataclass(frozen=True)
class Page:
    """Some groups of a saved step.

    Attributes:
        steps: every step that was saved.
        rows: trajectories of the step.
        total: its groups; ``groups`` are those from the ``first`` on, in the order of ``sort``.
        scale: the largest credit in the page, at which colours are deepest; 0 where there is none.
        table: of a control policy, trajectories from the best to the worst.
    """

    step: int
    steps: Sequence[int]
    kind: Kind
    rows: int
    total: int
    first: int
    count: int
    sort: Sort
    groups: Sequence[Group]
    scale: float
    table: Sequence[Rollout] = ()


def microscope_page(
    folder: RunFolder, *, step: int | None = None, first: int = 0, count: int = 3, sort: Sort = "spread"
) -> Page | None:
    """Groups of a saved step.

    Args:
        step: one that was saved; the last by default.
        first: groups to pass over.
        count: groups to show.
        sort: ``spread`` (the largest difference in reward first; where none differs, the best, the worst, the next
            best, and so on), ``best`` or ``worst`` mean reward first, or ``row`` (as they were sampled).

    Returns:
        the page; None of a run that has saved nothing.

    Raises:
        GuerdonError: when the step was not saved.
    """
    files = step_files(folder)
    if not files:
        return None
    step = max(files) if step is None else step
    if step not in files:
        raise GuerdonError(f"'{folder.path}' has no rollouts of step {step}; it has those of {sorted(files)}")
    with duckdb.connect() as connection:
        table = StepFile(connection, files[step])
        kind = table.kind()
        ordered = _ordered(table.groups(), sort)
        chosen = ordered[first : first + count]
        members = table.members([key for key, *_ in chosen])
        shown = {key: _evenly(rows, MEMBERS) for key, rows in members.items()}
        overview = _evenly(table.ranked(), TABLE_ROWS) if kind == "control" else []
        rows = table.rows(dict.fromkeys([*(row for rows in shown.values() for row in rows), *overview]))
        total_rows = table.count()
    scale = max((abs(c) for row in rows.values() for c in _known(row["credit"] or ())), default=0.0)
    pixels = pixel_range([x for row in rows.values() for x in row.get("image") or ()])
    made = {number: _rollout(row, scale, pixels) for number, row in rows.items()}
    groups = []
    for key, spread, _ in chosen:
        top = rows[shown[key][0]]
        answer, together = _cut(top["answer"])[0], [made[row] for row in shown[key]]
        groups.append(Group(key, *_cut(top["prompt"]), answer, len(members[key]), spread, together))
    steps = sorted(files)
    listed = [made[row] for row in overview]
    return Page(step, steps, kind, total_rows, len(ordered), first, count, sort, groups, scale, listed)


def kind_of(folder: RunFolder) -> Kind | None:
    """Which kind of policy a run trains, from its first saved step; None before there is one."""
    files = step_files(folder)
    if not files:
        return None
    with duckdb.connect() as connection:
        return StepFile(connection, files[min(files)]).kind()


def pixel_range(pixels: Sequence[float]) -> tuple[float, float]:
    """What counts as black and white: -1 and 1 for samples centred on 0, else 0 and 1."""
    return (-1.0, 1.0) if min(pixels, default=0.0) < -0.25 else (0.0, 1.0)


def _ordered(
    groups: Sequence[tuple[int, float | None, float | None]], sort: Sort
) -> list[tuple[int, float | None, float | None]]:
    if sort == "row":
        return list(groups)

    def mean(group: tuple[int, float | None, float | None]) -> float:
        return -math.inf if group[2] is None else group[2]

    if sort == "worst":
        return sorted(groups, key=mean)
    if sort == "spread" and any(spread for _, spread, _ in groups):
        return sorted(groups, key=lambda group: -(group[1] or 0.0))
    best = sorted(groups, key=lambda group: -mean(group))
    if sort == "best":
        return best
    return [best[k // 2] if k % 2 == 0 else best[-1 - k // 2] for k in range(len(best))]


def _evenly(items: Sequence[int], n: int) -> list[int]:
    """At most ``n`` items from first to last, at equal distances."""
    if len(items) <= n:
        return list(items)
    return [items[round(k * (len(items) - 1) / (n - 1))] for k in range(n)]


def _rollout(row: Row, scale: float, pixels: tuple[float, float]) -> Rollout:
    components = {name.removeprefix("reward/"): x for name, x in row.items() if name.startswith("reward/")}
    components |= {f"{n.removeprefix('watch/')} (watch only)": x for n, x in row.items() if n.startswith("watch/")}
    said = {name.removeprefix("detail/"): x for name, x in row.items() if name.startswith("detail/") and x}
    credit = row["credit"] or []
    known = _known(credit)
    dense = {name.removeprefix("dense/"): x for name, x in row.items() if name.startswith("dense/") and x}
    same = known[0] if known and min(known) == max(known) else None
    turns, text, hidden = _conversation(row, credit, dense, scale)
    if same is not None and not dense:
        turns = [replace(turn, pieces=_merged(turn.pieces)) for turn in turns]
    return Rollout(
        row=row["row"],
        group=row["group"],
        reward=row["reward"],
        components={name: None if x is None or math.isnan(x) else x for name, x in components.items()},
        details={f"{name} says": _cut(_plainly(x))[0] or "" for name, x in said.items()},
        turns=turns,
        text=text,
        hidden=hidden,
        image=_image(row, row.get("image"), pixels),
        frames=_frames(row, credit, scale, pixels),
        same_credit=same,
        same_shade=shade(same, scale),
        credit=credit,
        dense=dense,
        length=row["length"],
        ending="cut" if row["truncated"] else "ended" if row["done"] else "open",
        fault=row["fault"],
    )


def _plainly(detail: str) -> str:
    """What a reward said, without the brackets where it is an object in JSON."""
    try:
        read = json.loads(detail)
    except ValueError:
        return detail
    if not isinstance(read, dict):
        return detail
    said = {key: x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for key, x in read.items()}
    return "; ".join(f"{key}: {x}" for key, x in said.items())


def _conversation(
    row: Row, credit: Sequence[float | None], dense: Mapping[str, Sequence[float | None]], scale: float
) -> tuple[list[Said], str | None, int]:
    """Turns, the text where they do not hold it, and how much is left out."""
    text, tokens = row["text"], row.get("tokens")
    if not tokens or not any(token is not None for token in tokens):
        shown, hidden = _cut(text)
        return [], shown, hidden
    turns, whole = transcript(text, tokens, row.get("turn"))
    out, left, room = [], TOKENS, CHARACTERS
    for turn in turns:
        pieces = []
        for token in turn.tokens:
            if not left or not room:
                break
            at, left = token.place, left - 1
            value = credit[at] if at < len(credit) else None
            rewards = {n: xs[at] for n, xs in dense.items() if at < len(xs) and xs[at] is not None}
            label = _label(token.text, f"position {at}", value, rewards)
            written = token.text if len(token.text) <= room else token.text[:room] + "…"
            pieces.append(Piece(written, at, value, shade(value, scale), label, token.special))
            room = max(0, room - len(token.text))
        heard, cut = _cut(turn.heard)
        if pieces:
            out.append(Said(turn.number, pieces, heard, cut, turn.unread if turn.heard is None else 0))
    shown = sum(len(turn.pieces) for turn in out)
    return out, None if whole else _cut(text)[0], sum(len(turn.tokens) for turn in turns) - shown


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces of equal credit as one, but for special tokens."""
    out: list[Piece] = []
    for special, found in groupby(pieces, key=lambda piece: piece.special):
        run = list(found)
        if special or len(run) == 1:
            out += run
            continue
        first, last = run[0], run[-1]
        label = _label(f"{len(run)} tokens", f"positions {first.place} to {last.place}", first.credit, {})
        out.append(replace(first, text="".join(piece.text for piece in run), label=label))
    return out


def _label(text: str, where: str, credit: float | None, rewards: Mapping[str, float | None]) -> str:
    parts = [text.strip()[:LABEL] or repr(text), where]
    parts += [] if credit is None else [f"credit {number(credit)}"]
    parts += [f"{name} {number(x)}" for name, x in rewards.items()]
    return " · ".join(parts)


def shade(credit: float | None, scale: float) -> str:
    """CSS class of a credit on a scale that ends at ±``scale``."""
    if credit is None or not math.isfinite(credit):
        return ""
    if credit == 0 or scale == 0:
        return "z"
    depth = min(SHADES, max(1, math.ceil(SHADES * abs(credit) / scale - 1e-9)))
    return f"{'p' if credit > 0 else 'n'}{depth}"


def _frames(row: Row, credit: Sequence[float | None], scale: float, pixels: tuple[float, float]) -> list[Frame]:
    """The states of a denoising strip, evenly chosen where there are many."""
    states = row.get("frames") or []
    out = []
    for k in _evenly(range(len(states)), FRAMES):
        value = credit[k - 1] if 0 < k <= len(credit) else None
        image = _image(row, states[k], pixels)
        if image is not None:
            out.append(Frame(k, image, value, shade(value, scale)))
    return out


def _image(row: Row, values: Sequence[float] | None, pixels: tuple[float, float]) -> str | None:
    """A sample as a picture: of its own height and width, else square if it can be, else one line."""
    if not values:
        return None
    shape, side = row.get("image_shape") or [], math.isqrt(len(values))
    height, width = shape[-2:] if len(shape) > 1 else (side, side) if side * side == len(values) else (1, len(values))
    low, high = pixels
    return png([(x - low) / (high - low) for x in values[: height * width]], height, width)


def _known(values: Sequence[float | None]) -> list[float]:
    return [x for x in values if x is not None and math.isfinite(x)]


def _cut(text: str | None) -> tuple[str | None, int]:
    return (None, 0) if text is None else (text[:CHARACTERS], max(0, len(text) - CHARACTERS))
