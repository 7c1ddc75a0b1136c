"""What claims gave: written by the runner, shipped with the package, stamped with the code they were run on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guerdon.catalog.checks import Check, Curves

Verdict = Literal["works", "fails", "not reproduced"]

PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class ClaimResult:
    """One run of one claim.

    Attributes:
        claim: ``family/name``.
        system: name of the system in the catalog.
        verdict: ``works`` if every check holds, ``fails`` if an exact one does not, else ``not reproduced``; under the
            mutation, ``fails`` if any check does not hold.
        broken: whether the claim ran with its mutation.
        mutation: what the mutation breaks.
        checks: in the order in which they ran.
        seeds: number of seeds of the learning checks.
        seconds: wall time.
        version: of guerdon.
        stamp: hash of the code, see ``stamp``.
    """

    claim: str
    system: str
    verdict: Verdict
    broken: bool
    mutation: str
    checks: tuple[Check, ...]
    seeds: int
    seconds: float
    version: str
    stamp: str

    @property
    def evidence(self) -> Check | None:
        """The check that tells most: the first comparison over seeds, else the first check."""
        learned = [check for check in self.checks if check.baseline is not None]
        return next(iter([*learned, *self.checks]), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers per seed to six digits."""
        return _rounded(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ClaimResult:
        """The inverse of ``to_dict``."""
        return cls(**{**data, "checks": tuple(_check(row) for row in data["checks"])})


def stamp(claim: str, modules: list[str]) -> str:
    """Hash of the claim's file and of the modules in which its method lives, by their text.

    Args:
        claim: ``family/name``.
        modules: dotted names of modules of guerdon.
    """
    digest = hashlib.sha256()
    for path in (f"claims/{claim}.py", *(_file(module) for module in modules)):
        digest.update(_digest(PACKAGE / path).encode())
    return digest.hexdigest()[:16]


def results_folder() -> Path:
    """Where the results that ship with the package lie."""
    return PACKAGE / "catalog" / "results"


def save_result(result: ClaimResult, folder: Path) -> Path:
    """Write a result as ``folder/family/name.json``, or ``name.broken.json`` for one under its mutation."""
    path = folder / f"{result.claim}{'.broken' if result.broken else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load_result(claim: str, *, broken: bool = False, folder: Path | None = None) -> ClaimResult | None:
    """The last result of a claim, or None if there is none."""
    path = (folder or results_folder()) / f"{claim}{'.broken' if broken else ''}.json"
    return ClaimResult.from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _file(module: str) -> str:
    relative = module.removeprefix("guerdon.").replace(".", "/")
    return f"{relative}/__init__.py" if (PACKAGE / relative).is_dir() else f"{relative}.py"


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else f"no {path.name}"


def _check(row: dict[str, Any]) -> Check:
    curves = row["curves"]
    if curves is not None:
        lines = {name: [tuple(point) for point in line] for name, line in curves["lines"].items()}
        curves = Curves(curves["axis"], curves["steps"], lines)
    interval = row["interval"]
    return Check(**{**row, "curves": curves, "interval": None if interval is None else tuple(interval)})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
