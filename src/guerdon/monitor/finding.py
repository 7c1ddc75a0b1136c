"""What a detector says: how bad it is, what was seen, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from guerdon.monitor.history import History

Severity = Literal["info", "warning", "critical"]
RANK: dict[str, int] = {"info": 1, "warning": 2, "critical": 3}


@dataclass(frozen=True)
class Finding:
    """Something that is wrong now.

    Attributes:
        severity: ``info`` (good to know), ``warning`` (compute is wasted), ``critical`` (nothing is learned).
        seen: what was seen, with the numbers.
        change: what to do about it.
        evidence: the numbers by name.
    """

    severity: Severity
    seen: str
    change: str
    evidence: dict[str, float | str] = field(default_factory=dict)

    @property
    def message(self) -> str:
        return f"{self.seen}; {self.change}"


# Findings by what they are about: a component, a metric, or "" where there is but one.
Found = dict[str, Finding]


@dataclass(frozen=True)
class Detector:
    """A condition on the history of a run.

    Attributes:
        code: of the pathology that it finds.
        needs: patterns of numbers of which it needs some.
        find: from the history and the numbers of the last step to what is wrong.
        language_only: whether it means nothing for other policies.
        at_least: how many of the numbers it needs.
    """

    code: str
    needs: tuple[str, ...]
    find: Callable[[History, Mapping[str, float]], Found]
    language_only: bool = False
    at_least: int = 1

    def can_see(self, history: History) -> bool:
        """Whether the history holds what it needs."""
        return sum(any(fnmatchcase(n, need) for need in self.needs) for n in history.names()) >= self.at_least


def limit(history: History, key: str, raised: float, released: float) -> float:
    """The threshold of a condition: the first until it is met, then the second until it is over."""
    return released if key in history.active else raised
