"""Errors that name the thing, the value seen, the value wanted and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GuerdonError(Exception):
    """Base of every error guerdon raises on purpose; the command line prints its message without a traceback."""


class RecipeError(GuerdonError):
    """A recipe that cannot be run: unknown name, wrong type, impossible combination."""


class MissingField(RecipeError):
    """A method asks for a batch field that nothing in the recipe supplies."""


class TaskError(GuerdonError):
    """A task that cannot supply problems: missing file, empty dataset, unknown column."""


class RewardError(GuerdonError):
    """A reward that cannot score, as with an unusable reference, or that failed under the policy ``on_fault: stop``."""


class CheckpointError(GuerdonError):
    """A checkpoint that cannot be written or read back."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``"; did you mean 'grpo'?"`` for a mistyped name, or the list of known names."""
    known = sorted(known)
    swapped = [other for other in known if sorted(other) == sorted(name)]  # letters in another order come first
    close = swapped or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
