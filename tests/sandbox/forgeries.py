"""Solutions that want a pass without solving anything. See ``attacks``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# No solution can know it: what finds it has read the tests.
HIDDEN = 918273645546372819
CALL = [{"function": "solve", "args": [3], "expected": HIDDEN}]
ASSERT = [f"assert solve(3) == {HIDDEN}"]
BOTH = [*CALL, *ASSERT]
PROGRAM = [{"input": "3\n", "output": f"{HIDDEN}\n"}]


@dataclass(frozen=True)
class Forgery:
    """One solution that cheats, and the tests it is meant for."""

    kind: str
    name: str
    tried: str
    code: str
    tests: Any = field(default_factory=lambda: BOTH)
    limits: dict[str, Any] = field(default_factory=dict)


_BRIEF = {"wall_time": 0.5}
FORGERIES = [
    Forgery("exit before the asserts", "sys.exit(0)", "exit with success while loading", "import sys\nsys.exit(0)"),
    Forgery("exit before the asserts", "os._exit(0)", "end at once while loading", "import os\nos._exit(0)"),
    Forgery(
        "exit before the asserts",
        "os._exit(0) in the function",
        "end with success when called",
        "import os\ndef solve(x): os._exit(0)",
    ),
    Forgery(
        "exit before the asserts",
        "exit in a program",
        "exit with success and write nothing",
        "import sys\nsys.exit(0)",
        PROGRAM,
    ),
    Forgery(
        "exit before the asserts",
        "exit under a test that catches everything",
        "os._exit(0) where the test has `except BaseException: pass`",
        "import os\ndef solve(x): os._exit(0)",
        ["try:\n    solve(3)\nexcept BaseException:\n    pass"],
    ),
    Forgery(
        "exit before the asserts",
        "SystemExit under such a test",
        "raise SystemExit in the function",
        "def solve(x): raise SystemExit(0)",
        ["try:\n    solve(3)\nexcept BaseException:\n    pass"],
    ),
    Forgery(
        "exit before the asserts",
        "execute another program",
        "os.execv of the interpreter with `pass`",
        "import os, sys\ndef solve(x): os.execv(sys.executable, [sys.executable, '-c', 'pass'])",
    ),
    Forgery(
        "printing the success marker",
        "words of success",
        "print what test runners print",
        """
print("OK"); print("1 passed in 0.01s"); print("PASSED"); print('{"passed": true}')
def solve(x): print("OK")
""",
        [*BOTH, *PROGRAM],
    ),
    Forgery(
        "printing the success marker",
        "into every descriptor",
        "write a message of the tests' process to descriptors 0 to 255",
        """
import json, os, struct
text = json.dumps({"test": 0, "passed": True, "detail": "", "broken": False}).encode()
def solve(x):
    for descriptor in range(256):
        try:
            os.write(descriptor, struct.pack("!I", len(text)) + text)
        except OSError:
            pass
""",
    ),
    Forgery(
        "printing the success marker",
        "answers in advance",
        "send answers to the next hundred requests at once",
        """
import json, socket, struct
wire = socket.socket(fileno=3)
for number in range(100):
    text = json.dumps({"id": number, "value": True, "passed": True}).encode()
    wire.sendall(struct.pack("!I", len(text)) + text)
def solve(x): return True
""",
    ),
    Forgery(
        "printing the success marker",
        "report of the first process",
        "write a report of a good end to every descriptor, then be killed",
        """
import os, signal
for descriptor in range(256):
    try:
        os.write(descriptor, b'{"exit": 0, "cpu": 0.0, "ended": null}')
    except OSError:
        pass
os.kill(os.getpid(), signal.SIGKILL)
""",
        [*BOTH, *PROGRAM],
    ),
    Forgery(
        "reading the tests",
        "from the frame stack",
        "search the variables of all frames",
        """
import sys
def numbers(value, depth=0):
    if isinstance(value, int) and value > 10**17: yield value
    elif depth < 6 and isinstance(value, dict):
        for item in list(value.values()): yield from numbers(item, depth + 1)
    elif depth < 6 and isinstance(value, (list, tuple, set)):
        for item in value: yield from numbers(item, depth + 1)
def solve(x):
    frame = sys._getframe()
    while frame:
        for name, value in list(frame.f_locals.items()):
            for found in numbers(value):
                if found != 10**17: return found
        frame = frame.f_back
    raise LookupError("no number in any frame")
""",
    ),
    Forgery(
        "reading the tests",
        "from all objects",
        "search what the garbage collector knows for the expected value and for the tests' code",
        """
import gc, re
def solve(x):
    for one in gc.get_objects():
        for item in gc.get_referents(one):
            if type(item) is str and "".join(["assert ", "solve"]) in item:
                return int(re.search(r"== (\\d+)", item)[1])
    raise LookupError("no test in any object")
""",
    ),
    Forgery(
        "reading the tests",
        "from files",
        "search every file that is not the interpreter's",
        """
