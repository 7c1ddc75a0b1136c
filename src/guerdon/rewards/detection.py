"""Verifiers of object detection: boxes with labels, written as JSON, against boxes with labels.

``objects`` says what is read. Text and references are in the same units: where the policy sees a resized image, resize
the references.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field
from scipy.optimize import linear_sum_assignment

from guerdon.errors import RewardError
from guerdon.rewards.boxes import pairwise_giou, pairwise_iou
from guerdon.rewards.forms import Score, reward
from guerdon.rewards.objects import Objects, read_objects, reference_objects

VLM_R1 = "Shen et al. 2025, arXiv 2504.07615"
VISION_R1 = "Zhan et al. 2025, arXiv 2503.18013"

_THRESHOLDS = np.arange(10, 20) / 20  # COCO's 0.50, 0.55, ..., 0.95
_RECALLS = np.arange(101) / 100  # at which COCO reads the precision

Foreign = Literal["false_positive", "drop"]
Most = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0)]


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the lower bound comes first")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_ascending)]


class Criterion(NamedTuple):
    """The parts of Vision-R1's reward, each in [0,1]."""

    format: float
    precision: float
    recall: float


class Parts(NamedTuple):
    """What one-to-one matching says of predicted objects, each in [0,1]."""

    position: float
    label: float
    completeness: float


def mean_average_precision(predicted: Objects, reference: Objects, *, foreign: Foreign = "false_positive") -> float:
    """COCO's mAP where every prediction has the same confidence, so that their order is the ranking.

    mean over the references' labels and the IoU thresholds 0.50, 0.55, ..., 0.95 of the mean over the recalls
    r = 0, 0.01, ..., 1 of the highest precision at a recall of at least r

    Each prediction in turn takes the free reference of its label that it covers best, if its IoU reaches the threshold.
    Whatever follows once all references are found costs nothing.

    Args:
        predicted, reference: n objects and m, at least one.
        foreign: predictions whose label no reference has are false positives in the ranking of every label, or are
            dropped, which makes them free.

    Returns:
        In [0,1].

    Source: Lin et al. 2014, arXiv 1405.0312, and pycocotools. (There, foreign predictions are dropped.)
    """
    overlaps, same = pairwise_iou(predicted.boxes, reference.boxes), predicted.same_label(reference)
    ours, theirs = np.array(predicted.labels, dtype=object), np.array(reference.labels, dtype=object)
    strange = ~same.any(axis=1) if foreign == "false_positive" else np.zeros(len(predicted), dtype=bool)
    scores = []
    for label in dict.fromkeys(reference.labels):
        ranked, wanted = (ours == label) | strange, theirs == label
        usable = np.where(same, overlaps, -1.0)[np.ix_(ranked, wanted)]
        scores.append(_average_precision(_hits(usable), int(wanted.sum())).mean())
    return float(np.mean(scores))


def _hits(overlaps: np.ndarray) -> np.ndarray:
    """(R,n) whether each ranked prediction finds a reference at each threshold, by overlaps (n,m)."""
    hits = np.zeros((len(_THRESHOLDS), len(overlaps)), dtype=bool)
    free = np.ones((len(_THRESHOLDS), overlaps.shape[1]), dtype=bool)
    rows = np.arange(len(_THRESHOLDS))
    for rank, row in enumerate(overlaps):
        within = np.where(free & (row >= _THRESHOLDS[:, None]), row, -1.0)
        best = within.shape[1] - 1 - within[:, ::-1].argmax(axis=1)  # of equal ones the last, as in pycocotools
        hits[:, rank] = within[rows, best] >= 0
        free[rows, best] &= ~hits[:, rank]
    return hits


def _average_precision(hits: np.ndarray, wanted: int) -> np.ndarray:
    """(R,) mean precision at 101 recalls of rankings (R,n), of which ``wanted`` predictions could be right."""
    found = hits.cumsum(axis=1)
    precision = found / np.arange(1, hits.shape[1] + 1)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([highest, np.zeros((len(hits), 1))], axis=1)
    # The first rank at which a recall is reached; the pad where it never is.
    ranks = (found[:, None, :] / wanted < _RECALLS[None, :, None]).sum(axis=2)
    return np.take_along_axis(padded, ranks, axis=1).mean(axis=1)


def matched_parts(predicted: Objects, reference: Objects, *, threshold: float = 0.5) -> Parts:
    """Match one to one, the largest IoU first and down to ``threshold``, and say what was found.

    position = sum of the IoU of pairs with the same label / m
    label = pairs with the same label / m
    completeness = 1 - (references without a partner / m + predictions without a partner / n) / 2

    Args:
        predicted, reference: n and m objects, at least one of each.
        threshold: least IoU of a pair.

    Source: Shen et al. 2025, arXiv 2504.07615 (the released code).
    """
    overlaps, same = pairwise_iou(predicted.boxes, reference.boxes), predicted.same_label(reference)
    left, pairs = overlaps.copy(), []
    while left.size and left.max() >= threshold:
        row, column = (int(i) for i in np.unravel_index(left.argmax(), left.shape))
        pairs.append((row, column))
        left[row, :], left[:, column] = -1.0, -1.0
    right = [pair for pair in pairs if same[pair]]
    missed, spurious = 1 - len(pairs) / len(reference), 1 - len(pairs) / len(predicted)
    position = float(sum(overlaps[pair] for pair in right)) / len(reference)
    return Parts(position, len(right) / len(reference), 1 - (missed + spurious) / 2)


