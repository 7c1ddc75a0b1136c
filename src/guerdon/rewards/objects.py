"""Objects, as boxes with labels, read out of the JSON in a text or out of a reference.

An object is ``{"bbox_2d": [left, top, right, bottom], "label": "cat"}`` (``bbox`` and ``box`` are read as well), or the
four numbers alone, which have no label; labels are the same whatever their case. A text has a list of them, in its last
``<answer>...</answer>`` if there is one; ``None`` is the empty list. What is no such object, and a box without an area,
counts as a box that covers nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from guerdon.errors import RewardError
from guerdon.rewards.boxes import corners
from guerdon.rewards.extract import marked_answer, read_json

_KEYS = ("bbox_2d", "bbox", "box")
_NOTHING = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Objects:
    """Labelled boxes, in the order in which they were named.

    Attributes:
        boxes: (n,4) corners; all 0 for a box that covers nothing.
        labels: n, in lower case; empty for none.
        whole: whether they were a list of objects, every one with four numbers and a label, and not empty.
        why: what was wrong with the text, if there was nothing to read in it.
    """

    boxes: np.ndarray
    labels: tuple[str, ...]
    whole: bool = True
    why: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def empty(self) -> np.ndarray:
        """(n,) which boxes cover nothing."""
        return (self.boxes[:, 2] <= self.boxes[:, 0]) | (self.boxes[:, 3] <= self.boxes[:, 1])

    def same_label(self, other: Objects) -> np.ndarray:
        """(n,m) bool."""
        return np.array(self.labels, dtype=object)[:, None] == np.array(other.labels, dtype=object)[None, :]


def read_objects(text: str, *, most: int = 100) -> Objects | None:
    """The objects that a text names, or None for more than ``most``; ``why`` says what kept them from being read."""
    marked = marked_answer(text)
    if (text if marked is None else marked).strip().rstrip(".").casefold() == "none":
        return _objects(None)
    try:
        value = read_json(text)
        if isinstance(value, list) and len(value) > most and not _is_box(value):
            return None
        return _objects(value)
    except ValueError as error:
        return Objects(np.zeros((0, 4)), (), whole=False, why=f"{error}"[:200])


def reference_objects(reward: str, answer: Any) -> Objects:
    """The objects of a reference answer.

    Args:
        reward: who asks.
        answer: an object, a list of them, JSON, or None for none.

    Raises:
        RewardError: when there is something else, or a box without an area.
    """
    try:
        found = read_objects(answer, most=len(answer) + 1) if isinstance(answer, str) else _objects(answer)
    except ValueError as error:
        found = Objects(np.zeros((0, 4)), (), why=f"{error}")
    if found is None or found.why or found.empty.any():
        raise RewardError(
            f"reward '{reward}': the reference answer is {answer!r:.80}, want objects such as "
            '[{"bbox_2d": [0, 0, 9, 9], "label": "cat"}], every box with an area, or none; fix the task\'s answers'
        )
    return found


def _objects(value: Any) -> Objects:
    """Objects out of what JSON or a task holds.

    Raises:
        ValueError: when it is neither an object nor a list.
    """
    value = value.tolist() if hasattr(value, "tolist") else [] if value is None else value
    alone = isinstance(value, Mapping) or _is_box(value)
    if not alone and not isinstance(value, list | tuple):
        raise ValueError(f"want a list of objects, not {value!r:.40}")
    boxes, labels, whole = [], [], bool(value) and not alone
    for item in [value] if alone else value:
        known = item if isinstance(item, Mapping) else {"box": item}
        box, label = next((known[key] for key in _KEYS if key in known), None), known.get("label")
        labelled = isinstance(label, str | int) and not isinstance(label, bool)
        whole = whole and labelled and _is_box(box)
        boxes.append((corners(box, "xyxy") if _is_box(box) else None) or _NOTHING)
        labels.append(" ".join(str(label).casefold().split()) if labelled else "")
    return Objects(np.array(boxes, dtype=float).reshape(-1, 4), tuple(labels), whole)


def _is_box(value: Any) -> TypeGuard[Sequence[float]]:
    numbers = isinstance(value, list | tuple) and len(value) == 4
    return numbers and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
