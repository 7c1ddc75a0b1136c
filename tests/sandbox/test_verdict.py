import time

import pytest

from guerdon.sandbox import CallTest, Limits, StdinTest, read_tests, run_tests
from guerdon.sandbox.inside.wire import WireError
from guerdon.sandbox.verdict import _checked

STACK = """
class Stack:
    limit = 2
    def __init__(self, items=()):
        self.items = list(items)
    def push(self, item):
        if len(self.items) == self.limit:
            raise OverflowError("full")
        self.items.append(item)
        return self
    def pop(self):
        return self.items.pop()
    def top(self):
        return Top(self.items[-1])
    def __len__(self):
        return len(self.items)
    def __iter__(self):
        return iter(self.items)
    def __contains__(self, item):
        return item in self.items
    def __getitem__(self, place):
        return self.items[place]
    def __str__(self):
        return f"<{self.items}>"
class Top:
    def __init__(self, value):
        self.value = value
def count(n):
    for i in range(n):
        yield i
def apply(stack, item):
    return stack.push(item)
SIZE = 7
"""


def passed(results):
    return [result.passed for result in results]


@pytest.mark.parametrize(
    "source",
    [
        "s = Stack()\ns.push(1)\nassert s.pop() == 1",
        "s = Stack([1]).push(5)\nassert len(s) == 2 and s[1] == 5 and 5 in s and 6 not in s and list(s) == [1, 5]",
        "assert str(Stack([1])) == '<[1]>'",
        "assert Stack([1]).top().value == 1",
        "assert Stack.limit == 2 and SIZE == 7",
        "try:\n    Stack([1, 2]).push(3)\n    assert False\nexcept OverflowError as e:\n    assert 'full' in str(e)",
        "try:\n    Stack().pop()\nexcept LookupError:\n    pass\nelse:\n    assert False",
        "assert list(count(3)) == [0, 1, 2]",
        "c = count(1)\nassert next(c) == 0\ntry:\n    next(c)\n    assert False\nexcept StopIteration:\n    pass",
        "assert len(apply(Stack(), 1)) == 1",
        "assert len(apply(stack=Stack(), item=1)) == 1",
        "from solution import Stack as S, SIZE\nassert len(S([1])) == 1 and SIZE == 7",
        "import solution\nassert solution.SIZE == 7",
        "def test_it():\n    assert SIZE == 7",
    ],
)
def test_code_that_uses_a_solution_passes(source, strongest):
    assert [r.detail for r in run_tests(STACK, read_tests([source]), sandbox=strongest)] == [""]


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("assert SIZE == 8", "AssertionError in `assert SIZE == 8`"),
        ("assert SIZE == 8, 'eight'", "AssertionError: eight in `assert SIZE == 8, 'eight'`"),
        ("assert missing(1)", "NameError: name 'missing' is not defined in `assert missing(1)`"),
        ("from solution import missing\nassert missing", "ImportError: cannot import name 'missing'"),
        ("Stack().pop()", "IndexError: IndexError: pop from empty list in `Stack().pop()`"),
        ("assert Stack() == Stack()", "TypeError: an object of the solution can't be compared"),
        ("assert Stack([1])", "TypeError: an object of the solution is neither true nor false"),
        ("assert isinstance(Stack(), list)", "AssertionError"),
        ("Stack().push(lambda: 1)", "WireError: function can't be passed to the solution"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "the test's code: its process ended with exit status 0"),
    ],
)
def test_code_that_fails_says_why(source, detail, strongest):
    (result,) = run_tests(STACK, read_tests([source]), sandbox=strongest)
    assert not result.passed
    assert result.detail.startswith(detail)
    assert not result.broken


def test_a_test_that_cannot_run_here_is_broken_and_not_failed_by_the_solution(strongest):
    (result,) = run_tests(STACK, read_tests(["import torch\nassert SIZE == 7"]), sandbox=strongest)
    assert result.broken
    assert "No module named 'torch'" in result.detail
    liar = "def f(): raise ModuleNotFoundError('no', name='torch')"
    (result,) = run_tests(liar, read_tests(["assert f() == 1"]), sandbox=strongest)
    assert not result.broken


def test_results_come_in_the_order_of_the_tests(strongest):
    code = "import sys\ndef f(x): return x\nif __name__ == '__main__':\n    print(sys.stdin.read().upper())"
    tests = [
        *read_tests(["assert f(1) == 1", {"input": "a", "output": "A"}, {"function": "f", "args": [2], "expected": 3}]),
        *read_tests(
            [
                "assert f(1) == 2",
                {"input": "b", "output": "b", "name": "low"},
                {"function": "f", "args": [2], "expected": 2},
            ]
        ),
    ]
    results = run_tests(code, tests, sandbox=strongest)
    assert passed(results) == [True, True, False, False, False, True]
    assert [result.name for result in results][3:5] == ["assert f(1) == 2", "low"]
    assert results[2].detail == "gave 2, want 3"
    assert results[4].detail == "wrote 'B\\n', want 'b'"


