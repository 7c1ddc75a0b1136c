"""What is wrong with a run, from its log: the detectors of training replayed, and what only the whole log tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from guerdon.monitor.alarms import Alarms
from guerdon.monitor.columns import Choices
from guerdon.monitor.examples import examples
from guerdon.monitor.finding import RANK, Finding, Severity
from guerdon.monitor.history import ENOUGH_TRAJECTORIES, History
from guerdon.monitor.pathologies import PATHOLOGIES, remedies
from guerdon.monitor.sources import Log, open_log
from guerdon.monitor.summaries import step_rows, whole_log


@dataclass(frozen=True)
class Diagnosed:
    """A pathology that a log shows.

    Attributes:
        code, severity: which, and how bad at its worst.
        share, share_of: of the steps in which it was so, or of the rollouts that it concerns.
        steps: the first and the last step that show it.
        message: what was seen.
        figures: the numbers behind it.
        change: what to do.
        examples: rollouts that show it.
    """

    code: str
    severity: Severity
    share: float
    steps: tuple[int, int]
    message: str
    figures: dict[str, float | str]
    change: str
    share_of: Literal["steps", "rollouts"] = "steps"
    examples: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; ``remedies`` begins with the setting to change, systems of the catalog follow."""
        return {
            "code": self.code,
            "severity": self.severity,
            "share": self.share,
            "steps": list(self.steps),
            "evidence": {
                "message": self.message,
                "figures": self.figures,
                "share_of": self.share_of,
                "examples": self.examples,
            },
            "remedies": [{"change": self.change}, *map(dict, remedies(self.code))],
        }


@dataclass(frozen=True)
class Diagnosis:
    """Everything that a log shows.

    Attributes:
        source: what was read, and which column was taken for what.
        findings: the worst first.
        healthy: codes that were looked for and not found.
        unchecked: codes that the log can't tell, and what it lacks.
    """

    source: dict[str, Any]
    findings: list[Diagnosed]
    healthy: list[str]
    unchecked: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "source": self.source,
            "findings": [finding.to_dict() for finding in self.findings],
            "healthy": self.healthy,
            "unchecked": self.unchecked,
        }

    def worst(self) -> Severity | None:
        """The severity of the first finding."""
        return self.findings[0].severity if self.findings else None


def diagnose(
    path: str | Path, choices: Choices | None = None, *, progress: Callable[[str], None] | None = None
) -> Diagnosis:
    """Read a log and say what is wrong with it.

    Args:
        path: a guerdon run, TRL's output folder, verl's dumps, or a table; see ``open_log``.
        choices: which column is what, where a guess would be wrong.
        progress: told what is being done.

    Raises:
        GuerdonError: when the log can't be read, or a column is missing.
    """
    tell = progress or (lambda _: None)
    tell(f"reading {path}")
    log = open_log(path, choices)
    try:
        tell(f"comparing {log.rollouts:,} rollouts")
        alarms, episodes, steps = _replay(log)
        told, checked = whole_log(log)
        for code, finding, share, span in told:
            _add_whole(episodes, code, finding, share, span)
        checked |= {detector.code for detector in alarms.detectors if detector.can_see(alarms.history)}
        findings = [episode.told(steps) for episode in episodes.values()]
        findings.sort(key=lambda f: (-RANK[f.severity], -f.share))
        tell("fetching examples")
        shown = examples(log, [(f.code, f.steps, f.figures) for f in findings])
        findings = [replace(f, examples=found) for f, found in zip(findings, shown, strict=True)]
        healthy, unchecked = _rest(log, alarms, {f.code for f in findings}, checked)
        return Diagnosis(describe(log, steps), findings, healthy, unchecked)
    finally:
        log.close()


@dataclass
class _Episode:
    """When a detector spoke, and what it said at its worst."""

    code: str
    finding: Finding
    first: int
    last: int
    active: int = 0
    share: float | None = None

    def told(self, steps: list[int]) -> Diagnosed:
        share = self.share if self.share is not None else self.active / max(len(steps), 1)
        return Diagnosed(
            self.code,
            self.finding.severity,
            round(share, 4),
            (self.first, self.last),
            self.finding.seen,
            self.finding.evidence,
            self.finding.change,
            "steps" if self.share is None else "rollouts",
        )


def _replay(log: Log) -> tuple[Alarms, dict[str, _Episode], list[int]]:
    """Let the detectors see every step, and gather what they say by code and what it is about."""
    rows = list(step_rows(log))
    steps = [step for step, _ in rows]
    alarms = Alarms(log.kind, History(len(rows), formats=log.choices.format))
    episodes: dict[str, _Episode] = {}
    for place, (step, row) in enumerate(rows):
        alarms.observe(step, row)
        strict = alarms.anew(row) if alarms.found else {}
        begun = steps[max(0, place - alarms.history.window + 1)]
        for key, finding in alarms.found.items():
            episode = episodes.setdefault(key, _Episode(key.partition(":")[0], finding, begun, step))
            episode.last, episode.active = step, episode.active + 1
            if key in strict and RANK[finding.severity] >= RANK[episode.finding.severity]:
                episode.finding = finding
    return alarms, episodes, steps


def _add_whole(episodes: dict[str, _Episode], code: str, finding: Finding, share: float, span: tuple[int, int]) -> None:
    """Put what the whole log tells beside the episodes; where a step told the same as badly, it stays."""
    about = finding.evidence.get("component") or finding.evidence.get("judge")
    key = f"{code}:{about}" if about else code
    before = episodes.get(key)
    if before is None or RANK[finding.severity] > RANK[before.finding.severity] or code == "noisy-reward":
        episodes[key] = _Episode(code, finding, *span, share=share)


def _rest(log: Log, alarms: Alarms, found: set[str], checked: set[str]) -> tuple[list[str], dict[str, str]]:
    """Codes that were looked for in vain, and those that could not be looked for."""
    asked = {detector.code for detector in alarms.detectors}
    few = 0 < alarms.history.trajectories < ENOUGH_TRAJECTORIES
    healthy, unchecked = [], {}
    for row in PATHOLOGIES:
        if row.code in found:
            continue
        if row.code not in asked:
            unchecked[row.code] = f"is told of language policies only, and this is of kind {log.kind}"
        elif row.code not in checked:
            unchecked[row.code] = f"the log lacks {row.lacks}"
        elif few and row.code not in ("not-finite", "advantage-leak", "reward-faults"):
            unchecked[row.code] = f"{int(alarms.history.trajectories)} rollouts are fewer than {ENOUGH_TRAJECTORIES}"
        elif row.code == "format-only-learning" and not _has_form(log, alarms.history):
            unchecked[row.code] = f"the log lacks {row.lacks}"
        else:
            healthy.append(row.code)
    return healthy, unchecked


def _has_form(log: Log, history: History) -> bool:
    return any(history.measures_form(name) for name in history.components())


def describe(log: Log, steps: Iterable[int]) -> dict[str, Any]:
    """What was read: ``path``, ``format``, ``rollouts``, ``steps``, ``columns``, ``rewards``, ``watched``, and
    ``unreadable`` rows."""
    steps = list(steps)
    return {
        "path": str(log.path),
        "format": log.source,
        "rollouts": log.rollouts,
        "steps": {"first": min(steps, default=0), "last": max(steps, default=0), "count": len(steps)},
        "columns": log.roles,
        "rewards": log.components_named(),
        "watched": log.watch_named(),
        "unreadable": log.unreadable,
    }
