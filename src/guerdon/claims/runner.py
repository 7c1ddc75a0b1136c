"""Finds claims, runs them side by side, and judges them."""

from __future__ import annotations

import importlib
import multiprocessing
import pkgutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from guerdon import claims as home
from guerdon.catalog.entries import CatalogError, System, find_system
from guerdon.catalog.results import ClaimResult, Verdict, stamp
from guerdon.claims.core import Check, Claim
from guerdon.errors import nearest

FAMILIES_HELD = ("testbeds",)  # packages beside the families that hold no claims


@dataclass(frozen=True)
class Entry:
    """A claim and what the catalog knows of its system."""

    path: str
    claim: Claim
    system: System
    description: str

    @property
    def family(self) -> str:
        return self.path.partition("/")[0]


def claim_paths() -> list[str]:
    """``family/name`` of every claim, without importing any."""
    families = [m.name for m in pkgutil.iter_modules(home.__path__) if m.ispkg and m.name not in FAMILIES_HELD]
    return [
        f"{family}/{module.name}"
        for family in families
        for module in pkgutil.iter_modules([f"{home.__path__[0]}/{family}"])
    ]


def load(path: str) -> Entry:
    """Import a claim by ``family/name``."""
    module = importlib.import_module(f"{home.__name__}.{path.replace('/', '.')}")
    claim: Claim = module.CLAIM
    return Entry(path, claim, find_system(claim.system), (module.__doc__ or "").strip())


def find(name: str) -> str:
    """The path of a claim, given as ``family/name``, as its file's name or as its system's.

    Raises:
        CatalogError: naming the nearest known claim.
    """
    known = claim_paths()
    by_name = {path.rpartition("/")[2]: path for path in known}
    for key in (name, name.replace("-", "_").replace(".", "_")):
        if key in known or key in by_name:
            return by_name.get(key, key)
    for path in known:
        if load(path).claim.system == name:
            return path
    raise CatalogError(f"no claim '{name}'{nearest(name, by_name)}")


def run(
    path: str,
    *,
    seeds: int | None = None,
    broken: bool = False,
    until_caught: bool = False,
    watch: Callable[[Check], None] | None = None,
) -> ClaimResult:
    """Run one claim and judge it. Tensors are computed by one thread, so that its numbers don't depend on the machine.

    Args:
        path: ``family/name``.
        seeds: seeds of the learning checks; the claim's own number by default.
        broken: run it with its mutation.
        until_caught: stop at the first check that does not hold.
        watch: called with every check as it is made.
    """
    from guerdon import __version__

    entry = load(path)
    claim, count = entry.claim, seeds or entry.claim.seeds
    checks: list[Check] = []
    began = time.monotonic()
    with _one_thread():
        for check in _guarded(claim.run(claim.mutation.method if broken else claim.method, count)):
            checks.append(check)
            if watch is not None:
                watch(check)
            if until_caught and not check.holds:
                break
    return ClaimResult(
        claim=path,
        system=claim.system,
        verdict=judge(checks, broken=broken),
        broken=broken,
        mutation=claim.mutation.what,
        checks=tuple(checks),
        seeds=count,
        seconds=round(time.monotonic() - began, 2),
        version=__version__,
        stamp=stamp(path, entry.system.modules),
    )


def judge(checks: Iterable[Check], *, broken: bool = False) -> Verdict:
    """What checks amount to; a claim without any fails, for it shows nothing."""
    checks = list(checks)
    if checks and all(check.holds for check in checks):
        return "works"
    sound = bool(checks) and all(check.holds for check in checks if check.kind != "learning")
    return "not reproduced" if sound and not broken else "fails"


def run_all(
    paths: Iterable[str], *, seeds: int | None = None, broken: bool = False, jobs: int = 1
) -> Iterator[ClaimResult]:
    """Run claims, ``jobs`` at a time in processes of their own, and give each result as it comes."""
    paths = list(paths)
    if jobs == 1:
        yield from (run(path, seeds=seeds, broken=broken) for path in paths)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: set[Future[ClaimResult]] = {pool.submit(run, path, seeds=seeds, broken=broken) for path in paths}
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()


def _guarded(checks: Iterator[Check]) -> Iterator[Check]:
    """The checks, and one more that does not hold if the claim breaks off."""
    try:
        yield from checks
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        seen = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        yield Check("the claim runs to its end", "error", "no exception", seen, False)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
