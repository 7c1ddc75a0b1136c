"""What verifiers look for in a text: fenced blocks, the marked answer, JSON; and references that are texts."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

from guerdon.errors import RecipeError, RewardError

Where = Literal["anywhere", "whole"]

_BLOCK = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_DIGITS = 1000  # of an integer; reading one takes time in the square of its length
_DEEPEST = 64  # levels of JSON; validation is recursive, and Python's stack holds about 1000 calls
_STARTS = 64  # brackets in prose at which reading JSON may fail; each failure can cost as much as the text is long


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Language (lower case, empty where there is none) and content of the fenced blocks of a text, in order.

    A fence that is not closed, as where the text was cut, reaches to the end.
    """
    return [(match[2].lower(), match[3]) for match in _BLOCK.finditer(text)]


def marked_answer(text: str) -> str | None:
    """What stands in the last ``<answer>...</answer>`` of a text, or None."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : text.find("</answer>", start)]


def reference_texts(reward: str, answer: Any) -> list[str]:
    """The texts of a reference answer, which is a text, a number, or a list of them that are equally good.

    Args:
        reward: who asks.
        answer: the reference.

    Raises:
        RewardError: when there is none, or one is empty or something else.
    """
    several = list(answer) if isinstance(answer, list | tuple) else [answer]
    texts = [str(one).strip() if isinstance(one, str | int | float) else "" for one in several]
    if not texts or not all(texts):
        raise RewardError(
            f"reward '{reward}': the reference answer is {answer!r:.60}, want text, a number, or a list of them, none "
            "empty; fix the task's answers"
        )
    return texts


def needed(module: str, reward: str, extra: str) -> Any:
    """A module that comes with an extra.

    Raises:
        RecipeError: when it is not installed, naming the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RecipeError(
            f"reward '{reward}' needs a package that cannot be imported ({error}); "
            f'run: pip install "guerdon[{extra}]"'
        ) from None


class _Unfit(ValueError):
    """JSON that is refused for what it holds, not for its syntax."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Unfit(f"key {key!r:.60} stands twice in one object")
        found[key] = value
    return found


def _refuse(constant: str) -> NoReturn:
    raise _Unfit(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _Unfit(f"{digits:.20} is out of range")
    return number


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise _Unfit(f"{digits:.20}... has more than {_DIGITS} digits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)


def read_json(text: str, *, where: Where = "anywhere") -> Any:
    """Read the JSON in a text: all of it, else its last fenced block, else its last object or array.

    Each is looked for in the last ``<answer>...</answer>`` if there is one. Refused are NaN, infinity, a key that
    stands twice in one object, and more than 64 levels. The text must be JSON; nothing is repaired.

    Args:
        text: what the policy wrote.
        where: ``whole`` wants nothing but JSON in the text.

    Raises:
        ValueError: saying why there is none.
    """
    if where == "whole":
        return _decoded(text.strip())
    scope = marked_answer(text)
    scope = (text if scope is None else scope).strip()
    blocks = [content for language, content in fenced_blocks(scope) if language in ("json", "")]
    if blocks:
        return _decoded(blocks[-1].strip())
    try:
        return _decoded(scope)
    except _Unfit:
        raise
    except ValueError:
        values = list(_values(scope))
    if not values:
        raise ValueError("no JSON in the text")
    return values[-1]


def _decoded(text: str) -> Any:
    value, end = _decoded_at(text, 0)
    if end != len(text):
        raise ValueError(f"what follows the JSON is {text[end:]!r:.40}")
    return value


def _decoded_at(text: str, start: int) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise _Unfit("nested too deeply") from None
    if _depth(value) > _DEEPEST:
        raise _Unfit(f"nested deeper than {_DEEPEST} levels")
    return value, end


def _values(text: str) -> Iterator[Any]:
    """Objects and arrays that stand in a text, outermost only."""
    position, failures = 0, 0
    for match in re.finditer(r"[\[{]", text):
        if match.start() < position:
            continue
        try:
            value, position = _decoded_at(text, match.start())
        except _Unfit:
            raise
        except ValueError:
            failures += 1
            if failures == _STARTS:
                raise ValueError(f"more than {_STARTS} brackets that open no JSON") from None
        else:
            yield value


def _depth(value: Any) -> int:
    """Levels of nesting, counted level by level and not beyond one too many."""
    level, depth = [value], 0
    while depth <= _DEEPEST and (level := [outer for outer in level if isinstance(outer, dict | list)]):
        level = [item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer)]
        depth += 1
    return depth
