"""Which tools help which problems: every setting of modules on problems of every level, with what it costs."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from guerdon.rewards.extract import marked_answer
from guerdon.tasks.base import Problem
from guerdon.tasks.math_modules import SETTINGS, Module, SharedText, parse_setting, run_modules

Strategy = Callable[[SharedText], Any]

_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{[^{}]*\}")
_NOISE = re.compile(r"\\[!,;: ]|\\(?:left|right)\b|\^\{?\\circ\}?|\\?%|\\?\$|\s+")
_UNIT = re.compile(r"^([-+]?[\d,./]*\d)\s*[a-z][a-z ./^\d]*$", re.IGNORECASE)
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:/[-+]?\d+)?")


class ToolRow(NamedTuple):
    """What a setting did on the problems of one subject and level.

    Attributes:
        setting, subject, level: which.
        problems: how many.
        right: of them, by exact match after normalisation.
        calls: texts that were written, over all problems; a retry is one more.
        runs: uses of tools, over all problems.
    """

    setting: str
    subject: str
    level: Any
    problems: int
    right: int
    calls: int
    runs: int


@dataclass(frozen=True)
class ToolTable:
    """Settings by subject and level."""

    rows: tuple[ToolRow, ...]

    def accuracy(self, setting: str, level: Any = None, subject: str | None = None) -> float:
        """Share of problems that a setting solved, of one level or subject or of all; nan where there are none."""
        return self._ratio("right", setting, level, subject)

    def calls(self, setting: str, level: Any = None, subject: str | None = None) -> float:
        """Texts and tools that a setting used per problem, every retry included."""
        return self._ratio("calls", setting, level, subject) + self._ratio("runs", setting, level, subject)

    def gain(self, setting: str, level: Any = None, base: str = "SG") -> float:
        """By how much a setting is more often right than another."""
        return self.accuracy(setting, level) - self.accuracy(base, level)

    def _ratio(self, what: str, setting: str, level: Any, subject: str | None) -> float:
        rows = [
            row for row in self.rows
            if row.setting == setting and level in (None, row.level) and subject in (None, row.subject)
        ]  # fmt: skip
        return sum(getattr(row, what) for row in rows) / sum(row.problems for row in rows) if rows else math.nan

    def __str__(self) -> str:
        levels = sorted({row.level for row in self.rows}, key=str)
        lines = [f"| Setting | {' | '.join(f'level {level}' for level in levels)} | all | calls |"]
        lines.append("|---" * (len(levels) + 3) + "|")
        for setting in dict.fromkeys(row.setting for row in self.rows):
            shares = [f"{self.accuracy(setting, level):.0%}" for level in (*levels, None)]
            lines.append(f"| {setting} | {' | '.join(shares)} | {self.calls(setting):.1f} |")
        return "\n".join(lines)


def fixed_settings(modules: Mapping[str, Module], settings: Sequence[str] = SETTINGS) -> dict[str, Strategy]:
    """Ordered lists of modules as strategies; the published fourteen by default."""

    def strategy(names: Sequence[str]) -> Strategy:
        return lambda context: run_modules(context, names, modules)

    return {setting: strategy(parse_setting(setting, list(modules))) for setting in settings}


def tool_ablation(
    problems: Sequence[Problem],
    strategies: Mapping[str, Strategy],
    *,
    score: Callable[[str, Any], float] | None = None,
) -> ToolTable:
    """Solve every problem by every strategy, each on a text of its own.

    Args:
        problems: prompt and answer; ``level`` and ``subject`` stand in the metadata.
        strategies: what extends the text until the answer stands in it: ``fixed_settings`` of modules, or a planner.
        score: solution and answer to 1 or 0; ``same_answer`` by default.

    Returns:
        A row per setting, subject and level.

    Source: Das et al. 2024, arXiv 2402.17231 (MathSensei).
    """
    score = score or same_answer
    sums: dict[tuple[str, str, Any], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for setting, strategy in strategies.items():
        for problem in problems:
            subject, level = str(problem.metadata.get("subject", "")), problem.metadata.get("level", "")
            context = SharedText(problem.prompt, subject, str(level))
            strategy(context)
            row = sums[setting, subject, level]
            for place, value in enumerate(
                (1, int(score(context.solution, problem.answer)), context.calls.total(), context.runs.total())
            ):
                row[place] += value
    return ToolTable(tuple(ToolRow(*key, *row) for key, row in sums.items()))


def final_answer(text: str) -> str | None:
    r"""The last ``\boxed{...}`` of a text, else its last ``<answer>``, else what follows its last ``answer is``."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, begin = 1, start + len("\\boxed{")
        for place in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[begin:place]
        return None
    tagged = marked_answer(text)
    if tagged is not None:
        return tagged
    _, said, rest = text.rpartition("answer is")
    return rest.strip(" :").partition("\n")[0].rstrip(". ") if said else None


def same_answer(text: str, answer: Any) -> float:
    r"""Give 1 where the final answer of a text is the reference, after normalisation.

    Delimiters, signs of spacing, per cent, degrees, currency, units behind a number and commas between groups of
    three are left out; ``\frac{1}{2}``, ``1/2`` and ``0.5`` are one number, and ``x = 2`` is 2.

    Args:
        text: a solution, see ``final_answer``; one without an answer is wrong.
        answer: the reference, alone or in a solution.

    Returns:
        1.0 or 0.0.
    """
    seen, wanted = final_answer(text), final_answer(str(answer)) or str(answer)
    if seen is None:
        return 0.0
    left, right = _normal(seen), _normal(wanted)
    return float(bool(left) and (left == right or (_number(left) is not None and _number(left) == _number(right))))


def _normal(text: str) -> str:
    plain = _TEXT.sub("", text).strip()
    while (bare := _FRACTION.sub(lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}", plain)) != plain:
        plain = bare
    name, equals, value = plain.partition("=")
    plain = (value if equals and len(name.strip()) <= 2 else plain).strip(" $").rstrip(" .")
    plain = _NOISE.sub(" ", plain).strip()
    if (unit := _UNIT.match(plain)) is not None:
        plain = unit[1]
    plain = plain.replace(" ", "")
    return plain.replace(",", "") if _GROUPED.fullmatch(plain) else plain


def _number(text: str) -> Fraction | None:
    if _NUMBER.fullmatch(text) is None or len(text) > 1000:
        return None
    above, _, below = text.partition("/")
    divisor = Fraction(below or "1")
    return Fraction(above) / divisor if divisor else None
