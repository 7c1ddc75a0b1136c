import re

import numpy as np
import pytest

from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.rewards.code import python_tests
from guerdon.tasks.small_functions import HIGHEST, LOWEST, OPERATIONS, Join, SmallFunctions, _expression, code, words

SUM, DIFFERENCE, PRODUCT, LARGER, SMALLER = OPERATIONS


def problems(**options):
    task = SmallFunctions(**options)
    return [*task.train_batch(100, 1), *task.eval_problems(30)]


def running(source):
    space = {}
    exec(source, space)
    return space["f"]


@pytest.mark.parametrize("operations", [1, 2, 3, 4])
def test_tests_hold_what_python_makes_of_the_answer(operations):
    for problem in problems(operations=operations):
        function = running(problem.answer)
        assert len(problem.metadata["tests"]) == 6
        for test in problem.metadata["tests"]:
            assert function(*test["args"]) == test["expected"]
            assert all(LOWEST <= x <= HIGHEST for x in test["args"])


def test_the_words_mean_the_code():
    """Words are read as prefix notation, independently of the code that made them."""

    def read(tokens):
        word = tokens.pop(0)
        if word not in ("sum", "difference", "product", "larger", "smaller"):
            return word
        assert tokens.pop(0) == "of"
        left = read(tokens)
        assert tokens.pop(0) == "and"
        right = read(tokens)
        sign = {"sum": "+", "difference": "-", "product": "*"}.get(word)
        return f"({left} {sign} {right})" if sign else f"{'max' if word == 'larger' else 'min'}({left}, {right})"

    for problem in problems(operations=3):
        tokens = problem.prompt.split()
        function = running(f"def f(a, b): return {read(tokens)}")
        assert not tokens
        for test in problem.metadata["tests"]:
            assert function(*test["args"]) == test["expected"]


@pytest.mark.parametrize(
    ("expression", "python"),
    [
        (Join(PRODUCT, Join(SUM, "a", 2), "b"), "(a + 2) * b"),
        (Join(SUM, "a", Join(PRODUCT, "b", 2)), "a + b * 2"),
        (Join(DIFFERENCE, "a", Join(DIFFERENCE, "b", 2)), "a - (b - 2)"),
        (Join(DIFFERENCE, Join(DIFFERENCE, "a", "b"), 2), "a - b - 2"),
        (Join(SUM, "a", Join(DIFFERENCE, "b", 2)), "a + b - 2"),
        (Join(LARGER, Join(SUM, "a", 1), "b"), "max(a + 1, b)"),
        (Join(DIFFERENCE, 3, Join(SMALLER, "a", "b")), "3 - min(a, b)"),
    ],
)
def test_brackets_stand_where_they_are_needed(expression, python):
    assert code(expression) == python


def test_no_expression_joins_two_numbers_or_anything_to_itself():
    def check(expression):
        if isinstance(expression, Join):
            sides = (expression.left, expression.right)
            assert sides[0] != sides[1]
            assert not all(isinstance(side, int) for side in sides)
            for side in sides:
                check(side)

    generator = np.random.default_rng(0)
    for _ in range(500):
        check(_expression(3, generator))


def test_all_operations_and_depths_occur():
    drawn = problems(operations=2)
    assert {len(re.findall(" of ", p.prompt)) for p in drawn} == {1, 2}
    assert all(any(p.prompt.startswith(op.words) for p in drawn) for op in OPERATIONS)
    assert words(Join(SUM, "a", 1)) == "sum of a and 1"


def test_held_out_expressions_are_never_trained_on():
    task = SmallFunctions(operations=1)
    held_out = {p.prompt for p in task.eval_problems(30)}
    assert not held_out & {p.prompt for seed in range(20) for p in task.train_batch(50, seed)}


def test_the_sandbox_agrees():
    problem = SmallFunctions().train_batch(1, 0)[0]
    given = {"answer": problem.answer, "metadata": problem.metadata, "tests_in": "metadata"}
    assert python_tests(problem.answer, **given).value == 1.0
    assert python_tests("def f(a, b): return 10**9", **given).value == 0.0
    assert python_tests("return a", **given, award="share").value == 0.0


def test_a_recipe_can_name_it_and_bad_options_are_refused():
    assert get("task", "small_functions").target is SmallFunctions
    for options in ({"operations": 0}, {"operations": 5}, {"tests": 0}):
        with pytest.raises(RecipeError):
            get("task", "small_functions").validate(options)
