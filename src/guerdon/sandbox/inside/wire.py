"""The restricted serialisation between a solution and what judges it: plain data of exact built-in types, as JSON.

None, truth values, text, floats and small integers stand for themselves and a list for a list; everything else is an
object with one key, its kind: ``int`` (hexadecimal), ``tuple``, ``set``, ``frozenset``, ``dict``, ``bytes``,
``complex``, ``range``, and ``handle``, the number of an object that stays with the solution. Reading it runs no code
of the writer's: no class, no ``__eq__``, no ``__hash__`` crosses.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

DEPTH = 64  # levels of nesting: beyond, both sides would need care with recursion
_SMALL = 1 << 53
_LENGTH = struct.Struct("!I")


class WireError(ValueError):
    """A message that does not follow the format, or a value that has no place in it."""


def encode(value: Any, keep: Callable[[Any], int] | None = None, depth: int = 0) -> Any:
    """Give the JSON form of a value; subclasses and numpy's arrays and numbers become the plain type they extend.

    Args:
        value: what to write.
        keep: stores an object that is not plain data and gives its handle; without it, such an object is an error.
        depth: levels above this value.

    Raises:
        WireError: when the value is not plain data, or nested more than ``DEPTH`` deep.
    """
    if depth > DEPTH:
        raise WireError(f"the value is nested more than {DEPTH} deep")
    if value is None or value is True or value is False:
        return value
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), keep, depth)
    for kind, write in _WRITERS.items():
        if isinstance(value, kind):
            return write(value, lambda item: encode(item, keep, depth + 1))
    if keep is None:
        raise WireError(f"{type(value).__name__} is not plain data")
    return {"handle": keep(value)}


def _int(value: int, _: Any) -> Any:
    value = int.__int__(value)
    return value if -_SMALL < value < _SMALL else {"int": hex(value)}


_Convert = Callable[[Any, Callable[[Any], Any]], Any]
_WRITERS: dict[type, _Convert] = {
    int: _int,
    float: lambda value, _: float.__float__(value),
    str: lambda value, _: str.__str__(value),
    complex: lambda value, _: {"complex": [value.real, value.imag]},
    bytes: lambda value, _: {"bytes": bytes(value).hex()},
    list: lambda value, inner: [inner(item) for item in list.__iter__(value)],
    tuple: lambda value, inner: {"tuple": [inner(item) for item in tuple.__iter__(value)]},
    set: lambda value, inner: {"set": [inner(item) for item in set.__iter__(value)]},
    frozenset: lambda value, inner: {"frozenset": [inner(item) for item in frozenset.__iter__(value)]},
    dict: lambda value, inner: {"dict": [[inner(key), inner(item)] for key, item in dict.items(value)]},
    range: lambda value, _: {"range": [_int(n, None) for n in (value.start, value.stop, value.step)]},
}


def decode(message: Any, handle: Callable[[int], Any] | None = None, depth: int = 0) -> Any:
    """Give the value of a JSON form.

    Args:
        message: what ``json.loads`` gave.
        handle: makes the stand-in of an object that stayed with the solution; without it, handles are refused.
        depth: levels above this value.

    Raises:
        WireError: when the message is not of the format.
    """
    if message is None or isinstance(message, bool | int | float | str):
        return message
    if depth > DEPTH:
        raise WireError(f"the value is nested more than {DEPTH} deep")
    if isinstance(message, list):
        return [decode(item, handle, depth + 1) for item in message]
    kind, content = unpack(message)
    if kind == "handle" and handle is not None and type(content) is int:
        return handle(content)
    if kind not in _READERS:
        raise WireError(f"{kind!r:.40} is not a kind of plain data")
    try:
        return _READERS[kind](content, lambda item: decode(item, handle, depth + 1))
    except (TypeError, ValueError) as error:
        raise WireError(f"a malformed {kind}: {error}") from None


_READERS: dict[str, _Convert] = {
    "int": lambda text, _: int(text, 16),
    "bytes": lambda text, _: bytes.fromhex(text),
    "tuple": lambda items, inner: tuple(map(inner, items)),
    "set": lambda items, inner: set(map(inner, items)),
    "frozenset": lambda items, inner: frozenset(map(inner, items)),
    "dict": lambda items, inner: {inner(key): inner(item) for key, item in items},
    "complex": lambda parts, _: complex(*map(float, parts)),
    "range": lambda parts, inner: range(*map(inner, parts)),
}


def unpack(message: Any) -> tuple[str, Any]:
    """Kind and content of what is neither a list nor stands for itself.

    Raises:
        WireError: when it is not an object with one key.
    """
    if not isinstance(message, dict) or len(message) != 1:
        raise WireError(f"want an object with one key, got {message!r:.60}")
    return next(iter(message.items()))


def check_depth(message: Any, limit: int = 3 * DEPTH) -> None:
    """Refuse a message that code which calls itself could stumble over.

    Raises:
        WireError: when it is nested deeper than any value of the format.
    """
    level = [message]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer if isinstance(outer, list) else outer.values())
        ]
        if not level:
            return
    raise WireError(f"a message nested more than {limit} deep")


def send(connection: socket.socket, message: Any) -> None:
    """Write one message: its length in four bytes, then JSON."""
    text = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(text)) + text)


def receive(connection: socket.socket, limit: int = 1 << 30, deadline: float | None = None) -> Any:
    """Read one message.

    Args:
        connection: where from.
        limit: bytes a message may have.
        deadline: when to give up, on ``time.monotonic``'s clock.

    Raises:
        WireError: when the message is longer, or not JSON.
        EOFError: when the other side ended.
        TimeoutError: at the deadline.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size, deadline))
    if length > limit:
        raise WireError(f"a message of {length} bytes, want at most {limit}")
    try:
        return json.loads(_exactly(connection, length, deadline))
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from None


def _exactly(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    parts = []
    while size:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 1e-6))
        try:
            part = connection.recv(min(size, 1 << 20))
        except ConnectionError:
            part = b""
        if not part:
            raise EOFError("the other side ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
