"""A batch as a table with one row per trajectory: what is kept of a step's rollouts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from guerdon.errors import GuerdonError
from guerdon.rewards.base import Fault
from guerdon.rewards.wire import plain
from guerdon.rollouts import Rollouts, total

# Numbers in the denoising strips of one step: 4 MB before compression. Beyond them, later groups have none.
FRAME_VALUES = 2**20


def rollout_table(
    step: int,
    rollouts: Rollouts,
    *,
    faults: Iterable[Fault] = (),
    scored: Rollouts | None = None,
    token_text: Sequence[Sequence[str]] | None = None,
) -> pa.Table:
    """Lay a batch out as a table with one row per trajectory.

    Columns: ``step``, ``row``, ``group``, ``task_id``, ``prompt``, ``text``, ``answer`` (as text), ``length``
    (actions), ``done``, ``truncated``, ``version``, ``reward`` (shaped), ``reward/NAME`` and ``watch/NAME`` (raw,
    summed over actions or turns), ``detail/NAME`` (text, or JSON), ``fault``; lists over positions up to the last
    action: ``dense/NAME`` of per-action components, ``credit``, ``turn`` of multi-turn trajectories, ``tokens``;
    ``image`` and ``image_shape`` of a flow policy's ``payload["sample"]``, and ``frames``, the states of
    ``payload["latents"]`` that lead to it, of the best and the worst of each group. Off the mask ``dense`` and
    ``credit`` are null, so they line up with ``tokens``.

    Args:
        rollouts: the batch with reward and advantage, as far as they exist.
        faults: their ``row`` counts in ``scored`` if it is given, else in ``rollouts``.
        scored: the batch before faulted samples were dropped, so that these are written too, without reward and
            credit; a dropped sample is one with a fault and NaN in that component.
        token_text: for each row of ``scored`` or ``rollouts``, the text of each action.

    Raises:
        GuerdonError: when ``scored`` and ``rollouts`` do not fit together, or ``token_text`` does not fit the mask.
    """
    batch = rollouts if scored is None else scored
    faults = list(faults)
    kept = _kept_rows(rollouts, scored, faults)
    mask = batch.mask.cpu()
    n, actions = mask.shape
    span = (torch.arange(1, actions + 1) * mask).amax(dim=1) if actions else torch.zeros(n, dtype=torch.int64)
    columns: dict[str, Any] = {
        "step": pa.array([step] * n, pa.int64()),
        "row": pa.array(range(n), pa.int64()),
        "group": _plain(batch.group),
        "task_id": _plain(batch.task_id),
        "prompt": _texts(batch.prompt, n),
        "text": _texts(batch.text, n),
        "answer": _texts(batch.answer, n),
        "length": _plain(mask.sum(dim=1)),
        "done": _plain(batch.done),
        "truncated": _plain(batch.truncated),
        "version": _plain(batch.version),
        "reward": _scattered(rollouts.reward, kept, n),
        "fault": _fault_texts(faults, n),
    }
    columns |= _scores(batch, mask, span)
    credit = torch.full(mask.shape, math.nan)
    if rollouts.advantage is not None:
        credit[kept] = rollouts.advantage.detach().float().cpu()
    scored_rows = torch.zeros(n, dtype=torch.bool)
    scored_rows[kept] = rollouts.advantage is not None
    columns["credit"] = _lists(credit, span, mask & scored_rows.unsqueeze(1))
    if (batch.turn > 0).any():
        columns["turn"] = _lists(batch.turn, span, mask)
    if token_text is not None:
        columns["tokens"] = _token_lists(token_text, span, mask)
    columns |= _pictures(batch, columns["reward"])
    return pa.table(columns)


def _scores(batch: Rollouts, mask: Tensor, span: Tensor) -> dict[str, pa.Array]:
    """Raw components, per action too where they come so, and what rewards said beside them."""
    columns: dict[str, pa.Array] = {}
    for prefix, components in (("reward", batch.rewards), ("watch", batch.watch)):
        for name, value in components.items():
            columns[f"{prefix}/{name}"] = _plain(total(value, mask))
            if value.ndim == 2 and value.shape == mask.shape:
                columns[f"dense/{name}"] = _lists(value, span, mask)
    details = [dict(detail or {}) for detail in batch.detail or ()]
    for name in dict.fromkeys(name for detail in details for name in detail):
        columns[f"detail/{name}"] = _texts([_detail_text(detail.get(name)) for detail in details], len(mask))
    return columns


def _pictures(batch: Rollouts, reward: pa.Array) -> dict[str, pa.Array]:
    """A flow policy's samples, and the states that led to some of them."""
    if "sample" not in batch.payload.keys():  # noqa: SIM118 - a TensorDict is not a mapping
        return {}
    sample = batch.payload["sample"]
    n = len(sample)
    columns = {
        "image": pa.array(list(sample.detach().float().cpu().reshape(n, -1).numpy()), pa.list_(pa.float32())),
        "image_shape": pa.array([list(sample.shape[1:])] * n, pa.list_(pa.int32())),
    }
    if "latents" in batch.payload.keys():  # noqa: SIM118 - a TensorDict is not a mapping
        columns["frames"] = _frames(batch.payload["latents"], reward.to_pylist(), batch.group.tolist())
    return columns


