"""Early warnings from the numbers of each step: named codes, raised once per episode, with evidence and remedies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guerdon.monitor.detectors import DETECTORS
from guerdon.monitor.finding import RANK, Finding, Severity
from guerdon.monitor.history import History
from guerdon.tasks.base import Kind


@dataclass(frozen=True)
class Alarm:
    """Something that keeps a run from learning.

    Attributes:
        code: stable name of the pathology.
        severity: ``info`` (good to know), ``warning`` (compute is wasted), ``critical`` (nothing is learned).
        message: what was seen and what to do.
        step: when it was raised.
        evidence: the numbers behind it.
    """

    code: str
    severity: Severity
    message: str
    step: int
    evidence: dict[str, float | str] = field(default_factory=dict)


class Alarms:
    """Watches the numbers of every step and raises each alarm once per episode.

    An alarm that was raised is raised again only after its condition has been over for good (its release threshold
    lies below the one that raised it), or when it becomes more severe. Its memory is in the checkpoint.

    Args:
        kind: of policy; only a language policy is better off when it is not cut.
        history: what to remember by; one of a run whose end is not known by default.

    Attributes:
        found: what is wrong as of the last step, by code and what it is about (``kl-blowup:update/kl/kl``).
    """

    def __init__(self, kind: Kind = "language", history: History | None = None) -> None:
        self.detectors = [d for d in DETECTORS if kind == "language" or not d.language_only]
        self.history = history or History()
        self.found: dict[str, Finding] = {}

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Take in the metrics of a step (those of ``batch_metrics`` and of the loop); return the alarms it raises."""
        history, active = self.history, self.history.active
        history.remember(metrics)
        self.found = self._find(metrics)
        raised = []
        for key, finding in self.found.items():
            if RANK[finding.severity] > active.get(key, 0):
                code = key.partition(":")[0]
                raised.append(Alarm(code, finding.severity, finding.message, step, finding.evidence))
                active[key] = RANK[finding.severity]
        for key in [key for key in active if key not in self.found]:
            del active[key]
        return raised

    def anew(self, metrics: Mapping[str, float]) -> dict[str, Finding]:
        """What would be raised now if nothing had been raised before: without what is only not over yet."""
        active, self.history.active = self.history.active, {}
        try:
            return self._find(metrics)
        finally:
            self.history.active = active

    def _find(self, metrics: Mapping[str, float]) -> dict[str, Finding]:
        return {
            f"{detector.code}:{about}" if about else detector.code: finding
            for detector in self.detectors
            for about, finding in detector.find(self.history, metrics).items()
        }

    def state_dict(self) -> dict[str, Any]:
        """What has been seen and raised; JSON-serialisable."""
        return self.history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.history.load_state_dict(state)
