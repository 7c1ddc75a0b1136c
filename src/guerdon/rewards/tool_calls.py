"""Rewards of tool calls: the right tools with the right arguments, in the right form, after enough thought."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from guerdon.errors import RewardError
from guerdon.rewards.extract import read_json
from guerdon.rewards.forms import Score, reward
from guerdon.rewards.ngrams import jaccard

Granularity = Literal["fine", "intermediate", "coarse"]
Matching = Literal["greedy", "hungarian"]
Positive = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(ge=1)]

_PAPER = "Qian et al. 2025, arXiv 2504.13958"
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class Call(NamedTuple):
    """A call of a tool.

    Attributes:
        name: the tool's.
        parameters: arguments by name, as JSON has them.
    """

    name: str
    parameters: Mapping[str, Any]


class CallMatch(NamedTuple):
    """How well predicted calls match reference calls.

    Attributes:
        share: S / S_max, in [0,1]; 1 for equal calls and for nothing else.
        names: S_name, in [0,1].
        calls: s_j of each reference call, in their order.
    """

    share: float
    names: float
    calls: list[float]


@reward("tool_calls", paper=_PAPER)
def correct_tool_calls(
    text: str,
    answer: Any,
    step: int = 0,
    *,
    granularity: Granularity = "fine",
    strict: bool = False,
    matching: Matching = "greedy",
    scale: Positive = 3.0,
    scale_from: Positive | None = None,
    over: Steps = 150,
    arguments: str = "parameters",
) -> Score:
    """Reward calls by how much of the reference calls they get right: tools, names of arguments, values.

    r = scale (2 S / S_max - 1),  see ``match_calls``;  -scale where the calls cannot be read, and 0 where the reference
    makes none

    With ``scale_from`` the scale moves from there to ``scale`` over the first ``over`` steps, and stays; evaluation
    counts as step 0. Scales of two stages are those of a recipe's stages.

    Args:
        text: what the policy wrote; its calls are those that ``read_calls`` finds.
        answer: the reference: a text of the same form, a list of calls as mappings or JSON, or one call.
        step: the training step.
        granularity, strict, matching: see ``match_calls``.
        scale: the largest reward, and minus the smallest. The source's 3; it also tries 1, and 1 before and 3 after
            step 30.
        scale_from: the scale at step 0; the source's is 2 where it schedules.
        over: steps until ``scale``.
        arguments: key of a call's arguments; ``arguments`` in the form of OpenAI and Qwen.

    Returns:
        The value in [-scale, scale]; its detail holds ``names``, ``calls`` and ``exact``, or ``why`` nothing was read.

    Raises:
        RewardError: when the reference cannot be read.

    Source: Qian et al. 2025 (ToolRL), arXiv 2504.13958. The authors' code compares values as Python does, so that 1
    equals true, and under ``coarse`` and ``strict`` compares lists with their order; here order never counts.
    """
    wanted = reference_calls(answer, arguments=arguments).calls
    if not wanted:
        return Score(0.0, detail={"why": "the reference makes no call"})
    bound = ramp(step, scale if scale_from is None else scale_from, scale, over)
    try:
        predicted = read_calls(text, arguments=arguments)
    except ValueError as error:
        return Score(-bound, detail={"why": f"{error}"[:200]})
    share, names, calls = match_calls(wanted, predicted, granularity=granularity, strict=strict, matching=matching)
    detail = {"names": round(names, 4), "calls": [round(s, 4) for s in calls], "exact": share == 1}
    return Score(bound * (2 * share - 1), detail=detail)


@reward(paper=_PAPER)
def tool_format(
    text: str,
    answer: Any,
    step: int = 0,
    *,
    scale: Positive = 1.0,
    scale_from: Positive | None = None,
    over: Steps = 150,
    arguments: str = "parameters",
) -> Score:
    r"""Reward the form that the reference implies: a thought, calls if it makes some, a response if it has one.

    scale for ``<think>...</think>`` [``\n<tool_call>\n...\n</tool_call>``] [``\n<response>...</response>``], every
    required tag exactly once and nothing around;  else 0, or -scale where it is scheduled

    With ``scale_from`` the scale moves from there to ``scale`` over the first ``over`` steps, and stays; evaluation
    counts as step 0.

    Args:
        text: what the policy wrote; white space around it does not count.
        answer: the reference; see ``correct_tool_calls``. Only a text can have a response.
        step: the training step.
        scale: the reward of the right form. The source's 1; it also tries 0.5 after step 30.
        scale_from: the scale at step 0; the source's is 2 where it schedules.
        over: steps until ``scale``.
        arguments: key of a call's arguments.

    Returns:
        The value; its detail says ``why`` the form is wrong.

    Raises:
        RewardError: when the reference cannot be read.

    Source: Qian et al. 2025 (ToolRL), arXiv 2504.13958.
    """
    reference = reference_calls(answer, arguments=arguments)
    bound = ramp(step, scale if scale_from is None else scale_from, scale, over)
    why = _fault_of_form(text, calls=bool(reference.calls), response=reference.response)
    if not why:
        return Score(bound)
    return Score(0.0 if scale_from is None else -bound, detail={"why": why})


@reward(paper=_PAPER)
def thought_words(
    text: str,
    step: int = 0,
    *,
    target: Positive = 512,
    target_from: Positive | None = None,
    over: Steps = 105,
) -> float:
    """Reward long thoughts: min(1, words in ``<think>...</think>`` / target).

    The source found that it does not help. With ``target_from`` the target moves from there to ``target`` over the
    first ``over`` steps, and stays; evaluation counts as step 0.

    Args:
        text: what the policy wrote; its first thought counts.
        step: the training step.
        target: words that earn all of the reward; the source's 512, or 640 where it grows.
        target_from: the target at step 0; the source's is 384 where it grows.
        over: steps until ``target``.

    Returns:
        The value in [0,1], 0 for a text without a whole thought.

    Source: Qian et al. 2025 (ToolRL), arXiv 2504.13958.
    """
    start = text.find("<think>")
    end = text.find("</think>", max(start, 0))
    if start < 0 or end < 0:
        return 0.0
    wanted = ramp(step, target if target_from is None else target_from, target, over)
    return min(1.0, len(text[start + len("<think>") : end].split()) / wanted)


def ramp(step: int, first: float, last: float, over: int) -> float:
    """A number that moves from ``first`` to ``last`` in a straight line over ``over`` steps, and stays."""
    return first + (last - first) * min(step / over, 1.0)


def match_calls(
    reference: Sequence[Call],
    predicted: Sequence[Call],
    *,
    granularity: Granularity = "fine",
    strict: bool = False,
    matching: Matching = "greedy",
) -> CallMatch:
    """Compare calls with reference calls; the order of neither list of arguments nor calls counts.

    fine:          S = J(names) + sum_j s_j,  S_max = 1 + sum_j (1 + |keys_j|)
                   s_ij = J(keys_j, keys_i) + keys of j that i has with an equal value,  for calls of the same name
    intermediate:  S = J(names) + sum_j s_j,  S_max = 1 + M;  s_ij = 1 for equal calls
    coarse:        S = 1 for equal lists, S_max = 1

    J is the Jaccard similarity of multisets, 1 for two empty ones. Values are compared with their JSON types: 1, "1"
    and true differ, 1 and 1.0 do not.

    Args:
        reference: M calls, at least one.
        predicted: any number of calls.
        granularity: what may be partly right.
        strict: whether J is 1 for equal multisets and 0 otherwise.
        matching: ``greedy`` goes through the reference calls in their order, and each takes the best of what is left,
            if anything of it is right; ``hungarian`` maximises the sum of s_j. Equally good calls are taken in an
            order of their content.

    Returns:
        The share S / S_max, and its parts.

    Source: Qian et al. 2025 (ToolRL), arXiv 2504.13958; Kuhn 1955 (the Hungarian matching).
    """
    wanted, seen = [_typed(call) for call in reference], sorted(_typed(call) for call in predicted)
    names = _likeness((name for name, _ in wanted), (name for name, _ in seen), strict=strict)
    if granularity == "coarse":
        share = float(sorted(wanted) == seen)
        return CallMatch(share, names, [share] * len(wanted))
    gain = np.array([[_agreement(w, s, granularity, strict) for s in seen] for w in wanted]).reshape(len(wanted), -1)
    scores = _optimal(gain) if matching == "hungarian" else _greedy(gain)
    best = len(wanted) if granularity == "intermediate" else sum(1 + len(keys) for _, keys in wanted)
    return CallMatch((names + sum(scores)) / (1 + best), names, scores)


def read_calls(text: str, *, arguments: str = "parameters") -> list[Call]:
    """Read the calls in the first ``<tool_call>...</tool_call>`` of a text, one JSON object per line.

    What is no strict JSON is refused, as by ``read_json``; keys of a call beside its name and arguments are not looked
    at.

    Args:
        text: what the policy wrote.
        arguments: key of a call's arguments.

    Raises:
        ValueError: saying what is wrong.
    """
    start = text.find(_OPEN)
    end = text.find(_CLOSE, max(start, 0))
    if start < 0 or end < 0:
        raise ValueError(f"no {_OPEN}...{_CLOSE} in the text")
    lines = text[start + len(_OPEN) : end].strip().split("\n")
    return [_call(read_json(line, where="whole"), arguments) for line in lines]


class Reference(NamedTuple):
    """What a reference answer holds: its calls, and whether it has a response."""

    calls: list[Call]
    response: bool


def reference_calls(answer: Any, *, arguments: str = "parameters") -> Reference:
    """Read a reference answer, which is a text of the form the policy should write, or calls as mappings or JSON.

    Args:
        answer: the reference.
        arguments: key of a call's arguments.

    Raises:
        RewardError: when its calls cannot be read, or it is none of these.
    """
    try:
        if isinstance(answer, str) and _OPEN in answer:
            return Reference(read_calls(answer, arguments=arguments), "<response>" in answer)
        if isinstance(answer, str) and answer.lstrip()[:1] not in ("[", "{"):
            return Reference([], "<response>" in answer)
        found = read_json(answer if isinstance(answer, str) else json.dumps(answer, allow_nan=False), where="whole")
        return Reference([_call(one, arguments) for one in (found if isinstance(found, list) else [found])], False)
    except (ValueError, TypeError, RecursionError) as error:
        raise RewardError(
            f"the reference answer is {answer!r:.80}, want a text with {_OPEN}...{_CLOSE} or <response>...</response>, "
            f"or calls like {{'name': 'weather', '{arguments}': {{}}}}: {error!s:.200}; fix the task's answers, or "
            "'arguments'"
        ) from None


def _call(value: Any, arguments: str) -> Call:
    name, given = (value.get("name"), value.get(arguments)) if isinstance(value, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(given, dict):
        raise ValueError(f"{value!r:.80} is no call: want 'name', a text, and '{arguments}', an object")
    return Call(name, given)


Typed = tuple[str, tuple[tuple[str, Any], ...]]


def _typed(call: Call) -> Typed:
    """A call as tuples that equal one another, and can be put in order, with regard to the types of values."""
    return call.name, tuple(sorted((key, _value(value)) for key, value in call.parameters.items()))


def _value(value: Any) -> Any:
    """A JSON value in tuples that name its type."""
    if isinstance(value, bool):
        return ("truth", value)
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, str):
        return ("text", value)
    if isinstance(value, dict):
        return ("object", tuple(sorted((key, _value(inner)) for key, inner in value.items())))
    return ("null",) if value is None else ("list", tuple(_value(inner) for inner in value))


def _agreement(wanted: Typed, seen: Typed, granularity: Granularity, strict: bool) -> float:
    """s_ij of one reference call and one predicted call."""
    if wanted[0] != seen[0]:
        return 0.0
    if granularity == "intermediate":
        return float(wanted == seen)
    equal = len(set(wanted[1]) & set(seen[1]))
    return _likeness(*((key for key, _ in call[1]) for call in (wanted, seen)), strict=strict) + equal


def _likeness(first: Iterable[Hashable], second: Iterable[Hashable], *, strict: bool) -> float:
    share = jaccard(first, second)
    return float(share == 1) if strict else share


def _greedy(gain: np.ndarray) -> list[float]:
    """What each row takes of what the rows before it have left."""
    left, scores = set(range(gain.shape[1])), []
    for row in gain.tolist():
        best = max(sorted(left), key=row.__getitem__, default=-1)
        scores.append(row[best] if left else 0.0)
        if scores[-1] > 0:
            left.remove(best)
    return scores


def _optimal(gain: np.ndarray) -> list[float]:
    scores = [0.0] * len(gain)
    for row, column in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
        scores[row] = float(gain[row, column])
    return scores


def _fault_of_form(text: str, *, calls: bool, response: bool) -> str:
    """What is wrong with the form of a text; empty where nothing is."""
    tags = ["think", *(["tool_call"] if calls else []), *(["response"] if response else [])]
    for marker in (marker for tag in tags for marker in (f"<{tag}>", f"</{tag}>")):
        count = text.count(marker)
        if count != 1:
            return f"{marker} stands {count} times"
    parts = [rf"<{tag}>\n.*\n</{tag}>" if tag == "tool_call" else rf"<{tag}>.*</{tag}>" for tag in tags]
    if re.fullmatch("\n".join(parts), text.strip(), re.DOTALL) is None:
        return f"want {' and '.join(tags)} in this order, a line end between them, and nothing around them"
    return ""
