"""What a program's process does: run a script, answer calls of a solution's functions, or run a test's code."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import linecache
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any, NoReturn

from . import wire

_ANSWER = 1 << 12  # characters of a message about an error


def script(code: str) -> NoReturn:
    """Run a program as ``python solution.py`` would: input, output, errors and exit status are its own."""
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.argv = ["solution.py"]
    module = sys.modules["__main__"] = ModuleType("__main__")
    status = 0
    try:
        try:
            exec(_compiled(code, "solution.py"), vars(module))
        finally:
            # What an interpreter does at its end, without the costly part: taking apart every module it loaded.
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            vars(module).clear()
            gc.collect()
            sys.stdout.flush()
    except SystemExit as error:
        status = _status(error)
    except BaseException as error:
        traceback.print_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        status = 1
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(status)


def _status(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def solution(code: str) -> None:
    """Load a solution as a module and answer requests about its names until the connection closes.

    Requests and answers carry the number ``id``. A request's ``do`` is ``load``, ``get`` (a dotted ``name``; of a
    class on the way a member is taken from a fresh instance), ``call`` (of a ``name`` or ``handle``, with ``args`` and
    ``kwargs``) or ``attribute`` (``name`` of a ``handle``). An answer has ``value``, or ``raise``: the names of the
    built-in classes of the exception, and ``text``. Objects other than plain data stay here as handles if the
    request says ``handles``.
    """
    connection = socket.socket(fileno=3)
    module = sys.modules["solution"] = ModuleType("solution")
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    while True:
        request = wire.receive(connection)
        try:
            value = _answer(request, code, module, kept)
            answer = {"value": wire.encode(value, keep if request.get("handles") else None)}
        except Exception as error:
            names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            answer = {"raise": names, "text": f"{type(error).__name__}: {error}"[:_ANSWER]}
        wire.send(connection, {"id": request["id"]} | answer)


def _answer(request: dict[str, Any], code: str, module: ModuleType, kept: list[Any]) -> Any:
    action = request["do"]
    if action == "load":
        exec(_compiled(code, "solution.py"), vars(module))
        return None
    target: Any = kept[request["handle"]] if "handle" in request else module
    if "name" in request:
        target = _member(target, request["name"])
    if action != "call":
        return target
    args = [wire.decode(item, kept.__getitem__) for item in request["args"]]
    kwargs = {name: wire.decode(item, kept.__getitem__) for name, item in request["kwargs"].items()}
    return target(*args, **kwargs)


def _member(target: Any, path: str) -> Any:
    first, *rest = path.split(".")
    if isinstance(target, ModuleType):
        if first not in vars(target):
            raise NameError(f"the solution does not define '{first}'")
        target = vars(target)[first]
    else:
        target = getattr(target, first)
    for name in rest:
        target = getattr(target() if isinstance(target, type) else target, name)
    return target


def checks(tests: list[dict[str, Any]]) -> None:
    """Run tests' code, each in a namespace of its own, against names that stand for the solution's.

    The solution runs elsewhere: calls of its names are requests over the connection. After each test goes a message
    ``{"test", "passed", "detail", "broken"}``; broken is a test that failed by itself, before asking for anything.

    Args:
        tests: for each its ``source``, the ``names`` it takes from the solution, and ``run``, the name of a function
            to call, or None where the source itself is the test.
    """
    peer = _Peer(socket.socket(fileno=3))
    imported = sys.modules["solution"] = _Imported(peer)
    for number, test in enumerate(tests):
        result = {"test": number, "passed": True, "detail": "", "broken": False}
        namespace: dict[str, Any] = {"__name__": f"test_{number}"}
        try:
            for name in test["names"]:
                try:
                    namespace[name] = peer.ask(do="get", name=name)
                except NameError:
                    continue  # the test meets the NameError where it uses the name
            exec(_compiled(test["source"], f"test_{number}.py"), namespace)
            if test["run"] is not None:
                namespace[test["run"]]()
        except ImportError as error:
            broken = error.name is not None and error.name != imported.__name__
            result |= {"passed": False, "detail": f"{type(error).__name__}: {error}"[:_ANSWER], "broken": broken}
        except BaseException as error:
            result |= {"passed": False, "detail": _explained(error)}
        wire.send(peer.connection, result)


def _explained(error: BaseException) -> str:
    """The exception, and the test's line that raised it."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("test_")]
    where = f" in `{lines[-1].line}`" if lines else ""
    text = str(error)
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"[:_ANSWER]


def _compiled(source: str, filename: str) -> CodeType:
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return compile(source, filename, "exec", dont_inherit=True)


class _Peer:
    """The solution, as a test's process sees it: something that answers requests."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def ask(self, **request: Any) -> Any:
        """Send a request and give the value, or raise what the solution raised, as its nearest built-in class."""
        wire.send(self.connection, request)
        answer = wire.receive(self.connection)
        if "value" in answer:
            return wire.decode(answer["value"], lambda handle: _Remote(self, handle))
        raise _exception(answer["raise"], answer["text"])


def _exception(names: list[str], text: str) -> Exception:
    """The first of some built-in exceptions that a text alone makes."""
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(TypeError):
                return kind(text)
    return RuntimeError(text)


def _asking(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        try:
            return self._call(*args, name=name)
        except AttributeError as error:  # of a special method Python wants this to be a TypeError
            raise TypeError(str(error)) from None

    return method


class _Remote:
    """An object of the solution that is not plain data: it can be called and asked, never compared or taken as true.

    A comparison would be the solution's own code deciding a test.
    """

    __slots__ = ("_handle", "_peer")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, peer: _Peer, handle: int) -> None:
        self._peer, self._handle = peer, handle

    def _call(self, *args: Any, name: str | None = None, **kwargs: Any) -> Any:
        member = {} if name is None else {"name": name}
        written = [wire.encode(item, _handle_of) for item in args]
        named = {key: wire.encode(item, _handle_of) for key, item in kwargs.items()}
        return self._peer.ask(do="call", handle=self._handle, args=written, kwargs=named, **member)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask(do="attribute", handle=self._handle, name=name)

    def __eq__(self, other: object) -> bool:
        raise TypeError("an object of the solution can't be compared; return plain data, or test what its methods give")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__

    def __bool__(self) -> bool:
        raise TypeError("an object of the solution is neither true nor false; return plain data")

    def __iter__(self) -> Any:
        iterator = self._call(name="__iter__")
        while True:
            try:
                yield iterator._call(name="__next__")
            except StopIteration:
                return

    __len__, __getitem__, __next__ = _asking("__len__"), _asking("__getitem__"), _asking("__next__")
    __contains__, __str__, __repr__ = _asking("__contains__"), _asking("__str__"), _asking("__repr__")


def _handle_of(value: Any) -> int:
    if isinstance(value, _Remote):
        return value._handle
    raise wire.WireError(f"{type(value).__name__} can't be passed to the solution: it is not plain data")


class _Imported(ModuleType):
    """What ``from solution import name`` finds."""

    def __init__(self, peer: _Peer) -> None:
        super().__init__("solution")
        self.__dict__["__path__"] = None
        self.__dict__["_peer"] = peer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._peer.ask(do="get", name=name)
        except NameError as error:
            raise AttributeError(str(error)) from None


PROGRAMS: dict[str, Callable[..., None]] = {"script": script, "solution": solution, "checks": checks}
