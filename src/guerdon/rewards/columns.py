"""From what a reward returned to its component: one number per trajectory, turn or action, and the faults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tensordict import NonTensorStack
from torch import Tensor

from guerdon.rewards.forms import FaultKind, Form, Reply, Score, Unusable, failure
from guerdon.rewards.wire import as_score
from guerdon.rollouts import Rollouts, at_last_action


@dataclass(frozen=True)
class Fault:
    """One call of one reward on one sample that gave no usable number."""

    reward: str
    row: int
    kind: FaultKind
    message: str

    def __str__(self) -> str:
        return f"{self.reward}: {self.kind} on sample {self.row}: {self.message}"


@dataclass
class Column:
    """A component: ``values`` (N), (N,M) or (N,T), NaN at faults and where the reward does not apply."""

    values: Tensor
    faults: list[Fault] = field(default_factory=list)
    details: dict[int, Any] = field(default_factory=dict)
    stats: dict[str, float] = field(default_factory=dict)


def column_of(name: str, form: Form, rollouts: Rollouts, calls: Sequence[tuple[list[int], Reply]]) -> Column:
    """Put the replies of a reward's calls, each for some rows of the batch, together.

    What spoils a whole call is a fault of each of its rows.
    """
    column = Column(torch.full((len(rollouts),), math.nan))
    blocks: list[tuple[list[int], Tensor]] = []
    numbers: list[tuple[int, Any]] = []
    for rows, (result, kind, message, _) in calls:
        if kind is not None:
            column.faults += [Fault(name, row, kind, message) for row in rows]
        elif form == "sample":
            numbers.append((rows[0], result))
        else:
            if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
                result, stats = result  # noqa: PLW2901 - the numbers that a reward tells of itself come second
                column.stats |= stats
            if isinstance(result, list | tuple) and not isinstance(result, Score) and len(result) == len(rows):
                numbers += zip(rows, result, strict=True)
            else:
                blocks += _block(column, name, rows, result, rollouts)
    _fill_numbers(column, name, numbers)
    _fill_blocks(column, name, blocks, rollouts)
    column.faults.sort(key=lambda fault: fault.row)
    return column


def at_last_turn(x: Tensor, turn: Tensor) -> Tensor:
    """Place one number per trajectory (N,) at its last turn, zero elsewhere: (N,M).

    Args:
        turn: (N,T) turn of each action, -1 off actions.
    """
    width = turns_of(turn)
    last = turn.amax(dim=1).clamp(min=0) if turn.shape[1] else turn.new_zeros(len(turn))
    return torch.where(torch.arange(width) == last.unsqueeze(1).cpu(), x.unsqueeze(1), 0.0)


def turns_of(turn: Tensor) -> int:
    """M, the number of turns of the longest of trajectories with turns (N,T)."""
    return int(turn.max()) + 1 if turn.numel() else 0


def _fill_numbers(column: Column, name: str, numbers: Sequence[tuple[int, Any]]) -> None:
    """One number per row; an error in the place of a number is that row's fault."""
    limit = torch.finfo(column.values.dtype).max
    for row, result in numbers:
        failed = failure(result) if isinstance(result, Exception) else result if isinstance(result, Reply) else None
        if failed is not None and failed.kind is not None:
            column.faults.append(Fault(name, row, failed.kind, failed.message))
            continue
        scored = as_score(result)
        score = scored if isinstance(scored, Score) else Score(result)
        if score.detail is not None:
            column.details[row] = score.detail
        if not score.valid:
            continue
        value = score.value
        if isinstance(value, Tensor | np.ndarray):
            if math.prod(value.shape) != 1:
                message = f"got shape {tuple(value.shape)}, want one number"
                column.faults.append(Fault(name, row, "wrong_length", message))
                continue
            value = value.item()
        try:
            number = None if isinstance(value, str | bytes) else float(value)
        except Exception:
            number = None
        if number is None:
            seen = value.seen if isinstance(value, Unusable) else f"{type(value).__name__} {value!r:.60}"
            column.faults.append(Fault(name, row, "wrong_type", f"got {seen}, want a number"))
        elif not abs(number) <= limit:
            column.faults.append(Fault(name, row, "not_finite", f"the reward returned {number:g}"))
        else:
            column.values[row] = number


