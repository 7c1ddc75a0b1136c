"""The list of published systems, and the symptoms that they answer."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from guerdon.catalog.results import ClaimResult, load_result, stamp
from guerdon.errors import GuerdonError, nearest

STATUSES = ("works", "not-reproduced", "fails", "stale", "open")

FAMILIES = {
    "policy_optimization": "Policy optimisation",
    "credit_and_agents": "Credit and agents",
    "exploration_and_supervision": "Exploration and supervision",
    "flow_and_diffusion": "Flow and diffusion",
    "reward_models_and_preferences": "Reward models and preferences",
    "task_rewards": "Task rewards",
    "control": "Control",
    "optimization_and_bandits": "Optimisation and bandits",
    "sparsity_and_dynamics": "Sparsity and dynamics",
}


class CatalogError(GuerdonError):
    """A system, family, status, symptom or claim that does not exist."""


@dataclass(frozen=True)
class Symptom:
    """Something that goes wrong in training.

    Attributes:
        name: as ``guerdon methods --for`` takes it.
        meaning: what happens.
        seen: how a run shows it.
    """

    name: str
    meaning: str
    seen: str


@dataclass(frozen=True)
class System:
    """One published system.

    Attributes:
        id: its number.
        name: short and unique.
        title: of the publication.
        paper: authors, year and arXiv id, where known.
        family: one of ``FAMILIES``.
        home: ``module:name`` of everything that implements it; a module alone says where an open one will stand.
        claim: ``family/name`` of its claim, empty while it is open.
        answers: names of the symptoms it answers.
    """

    id: int
    name: str
    title: str
    paper: str
    family: str
    home: tuple[str, ...]
    claim: str
    answers: tuple[str, ...]

    @property
    def modules(self) -> list[str]:
        """Modules in which it lives."""
        return sorted({path.partition(":")[0] for path in self.home})

    @property
    def result(self) -> ClaimResult | None:
        """The last result of its claim that ships with the package."""
        return load_result(self.claim) if self.claim else None

    @property
    def status(self) -> str:
        """One of ``STATUSES``."""
        result = self.result
        if result is None:
            return "open"
        if result.stamp != stamp(self.claim, self.modules):
            return "stale"
        return result.verdict.replace(" ", "-")

    def row(self) -> dict[str, Any]:
        """What ``guerdon systems --json`` prints of it."""
        keys = ("id", "name", "title", "family")
        row = {key: getattr(self, key) for key in keys}
        return row | {"home": ", ".join(self.home), "claim": self.claim, "status": self.status}


@functools.cache
def systems() -> tuple[System, ...]:
    """All systems, by number."""
    rows = _read("systems.toml")["system"]
    return tuple(System(**row | {key: tuple(row[key]) for key in ("home", "answers")}) for row in rows)


@functools.cache
def symptoms() -> tuple[Symptom, ...]:
    """All symptoms, in the order in which a practitioner meets them."""
    return tuple(Symptom(**row) for row in _read("symptoms.toml")["symptom"])


def find_system(name: str) -> System:
    """The system of that name.

    Raises:
        CatalogError: naming the nearest known one.
    """
    for system in systems():
        if system.name == name:
            return system
    raise CatalogError(f"no system '{name}'{nearest(name, [s.name for s in systems()])}")


def system_rows(family: str | None = None, status: str | None = None) -> list[dict[str, Any]]:
    """Rows of the catalog, of one family or one status if asked for.

    Raises:
        CatalogError: for a family or a status that does not exist.
    """
    if family is not None and family not in FAMILIES:
        raise CatalogError(f"no family '{family}'{nearest(family, FAMILIES)}")
    if status is not None and status not in STATUSES:
        raise CatalogError(f"no status '{status}'{nearest(status, STATUSES)}")
    rows = [system.row() for system in systems() if family in (None, system.family)]
    return [row for row in rows if status in (None, row["status"])]


def systems_for(symptom: str) -> list[System]:
    """Systems that answer a symptom, those whose claim holds first.

    Raises:
        CatalogError: naming the nearest known symptom.
    """
    known = [s.name for s in symptoms()]
    if symptom not in known:
        raise CatalogError(f"no symptom '{symptom}'{nearest(symptom, known)}")
    found = [system for system in systems() if symptom in system.answers]
    return sorted(found, key=lambda system: (STATUSES.index(system.status), system.id))


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("guerdon.catalog").joinpath(name).read_text(encoding="utf-8"))
