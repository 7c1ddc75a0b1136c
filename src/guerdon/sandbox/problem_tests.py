"""Tests of a solution, in the forms in which data sets hold them."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_PASSIVE = (*_FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Pass)


@dataclass(frozen=True)
class CallTest:
    """A call of a solution's function, and the value it must give.

    Attributes:
        function: its name; ``Class.method`` calls a method of a fresh instance.
        args: positional arguments, plain data.
        kwargs: arguments by name.
        expected: plain data; it never leaves the trusted process.
        name: shown in results.
    """

    function: str
    args: Sequence[Any]
    expected: Any
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class StdinTest:
    """What a program reads, and what it must write; white space at line ends and empty lines at the end don't count.

    Attributes:
        stdin: the program's input.
        stdout: the output wanted; it never leaves the trusted process.
        name: shown in results.
    """

    stdin: str
    stdout: str
    name: str = ""


@dataclass(frozen=True)
class CodeTest:
    """Code that raises where the solution is wrong, such as an ``assert``.

    It runs in a process of its own, and calls there go to the solution's process.

    Attributes:
        source: the code.
        names: what it takes from the solution: names it reads and neither binds nor finds among Python's own.
        run: a function of the source to call, or None where the source itself is the test.
        name: shown in results.
    """

    source: str
    names: tuple[str, ...]
    run: str | None = None
    name: str = ""


Test = CallTest | StdinTest | CodeTest


def code_tests(source: str, *, entry_point: str | None = None, name: str = "") -> list[CodeTest]:
    """Read tests from code: one per function ``test_...``, or one for the whole.

    Code that defines ``check`` and does not call it, as HumanEval's does, is called with the entry point.

    Args:
        source: Python code; ``from solution import name`` is understood, and so is using the name at once.
        entry_point: name of the solution's function; the solution's own even where Python has one of that name.
        name: shown in results.

    Raises:
        ValueError: when the code is not Python, or would run nothing, and so pass whatever the solution is.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"the test code is not Python: {error}; it starts {source.strip()!r:.60}") from None
    functions = [node.name for node in tree.body if isinstance(node, _FUNCTIONS)]
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    if "check" in functions and "check" not in called and entry_point is not None:
        source = f"{source}\ncheck({entry_point})\n"
        tree = ast.parse(source)
    names = _free_names(tree, entry_point)
    cases = [name for name in functions if name.startswith("test")]
    if cases:
        return [CodeTest(source, names, case, f"{name}{': ' if name else ''}{case}") for case in cases]
    if all(isinstance(node, _PASSIVE) or _is_text(node) for node in tree.body):
        raise ValueError(
            "the test code only defines things, so every solution would pass it; give statements, functions named "
            "'test_...', or a function 'check' and an entry_point (unittest's classes are not run)"
        )
    return [CodeTest(source, names, None, name or source.strip().splitlines()[0][:80])]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _free_names(tree: ast.Module, entry_point: str | None) -> tuple[str, ...]:
    """Names that code reads and that nothing but the solution can supply.

    A solution has no say in this, so that it can't put itself in the place of ``sorted`` or ``isinstance``.
    """
    read, bound = set(), set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            bound.add(node.name)
    free = read - bound
    if entry_point is not None and entry_point in read:
        free.add(entry_point)
    return tuple(sorted(free - {"__name__", "__file__"}))


def read_tests(tests: Any, *, entry_point: str | None = None) -> list[Test]:
    """Read tests in any of the forms that data sets use.

    A list holds one test per item: a text is test code; a mapping has ``input`` and ``output`` (a program), ``args``
    and ``expected`` (a call of its ``function``, or of the entry point), or ``code``; all may have a ``name``. A text
    is test code, or JSON of a list or mapping. A mapping is one test, or has ``inputs`` and ``outputs`` of equal
    length, with ``fn_name`` where they are arguments and values (as in APPS and TACO).

    Args:
        tests: the tests.
        entry_point: the function that calls go to where a test does not say.

    Raises:
        ValueError: when there is none, or one has another form, naming it.
    """
    if isinstance(tests, str):
        parsed = _json(tests)
        if parsed is None:
            return [*code_tests(tests, entry_point=entry_point)] if tests.strip() else _none()
        tests = parsed
    if isinstance(tests, Mapping):
        tests = _in_and_out(tests, entry_point) if "inputs" in tests else [tests]
    if not isinstance(tests, Sequence) or not tests:
        return _none(tests)
    return [made for number, test in enumerate(tests) for made in _read_one(test, number, entry_point)]


def _none(tests: Any = "") -> list[Test]:
    raise ValueError(f"no tests in {tests!r:.60}; give a list of tests or test code as the problem's answer")


def _json(text: str) -> Any:
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, list | dict) else None


def _in_and_out(tests: Mapping[str, Any], entry_point: str | None) -> list[Test]:
    inputs, outputs = tests["inputs"], tests.get("outputs", [])
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs, want as many of each")
    function = tests.get("fn_name") or entry_point
    pairs = list(zip(inputs, outputs, strict=True))
    if function is None:
        return [StdinTest(_lines(given), _lines(wanted)) for given, wanted in pairs]
    return [CallTest(function, given, wanted) for given, wanted in pairs]


def _lines(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(map(str, value))


def _read_one(test: Any, number: int, entry_point: str | None) -> list[Test]:
    label = f"test {number}"
    if isinstance(test, CallTest | StdinTest | CodeTest):
        return [test]
    if isinstance(test, str):
        return [*code_tests(test, entry_point=entry_point)]
    if not isinstance(test, Mapping):
        raise ValueError(f"{label} is {type(test).__name__} {test!r:.60}, want a text or a mapping")
    name = str(test.get("name", ""))
    if "code" in test:
        return [*code_tests(test["code"], entry_point=entry_point, name=name)]
    if "output" in test:
        return [StdinTest(_lines(test.get("input", "")), _lines(test["output"]), name)]
    if "expected" in test:
        function = test.get("function", entry_point)
        if function is None:
            raise ValueError(f"{label} does not say which 'function' to call; add it, or set entry_point")
        return [CallTest(function, test.get("args", []), test["expected"], test.get("kwargs", {}), name)]
    raise ValueError(
        f"{label} has the keys {', '.join(map(str, test))}; want 'input' and 'output', 'args' and 'expected', or 'code'"
    )