def _block(
    column: Column, name: str, rows: list[int], result: Any, rollouts: Rollouts
) -> list[tuple[list[int], Tensor]]:
    """What one call gave for all its rows, as (n,), (n,M) or (n,T) numbers; nothing where that spoils all of them."""
    n, mask, turn = len(rows), rollouts.mask.cpu()[rows], rollouts.turn.cpu()[rows]

    def spoil(kind: FaultKind, message: str) -> list[tuple[list[int], Tensor]]:
        column.faults += [Fault(name, row, kind, message) for row in rows]
        return []

    if isinstance(result, list | tuple) and not isinstance(result, Score):
        return spoil("wrong_length", f"got {len(result)} numbers, want {n}")
    if isinstance(result, np.ndarray) and result.dtype.kind in "biuf":
        result = torch.from_numpy(result)
    if not isinstance(result, Tensor) or result.is_complex():
        seen = result.seen if isinstance(result, Unusable) else f"{type(result).__name__} {result!r:.60}"
        return spoil("wrong_type", f"got {seen}, want {n} real numbers")
    shapes = {"one each": (n,), "one per action": tuple(mask.shape), "one per turn": (n, turns_of(turn))}
    if tuple(result.shape) not in shapes.values():
        wanted = ", or ".join(f"{shape} for {what}" for what, shape in shapes.items())
        return spoil("wrong_length", f"got shape {tuple(result.shape)}, want {wanted}")
    values = result.detach().to("cpu", torch.get_default_dtype(), copy=True)
    if values.shape == mask.shape:
        values = values.masked_fill(~mask, 0.0)
    elif values.ndim == 2:
        turns = torch.arange(values.shape[1])
        values = values.masked_fill(turns > turn.amax(dim=1, keepdim=True), 0.0)
        values = torch.nn.functional.pad(values, (0, turns_of(rollouts.turn) - values.shape[1]))
    bad = ~torch.isfinite(values).reshape(n, -1).all(dim=1)
    for place in bad.nonzero().flatten().tolist():
        wrong = values[place].reshape(-1)
        seen = float(wrong[~wrong.isfinite()][0])
        column.faults.append(Fault(name, rows[place], "not_finite", f"the reward returned {seen:g}"))
    values[bad] = math.nan
    return [(rows, values)]


def _fill_blocks(column: Column, name: str, blocks: Sequence[tuple[list[int], Tensor]], rollouts: Rollouts) -> None:
    """Blocks of rows; the first that is not one number each says what the component has numbers for."""
    wide = next((block for _, block in blocks if block.ndim == 2), None)
    if wide is not None:
        column.values = spread(column.values, tuple(wide.shape[1:]), rollouts)
    for rows, given in blocks:
        block = given if given.ndim == column.values.ndim else spread(given, tuple(wide.shape[1:]), rollouts[rows])  # type: ignore[union-attr]
        if block.shape[1:] != column.values.shape[1:]:
            message = f"got {block.shape[1]} numbers each, where other groups got {column.values.shape[1]}"
            column.faults += [Fault(name, row, "wrong_length", message) for row in rows]
        else:
            column.values[rows] = block


def spread(x: Tensor, width: tuple[int, ...], rollouts: Rollouts) -> Tensor:
    """One number per trajectory (N,) at the last place of a component with ``width`` numbers each; NaN stays whole."""
    if not width:
        return x
    mask, turn = rollouts.mask.cpu(), rollouts.turn.cpu()
    if width == tuple(mask.shape[1:]):
        placed = at_last_action(x, mask)
    else:
        placed = torch.nn.functional.pad(at_last_turn(x, turn), (0, width[0] - turns_of(turn)))
    return placed.masked_fill(x.isnan().unsqueeze(1), math.nan)


def keep_details(rollouts: Rollouts, details: Mapping[str, Mapping[int, Any]]) -> None:
    """Write what rewards said of each sample beside it; those of a reward replace what it said before."""
    if not any(details.values()):
        return
    before = rollouts.detail or [{} for _ in range(len(rollouts))]
    rows = []
    for row, known in enumerate(before):
        kept = {name: detail for name, detail in (known or {}).items() if name not in details}
        rows.append(kept | {name: found[row] for name, found in details.items() if row in found})
    rollouts.detail = NonTensorStack(*rows)  # type: ignore[assignment]  # a list to whoever reads it
