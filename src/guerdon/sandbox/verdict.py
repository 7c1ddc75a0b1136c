"""Which tests a solution passes, decided where the solution's code never runs.

Three kinds of process take part. The trusted one, which calls ``run_tests``, holds expected values and writes the
verdict. The solution runs in one sandbox; all that comes out of it is bytes on a pipe or plain data. Tests that are
code run in a second sandbox, which the solution cannot reach: their calls pass through the trusted process.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from guerdon.sandbox.compare import matches
from guerdon.sandbox.inside import wire
from guerdon.sandbox.limits import Limits, Outcome
from guerdon.sandbox.pool import Sandbox, shared_sandbox
from guerdon.sandbox.problem_tests import CallTest, CodeTest, StdinTest, Test
from guerdon.sandbox.worker import Program, Worker

_SHOWN = 200  # characters of a value in a detail
_FROM_TESTS = 64 << 20  # bytes of one message from tests' code, which is not the solution's


@dataclass(frozen=True)
class TestResult:
    """What became of one test.

    Attributes:
        name: the test's.
        passed: whether the solution passed it.
        detail: why not.
        broken: the test itself cannot run here, whatever the solution is.
    """

    __test__ = False

    name: str
    passed: bool
    detail: str = ""
    broken: bool = False


@dataclass(frozen=True)
class _Terms:
    """The terms on which tests run."""

    code: str
    sandbox: Sandbox
    limits: Limits
    rel_tol: float
    abs_tol: float
    stop_early: bool


def run_tests(
    solution: str,
    tests: Sequence[Test],
    *,
    sandbox: Sandbox | None = None,
    limits: Limits | None = None,
    rel_tol: float = 0.0,
    abs_tol: float = 0.0,
    stop_early: bool = False,
) -> list[TestResult]:
    """Run a solution against tests.

    Calls, and tests that are code, meet one loaded solution after the other, until it ends; then a fresh one takes
    the remaining tests. Time limits hold for each test. A solution that ends, for whatever reason and with whatever
    status, fails the test it was in.

    Args:
        solution: Python source.
        tests: in any mix of forms.
        sandbox: where to run; by default the strongest that works here.
        limits: of each test.
        rel_tol: floats in results of calls may differ by this share of the larger one.
        abs_tol: floats in results of calls may differ by this.
        stop_early: run nothing after the first test that failed; the rest counts as failed.

    Returns:
        One result per test, in their order.

    Raises:
        SandboxError: when no sandbox can be made.
        ValueError: when a call's arguments or expected value are not plain data.
    """
    terms = _Terms(solution, sandbox or shared_sandbox(), limits or Limits(), rel_tol, abs_tol, stop_early)
    results: dict[int, TestResult] = {}
    kinds: Any = ((StdinTest, _programs), (CallTest, _calls), (CodeTest, _codes))
    for kind, run in kinds:
        chosen = [number for number, test in enumerate(tests) if isinstance(test, kind)]
        if stop_early and any(not result.passed for result in results.values()):
            break
        found = list(run([tests[number] for number in chosen], terms))
        results |= zip(chosen, found, strict=False)
    not_run = "not run: an earlier test failed"
    return [results.get(n) or TestResult(name_of(test, n), False, not_run) for n, test in enumerate(tests)]


def name_of(test: Test, number: int) -> str:
    """The test's name, or one made from its number."""
    return test.name or f"test {number}"


def _programs(tests: Sequence[StdinTest], terms: _Terms) -> Iterator[TestResult]:
    for number, test in enumerate(tests):
        outcome = terms.sandbox.run(terms.code, stdin=test.stdin, limits=terms.limits)
        detail = _program_fault(outcome, test)
        yield TestResult(name_of(test, number), not detail, detail)
        if detail and terms.stop_early:
            return


def _program_fault(outcome: Outcome, test: StdinTest) -> str:
    """What is wrong with a program's end or output; empty where nothing is."""
    if not outcome.ok:
        said = outcome.stderr.strip().splitlines()
        return f"{outcome.status}{': ' if said else ''}{said[-1][:_SHOWN] if said else ''}"
    if _text_lines(outcome.stdout) != _text_lines(test.stdout):
        return f"wrote {outcome.stdout[:_SHOWN]!r}, want {test.stdout[:_SHOWN]!r}"
    return ""


def _text_lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _calls(tests: Sequence[CallTest], terms: _Terms) -> Iterator[TestResult]:
    requests = [_call_request(test) for test in tests]
    expected = [_plain(test.expected, f"the expected value of '{test.function}'") for test in tests]
    number = 0
    while number < len(tests):
        with _Solution(terms, len(tests) - number) as solution:
            while number < len(tests):
                test = tests[number]
                answer = solution.ask(requests[number], time.monotonic() + terms.limits.wall_time)
                detail = _call_fault(answer, expected[number], terms)
                yield TestResult(name_of(test, number), not detail, detail)
                number += 1
                if detail and terms.stop_early:
                    return
                if solution.ended and solution.loaded:
                    break  # a fresh one takes the rest


def _call_request(test: CallTest) -> dict[str, Any]:
    try:
        args = [wire.encode(value) for value in test.args]
        kwargs = {name: wire.encode(value) for name, value in test.kwargs.items()}
    except (wire.WireError, TypeError) as error:
        raise ValueError(f"arguments of '{test.function}': {error}") from None
    return {"do": "call", "name": test.function, "args": args, "kwargs": kwargs}


def _plain(value: Any, what: str) -> Any:
    try:
        return wire.decode(wire.encode(value))
    except wire.WireError as error:
        raise ValueError(f"{what}: {error}") from None


