"""The verifier of one action in a graphical interface: its form, its kind, where it goes, and what it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from guerdon.errors import RewardError
from guerdon.rewards.extract import read_json
from guerdon.rewards.forms import batched, reward
from guerdon.rewards.judges.base import imported
from guerdon.rewards.ngrams import overlap_f1, squad_words

Weight = Annotated[float, Field(ge=0)]
# Given n answers and n references: n numbers in [0,1].
Judged = Annotated[Callable[[Sequence[str], Sequence[str]], Any], BeforeValidator(imported)]
Part = Literal["total", "format", "type", "argument", "judge"]

# What an action of each kind has to say; kinds that are not listed have no argument.
ARGUMENTS = {"click": "point", "long_press": "point", "type": "text", "scroll": "direction", "answer": "text"}
BARE = ("back", "home", "wait", "finish")
DIRECTIONS = ("up", "down", "left", "right")


class ActionScores(NamedTuple):
    """The parts of a reward, each in [0,1]; nan where one does not apply.

    Attributes:
        format: whether there is an action with a well-formed argument.
        type: whether it is of the right kind.
        argument: how right its argument is; 0 where the kind is wrong.
        judge: what the judge says of an answer; 0 where the kind is wrong.
    """

    format: float
    type: float
    argument: float
    judge: float


@reward("gui_action", paper="Nong et al. 2025")
@batched
def gui_action(
    text: Sequence[str],
    answer: Sequence[Any],
    *,
    part: Part = "total",
    format_weight: Weight = 0.1,
    type_weight: Weight = 0.3,
    argument_weight: Weight = 0.6,
    judge_weight: Weight = 0.6,
    judge: Judged | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Score actions in a graphical interface by form, kind and argument, and free answers by a judge.

    R = w_f [well-formed] + w_t [right kind] + w_a argument + w_j judge

    An action is JSON: ``{"action": "click", "point": [3, 4]}``, ``{"action": "type", "text": "milk"}``,
    ``{"action": "scroll", "direction": "down"}``, ``{"action": "answer", "text": "7"}`` or ``{"action": "back"}``;
    where it stands in the text is up to ``read_json``. A click is right inside the box or exactly on its border, a text
    by the F1 of its words, a direction if it is the same. What has no argument is right by its kind.

    The parts go to the metrics one by one; to keep them as components apart, list the reward once for each ``part``.
    (The formula is inferred, and the weights are ours. With a judge, answers have no argument, so that what they say is
    paid for once.)

    Args:
        text: N texts that the policy wrote.
        answer: N references: mappings with ``action``, and ``box`` (left, top, right, bottom), ``text`` or
            ``direction``.
        part: the weighted sum, or one of its parts alone.
        format_weight, type_weight, argument_weight, judge_weight: w_f, w_t, w_a and w_j.
        judge: given n answers and n references, returns n numbers in [0,1]: a function, or an import path to one.

    Returns:
        (N,) and the mean of each part over the samples that have it; nan where the part does not apply.

    Raises:
        RewardError: when a reference is not an action.

    Source: Nong et al. 2025, CRAFT-GUI.
    """
    read = [read_action(each) for each in text]
    scores = torch.tensor(
        [score_action(action, wanted, judged=judge is not None) for action, wanted in zip(read, answer, strict=True)],
        dtype=torch.get_default_dtype(),
    ).reshape(-1, 4)
    if judge is not None:
        rows = [
            row
            for row, (action, wanted) in enumerate(zip(read, answer, strict=True))
            if wanted["action"] == "answer" and scores[row, 1] == 1 and scores[row, 0] == 1
        ]
        said, wanted = [str(read[row]["text"]) for row in rows], [str(answer[row]["text"]) for row in rows]
        if rows:
            scores[rows, 3] = _judgements(judge, said, wanted).to(scores)
    stats = {
        name: float(column[~column.isnan()].mean())
        for name, column in zip(ActionScores._fields, scores.T, strict=True)
        if not bool(column.isnan().all())
    }
    if part != "total":
        return scores[:, ActionScores._fields.index(part)], stats
    weights = scores.new_tensor([format_weight, type_weight, argument_weight, judge_weight])
    return scores.nan_to_num(nan=0.0) @ weights, stats


def _judgements(judge: Judged, said: list[str], wanted: list[str]) -> Tensor:
    given = torch.as_tensor(judge(said, wanted))
    if given.shape != (len(said),):
        raise ValueError(f"the judge gave shape {tuple(given.shape)} for {len(said)} answers, want ({len(said)},)")
    return given.clamp(0, 1)


def read_action(text: str) -> dict[str, Any]:
    """The action in a text; empty where there is none."""
    try:
        found = read_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("action"), str) else {}


def score_action(action: Mapping[str, Any], wanted: Any, *, judged: bool = False) -> ActionScores:
    """Score one action.

    Args:
        action: as ``read_action`` gives it.
        wanted: the reference.
        judged: whether answers are left to a judge.

    Raises:
        RewardError: when the reference is not an action.
    """
    kind = _kind(wanted)
    well_formed = _well_formed(action)
    right = float(bool(action) and action["action"] == kind)
    if judged and kind == "answer":
        return ActionScores(well_formed, right, math.nan, 0.0)
    argument = right * well_formed and _argument(action, wanted, kind)
    return ActionScores(well_formed, right, argument, math.nan)


def inside(point: Sequence[float], box: Sequence[float]) -> bool:
    """Whether a point (x, y) lies in a box (left, top, right, bottom), its border included."""
    (x, y), (left, top, right, bottom) = point, box
    return bool(left <= x <= right and top <= y <= bottom)


def word_f1(text: str, wanted: str) -> float:
    """F1 of words as SQuAD counts them; texts without words have to be equal."""
    ours, theirs = squad_words(text), squad_words(wanted)
    if not ours or not theirs:
        return float(text.strip() == wanted.strip())
    return overlap_f1(ours, theirs)


def _kind(wanted: Any) -> str:
    """The kind of a reference action."""
    known = wanted if isinstance(wanted, Mapping) else {}
    kind, box, text = known.get("action"), known.get("box"), known.get("text")
    fits = {
        None: True,
        "point": box is not None and _numbers(box, 4) and box[0] <= box[2] and box[1] <= box[3],
        "text": isinstance(text, str) and bool(text.strip()),
        "direction": known.get("direction") in DIRECTIONS,
    }
    if not isinstance(kind, str) or not fits[ARGUMENTS.get(kind)]:
        raise RewardError(
            f"reward 'gui_action': the reference is {wanted!r:.80}, want a mapping with 'action' and, for a click a "
            f"'box' of four numbers, for type and answer a 'text', for scroll a 'direction' "
            f"({', '.join(DIRECTIONS)}); fix the task's answers"
        )
    return kind


def _well_formed(action: Mapping[str, Any]) -> float:
    if not action:
        return 0.0
    kind = action["action"]
    argument = ARGUMENTS.get(kind)
    value = action.get(argument) if argument else None
    fits = {
        None: kind in BARE,
        "point": _numbers(value, 2),
        "text": isinstance(value, str),
        "direction": value in DIRECTIONS,
    }
    return float(fits[argument])


def _argument(action: Mapping[str, Any], wanted: Mapping[str, Any], kind: str) -> float:
    argument = ARGUMENTS.get(kind)
    if argument == "point":
        return float(inside(action["point"], wanted["box"]))
    if argument == "text":
        return word_f1(action["text"], wanted["text"])
    return float(argument is None or action["direction"] == wanted["direction"])


def _numbers(value: Any, count: int) -> bool:
    """Whether a value is a list of so many finite numbers."""
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in value)
    )
