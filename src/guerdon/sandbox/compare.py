"""Whether what a solution returned, as it came over the wire, is what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from guerdon.sandbox.inside.wire import DEPTH, WireError, decode, unpack

_KEY_MEMBERS = 1024


def matches(expected: Any, message: Any, *, rel_tol: float = 0.0, abs_tol: float = 0.0) -> bool:
    """Say whether a message holds the expected value.

    The expected value leads: the message is only read beside it, so nothing is built whose size or hashing the
    solution decides. Lists and tuples are alike, since JSON has no tuples, and so are sets and frozensets; numbers
    compare as numbers, but a truth value only equals a truth value; NaN equals nothing.

    Args:
        expected: plain data.
        message: the JSON form of a value, from ``wire``.
        rel_tol: floats may differ by this share of the larger one.
        abs_tol: floats may differ by this.

    Raises:
        TypeError: when the expected value is not plain data.
    """
    try:
        return _matches(expected, message, rel_tol, abs_tol, 0)
    except WireError:
        return False


def _matches(expected: Any, message: Any, rel_tol: float, abs_tol: float, depth: int) -> bool:
    if depth > DEPTH:
        raise TypeError(f"the expected value is nested more than {DEPTH} deep")
    if expected is None or isinstance(expected, bool | str):
        return type(message) is type(expected) and message == expected
    if isinstance(expected, int | float | complex):
        return _same_number(expected, message, rel_tol, abs_tol)
    if isinstance(expected, bytes | range):
        return _content(message, type(expected).__name__) is not None and decode(message) == expected

    def inner(wanted: Any, got: Any) -> bool:
        return _matches(wanted, got, rel_tol, abs_tol, depth + 1)

    return _same_container(expected, message, inner)


def _same_container(expected: Any, message: Any, inner: Callable[[Any, Any], bool]) -> bool:
    if isinstance(expected, list | tuple):
        items = message if isinstance(message, list) else _content(message, "tuple")
        return items is not None and len(items) == len(expected) and all(map(inner, expected, items))
    if isinstance(expected, set | frozenset):
        items = _content(message, "set", "frozenset")
        return items is not None and _same_members(dict.fromkeys(expected), [[key, None] for key in items], inner)
    if isinstance(expected, Mapping):
        items = _content(message, "dict")
        return items is not None and _same_members(expected, items, inner)
    raise TypeError(f"the expected value holds {type(expected).__name__}, want plain data")


def _content(message: Any, *kinds: str) -> Any:
    """What is inside a message of one of some kinds; None for another kind."""
    if not isinstance(message, dict):
        return None
    kind, content = unpack(message)
    if kind not in kinds:
        return None
    if kind != "bytes" and not isinstance(content, list):
        raise WireError(f"a malformed {kind}")
    return content


def _same_number(expected: Any, message: Any, rel_tol: float, abs_tol: float) -> bool:
    if isinstance(message, dict):
        if unpack(message)[0] not in ("int", "complex"):
            return False
    elif isinstance(message, bool) or not isinstance(message, int | float):
        return False
    value = decode(message)
    if value == expected or isinstance(value, complex) or isinstance(expected, complex):
        return value == expected
    if isinstance(value, int) and isinstance(expected, int):
        return False
    try:
        return math.isclose(value, expected, rel_tol=rel_tol, abs_tol=abs_tol)
    except OverflowError:  # an integer beyond every float
        return False


def _same_members(expected: Mapping[Any, Any], pairs: list[Any], inner: Callable[[Any, Any], bool]) -> bool:
    """Whether pairs of key and value are the expected ones, each once."""
    if len(pairs) != len(expected):
        return False
    places = {(type(key) is bool, key): place for place, key in enumerate(expected)}
    seen = [False] * len(expected)
    wanted = list(expected.values())
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise WireError("a malformed dict")
        key = _key(pair[0])
        place = places.get((type(key) is bool, key))
        if place is None or seen[place] or not inner(wanted[place], pair[1]):
            return False
        seen[place] = True
    return True


def _key(message: Any) -> Any:
    """A value that can be looked up; a frozenset of many members is refused, since their hashes could all collide."""
    if isinstance(message, dict):
        kind, content = unpack(message)
        if kind in ("tuple", "frozenset") and isinstance(content, list):
            if kind == "frozenset" and len(content) > _KEY_MEMBERS:
                raise WireError(f"a key of {len(content)} members")
            return (tuple if kind == "tuple" else frozenset)(map(_key, content))
        if kind not in ("int", "bytes", "complex", "range"):
            raise WireError(f"a key that is a {kind!r:.20}")
    elif isinstance(message, list):
        raise WireError("a key that is a list")
    return decode(message)