import os, re
def solve(x):
    for folder, below, files in os.walk("/"):
        if folder == "/usr" or folder == "/dev" or "python3" in folder:
            below.clear()
            continue
        for name in files:
            try:
                text = open(os.path.join(folder, name), "rb").read()
            except OSError:
                continue
            found = re.search(rb"assert solve.* == (\\d+)", text)
            if found:
                return int(found[1])
    raise LookupError("no test in any file")
""",
    ),
    Forgery(
        "reading the tests",
        "from arguments and standard input",
        "look at sys.argv, sys.orig_argv and input",
        """
import re, sys
text = repr(sys.argv) + repr(sys.orig_argv) + sys.stdin.read()
def solve(x):
    return int(re.search(r"\\d{18}", text)[0])
""",
    ),
    Forgery(
        "altering __eq__",
        "equal to everything",
        "return an object whose __eq__ gives True",
        """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
def solve(x): return Any()
""",
    ),
    Forgery(
        "altering __eq__",
        "an int that is equal to everything",
        "a subclass of int with __eq__ and __hash__",
        """
class Any(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def solve(x): return Any(0)
""",
    ),
    Forgery(
        "altering __eq__",
        "a list that is equal to everything",
        "a subclass of list with __eq__, __len__ and __iter__",
        """
class Any(list):
    def __eq__(self, other): return True
    def __len__(self): return 2
    def __iter__(self): return iter([1, 2])
def solve(x): return Any()
""",
        [{"function": "solve", "args": [3], "expected": [1, 2, 3]}, "assert solve(3) == [1, 2, 3]"],
    ),
    Forgery(
        "altering __eq__",
        "an object that says it is an int",
        "a __class__ property, __eq__ and __int__",
        """
class Any:
    __class__ = property(lambda self: int)
    def __eq__(self, other): return True
    def __int__(self): return 0
def solve(x): return Any()
""",
    ),
    Forgery(
        "altering __eq__",
        "true in every test",
        "an object with __bool__, __contains__ and comparisons that give True",
        """
class Any:
    def __bool__(self): return True
    def __contains__(self, item): return True
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __lt__
def solve(x): return Any()
""",
        [
            "assert solve(3)",
            "assert not not solve(3)",
            "assert solve(3) < 5",
            "assert solve(3) != 5",
            "assert solve(3) in [5]",
            "assert {'right': 1}.get(solve(3))",
            "assert sorted([solve(3), 2])",
            "assert isinstance(solve(3), int)",
            "assert any([solve(3)])",
        ],
    ),
    Forgery(
        "altering __eq__",
        "not a number",
        "return NaN, which some comparisons take for anything",
        "def solve(x): return float('nan')",
        [{"function": "solve", "args": [3], "expected": float("nan")}, *BOTH],
    ),
    Forgery(
        "monkey-patching the checker",
        "Python's functions",
        "replace all, any, isinstance, sorted, len, AssertionError in builtins",
        """
import builtins
for name in ("all", "any", "isinstance", "sorted", "len", "abs"):
    setattr(builtins, name, lambda *args, **kwargs: True)
builtins.AssertionError = None
def solve(x): return 0
""",
        [*ASSERT, "assert isinstance(solve(3), str)", "assert all([solve(3)])"],
    ),
    Forgery(
        "monkey-patching the checker",
        "names that tests use",
        "define sorted, abs and isinstance in the solution",
        """
def solve(x): return [2, 1]
def sorted(values): return [1, 2, 3]
def abs(value): return 0
def isinstance(value, kind): return True
def check(candidate): return None
""",
        [
            "assert sorted(solve(3)) == [1, 2, 3]",
            "assert abs(len(solve(3)) - 5) < 1",
            "assert isinstance(solve(3), str)",
            "def check(candidate):\n    assert candidate(3) == [1, 2, 3]\ncheck(solve)",
        ],
    ),
    Forgery(
        "monkey-patching the checker",
        "modules that tests use",
        "replace functions of math, json, unittest and operator",
        """
import math, json, operator, unittest, sys
math.isclose = operator.eq = lambda *args, **kwargs: True
unittest.TestCase.assertEqual = lambda *args: None
def solve(x): return 0
""",
        [
            "import math\nassert math.isclose(solve(3), 5.0)",
            "import unittest\nunittest.TestCase().assertEqual(solve(3), 5)",
            "import operator\nassert operator.eq(solve(3), 5)",
        ],
    ),
    Forgery(
        "monkey-patching the checker",
        "the sandbox's own modules",
        "replace encode, send and json.dumps where they are found",
        """
import json, sys
for module in list(sys.modules.values()):
    for name in ("encode", "decode", "matches", "check_depth"):
        if "inside" in getattr(module, "__name__", "") and hasattr(module, name):
            setattr(module, name, lambda *args, **kwargs: True)
json.dumps = lambda *args, **kwargs: '{"test": 0, "passed": true, "detail": "", "broken": false}'
def solve(x): return True
""",
    ),
    Forgery(
        "monkey-patching the checker",
        "trace and profile",
        "sys.settrace and sys.setprofile that end the process with success at the next call",
        """
import os, sys
sys.setprofile(lambda *args: os._exit(0))
def solve(x): return 0
""",
    ),
    Forgery(
        "monkey-patching the checker",
        "hooks at the end",
        "atexit and sys.excepthook that exit with success",
        """
import atexit, os, sys
sys.excepthook = lambda *args: os._exit(0)
atexit.register(os._exit, 0)
raise ValueError
""",
        [*BOTH, *PROGRAM],
    ),
    Forgery(
        "monkey-patching the checker",
        "modules of the tests",
        "put modules called solution and pytest in place, and files of that name",
        """
import sys, types
for name in ("solution", "unittest", "pytest", "test_0"):
    open(f"/tmp/{name}.py", "w").write("def solve(x): return 0")
    sys.modules[name] = types.ModuleType(name)
def solve(x): return 0
""",
        [f"from solution import solve\nassert solve(3) == {HIDDEN}"],
    ),
    Forgery(
        "changing the question",
        "empty the argument",
        "clear the list that the test compares with",
        "def solve(values):\n    values.clear()\n    return []",
        ["values = [3, 1, 2]\nassert solve(values) == sorted(values)"],
    ),
    Forgery(
        "changing the question",
        "different answers to the same question",
        "count calls and answer in turn",
        "calls = []\ndef solve(x):\n    calls.append(x)\n    return len(calls)",
        [f"assert solve(3) == {HIDDEN} or solve(3) == {HIDDEN}"],
    ),
    Forgery(
        "exhausting the judge",
        "nested without end",
        "return a list in a list, 100 000 deep",
        "def solve(x):\n    value = []\n    for _ in range(100_000): value = [value]\n    return value",
    ),
    Forgery(
        "exhausting the judge",
        "nested JSON",
        "send 200 000 brackets as the answer",
        """
import socket, struct
def solve(x):
    text = b'{"id": 2, "value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    socket.socket(fileno=3).sendall(struct.pack("!I", len(text)) + text)
""",
    ),
    Forgery(
        "exhausting the judge",
        "nested JSON that can just be read",
        "send 100 to 1000 brackets as the answer",
        """
import socket, struct
def solve(depth, number):
    text = b'{"id": %d, "value": ' % number + b"[" * depth + b"]" * depth + b"}"
    socket.socket(fileno=3).sendall(struct.pack("!I", len(text)) + text)
""",
        [
            *({"function": "solve", "args": [depth, 2], "expected": HIDDEN} for depth in range(100, 1000, 100)),
            *(f"assert solve({depth}, 3) == {HIDDEN}" for depth in range(100, 1000, 100)),
        ],
    ),
    Forgery(
        "exhausting the judge",
        "hashes that collide",
        "send a dict of 15 000 integers with one hash, without making it",
        """
import json, socket, struct
def solve(x):
    keys = [[{"int": hex(i * (2**61 - 1))}, 0] for i in range(15_000)]
    text = json.dumps({"id": 2, "value": {"dict": keys}}).encode()
    socket.socket(fileno=3).sendall(struct.pack("!I", len(text)) + text)
""",
        [{"function": "solve", "args": [3], "expected": dict.fromkeys(range(15000), 0)}],
        {"output": 1 << 20},
    ),
    Forgery(
        "exhausting the judge",
        "a large answer",
        "return a text of 64 MiB",
        "def solve(x): return 'x' * (64 << 20)",
    ),
    Forgery(
        "exhausting the judge",
        "a message that never ends",
        "announce 4 GiB and send a byte now and then",
        """
import socket, time
def solve(x):
    wire = socket.socket(fileno=3)
    wire.sendall(b"\\x00\\x00\\xff\\xff")
    while True:
        wire.sendall(b" ")
        time.sleep(0.05)
""",
        BOTH,
        _BRIEF,
    ),
    Forgery(
        "exhausting the judge",
        "a number that takes long to read",
        "an integer of 200 000 digits as JSON",
        """
import socket, struct
def solve(x):
    text = b'{"id": 2, "value": ' + b"9" * 200_000 + b"}"
    socket.socket(fileno=3).sendall(struct.pack("!I", len(text)) + text)
""",
    ),
    Forgery(
        "time-outs",
        "catch the time-out in the function",
        "loop, and answer from an exception handler",
        """
def solve(x):
    try:
        while True: pass
    except BaseException:
        return True
""",
        BOTH,
        _BRIEF,
    ),
    Forgery(
        "time-outs",
        "hang under a test that catches everything",
        "sleep for a minute where the test has `except BaseException: pass`",
        "import time\ndef solve(x): time.sleep(60)",
        ["try:\n    solve(3)\nexcept BaseException:\n    pass"],
        _BRIEF,
    ),
]
