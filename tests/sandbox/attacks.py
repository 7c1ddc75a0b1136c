"""Attempts of a program to get out of the sandbox, or of a solution to earn a pass that it does not deserve.

    python tests/sandbox/attacks.py [--level LEVEL] > docs/sandbox-attacks.json

tries them all and writes what happened, which the page ``docs/sandbox.md`` shows.

An *escape* is code with a function ``attempt`` that gives True if it got what it wanted. It runs as a program, which
says what it met, and as a solution that answers rightly only if the attempt succeeded: so a success would be a pass.
A *forgery* is a solution for tests that it cannot solve.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from escapes import ESCAPES
from forgeries import FORGERIES

from guerdon.sandbox import CallTest, Limits, Sandbox, read_tests, run_tests

VARIABLE = "GUERDON_TEST_SECRET"
MARK = "a secret of the trainer"
LIMITS = {"cpu_time": 1, "wall_time": 20.0, "memory": 256 << 20, "processes": 12, "file_size": 8 << 20}
LIMITS |= {"scratch": 16 << 20, "output": 1 << 18}
DOUBLED = [CallTest("solve", [3], 6), CallTest("solve", [21], 42)]
_ESCAPE = """
import os, sys, time, signal, socket, ctypes
SECRET, PARENT, PORT, PLACE, VARIABLE, MARK = {facts!r}
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return True
{code}
try:
    won = attempt()
    said = "got nothing" if won is not True else "SUCCEEDED"
except BaseException as error:
    won, said = False, f"{{type(error).__name__}}: {{getattr(error, 'strerror', None) or error}}"
def solve(x):
    return 2 * x if won is True else None
if __name__ == "__main__":
    print(said)
"""


@dataclass(frozen=True)
class Result:
    """What happened in one attempt.

    Attributes:
        kind: what the attempt aims at.
        name: the attempt.
        tried: what it did.
        happened: what it met.
        contained: whether it had no effect outside, and ended as it had to.
        passed: tests that the solution passed.
    """

    kind: str
    name: str
    tried: str
    happened: str
    contained: bool
    passed: int


@dataclass
class Ground:
    """What an attempt could reach if it got out: a file, a variable, a port, the process itself."""

    secret: Path
    listener: socket.socket
    signals: list[int]

    @property
    def facts(self) -> tuple[Any, ...]:
        place = "\0guerdon-attack-" + str(os.getpid())
        return (str(self.secret), os.getpid(), self.listener.getsockname()[1], place, VARIABLE, MARK)

    def untouched(self) -> bool:
        """Whether nothing of it was changed or reached."""
        with contextlib.suppress(BlockingIOError):
            self.listener.accept()
            return False
        beside = [path.name for path in self.secret.parent.iterdir()]
        return not self.signals and beside == [self.secret.name] and self.secret.read_text() == MARK


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """Lay out what attempts go for."""
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
    os.environ[VARIABLE] = MARK
    with tempfile.TemporaryDirectory(prefix="attacked-") as folder, socket.socket() as listener:
        secret = Path(folder) / "guerdon-secret.txt"
        secret.write_text(MARK)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        try:
            yield Ground(secret, listener, signals)
        finally:
            del os.environ[VARIABLE]
            signal.signal(signal.SIGUSR1, before)


def descendants() -> set[int]:
    """Processes that came of this one."""
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
    found, ours = set(), {os.getpid()}
    while ours:
        ours = {pid for pid, parent in parents.items() if parent in ours}
        found |= ours
    return found


def remaining(before: set[int]) -> set[int]:
    """Processes beyond those of before that are still there when what is about to end has ended."""
    deadline = time.monotonic() + 5
    while (left := descendants() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def try_escape(escape: Any, sandbox: Sandbox, place: Ground) -> Result:
    """Run an escape as a program and as a solution."""
    sandbox.run('"an earlier program\'s text"')  # starts the worker, which stays
    before = descendants()
    limits = Limits(**LIMITS | escape.limits)
    code = _ESCAPE.format(facts=place.facts, code=escape.code)
    outcome = sandbox.run(code, limits=limits)
    results = run_tests(code, DOUBLED, sandbox=sandbox, limits=limits, stop_early=True)
    survivors = remaining(before)
    said = outcome.stdout.strip() if outcome.status in ("ok", "error") else ""
    contained = outcome.status in escape.ends and said != "SUCCEEDED" and not survivors and place.untouched()
    passed = sum(result.passed for result in results)
    happened = said or _ENDS.get(outcome.status, outcome.status)
    return Result(escape.kind, escape.name, escape.tried, happened[:160], contained, passed)


_ENDS = {
    "wall_time": "killed at the time limit",
    "cpu_time": "killed at the limit of processor time",
    "output": "killed at the limit of output",
    "killed": "killed",
    "ok": "it ended, and what it left running was killed",
}


def try_forgery(forgery: Any, sandbox: Sandbox, place: Ground) -> Result:
    """Judge a solution that cheats."""
    sandbox.run("")
    limits = Limits(**LIMITS | forgery.limits)
    tests = read_tests(forgery.tests)
    began = time.monotonic()
    results = run_tests(forgery.code, tests, sandbox=sandbox, limits=limits)
    seconds = time.monotonic() - began
    failed = [result for result in results if not result.passed]
    contained = place.untouched() and seconds < 3 * limits.wall_time
    happened = failed[0].detail if failed else "PASSED"
    return Result(forgery.kind, forgery.name, forgery.tried, happened[:160], contained, len(results) - len(failed))


def main() -> None:
    """Try everything and print the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--level")
    with Sandbox(parser.parse_args().level) as sandbox, ground() as place:
        results = [try_escape(escape, sandbox, place) for escape in ESCAPES]
        results += [try_forgery(forgery, sandbox, place) for forgery in FORGERIES]
        level = sandbox.level
    json.dump({"level": level, "attempts": [vars(result) for result in results]}, sys.stdout, indent=1)
    print()
    if not all(result.contained and result.passed == 0 for result in results):
        sys.exit("an attempt succeeded")


if __name__ == "__main__":
    main()
