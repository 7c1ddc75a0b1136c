"""Warm workers, shared by threads, and the choice of how strong their isolation is."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import warnings
from collections.abc import Iterator, Sequence

from guerdon.sandbox.isolate import ISOLATED, LEVELS, Level
from guerdon.sandbox.limits import Limits, Outcome, SandboxError, SandboxWarning
from guerdon.sandbox.worker import Worker, run_script

_PROBE = "import os; print(os.getpid(), os.path.exists({canary!r}), os.path.exists('/proc/self'))"


class Sandbox:
    """Workers in which model-written programs run; threads may share one.

    Workers start on first need. A process forked from this one gets workers of its own.

    Args:
        level: how programs are isolated; by default the strongest that works here.
        require_isolation: refuse level ``rlimits``, which leaves files readable.
        workers: programs that run at a time; twice as many where tests' code runs beside its solution.
        readable: folders besides the interpreter that programs may read and import from.
        preload: modules imported once, before programs are forked.

    Raises:
        SandboxError: when the level does not work here, or nothing that isolates does and isolation is required.
    """

    def __init__(
        self,
        level: Level | None = None,
        *,
        require_isolation: bool = False,
        workers: int = 2,
        readable: Sequence[str] = (),
        preload: Sequence[str] = (),
    ) -> None:
        if workers < 1:
            raise SandboxError(f"Sandbox: workers is {workers}, want at least 1")
        self.level: Level = choose_level(level, require_isolation=require_isolation)
        self._workers = workers
        self._start = functools.partial(Worker, self.level, readable=tuple(readable), preload=tuple(preload))
        self._reset()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._places = {kind: threading.BoundedSemaphore(self._workers) for kind in ("solution", "checks")}

    def run(self, code: str, *, stdin: str = "", limits: Limits | None = None) -> Outcome:
        """Run a program from start to end.

        Args:
            code: Python source, run as the main module.
            stdin: what it reads.
            limits: what it may use.
        """
        with self.worker() as worker:
            return run_script(worker, code, stdin, limits or Limits())

    @contextlib.contextmanager
    def worker(self, kind: str = "solution") -> Iterator[Worker]:
        """Lend a worker; ``kind`` is ``checks`` for the process of tests' code, which waits for no solution's."""
        if self._owner != os.getpid():
            self._reset()
        with self._places[kind]:
            worker = self._take()
            try:
                yield worker
            finally:
                if worker.ready:
                    with self._lock:
                        self._idle.append(worker)
                else:
                    worker.close()

    def _take(self) -> Worker:
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return self._start()
            if worker.ready:
                return worker
            worker.close()

    def close(self) -> None:
        """End all idle workers."""
        if self._owner != os.getpid():
            return
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def choose_level(level: Level | None = None, *, require_isolation: bool = False) -> Level:
    """Give the level if it works here, or the strongest that does.

    Raises:
        SandboxError: when there is none, with the reason of each.
    """
    if level is not None and level not in LEVELS:
        raise SandboxError(f"no sandbox level {level!r}; want one of {', '.join(LEVELS)}")
    wanted: tuple[Level, ...] = LEVELS if level is None else (level,)
    allowed: list[Level] = [name for name in wanted if name in ISOLATED or not require_isolation]
    reasons = []
    for name in allowed:
        reason = why_unavailable(name)
        if reason is None:
            if name not in ISOLATED:
                _warn(reasons)
            return name
        reasons.append(reason)
    refused = "level 'rlimits' does not isolate, and isolation is required" if len(allowed) < len(wanted) else ""
    raise SandboxError(
        "; ".join([*reasons, *([refused] if refused else [])])
        + "; install bubblewrap, or allow user namespaces (in a container: run it with its seccomp profile off)"
    )


@functools.cache
def why_unavailable(level: Level) -> str | None:
    """Try a level: None where it works, else the reason. The answer is kept for the life of the process."""
    try:
        worker = Worker(level)
    except SandboxError as error:
        return str(error)
    try:
        outcome = run_script(worker, _PROBE.format(canary=os.path.abspath(__file__)), "", Limits())
    finally:
        worker.close()
    if not outcome.ok:
        return f"sandbox level '{level}' starts but runs no program: {outcome.stderr.strip()[-200:]}"
    if level in ISOLATED and outcome.stdout.split() != ["2", "False", "False"]:
        return f"sandbox level '{level}' starts but does not isolate: its probe saw {outcome.stdout.split()}"
    return None


def _warn(reasons: list[str]) -> None:
    why = f" ({'; '.join(reasons)})" if reasons else ""
    warnings.warn(
        "MODEL-WRITTEN CODE RUNS WITHOUT ISOLATION: only resource limits and a filter of system calls hold it, so it "
        f"can read and write every file that you can{why}. Install bubblewrap or allow user namespaces, and set "
        "require_isolation to refuse this.",
        SandboxWarning,
        stacklevel=4,
    )


@functools.cache
def shared_sandbox(require_isolation: bool = False) -> Sandbox:
    """The sandbox that ``run_python`` and the rewards share; its workers end with the process."""
    sandbox = Sandbox(require_isolation=require_isolation)
    atexit.register(sandbox.close)
    return sandbox


def run_python(code: str, *, stdin: str = "", limits: Limits | None = None, require_isolation: bool = False) -> Outcome:
    """Run a program in the strongest sandbox that works here, as ``Sandbox.run`` does.

    Args:
        code: Python source, run as the main module.
        stdin: what it reads.
        limits: what it may use.
        require_isolation: refuse to run it under resource limits alone.

    Raises:
        SandboxError: when no sandbox can be made, or isolation is required and there is none.
    """
    return shared_sandbox(require_isolation).run(code, stdin=stdin, limits=limits)
