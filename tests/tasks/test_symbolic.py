import pytest

from guerdon.tasks.symbolic import solve_by_sympy, solver_tools
from guerdon.tasks.tools import Call, Toolbox


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("diff(x^2, x)", "2*x"),
        ("x^2 = 4", "x = -2 or x = 2"),
        ("x + y = 3; x - y = 1", "x = 2, y = 1"),
        ("x = x + 1", "no solution"),
        ("2x + 3x", "5*x"),
        ("solve(x**2 - 9, x)", "[-3, 3]"),
        (f"open({__file__!r}).read()", ""),
        ("1 +", ""),
        ("x = 1 = 2", ""),
    ],
)
def test_sympy_evaluates_and_solves(query, said):
    assert solve_by_sympy(query) == said


def test_the_solver_has_a_time_limit():
    assert solve_by_sympy("factorial(10**9)", wall_time=0.3) == ""


def test_the_solver_is_a_tool():
    box = Toolbox(solver_tools())
    assert box.call(Call("solve", {"query": "2 x = 8"})) == "x = 4"
    assert box.call(Call("solve", {"query": "2 +"})) == "no output"