def clamped(x: float, low: float, high: float) -> float:
    """0 for x < low, 1 for x > high, else x."""
    return 0.0 if x < low else 1.0 if x > high else x


def criterion(
    predicted: Objects,
    reference: Objects,
    *,
    precision: tuple[float, float] = (0.0, 1.0),
    hit: float = 0.5,
    recall: tuple[float, float] = (0.0, 1.0),
    denominator: Literal["matched", "predicted"] = "matched",
    unit: float | None = None,
) -> Criterion:
    """Match boxes by place, label and overlap, and score form, precision and recall: see ``box_criterion``."""
    n, m = len(predicted), len(reference)
    form = float(predicted.whole == (m > 0))
    if not n or not m:
        nothing = float(n == m)
        return Criterion(form, nothing, nothing)
    unit = float(np.abs(reference.boxes).max()) if unit is None else unit
    overlaps = np.full((n, m), -1.0)
    overlaps[~predicted.empty] = pairwise_giou(predicted.boxes[~predicted.empty], reference.boxes)
    distance = np.abs(predicted.boxes[:, None] - reference.boxes[None]).sum(axis=2) / unit
    pairs = linear_sum_assignment(distance - predicted.same_label(reference) - overlaps)
    quality = overlaps[pairs].tolist()
    kept = sum(clamped(q, *precision) for q in quality)
    hits = sum(clamped(q, hit, hit) for q in quality)
    return Criterion(form, kept / (n if denominator == "predicted" else len(quality)), clamped(hits / m, *recall))


@reward(paper=VLM_R1)
def box_map(text: str, answer: Any, *, foreign: Foreign = "false_positive", most: Most = 100) -> Score:
    """Score COCO's mAP of the objects in a text, all with the same confidence: see ``mean_average_precision``.

    Boxes after the last right one cost nothing, so this reward teaches to name many: use ``box_map_length``.

    Args:
        text: what the policy wrote.
        answer: the objects that are there.
        foreign: what becomes of predictions whose label no reference has.
        most: objects that a text may name; one with more earns 0.

    Returns:
        The value in [0,1]: 1 where neither names any object, and 0 where one does not, or the text can't be read.

    Raises:
        RewardError: when the reference can't be read.

    Source: Shen et al. 2025, arXiv 2504.07615. (IoU is continuous, and foreign predictions count; in the released code
    neither is so.)
    """

    def rule(predicted: Objects, reference: Objects) -> tuple[float, dict[str, float]]:
        return mean_average_precision(predicted, reference, foreign=foreign), {}

    return _detected("box_map", text, answer, most, rule)


@reward(paper=VLM_R1)
def box_map_length(text: str, answer: Any, *, foreign: Foreign = "false_positive", most: Most = 100) -> Score:
    """Score mAP, times a penalty for naming more objects than there are (VLM-R1's odLength).

    min(1, m / n) mAP,  n = objects in the text, m = references

    Args:
        text: what the policy wrote.
        answer: the objects that are there.
        foreign: what becomes of predictions whose label no reference has; n counts them in any case.
        most: objects that a text may name; one with more earns 0.

    Returns:
        The value in [0,1], as of ``box_map``; its detail holds ``map``.

    Raises:
        RewardError: when the reference can't be read.

    Source: Shen et al. 2025, arXiv 2504.07615.
    """

    def rule(predicted: Objects, reference: Objects) -> tuple[float, dict[str, float]]:
        score = mean_average_precision(predicted, reference, foreign=foreign)
        return min(1.0, len(reference) / len(predicted)) * score, {"map": score}

    return _detected("box_map_length", text, answer, most, rule)


@reward(paper=VLM_R1)
def box_detection(
    text: str,
    answer: Any,
    *,
    position: Share = 0.7,
    label: Share = 0.0,
    completeness: Share = 0.3,
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5,
    most: Most = 100,
) -> Score:
    """Score a weighted mean of where the objects are, what they are, and whether all of them and no others are named.

    (w_1 position + w_2 label + w_3 completeness) / (w_1 + w_2 + w_3),  of ``matched_parts``

    Args:
        text: what the policy wrote.
        answer: the objects that are there.
        position, label, completeness: the weights.
        threshold: least IoU of a pair.
        most: objects that a text may name; one with more earns 0.

    Returns:
        The value in [0,1], as of ``box_map``; its detail holds the three parts.

    Raises:
        RewardError: when all weights are 0, or the reference can't be read.

    Source: Shen et al. 2025, arXiv 2504.07615 (the released code).
    """
    weights = (position, label, completeness)
    if not sum(weights):
        raise RewardError("reward 'box_detection': position, label and completeness all weigh 0; give one a weight")

    def rule(predicted: Objects, reference: Objects) -> tuple[float, dict[str, float]]:
        parts = matched_parts(predicted, reference, threshold=threshold)
        return sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights), parts._asdict()

    return _detected("box_detection", text, answer, most, rule)


