"""A symbolic solver in the sandbox, where an expression that is read can do no harm."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

from guerdon.errors import RecipeError
from guerdon.sandbox import Limits, Sandbox
from guerdon.tasks.tools import Tool

_SOLVER = """
import json, sys
import sympy
from sympy.parsing import sympy_parser as p
forms = (*p.standard_transformations, p.implicit_multiplication_application, p.convert_xor)
query = json.loads(sys.stdin.read())
try:
    said = p.parse_expr(query, transformations=forms)
    print(sympy.simplify(said) if isinstance(said, sympy.Expr) else said)
except SyntaxError:
    sides = [part.split("=") for part in query.split(";") if part.strip()]
    zero = [p.parse_expr(f"({left})-({right})", transformations=forms) for left, right in sides]
    found = sympy.solve(zero, dict=True)
    print(" or ".join(", ".join(f"{k} = {v}" for k, v in one.items()) for one in found) or "no solution")
"""


@functools.cache
def _sympy_sandbox() -> Sandbox:
    spec = importlib.util.find_spec("sympy")
    if spec is None or spec.origin is None:
        raise RecipeError("the symbolic solver needs the package sympy; run: pip install sympy")
    return Sandbox(readable=[str(Path(spec.origin).parent.parent)], preload=["sympy"], workers=1)


def solve_by_sympy(query: str, *, wall_time: float = 10.0) -> str:
    """Evaluate an expression, or solve equations, with sympy in the sandbox.

    ``diff(x^2, x)`` gives ``2*x``, ``x^2 = 4`` gives ``x = -2 or x = 2``, and ``x + y = 3; x - y = 1`` gives
    ``x = 2, y = 1``. Reading an expression executes it, so it is read where it can do no harm.

    Args:
        query: text.
        wall_time: seconds.

    Returns:
        What sympy says in one line; empty where the query can't be read, or takes too long.

    Raises:
        RecipeError: when sympy is not installed.
    """
    outcome = _sympy_sandbox().run(_SOLVER, stdin=json.dumps(query.strip()), limits=Limits(wall_time=wall_time))
    return " ".join(outcome.stdout.split()) if outcome.ok else ""


def solver_tools() -> list[Tool]:
    """The symbolic solver as the tools of a ``ToolEnvironment``, where the policy writes the query itself."""

    def solve(query: str) -> str:
        """Evaluate an expression or solve equations that are separated by semicolons."""
        return solve_by_sympy(query) or "no output"

    return [solve]
