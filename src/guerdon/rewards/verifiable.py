"""Rewards that a reference answer or a pattern decides; each gives 0 or 1.

All are called once per sample. A reference that cannot be used (empty, not a number, unreadable) raises, and the
reward stage records a fault: only a wrong text scores 0.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import deque
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field

from guerdon.rewards.extract import marked_answer
from guerdon.rewards.forms import Calls, reward
from guerdon.rewards.workers import WorkerPool, pack

_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}


@reward()
def exact(text: str, answer: Any, *, normalise: bool = True) -> float:
    """Give 1 where the text is the reference answer.

    Normalising ignores case, Unicode composition, runs of white space, one pair of quotes around the whole, and
    ``. , ; : ! ?`` at the end; signs, decimal points and brackets count. Where those matter (``5!`` is not 5), set
    ``normalise`` to false: then only white space around the whole is ignored.

    Args:
        text: what the policy wrote, all of it.
        answer: text or a number.
        normalise: compare normal forms.

    Returns:
        1.0 or 0.0.

    Raises:
        ValueError: when the reference is empty, so that an empty text can never be right.
        TypeError: when the reference is neither text nor a number.
    """
    reference = _reference(answer)
    if normalise:
        return float(_normal(text) == _normal(reference))
    return float(text.strip() == reference)


def _reference(answer: Any) -> str:
    """Text of a reference answer, stripped and not empty."""
    if not isinstance(answer, str | int | float):
        raise TypeError(f"the reference answer is {type(answer).__name__} {answer!r:.60}, want text or a number")
    stripped = str(answer).strip()
    if not stripped:
        raise ValueError("the reference answer is empty; fix the task's answers, or use a reward that needs none")
    return stripped


def _normal(text: str) -> str:
    """Normal form of a text; a text of punctuation only stays what it is."""
    folded = " ".join(unicodedata.normalize("NFC", text.casefold()).split())
    ended = folded.rstrip(".,;:!? ")
    if len(ended) > 2 and _QUOTES.get(ended[0]) == ended[-1]:
        ended = ended[1:-1].strip().rstrip(".,;:!? ")
    return ended or folded


_DIGITS = r"[0-9](?:[0-9,.]*[0-9])?"
_EXPONENT = r"(?:[eE](?P<exponent{0}>[-+−]?[0-9]+))?"
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])(?P<sign>[-+−–﹣－])|(?<!\w)(?<!\w\.))"
    rf"(?P<body>{_DIGITS}|(?<!\.)\.{_DIGITS}){_EXPONENT.format(1)}(?![0-9_])"
    rf"(?:\s?/\s?(?P<divisor>{_DIGITS}){_EXPONENT.format(2)})?"
    r"(?P<percent>\s?\\?%)?",
    re.ASCII,
)
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_LONGEST = 4000  # digits, and size of an exponent: beyond, exact arithmetic would cost more than the policy


@reward()
def numeric(text: str, answer: Any, *, rel_tol: float = 1e-6, abs_tol: float = 0.0) -> float:
    """Give 1 where the last number in the text is the last number in the reference answer.

    Equal means |a - b| <= max(abs_tol, rel_tol max(|a|, |b|)) in exact arithmetic; ``rel_tol`` is for rounded
    decimals, so two integers must agree within ``abs_tol``.

    A number is digits with an optional decimal point (``.5``), commas between groups of three (``1,234.5``), an
    exponent (``1.2e-3``), a divisor (``3/4``), a per cent sign (``50%`` is 0.5) and a sign that touches it and does
    not follow a word, digit or closing bracket (``3-5`` ends in 5). Units may follow (``5kg``); letters may not
    precede (``x2``, ``v1.5`` hold no number). Other commas separate: ``1,2`` ends in 2. If the last candidate is not
    a number (``1.2.3``, ``1/0``, more than 4000 digits), the text has none. Mixed numbers (``1 1/2``) and LaTeX are
    not read: use ``math_verify``.

    Args:
        text: what the policy wrote.
        answer: a number, or text that ends in one.
        rel_tol: relative tolerance where one side is not an integer.
        abs_tol: absolute tolerance.

    Returns:
        1.0 or 0.0.

    Raises:
        ValueError: when the reference holds no number.
    """
    wanted = _last_number(_reference(answer))
    if wanted is None:
        raise ValueError(f"the reference answer {answer!r:.60} holds no number; use 'exact' or 'math_verify'")
    seen = _last_number(text)
    if seen is None:
        return 0.0
    integers = seen.denominator == wanted.denominator == 1
    # A tolerance means the decimal it is written as, not the float nearest to it.
    relative = 0 if integers else Fraction(str(rel_tol)) * max(abs(seen), abs(wanted))
    return float(abs(seen - wanted) <= max(Fraction(str(abs_tol)), relative))


@reward(paper="Methani et al. 2020, arXiv 1909.00997")
def relaxed_numeric(text: str, answer: Any, *, tolerance: Annotated[float, Field(ge=0)] = 0.05) -> float:
    """Give 1 where an answer is near enough for one that was read off a chart: the relaxed accuracy.

    |a - b| <= tolerance |b| where the reference b is a number and nothing else; other references must be matched as by
    ``exact``. Integers may differ too, so years are hardly told apart: use ``numeric`` or ``exact`` for those.

    Args:
        text: what the policy wrote; in its last ``<answer>...</answer>``, if there is one, the last number counts, as
            ``numeric`` reads it.
        answer: text or a number.
        tolerance: share of the reference.

    Returns:
        1.0 or 0.0.

    Raises:
        ValueError: when the reference is empty.
        TypeError: when the reference is neither text nor a number.

    Source: Methani et al. 2020, arXiv 1909.00997 (PlotQA); Masry et al. 2022, arXiv 2203.10244 (ChartQA).
    """
    reference, marked = _reference(answer), marked_answer(text)
    said = text if marked is None else marked
    wanted = _last_number(reference) if _NUMBER.fullmatch(reference) else None
    if wanted is None:
        return float(_normal(said) == _normal(reference))
    seen = _last_number(said)
    return float(seen is not None and abs(seen - wanted) <= Fraction(str(tolerance)) * abs(wanted))


def _last_number(text: str) -> Fraction | None:
    """Value of the last number in a text."""
    found = deque(_NUMBER.finditer(text), maxlen=1)
    if not found:
        return None
    last = found.pop()
    body, separated = _ungroup(last["body"])
    value = _value(body, last["exponent1"])
    if value is not None and last["divisor"]:
        divisor = _value(_ungroup(last["divisor"])[0], last["exponent2"])
        value = value / divisor if divisor else None
    if value is None:
        return None
    if last["sign"] in ("-", "−", "–", "﹣", "－") and not separated:
        value = -value
    return value / 100 if last["percent"] else value


def _ungroup(digits: str) -> tuple[str, bool]:
    """Drop thousands separators; of a list keep the last member, and say that it was one."""
    if "," not in digits:
        return digits, False
    if _GROUPED.fullmatch(digits):
        return digits.replace(",", ""), False
    return digits.rpartition(",")[2], True


def _value(digits: str, exponent: str | None) -> Fraction | None:
    if len(digits) > _LONGEST or not _PLAIN.fullmatch(digits):
        return None
    power = (exponent or "0").replace("−", "-")
    if len(power) > 6 or abs(int(power)) > _LONGEST:
        return None
    return Fraction(f"{digits}e{power}")


@reward()
def regex(text: str, *, pattern: re.Pattern[str], where: Literal["anywhere", "whole", "start"] = "anywhere") -> float:
    """Give 1 where the pattern matches the text.

    The syntax is Python's ``re``. Flags stand at the head of the pattern: ``(?i)`` ignores case, ``(?s)`` lets a dot
    match line ends, ``(?m)`` lets ``^`` and ``$`` match at every line, ``(?x)`` ignores layout. The text is matched
    as it is, white space included. An invalid pattern is refused when the recipe is read. A pattern with nested
    repetition (``(a+)+$``) can take exponential time.

    Args:
        text: what the policy wrote.
        pattern: the regular expression.
        where: ``anywhere`` in the text, the ``whole`` text, or from its ``start``.

    Returns:
        1.0 or 0.0.
    """
    compiled = re.compile(pattern)
    match = {"anywhere": compiled.search, "whole": compiled.fullmatch, "start": compiled.match}[where]
    return float(match(text) is not None)


_READ = 4000  # characters at the end of a text that math_verify reads; its search is quadratic in digits


@reward()
def math_verify(text: str, answer: Any, *, timeout: float = 5.0) -> float:
    """Give 1 where the last mathematical expression in the text equals the reference answer, by computer algebra.

    The math-verify library reads LaTeX (``$...$``, ``\\boxed{...}``) and plain numbers in the last 4000 characters of
    the text; a reference without delimiters is read as LaTeX. It runs in a process of its own, which is killed when
    it gives no verdict in time, so it works in any thread and no text can hang the run.

    Args:
        text: what the policy wrote.
        answer: the reference expression, LaTeX or a number.
        timeout: seconds until a verdict.

    Returns:
        1.0 or 0.0; a text without an expression gives 0.

    Raises:
        ValueError: when the reference is empty or holds no expression, or the library fails on the text.
        TimeoutError: when there is no verdict within ``timeout``.

    Source: Kydlíček, math-verify (Hugging Face, 2025), https://github.com/huggingface/Math-Verify.
    """
    return _pool.call({"text": text, "answer": _reference(answer)}, timeout)


class MathVerifier:
    """What ``math_verify`` does, for a process that its caller can end.

    Args:
        timeout: seconds until a verdict; the caller's to keep.
    """

    def __init__(self, *, timeout: float = 5.0) -> None:
        import math_verify

        logging.disable(logging.CRITICAL)
        self._library = math_verify
        self._options: dict[str, Any] = {"parsing_timeout": None, "raise_on_error": True}
        self._equal(self._parse("$1$"), self._parse("$1$"))  # builds the parser's tables

    def __call__(self, text: str, answer: Any) -> float:
        reference = _reference(answer).replace("−", "-")
        delimited = any(mark in reference for mark in ("$", "\\(", "\\[", "\\boxed"))
        gold = self._parse(reference if delimited else f"${reference}$")
        if all(isinstance(expression, str) for expression in gold):  # strings are what could not be read
            raise ValueError(f"the reference answer {reference!r:.80} holds no mathematical expression")
        return float(self._equal(gold, self._parse(text[-_READ:].replace("−", "-"))))

    def _parse(self, text: str) -> list[Any]:
        return self._library.parse(text, **self._options)

    def _equal(self, gold: list[Any], found: list[Any]) -> bool:
        return bool(self._library.verify(gold, found, timeout_seconds=None, raise_on_error=True))


math_verify.in_worker = MathVerifier  # type: ignore[attr-defined]  # what a worker of the stage makes its calls with
_pool = WorkerPool(pack(MathVerifier, {}), Calls(workers=1))