def _kept_rows(rollouts: Rollouts, scored: Rollouts | None, faults: Sequence[Fault]) -> Tensor:
    """Rows of ``scored`` that ``rollouts`` consists of."""
    if scored is None:
        return torch.arange(rollouts.mask.shape[0])
    names = set(scored.rewards.keys())
    keep = torch.ones(scored.mask.shape[0], dtype=torch.bool)
    for fault in faults:
        if fault.reward in names and scored.rewards[fault.reward][fault.row].isnan().any():
            keep[fault.row] = False
    if int(keep.sum()) != rollouts.mask.shape[0]:
        raise GuerdonError(
            f"{scored.mask.shape[0]} scored trajectories without {int((~keep).sum())} faulted ones are not the "
            f"{rollouts.mask.shape[0]} given; pass the batch that score() returned and what drop_faulted() made of it"
        )
    return keep.nonzero().flatten()


def _plain(x: Tensor) -> pa.Array:
    return pa.array(x.detach().cpu().numpy())


def _scattered(x: Tensor | None, rows: Tensor, n: int) -> pa.Array:
    """(n,) float column with ``x`` at ``rows`` and null elsewhere."""
    values, missing = np.zeros(n, dtype=np.float32), np.ones(n, dtype=bool)
    if x is not None:
        values[rows.numpy()], missing[rows.numpy()] = x.detach().float().cpu().numpy(), False
    return pa.array(values, mask=missing)


def _lists(x: Tensor, span: Tensor, mask: Tensor) -> pa.Array:
    """One list per row: the first ``span`` entries of ``x`` (N,T), null off ``mask``."""
    inside = torch.arange(x.shape[1]) < span.unsqueeze(1)
    flat = pa.array(x.detach().cpu()[inside].numpy(), mask=~mask[inside].numpy())
    return pa.ListArray.from_arrays(_offsets(span), flat)


def _token_lists(token_text: Sequence[Sequence[str]], span: Tensor, mask: Tensor) -> pa.Array:
    """One list per row: the text of each action at its position, null off ``mask``."""
    for row, (texts, actions) in enumerate(zip(token_text, mask.sum(dim=1).tolist(), strict=True)):
        if len(texts) != actions:
            raise GuerdonError(f"token_text has {len(texts)} strings for row {row}, which has {actions} actions")
    inside = torch.arange(mask.shape[1]) < span.unsqueeze(1)
    flat = np.full(int(span.sum()), None, dtype=object)
    flat[mask[inside].numpy()] = [_clean(text) for texts in token_text for text in texts]
    return pa.ListArray.from_arrays(_offsets(span), pa.array(flat, pa.string()))


def _frames(latents: Tensor, reward: Sequence[float | None], group: Sequence[int]) -> pa.Array:
    """The states (T+1 lists of D numbers) of each group's best and worst row, as many as ``FRAME_VALUES`` allows."""
    members: dict[int, list[tuple[float, int]]] = {}
    for row, (key, value) in enumerate(zip(group, reward, strict=True)):
        if value is not None and math.isfinite(value):
            members.setdefault(key, []).append((-value, row))
    rows = list(dict.fromkeys(row for found in members.values() for _, row in (min(found), max(found))))
    states = latents.detach().float().flatten(2).cpu()
    chosen = rows[: FRAME_VALUES // max(1, states[0].numel())] if len(states) else []
    frames: list[Any] = [None] * len(states)
    for row in chosen:
        frames[row] = list(states[row].numpy())
    return pa.array(frames, pa.list_(pa.list_(pa.float32())))


def _offsets(span: Tensor) -> pa.Array:
    return pa.array([0, *span.cumsum(0).tolist()], pa.int32())


def _texts(values: Sequence[Any] | None, n: int) -> pa.Array:
    values = [None] * n if values is None else values
    return pa.array([None if v is None else _clean(str(v)) for v in values], pa.string())


def _detail_text(detail: Any) -> str | None:
    """A detail as it is kept: text as it is, anything else as JSON."""
    return detail if detail is None or isinstance(detail, str) else json.dumps(plain(detail), ensure_ascii=False)


def _clean(text: str) -> str:
    """Text without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _fault_texts(faults: Sequence[Fault], n: int) -> pa.Array:
    texts: list[str | None] = [None] * n
    for fault in faults:
        texts[fault.row] = "; ".join(filter(None, (texts[fault.row], _clean(str(fault)))))
    return pa.array(texts, pa.string())
