"""Functions of one expression, asked for in words and checked by tests."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from guerdon.registry import register
from guerdon.seeding import derive
from guerdon.tasks.base import Problem
from guerdon.tasks.generated import GeneratedTask, pick

NAMES = ("a", "b")
NUMBERS = tuple(range(1, 10))
LOWEST, HIGHEST = -9, 9  # of the arguments in tests


@dataclass(frozen=True)
class Operation:
    """What joins two expressions.

    Attributes:
        words: what it is called.
        code: the operator, or the name of the function.
        strength: how strongly the operator binds; 0 for a function.
        compute: what it does.
    """

    words: str
    code: str
    strength: int
    compute: Callable[[int, int], int]


OPERATIONS = (
    Operation("sum", "+", 1, operator.add),
    Operation("difference", "-", 1, operator.sub),
    Operation("product", "*", 2, operator.mul),
    Operation("larger", "max", 0, max),
    Operation("smaller", "min", 0, min),
)


@dataclass(frozen=True)
class Join:
    """An operation on two expressions, each of which is a name, a number or another operation."""

    operation: Operation
    left: Expression
    right: Expression

    @property
    def words(self) -> str:
        """How it is asked for."""
        return f"{self.operation.words} of {words(self.left)} and {words(self.right)}"

    @property
    def code(self) -> str:
        """How it is written in Python, with no more brackets than it needs."""
        strength = self.operation.strength
        if not strength:
            return f"{self.operation.code}({code(self.left)}, {code(self.right)})"
        left, right = _bracketed(self.left, strength), _bracketed(self.right, strength + (self.operation.code == "-"))
        return f"{left} {self.operation.code} {right}"

    def value(self, arguments: dict[str, int]) -> int:
        """What it is for given arguments."""
        return self.operation.compute(value(self.left, arguments), value(self.right, arguments))


Expression = str | int | Join


def words(expression: Expression) -> str:
    """An expression in words."""
    return expression.words if isinstance(expression, Join) else str(expression)


def code(expression: Expression) -> str:
    """An expression in Python."""
    return expression.code if isinstance(expression, Join) else str(expression)


def value(expression: Expression, arguments: dict[str, int]) -> int:
    """What an expression is for given arguments."""
    if isinstance(expression, Join):
        return expression.value(arguments)
    return arguments[expression] if isinstance(expression, str) else expression


def _bracketed(expression: Expression, least: int) -> str:
    """The code of an operand, in brackets if it binds less strongly than ``least``."""
    weak = isinstance(expression, Join) and 0 < expression.operation.strength < least
    return f"({code(expression)})" if weak else code(expression)


@register("task", "small_functions")
class SmallFunctions(GeneratedTask):
    """Ask for a Python function of two arguments that computes one expression.

    ``product of sum of a and 2 and b`` asks for ``def f(a, b): return (a + 2) * b``, which is the answer, and what a
    warm start imitates. The metadata holds the ``tests``, calls on random arguments with the values that the expression
    has there, and the ``entry_point``: score by ``python_tests`` with ``tests_in: metadata``. Any function that passes
    them is right, however it is written. An expression is asked for either in training or in what is held out.
    """

    name = "small_functions"

    def __init__(
        self,
        *,
        operations: Annotated[int, Field(ge=1, le=4)] = 2,
        tests: Annotated[int, Field(ge=1, le=50)] = 6,
        seed: int = 0,
        eval_fraction: float = 0.25,
    ) -> None:
        """Choose the functions.

        Args:
            operations: most operations of an expression; 1, 2, ... are equally frequent.
            tests: tests of each function.
            seed: which expressions are held out.
            eval_fraction: share of the expressions that is held out.

        Raises:
            RecipeError: when the share leaves nothing on one side.
        """
        super().__init__(seed, eval_fraction)
        self._operations, self._tests = operations, tests

    def draw(self, generator: np.random.Generator) -> tuple[Problem, str]:
        """Draw an expression; what a problem asks for is its expression."""
        expression = _expression(1 + int(generator.integers(self._operations)), generator)
        prompt = words(expression)
        known = {"tests": self._cases(expression, derive(0, prompt)), "entry_point": "f"}
        return Problem(derive(0, prompt), prompt, answer=written(expression), metadata=known), prompt

    def _cases(self, expression: Expression, seed: int) -> list[dict[str, Any]]:
        """Calls on random arguments; a pure function of the expression."""
        drawn = np.random.default_rng(seed).integers(LOWEST, HIGHEST + 1, size=(self._tests, len(NAMES))).tolist()
        return [{"args": args, "expected": value(expression, dict(zip(NAMES, args, strict=True)))} for args in drawn]


def written(expression: Expression) -> str:
    """The function that computes an expression."""
    return f"def f({', '.join(NAMES)}): return {code(expression)}"


def _expression(operations: int, generator: np.random.Generator) -> Expression:
    """An expression with so many operations; two numbers are never joined, and nothing is joined to itself."""
    if operations == 0:
        return pick(generator, NAMES) if generator.integers(2) else pick(generator, NUMBERS)
    below = int(generator.integers(operations))
    left, right = _expression(below, generator), _expression(operations - 1 - below, generator)
    while left == right or (isinstance(left, int) and isinstance(right, int)):
        right = _expression(operations - 1 - below, generator)
    return Join(pick(generator, OPERATIONS), left, right)