@pytest.mark.parametrize(
    ("wrote", "wanted", "same"),
    [
        ("1 2 \n3\n\n", "1 2\n3", True),
        ("1\r\n2\n", "1\n2\n", True),
        ("1  2", "1 2", False),
        (" 1", "1", False),
        ("\n1", "1", False),
        ("1\n\n2", "1\n2", False),
        ("", "1", False),
    ],
)
def test_which_white_space_counts(wrote, wanted, same, strongest):
    code = f"import sys; sys.stdout.write({wrote!r})"
    assert passed(run_tests(code, [StdinTest("", wanted)], sandbox=strongest)) == [same]


def test_a_program_that_wrote_all_and_then_failed_fails(strongest):
    code = "import sys; print(1); sys.stdout.flush(); raise ValueError('late')"
    (result,) = run_tests(code, [StdinTest("", "1")], sandbox=strongest)
    assert (result.passed, result.detail) == (False, "error: ValueError: late")


@pytest.mark.parametrize("form", ["call", "code"])
def test_a_solution_that_ends_fails_its_test_alone(form, strongest):
    code = "import os, time\ndef f(x):\n    if x == 1: os._exit(0)\n    if x == 3: time.sleep(60)\n    return x"
    tests = [CallTest("f", [n], n) for n in range(5)] if form == "call" else [f"assert f({n}) == {n}" for n in range(5)]
    results = run_tests(code, read_tests(tests), sandbox=strongest, limits=Limits(wall_time=1.0))
    assert passed(results) == [True, False, True, False, True]
    assert results[1].detail == "its process ended with exit status 0"
    assert results[3].detail == "time limit"


@pytest.mark.parametrize("form", ["call", "code"])
def test_a_solution_that_does_not_load_fails_all_at_once(form, strongest):
    tests = read_tests([CallTest("f", [n], n) for n in range(50)] if form == "call" else ["assert True"] * 50)
    for code, detail in (
        ("1 / 0", "does not load: ZeroDivisionError: division by zero"),
        ("exit(0)", "does not load: its process ended with exit status 0"),
        ("import time; time.sleep(60)", "does not load: time limit"),
    ):
        began = time.monotonic()
        results = run_tests(code, tests, sandbox=strongest, limits=Limits(wall_time=0.5))
        assert {(result.passed, result.detail) for result in results} == {(False, detail)}
        assert time.monotonic() - began < 10


def test_calls_of_methods_get_a_fresh_instance(strongest):
    code = """
class Solution:
    def __init__(self):
        self.n = 0
    def add(self, x, by=1):
        self.n += x + by
        return self.n
"""
    tests = [
        CallTest("Solution.add", [1], 2),
        CallTest("Solution.add", [1], 3, {"by": 2}),
        CallTest("Solution.none", [], 0),
    ]
    results = run_tests(code, tests, sandbox=strongest)
    assert passed(results) == [True, True, False]
    assert "no attribute 'none'" in results[2].detail


def test_tolerances_reach_the_comparison(strongest):
    tests = [CallTest("f", [], 0.3)]
    code = "def f(): return 0.1 + 0.2"
    assert passed(run_tests(code, tests, sandbox=strongest)) == [False]
    assert passed(run_tests(code, tests, sandbox=strongest, rel_tol=1e-9)) == [True]


def test_stopping_early_runs_nothing_more(strongest):
    code = "def f(x): return 1"
    tests = read_tests([CallTest("f", [n], n) for n in range(4)] + ["assert f(1) == 1"])
    results = run_tests(code, tests, sandbox=strongest, stop_early=True)
    assert passed(results) == [False] * 5
    assert [result.detail for result in results] == ["gave 1, want 0"] + ["not run: an earlier test failed"] * 4
    assert passed(run_tests(code, tests, sandbox=strongest)) == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (CallTest("f", [object()], 1), "arguments of 'f': object is not plain data"),
        (CallTest("f", [1], object()), "the expected value of 'f': object is not plain data"),
    ],
)
def test_calls_with_what_is_not_plain_are_refused(test, message, strongest):
    with pytest.raises(ValueError, match=message):
        run_tests("def f(x): return 1", [test], sandbox=strongest)


def test_an_answer_is_the_one_that_was_asked_for():
    assert _checked({"id": 1, "value": None, "passed": True}, 1) == {"value": None}
    assert _checked({"id": 1, "raise": ["ValueError"], "text": "no"}, 1) == {"raise": ["ValueError"], "text": "no"}
    for answer in (
        {"id": 2, "value": 1},
        {"value": 1},
        {"id": 1},
        {"id": 1, "raise": "ValueError", "text": "no"},
        {"id": 1, "raise": [1], "text": "no"},
        {"id": 1, "raise": [], "text": 1},
        [1],
        None,
    ):
        with pytest.raises(WireError, match="not the answer to the request"):
            _checked(answer, 1)


def test_an_answer_deeper_than_any_value_is_refused_before_anything_walks_it():
    deep = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(WireError, match="nested more than 192 deep"):
        _checked({"id": 1, "value": deep}, 1)