def _call_fault(answer: dict[str, Any], expected: Any, terms: _Terms) -> str:
    """What is wrong with the answer to a call; empty where nothing is."""
    if "value" not in answer:
        return answer["text"]
    if matches(expected, answer["value"], rel_tol=terms.rel_tol, abs_tol=terms.abs_tol):
        return ""
    return f"gave {str(answer['value'])[:_SHOWN]}, want {str(expected)[:_SHOWN]}"


def _codes(tests: Sequence[CodeTest], terms: _Terms) -> Iterator[TestResult]:
    number = 0
    while number < len(tests):
        with _Solution(terms, len(tests) - number) as solution:
            if not solution.loaded:
                yield from (
                    TestResult(name_of(t, number + i), False, solution.fault) for i, t in enumerate(tests[number:])
                )
                return
            with _Checks(tests[number:], terms) as checks:
                for result in checks.results(solution):
                    yield TestResult(name_of(tests[number], number), **result)
                    number += 1
                    if terms.stop_early and not result["passed"]:
                        return


class _Session(contextlib.AbstractContextManager["_Session"]):
    """A program in a sandbox that talks over a connection."""

    def __init__(self, worker_kind: str, terms: _Terms, runs: int, request: dict[str, Any]) -> None:
        self._stack = contextlib.ExitStack()
        self._limits = terms.limits
        self._request = request | {"limits": terms.limits.request(runs)}
        self._place = terms.sandbox.worker(worker_kind)
        self._result: dict[str, Any] | None = None

    def __enter__(self) -> Any:
        with contextlib.ExitStack() as stack:
            worker: Worker = stack.enter_context(self._place)
            self.connection, theirs = socket.socketpair()
            stack.callback(self.connection.close)
            with theirs:
                self._program: Program = worker.start(self._request, [theirs.fileno()])
            stack.callback(self.end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def end(self) -> dict[str, Any]:
        """End the program and say how it had ended."""
        if self._result is None:
            self._result = self._program.stop()
        return self._result

    def explain_end(self) -> str:
        """Why the connection closed."""
        if self._result is None and self._program.ends_within(1.0):
            self._result = self._program.result()
        result = self.end()
        if result["ended"] == "wall_time":
            return "time limit"
        if result["exit"] is None:
            return "its process closed the connection"
        if result["exit"] < 0:
            return f"its process was killed by signal {-result['exit']}"
        return f"its process ended with exit status {result['exit']}"


class _Solution(_Session):
    """A solution that answers requests; once it has ended, every answer is a fault."""

    def __init__(self, terms: _Terms, runs: int) -> None:
        super().__init__("solution", terms, runs + 1, {"mode": "solution", "code": terms.code})
        self._number = 0
        self.ended, self.loaded, self.fault = False, False, ""

    def __enter__(self) -> _Solution:
        super().__enter__()
        answer = self._exchange({"do": "load"}, time.monotonic() + self._limits.wall_time)
        self.loaded = "value" in answer
        self.fault = "" if self.loaded else f"does not load: {answer['text']}"
        return self

    def ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Send a request and give the answer: ``value``, or ``raise`` with ``text``."""
        if self.fault:
            return {"raise": [], "text": self.fault}
        return self._exchange(request, deadline)

    def _exchange(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        self._number += 1
        try:
            self.connection.settimeout(max(deadline - time.monotonic(), 1e-6))
            wire.send(self.connection, request | {"id": self._number})
            answer = wire.receive(self.connection, self._limits.output, deadline)
            return _checked(answer, self._number)
        except TimeoutError:
            self.fault = "time limit"
        except wire.WireError as error:
            self.fault = f"an answer that is not one: {error}"
        except (EOFError, OSError):
            self.fault = self.explain_end()
        self.ended = True
        return {"raise": [], "text": self.fault}


def _checked(answer: Any, number: int) -> dict[str, Any]:
    """Keep of an answer what may be in it.

    Raises:
        WireError: when it is not the answer to that request.
    """
    wire.check_depth(answer)
    if isinstance(answer, dict) and answer.get("id") == number:
        if "value" in answer:
            return {"value": answer["value"]}
        kinds, text = answer.get("raise"), answer.get("text")
        if isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds) and isinstance(text, str):
            return {"raise": kinds, "text": text}
    raise wire.WireError("it is not the answer to the request")


class _Checks(_Session):
    """Tests' code, running beside a solution."""

    def __init__(self, tests: Sequence[CodeTest], terms: _Terms) -> None:
        sources = [{"source": test.source, "names": list(test.names), "run": test.run} for test in tests]
        super().__init__("checks", terms, len(tests), {"mode": "checks", "tests": sources})
        self._count = len(tests)

    def results(self, solution: _Solution) -> Iterator[dict[str, Any]]:
        """Give what became of each test, up to one in which the solution or the test's process ended."""
        for _ in range(self._count):
            deadline = time.monotonic() + self._limits.wall_time
            try:
                yield self._one(solution, deadline)
            except (TimeoutError, EOFError, OSError) as error:
                why = "time limit" if isinstance(error, TimeoutError) else f"the test's code: {self.explain_end()}"
                yield {"passed": False, "detail": solution.fault or why}
                return
            if solution.ended:
                return

    def _one(self, solution: _Solution, deadline: float) -> dict[str, Any]:
        while True:
            message = wire.receive(self.connection, _FROM_TESTS, deadline)
            if "test" in message:
                return {key: message[key] for key in ("passed", "detail", "broken")}
            answer = solution.ask(message | {"handles": True}, deadline)
            if solution.ended:  # nothing that the test's code does now can make it a pass
                return {"passed": False, "detail": solution.fault}
            wire.send(self.connection, answer)
