"""Problems made from problems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from guerdon.errors import TaskError

Aspect = Literal["story", "term", "nested"]
ASPECTS: tuple[Aspect, ...] = ("story", "term", "nested")

_STORIES = (
    "The market had been open since dawn and the stalls smelled of bread. A clerk wrote this on a slate:",
    "On the night train two students passed the time with puzzles. One of them asked:",
    "It rained all morning, so the workshop stayed closed and the apprentice read aloud from the old exercise book:",
    "Before the concert the musicians waited backstage, and the oldest of them posed a riddle:",
)
_TERMS = ("zorn", "plith", "quaddle", "brenk", "thumel")
_NUMBER = re.compile(r"(?<![\w.,])\d+(?![\w]|[.,]\d)")


def reformulate(question: str, seed: int, *, aspects: Sequence[Aspect] = ASPECTS) -> list[str]:
    """Rewrite a question in ways that leave its answer alone but make it harder to read.

    - ``story``: put behind background that has nothing to do with it.
    - ``term``: one of its numbers becomes an invented word that is defined first.
    - ``nested``: one of its numbers becomes the result of a small problem of its own.

    Templates stand for the model that rewrites questions in the source, so that the answer provably stays the same.

    Args:
        question: text with at least one whole number, if it is to be rewritten by ``term`` or ``nested``.
        seed: which story, word, number and sub-problem; a pure function of it.
        aspects: which rewrites, in order.

    Returns:
        One question per aspect.

    Raises:
        TaskError: when a number is needed and the question has none.

    Source: Dai et al. 2026, arXiv 2601.20614 (multi-aspect question reformulation).
    """
    rng = np.random.default_rng([seed, len(question)])
    return [_WRITERS[aspect](question, rng) for aspect in aspects]


def _story(question: str, rng: np.random.Generator) -> str:
    return f"{_STORIES[rng.integers(len(_STORIES))]} {question}"


def _term(question: str, rng: np.random.Generator) -> str:
    number = _pick(question, rng)
    word = _TERMS[rng.integers(len(_TERMS))]
    rewritten = f"{question[: number.start()]}one {word}{question[number.end() :]}"
    return f"In what follows, one {word} stands for the number {number[0]}. {rewritten}"


def _nested(question: str, rng: np.random.Generator) -> str:
    number = _pick(question, rng)
    value = int(number[0])
    part = int(rng.integers(1, max(2, value + 1)))
    inner = f"{part} + {value - part}" if value >= part else f"{value + part} - {part}"
    rewritten = f"{question[: number.start()]}X{question[number.end() :]}"
    return f"Let X be the result of {inner}. {rewritten}"


_WRITERS = {"story": _story, "term": _term, "nested": _nested}


def _pick(question: str, rng: np.random.Generator) -> re.Match[str]:
    """One of the whole numbers of the question."""
    numbers = list(_NUMBER.finditer(question))
    if not numbers:
        raise TaskError(f"cannot rewrite {question!r}: it has no whole number; use aspects: [story]")
    return numbers[rng.integers(len(numbers))]
