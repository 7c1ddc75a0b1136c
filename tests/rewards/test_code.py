import pytest
from batches import batch_of

from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.rewards import code
from guerdon.rewards.base import Reward, score
from guerdon.rewards.code import python_code, python_tests, run_code_tests
from guerdon.sandbox import read_tests

ADD = "Sure.\n```python\ndef add(a, b):\n    return a + b\n```\nThat is all."
CALLS = [{"function": "add", "args": [1, 2], "expected": 3}, {"function": "add", "args": [1, 2], "expected": 4}]


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("print(1)", "print(1)", "print(1)"),
        ("a\n```python\nx = 1\n```\nb\n```py\ny = 2\n```", "x = 1\n", "y = 2\n"),
        ("```python\nx = 1\n```\nprints\n```\n1\n```\n", "x = 1\n", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n", "x = 1\n"),
        ("~~~Python3 title=a\nx = 1\n~~~", "x = 1\n", "x = 1\n"),
        ("```python\nx = 1\ny =", "x = 1\ny =", "x = 1\ny ="),
        ("````python\ns = '```'\n````", "s = '```'\n", "s = '```'\n"),
        ("- item\n  ```python\n  x = 1\n  ```\n", "x = 1\n", "x = 1\n"),
        ("```bash\nls\n```", "", ""),
    ],
)
def test_which_code_of_a_text_counts(text, first, last):
    assert python_code(text, block="first") == first
    assert python_code(text) == last


def test_all_or_a_share():
    right, wrong = CALLS
    assert python_tests(ADD, [right]).value == 1.0
    assert python_tests(ADD, [right, wrong]).value == 0.0
    assert python_tests(ADD, [right, right, wrong], award="share").value == pytest.approx(2 / 3)
    assert python_tests("no code", [right]).value == 0.0
    assert python_tests("```bash\nls\n```", [right], award="share").value == 0.0


def test_the_detail_names_every_test():
    detail = python_tests(ADD, [*CALLS, "assert add(2, 2) == 4"], award="share").detail
    assert (detail["passed"], detail["tests"]) == (2, 3)
    assert detail["results"] == [
        {"name": "test 0", "passed": True},
        {"name": "test 1", "passed": False, "why": "gave 3, want 4"},
        {"name": "assert add(2, 2) == 4", "passed": True},
    ]


def test_tests_come_from_the_answer_or_the_metadata():
    humaneval = {"tests": "def check(candidate):\n    assert candidate(1, 2) == 3", "entry_point": "add"}
    assert python_tests(ADD, None, humaneval).value == 1.0
    assert python_tests(ADD, CALLS, humaneval).value == 0.0
    program = "```python\nprint(sum(map(int, input().split())))\n```"
    assert python_tests(program, {"inputs": ["1 2\n"], "outputs": ["3\n"]}).value == 1.0
    assert python_tests(ADD, [{"args": [1, 2], "expected": 3}], entry_point="add").value == 1.0


def test_no_tests_or_broken_ones_are_an_error():
    with pytest.raises(ValueError, match="no tests in None"):
        python_tests(ADD)
    with pytest.raises(ValueError, match="test 'import torch' cannot run in the sandbox: ModuleNotFoundError"):
        python_tests(ADD, ["import torch\nassert add(1, 1) == 2"])


def test_results_by_test_are_there_for_others():
    results = run_code_tests(ADD, read_tests(CALLS))
    assert [result.passed for result in results] == [True, False]


def test_the_reward_stage_scores_and_records():
    method = get("reward", "python_tests")
    assert (method.requires, method.optional) == (("text",), ("answer", "metadata"))
    texts = [ADD, "```python\nimport os\nos._exit(0)\n```", ADD]
    answers = [CALLS[:1], CALLS[:1], []]
    batch = batch_of(texts, answer=answers)
    batch, faults = score(batch, [Reward("code", method, method.validate({}))])
    assert batch.rewards["code"][:2].tolist() == [1.0, 0.0]
    assert [fault.row for fault in faults] == [2]
    assert "no tests in []" in faults[0].message


@pytest.mark.parametrize("options", [{"award": "half"}, {"wall_time": 0}, {"memory_mb": 0}, {"rel_tol": -1}])
def test_options_without_meaning_are_refused(options):
    with pytest.raises(RecipeError, match="reward 'python_tests'"):
        get("reward", "python_tests").validate(options)


def test_tests_may_stand_beside_an_answer_that_is_a_solution():
    known = {"tests": CALLS[:1]}
    assert python_tests(ADD, "def add(a, b): return a + b", known, tests_in="metadata").value == 1.0
    assert python_tests("def add(a, b): return 4", CALLS[1:], known, tests_in="metadata").value == 0.0
    with pytest.raises(ValueError, match="no tests in None"):
        python_tests(ADD, CALLS, tests_in="metadata")


def test_a_verdict_may_be_reused(monkeypatch):
    ran = []

    def counting(text, tests, **terms):
        ran.append(text)
        return run_code_tests(text, tests, **terms)

    monkeypatch.setattr(code, "run_code_tests", counting)
    code._verdict.cache_clear()
    bare, other = "def add(a, b):\n    return a + b\n", ADD.replace("a + b", "a + b + 1")
    first = python_tests(ADD, CALLS, award="share", reuse=True)
    assert first == python_tests(ADD, CALLS, award="share")
    ran.clear()
    for text in (ADD, bare, f"Or so:\n{ADD}"):
        assert python_tests(text, CALLS, award="share", reuse=True) == first
    assert python_tests(ADD, CALLS, reuse=True)[::2] == (0.0, first.detail)
    assert not ran
    assert python_tests(other, CALLS, award="share", reuse=True).detail["results"][1]["passed"]
    assert python_tests(ADD, CALLS[:1], reuse=True).value == 1.0
    assert python_tests(ADD, [{**CALLS[1], "args": [1, 3]}], reuse=True).value == 1.0
    python_tests(ADD, CALLS, reuse=True, cpu_time=2.0)
    assert ran == [other, ADD, ADD, ADD]
    python_tests(ADD, CALLS)
    assert len(ran) == 5
    code._verdict.cache_clear()
