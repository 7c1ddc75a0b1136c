"""The process in which math-verify runs: reads JSON lines ``[reference, text, timeout]``, answers with verdicts.

Run as a script of its own: it must start without torch, and be killed when a text such as ``9^{9^{9^9}}``
keeps the computer algebra busy for ever.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import sys


def main() -> None:
    """Answer ``{"value": bool}`` or ``{"error": message}`` per line until standard input closes."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    replies, sys.stdout = sys.stdout, sys.stderr
    options = {"parsing_timeout": None, "raise_on_error": True}
    verify(parse("$1$", **options), parse("$1$", **options), timeout_seconds=None)  # builds the parser's tables
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        reference, text, timeout = json.loads(line)
        _die_after(timeout + 5)
        try:
            delimited = any(mark in reference for mark in ("$", "\\(", "\\[", "\\boxed"))
            gold = parse(reference if delimited else f"${reference}$", **options)
            if all(isinstance(expression, str) for expression in gold):  # strings are what could not be read
                raise ValueError(f"the reference answer {reference!r:.80} holds no mathematical expression")
            value = verify(gold, parse(text, **options), timeout_seconds=None, raise_on_error=True)
            reply = {"value": bool(value)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        _die_after(0)
        print(json.dumps(reply), file=replies, flush=True)


def _die_after(seconds: float) -> None:
    """End this process even if its parent is gone by then; the signal's default action interrupts any computation."""
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(seconds))


if __name__ == "__main__":
    main()
