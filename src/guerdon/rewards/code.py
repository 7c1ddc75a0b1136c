"""Rewards that run the code a policy wrote, in a sandbox where it can neither do harm nor give itself a pass."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from guerdon.rewards.extract import fenced_blocks
from guerdon.rewards.forms import Score, reward
from guerdon.sandbox.limits import MIB, Limits
from guerdon.sandbox.pool import Sandbox, shared_sandbox
from guerdon.sandbox.problem_tests import Test, read_tests
from guerdon.sandbox.verdict import TestResult, run_tests

_LANGUAGES = frozenset({"python", "python3", "py", "py3"})
_KEPT = 8192  # verdicts that may be reused

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@reward()
def python_tests(
    text: str,
    answer: Any = None,
    metadata: Any = None,
    *,
    award: Literal["all", "share"] = "all",
    block: Literal["last", "first"] = "last",
    entry_point: str | None = None,
    rel_tol: Annotated[float, Field(ge=0)] = 0.0,
    abs_tol: Annotated[float, Field(ge=0)] = 0.0,
    wall_time: Positive = 10.0,
    cpu_time: Positive = 5.0,
    memory_mb: Count = 512,
    processes: Count = 16,
    require_isolation: bool = False,
    tests_in: Literal["answer", "metadata"] = "answer",
    reuse: bool = False,
) -> Score:
    """Give 1, or a share of it, for code that passes the problem's tests.

    all: 1 if every test is passed, else 0.  share: tests passed / tests

    The code is a block of the text (see ``python_code``); it runs in a sandbox (``guerdon.sandbox``), and the verdict
    is reached outside of it. Tests are the answer, or stand under ``tests`` in the metadata, in any form that
    ``read_tests`` knows: inputs and outputs of programs, arguments and values of calls, or test code.

    Args:
        text: what the policy wrote, all of it.
        answer: the tests.
        metadata: what the task knows of the problem: ``tests`` where there is no answer, and ``entry_point``.
        award: whether part of the tests earns part of the reward; ``all`` stops at the first failure.
        block: which block of code counts.
        entry_point: the function that calls go to where neither test nor metadata says.
        rel_tol: floats in results of calls may differ by this share of the larger one.
        abs_tol: floats in results of calls may differ by this.
        wall_time: seconds of each test.
        cpu_time: seconds of processor time of each test.
        memory_mb: MiB of address space of each process.
        processes: processes and threads at a time.
        require_isolation: refuse to run code where only resource limits hold it.
        tests_in: where the tests are: in the ``answer``, or the metadata where there is none; or in the ``metadata``
            whatever the answer is, such as a solution that a warm start imitates.
        reuse: give a program the verdict that the same program got on the same tests before, one of the last 8192 in
            this process, and run it only the first time. All tests are run then. Not for programs that draw random
            numbers, or whose time limits are tight.

    Returns:
        The value in [0,1]; its detail holds ``passed``, ``tests`` and, for each test, ``name``, ``passed`` and why not.

    Raises:
        ValueError: when there are no tests, or one cannot be read or run.
        SandboxError: when no sandbox can be made, or isolation is required and there is none.
    """
    known = metadata if isinstance(metadata, Mapping) else {}
    given = known.get("tests") if answer is None or tests_in == "metadata" else answer
    tests = read_tests(given, entry_point=entry_point or known.get("entry_point"))
    limits = Limits(cpu_time=cpu_time, wall_time=wall_time, memory=memory_mb * MIB, processes=processes)
    terms: dict[str, Any] = {"block": block, "limits": limits, "rel_tol": rel_tol, "abs_tol": abs_tol}
    run = functools.partial(run_code_tests, text, tests, **terms)
    if reuse:
        identity = (python_code(text, block=block), repr(tests), repr(terms), require_isolation)
        results = _verdict(_Trial(identity, lambda: run(sandbox=shared_sandbox(require_isolation))))
    else:
        results = run(sandbox=shared_sandbox(require_isolation), stop_early=award == "all")
    passed = sum(result.passed for result in results)
    value = passed / len(results) if award == "share" else float(passed == len(results))
    shown = [{"name": r.name, "passed": r.passed} | ({"why": r.detail} if r.detail else {}) for r in results]
    return Score(value, detail={"passed": passed, "tests": len(results), "results": shown})


@dataclass(frozen=True)
class _Trial:
    """A program before its tests; trials of one identity have one result."""

    identity: tuple[Any, ...]
    run: Callable[[], list[TestResult]] = field(compare=False)


@functools.lru_cache(maxsize=_KEPT)
def _verdict(trial: _Trial) -> list[TestResult]:
    return trial.run()


def run_code_tests(
    text: str,
    tests: list[Test],
    *,
    block: Literal["last", "first"] = "last",
    limits: Limits | None = None,
    sandbox: Sandbox | None = None,
    rel_tol: float = 0.0,
    abs_tol: float = 0.0,
    stop_early: bool = False,
) -> list[TestResult]:
    """Run tests of the code in a text and give what became of each: what ``python_tests`` sums up.

    Args:
        text: what the policy wrote.
        tests: as ``read_tests`` gives them.
        block: which block of code counts.
        limits: of each test.
        sandbox: where to run; by default the strongest that works here.
        rel_tol: floats in results of calls may differ by this share of the larger one.
        abs_tol: floats in results of calls may differ by this.
        stop_early: run nothing after the first test that failed.

    Raises:
        ValueError: when a test cannot run here, whatever the solution is.
    """
    results = run_tests(
        python_code(text, block=block),
        tests,
        sandbox=sandbox,
        limits=limits,
        rel_tol=rel_tol,
        abs_tol=abs_tol,
        stop_early=stop_early,
    )
    broken = next((result for result in results if result.broken), None)
    if broken is not None:
        raise ValueError(
            f"test '{broken.name}' cannot run in the sandbox: {broken.detail}; tests see only Python itself"
        )
    return results


def python_code(text: str, *, block: Literal["last", "first"] = "last") -> str:
    """Give the code in a text: a fenced block marked as Python, else one without a mark, else, unfenced, all of it.

    A fence that is not closed, as where the text was cut, reaches to the end.

    Args:
        text: what the policy wrote.
        block: which one, where there are several.
    """
    fenced = fenced_blocks(text)
    if not fenced:
        return text
    marked = [code for language, code in fenced if language in _LANGUAGES]
    blocks = marked or [code for language, code in fenced if not language] or [""]
    return textwrap.dedent(blocks[-1 if block == "last" else 0])
