"""The verifier of bounding boxes: which boxes does a text name, and how well do they cover the wanted ones?"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from guerdon.errors import RewardError
from guerdon.rewards.extract import marked_answer
from guerdon.rewards.forms import Score, reward

Layout = Literal["xyxy", "xywh", "cxcywh"]
Box = tuple[float, float, float, float]

_LARGEST = 1e12  # beyond, areas lose the precision that a comparison needs
_NUMBER = re.compile(r"[-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+")
_ENTRY = r"\s*+((?:[-+]?+(?:[0-9.]|(?<=[0-9.])[eE][-+]?+)++)|[-+]?(?i:nan|inf|infinity|null|none))\s*+"
_QUADRUPLE = re.compile(rf"[\[(]{_ENTRY},{_ENTRY}(?:,|\)\s*+,?\s*+\(){_ENTRY},{_ENTRY}[\])]")


@reward()
def box_iou(
    text: str,
    answer: Any,
    *,
    layout: Layout = "xyxy",
    award: Literal["mean_iou", "f1", "first"] = "mean_iou",
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5,
    format_weight: Annotated[float, Field(ge=0, le=1)] = 0.0,
    most: Annotated[int, Field(ge=1)] = 100,
) -> Score:
    """Score how well the boxes in a text cover the reference boxes, one to one (Hungarian matching).

    mean_iou: sum of the IoU of matched boxes / max(boxes, references)
    f1: 2 m / (boxes + references),  m = matched pairs with an IoU of at least ``threshold``
    first: IoU of the first box with the first reference, whatever follows
    value: (1 - format_weight) award + format_weight [there are boxes, and every one is valid]

    The matching maximises the award, so a box too many costs as much as one that is missing; ``first`` is for referring
    expressions, which mean one thing. A box is four numbers in brackets, ``[1, 2, 3, 4]`` or ``(1,2),(3,4)``, alone or
    anywhere in JSON; where the text has ``<answer>...</answer>``, only there. One with NaN, an infinite number or no
    area is invalid, and counts as a box that covers nothing.

    Args:
        text: what the policy wrote.
        answer: a box, a list of boxes, or a text or JSON objects that name them. Labels are not compared.
        layout: what the four numbers are, here as in the text: two corners, a corner with width and height, or the
            centre with width and height; in the units of the references.
        award: which of the three.
        threshold: IoU from which a box counts as found, for ``f1``.
        format_weight: share of the value that form alone earns.
        most: boxes that a text may name; one with more earns 0.

    Returns:
        The value in [0,1]; its detail holds ``boxes``, ``invalid``, ``references`` and the ``ious`` of matched pairs,
        or ``why`` there is no box.

    Raises:
        RewardError: when the reference has no box, or an invalid one.

    Source: Kuhn 1955 (the matching); Everingham et al. 2010 (IoU at a threshold); Shen et al. 2025, arXiv 2504.07615
    (``first``).
    """
    references = _references(answer, layout)
    marked = marked_answer(text)
    seen = _quadruples(text if marked is None else marked, most + 1)
    if not seen or len(seen) > most:
        return Score(0.0, detail={"why": "no box in the text" if not seen else f"more than {most} boxes"})
    if award == "first":
        seen, references, award = seen[:1], references[:1], "mean_iou"
    boxes = [box for box in (corners(four, layout) for four in seen) if box is not None]
    overlaps = pairwise_iou(boxes, references)
    # A matching of all boxes, invalid ones aside: what is not matched earns nothing.
    gain = overlaps if award == "mean_iou" else (overlaps >= threshold) + overlaps / (len(references) + 1)
    matched = overlaps[linear_sum_assignment(gain, maximize=True)]
    if award == "mean_iou":
        quality = float(matched.sum()) / max(len(seen), len(references))
    else:
        quality = 2 * int((matched >= threshold).sum()) / (len(seen) + len(references))
    invalid = len(seen) - len(boxes)
    value = (1 - format_weight) * quality + format_weight * (invalid == 0)
    ious = [round(float(iou), 4) for iou in matched]
    detail = {"boxes": len(seen), "invalid": invalid, "references": len(references), "ious": ious}
    return Score(value, detail=detail)


def pairwise_iou(first: Sequence[Box] | np.ndarray, second: Sequence[Box] | np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of boxes.

    Args:
        first, second: n and m boxes by their corners (left, top, right, bottom).

    Returns:
        (n,m) in [0,1].
    """
    a, b = (np.asarray(boxes, dtype=float).reshape(-1, 4) for boxes in (first, second))
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clip(min=0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return common / (areas[0][:, None] + areas[1][None, :] - common)


def pairwise_giou(first: Sequence[Box] | np.ndarray, second: Sequence[Box] | np.ndarray) -> np.ndarray:
    """Generalised intersection over union: IoU - (hull - union) / hull of each pair of boxes with an area.

    Args:
        first, second: (n,4) and (m,4) corners.

    Returns:
        (n,m) in (-1,1].

    Source: Rezatofighi et al. 2019, arXiv 1902.09630.
    """
    a, b = (np.asarray(boxes, dtype=float).reshape(-1, 4) for boxes in (first, second))
    low, high = np.minimum(a[:, None, :2], b[None, :, :2]), np.maximum(a[:, None, 2:], b[None, :, 2:])
    hull = (high - low).prod(axis=2)
    iou = pairwise_iou(a, b)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    union = (areas[0][:, None] + areas[1][None, :]) / (1 + iou)  # both areas are union + intersection
    return iou - (hull - union) / hull


def _quadruples(text: str, most: int) -> list[list[float]]:
    """Four numbers each, NaN where something else stands."""
    found: list[list[float]] = []
    for match in _QUADRUPLE.finditer(text):
        found.append([float(entry) if _NUMBER.fullmatch(entry) else math.nan for entry in match.groups()])
        if len(found) == most:
            break
    return found


def corners(four: Sequence[float], layout: Layout) -> Box | None:
    """Corners of a box, or None where there is no area."""
    if not all(abs(number) <= _LARGEST for number in four):
        return None
    a, b, c, d = four
    if layout == "xywh":
        box = (a, b, a + c, b + d)
    elif layout == "cxcywh":
        box = (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    else:
        box = (a, b, c, d)
    return box if (box[2] - box[0]) * (box[3] - box[1]) > 0 and box[2] > box[0] else None


def _references(answer: Any, layout: Layout) -> list[Box]:
    """Corners of the reference boxes."""
    several = answer if isinstance(answer, list | tuple) else [answer]
    try:
        if isinstance(answer, str):
            given = _quadruples(answer, 10_000)
        elif any(isinstance(one, Mapping) for one in several):
            given = _quadruples(json.dumps(answer), 10_000)
        else:
            given = np.asarray(answer, dtype=float).reshape(-1, np.shape(answer)[-1]).tolist()
        boxes = [corners(four, layout) if len(four) == 4 else None for four in given]
    except (TypeError, ValueError, IndexError):
        boxes = []
    usable = [box for box in boxes if box is not None]
    if not usable or len(usable) < len(boxes):
        raise RewardError(
            f"reward 'box_iou': the reference answer is {answer!r:.80}, want one or more boxes of four finite numbers "
            f"with an area, as '{layout}'; fix the task's answers, or 'layout'"
        )
    return usable
