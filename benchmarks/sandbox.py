"""Programs per second in the sandbox, at each level, beside the cost of a bare interpreter.

    python benchmarks/sandbox.py [--json]

Each kind of work is done by two threads that share two workers for some seconds:

- ``program``: ``print(int(input()) + 1)`` from start to end;
- ``calls``: a solution is loaded and judged by three calls;
- ``asserts``: a solution is loaded and judged by three asserts, which run in a process of their own.

``bare`` is ``python -I -S -c pass`` by two threads: no isolation, no limits, no site-packages.
Rounds alternate between all of them, so that drifts of the machine meet each; medians of the rounds are printed.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable

from guerdon.sandbox import LEVELS, Sandbox, SandboxWarning, read_tests, run_tests, why_unavailable

SECONDS, ROUNDS, THREADS = 2.0, 5, 2
SOLUTION = "def add(a, b):\n    return a + b\n"
CALLS = read_tests([{"function": "add", "args": [n, 1], "expected": n + 1} for n in range(3)])
ASSERTS = read_tests([f"assert add({n}, 1) == {n + 1}" for n in range(3)])
Work = Callable[[], object]


def bare() -> None:
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)


def kinds_of_work(sandbox: Sandbox) -> dict[str, Work]:
    """What is timed at a level; each checks its result."""

    def program() -> None:
        assert sandbox.run("print(int(input()) + 1)", stdin="1").stdout == "2\n"

    def judged(tests: list) -> Work:
        def work() -> None:
            assert all(result.passed for result in run_tests(SOLUTION, tests, sandbox=sandbox))

        return work

    return {"program": program, "calls": judged(CALLS), "asserts": judged(ASSERTS)}


def rate(work: Work) -> float:
    """How often the threads together do some work in a second."""
    done = [0] * THREADS
    began = time.perf_counter()

    def repeat(thread: int) -> None:
        while time.perf_counter() - began < SECONDS:
            work()
            done[thread] += 1

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    with contextlib.ExitStack() as stack:
        timed: dict[str, Work] = {"bare": bare}
        warnings.simplefilter("ignore", SandboxWarning)
        for level in LEVELS:
            reason = why_unavailable(level)
            if reason is not None:
                print(reason, file=sys.stderr)
                continue
            sandbox = stack.enter_context(Sandbox(level, workers=THREADS))
            timed |= {f"{level} {name}": work for name, work in kinds_of_work(sandbox).items()}
        for work in timed.values():
            work()
        rates: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(ROUNDS):
            for name, work in timed.items():
                rates[name].append(rate(work))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    if "--json" in sys.argv:
        print(json.dumps(medians))
        return
    for name, median in medians.items():
        print(f"{name:20s} {median:7.1f} per second   {medians['bare'] / median:5.2f} x the time of bare")


if __name__ == "__main__":
    main()
