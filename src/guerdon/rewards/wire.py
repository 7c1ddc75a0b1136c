"""How a worker's answer crosses to the trainer: as JSON, for a process that reads model-written text is not trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from guerdon.rewards.forms import Reply, Score, Unusable, failure


def encode(result: Any) -> Any:
    """What a reward returned, as JSON values that ``decode`` turns back into what the stage reads."""
    result = as_score(result)
    if isinstance(result, Exception):
        return {"failure": list(failure(result))[1:3]}
    if result is None or isinstance(result, bool | int | float | str):
        return result
    if isinstance(result, Score):
        return {"score": [encode(result.value), bool(result.valid), plain(result.detail)]}
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
        return {"pair": [encode(result[0]), {str(key): float(value) for key, value in result[1].items()}]}
    if isinstance(result, list | tuple):
        return [encode(item) for item in result]
    return _numbers(result) or {"unusable": f"{type(result).__name__} {result!r:.60}"}


def _numbers(result: Any) -> dict[str, Any] | None:
    """An array, or any other kind of number, as JSON values; None for what is neither."""
    if hasattr(result, "tolist") and hasattr(result, "shape"):
        flat = result.reshape(-1).tolist()
        numeric = all(isinstance(x, bool | int | float) for x in flat)
        return {"array": flat, "shape": list(result.shape)} if numeric else None
    try:
        return None if isinstance(result, bytes) else {"array": [float(result)], "shape": []}
    except Exception:
        return None


def decode(reply: Any) -> Any:
    """What ``encode`` stood for."""
    if isinstance(reply, list):
        return [decode(item) for item in reply]
    if not isinstance(reply, dict):
        return reply
    ((kind, content),) = [(key, x) for key, x in reply.items() if key != "shape"]
    return _DECODERS[kind](content, reply)


def _array(content: list[Any], reply: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.array(content).reshape(reply["shape"])


_DECODERS = {
    "score": lambda x, _: Score(decode(x[0]), x[1], x[2]),
    "pair": lambda x, _: (decode(x[0]), x[1]),
    "array": _array,
    "failure": lambda x, _: Reply(kind=x[0], message=x[1]),
    "unusable": lambda x, _: Unusable(x),
}


def as_score(result: Any) -> Any:
    """A mapping with the keys of a ``Score`` as one; anything else as it is."""
    if isinstance(result, Mapping) and {"value"} <= set(result) <= set(Score._fields):
        return Score(**result)
    return result


def plain(detail: Any) -> Any:
    """A detail as JSON values; what JSON lacks becomes its representation."""
    return json.loads(json.dumps(detail, default=repr, skipkeys=True))
