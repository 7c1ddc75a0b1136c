"""Every attempt is contained and scored as a fail, at every level that isolates; forgeries at any level."""

import json
from collections import Counter
from pathlib import Path

import pytest
from attacks import DOUBLED, ground, try_escape, try_forgery
from escapes import ESCAPES, Escape
from forgeries import FORGERIES, HIDDEN

from guerdon.sandbox import Sandbox, read_tests, run_tests

RECORD = Path(__file__).parent.parent.parent / "docs" / "sandbox-attacks.json"
KINDS = {
    *("files", "symlinks", "/proc", "environment secrets", "network", "fork bomb", "memory bomb", "endless output"),
    *("signals to the parent", "survivors", "ptrace", "monkey-patching the checker", "exit before the asserts"),
    *("printing the success marker", "reading the tests", "altering __eq__", "time-outs"),
}


def ids(attempts):
    return [f"{attempt.kind}-{attempt.name}" for attempt in attempts]


@pytest.fixture(scope="module")
def place():
    with ground() as laid:
        yield laid


@pytest.mark.parametrize("escape", ESCAPES, ids=ids(ESCAPES))
def test_an_escape_is_contained_and_fails(escape, isolated, place):
    result = try_escape(escape, isolated, place)
    assert result.contained, result.happened
    assert result.passed == 0


@pytest.mark.parametrize("forgery", FORGERIES, ids=ids(FORGERIES))
def test_a_forgery_fails(forgery, strongest, place):
    result = try_forgery(forgery, strongest, place)
    assert result.contained, result.happened
    assert result.passed == 0


def test_a_forgery_fails_without_isolation(place):
    """The verdict does not rest on the isolation; the few that only a namespace holds are among the escapes."""
    chosen = [f for f in FORGERIES if f.kind in ("exit before the asserts", "altering __eq__", "time-outs")]
    with pytest.warns(match="WITHOUT ISOLATION"):
        sandbox = Sandbox("rlimits")
    with sandbox:
        for forgery in chosen:
            assert try_forgery(forgery, sandbox, place).passed == 0, forgery.name


def test_an_escape_that_succeeded_would_pass(strongest, place):
    """The measure can fail: an attempt that gets what it wants earns the pass and is reported."""
    made = Escape("none", "none", "nothing", "attempt = lambda: True")
    result = try_escape(made, strongest, place)
    assert result.passed == 2
    assert not result.contained
    assert result.happened == "SUCCEEDED"


def test_honest_solutions_of_the_same_tests_pass(strongest):
    honest = f"def solve(*_): return {HIDDEN}"
    judged = [t for f in FORGERIES for t in f.tests if str(HIDDEN) in str(t) and "output" not in t and " or " not in t]
    assert all(result.passed for result in run_tests(honest, read_tests(judged), sandbox=strongest))
    assert all(result.passed for result in run_tests("def solve(x): return 2 * x", DOUBLED, sandbox=strongest))


def test_the_suite_covers_what_it_must():
    kinds = Counter(attempt.kind for attempt in (*ESCAPES, *FORGERIES))
    assert set(kinds) >= KINDS
    assert kinds.total() >= 40
    names = [(attempt.kind, attempt.name) for attempt in (*ESCAPES, *FORGERIES)]
    assert len(set(names)) == len(names)


def test_the_record_in_the_documentation_is_of_this_suite():
    record = json.loads(RECORD.read_text())
    shown = [(a["kind"], a["name"], a["tried"]) for a in record["attempts"]]
    assert shown == [(attempt.kind, attempt.name, attempt.tried) for attempt in (*ESCAPES, *FORGERIES)]
    assert all(a["contained"] and a["passed"] == 0 for a in record["attempts"])