@reward(paper=VISION_R1)
def box_criterion(
    text: str,
    answer: Any,
    *,
    part: Literal["sum", "format", "precision", "recall"] = "sum",
    precision: Bounds = (0.0, 1.0),
    hit: float = 0.5,
    recall: Bounds = (0.0, 1.0),
    denominator: Literal["matched", "predicted"] = "matched",
    unit: Annotated[float, Field(gt=0)] | None = None,
    most: Most = 100,
) -> Score:
    """Score form, precision and recall of boxes by thresholds that the stages of a recipe can raise.

    pairs: the assignment with the least sum of L1 distance / unit - [same label] - GIoU
    format: 1 for a list of objects, each with four numbers and a label; if there is nothing to find, 1 minus that
    precision: mean over pairs of D(GIoU; precision)
    recall: D(sum over pairs of D(GIoU; hit, hit) / m; recall)
    D(x; low, high) = 0 for x < low, 1 for x > high, else x

    A box beyond the upper bound earns no more by getting better, so raise the bounds once most are: the source has
    precision (0.5, 0.75), hit 0.5 and recall (0.5, 0.75) for 1500 steps, then precision (0.75, 0.9) and hit 0.75.

    Args:
        text: what the policy wrote.
        answer: the objects that are there, m of them; there may be none.
        part: what to give; list the reward once for each to weigh them apart.
        precision, hit, recall: the thresholds; the defaults are the source's where it is not told the step.
        denominator: ``predicted`` divides by the boxes in the text instead of the pairs, so that others cost.
        unit: length that counts as 1 in the L1 distance, such as the side of the image; by default the largest
            coordinate of a reference.
        most: objects that a text may name; one with more earns 0.

    Returns:
        The part in [0,1], or the sum; its detail holds all three. Without boxes in the text or in the reference,
        precision and recall are 1 if there are none in the other either, and else 0.

    Raises:
        RewardError: when the reference can't be read.

    Source: Zhan et al. 2025, arXiv 2503.18013.
    """
    reference, predicted = reference_objects("box_criterion", answer), read_objects(text, most=most)
    if predicted is None:
        return Score(0.0, detail={"why": f"more than {most} objects"})
    parts = criterion(
        predicted, reference, precision=precision, hit=hit, recall=recall, denominator=denominator, unit=unit
    )
    value = sum(parts) if part == "sum" else getattr(parts, part)
    return Score(value, detail=_detail(predicted, reference, parts._asdict()))


@reward(paper=VLM_R1)
def box_repetition(text: str, *, words: Annotated[int, Field(ge=1)] = 6) -> Score:
    """Punish repetition: of objects where the text names some, and of runs of words elsewhere.

    -(1 - different / all),  of the objects, box and label together; or of the runs of ``words`` words

    Args:
        text: what the policy wrote.
        words: length of a run.

    Returns:
        The value in (-1,0]; 0 where there is less than one run.

    Source: Shen et al. 2025, arXiv 2504.07615 (the released code).
    """
    found = read_objects(text, most=len(text) + 1)
    if found is not None and found.labels:
        items = [(*box, label) for box, label in zip(found.boxes.tolist(), found.labels, strict=True)]
    else:
        seen = text.casefold().split()
        items = list(zip(*(seen[i:] for i in range(words)), strict=False))
    different = len(set(items))
    detail = {"all": len(items), "different": different}
    return Score(different / len(items) - 1 if items else 0.0, detail=detail)


Rule = Callable[[Objects, Objects], tuple[float, Mapping[str, float]]]


def _detected(name: str, text: str, answer: Any, most: int, rule: Rule) -> Score:
    """The value of a rule that takes at least one object of each; 1 where there are none on either side."""
    reference, predicted = reference_objects(name, answer), read_objects(text, most=most)
    if predicted is None:
        return Score(0.0, detail={"why": f"more than {most} objects"})
    if predicted.why or not predicted.labels or not reference.labels:
        agree = not predicted.why and len(predicted) == len(reference)
        return Score(float(agree), detail=_detail(predicted, reference, {}))
    value, parts = rule(predicted, reference)
    return Score(value, detail=_detail(predicted, reference, parts))


def _detail(predicted: Objects, reference: Objects, parts: Mapping[str, float]) -> dict[str, Any]:
    counts: dict[str, Any] = {"boxes": len(predicted), "references": len(reference)}
    why = {"why": predicted.why} if predicted.why else {}
    return counts | {name: round(float(part), 4) for name, part in parts.items()} | why
