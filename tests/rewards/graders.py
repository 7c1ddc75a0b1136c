"""Reward functions of the tests, importable by a worker without torch."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import zlib

from guerdon import Score, batched, grouped

HOARD: list[bytearray] = []


def length(text, *, factor: float = 1.0):
    """Characters."""
    return len(text) * factor


def slow(text, *, seconds: float = 0.15):
    """Characters, after a while."""
    time.sleep(seconds)
    return float(len(text))


async def slow_async(text, *, seconds: float = 0.15):
    """Characters, after a while of waiting."""
    await asyncio.sleep(seconds)
    return float(len(text))


def loaded(text):
    """Whether torch is in this process."""
    return float("torch" in sys.modules)


def who(text):
    """The process that scores."""
    return float(os.getpid())


def obey(text):  # noqa: PLR0912 - one branch per order
    """Do what the text says."""
    order, _, what = text.partition(" ")
    if order == "hang":
        time.sleep(1000)
    if order == "spin":
        9**9**9  # one bytecode that holds the interpreter's lock for ever
    if order == "exit":
        os._exit(3)
    if order == "quit":
        sys.exit(4)
    if order == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if order == "eat":
        bytearray(10**9)
    if order == "hoard":
        HOARD.append(bytearray(60 * 2**20))
    if order == "raise":
        raise ValueError(what)
    if order == "lost":
        raise ConnectionError(what)
    if order == "late":
        raise TimeoutError(what)
    if order == "split" and os.fork():
        os._exit(3)
    if order == "split":
        time.sleep(1000)
    if order == "leave":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], stdout=sys.stderr)
        with open(what, "w") as file:
            file.write(str(child.pid))
        time.sleep(1000)
    return float(what or 0)


def heal(text):
    """Die, hang or lose the connection at the first try, which leaves a mark; score at the second."""
    how, _, path = text.partition(" ")
    if os.path.exists(path):
        return 1.0
    with open(path, "w"):
        pass
    if how == "die":
        os._exit(1)
    if how == "hang":
        time.sleep(1000)
    if how == "lose":
        raise ConnectionError("gone")
    raise ValueError("for good")


@grouped
def place(text):
    """Place of each text in its group, by length; the group's size for the longest."""
    order = sorted(range(len(text)), key=lambda i: len(text[i]))
    return [Score(order.index(i) + 1, detail={"of": len(text)}) for i in range(len(text))]


@batched
def share(text):
    """Share of the batch's characters."""
    return [len(t) / sum(map(len, text)) for t in text]


KINDS = ("exception", "nan", "infinite", "type", "length", "memory", "killed", "timeout")
EXPECTED = ("exception", "not_finite", "not_finite", "wrong_type", "wrong_length", "memory", "killed", "timeout")


def fate(text, task_id, step, salt):
    """What becomes of a sample: None, or a kind of failure; the costly ones are rarer."""
    draw = zlib.crc32(f"{text}|{task_id}|{step}|{salt}".encode()) % 1000
    if draw < 500:
        return KINDS[draw % 5]
    return {0: "memory", 1: "killed", 2: "timeout"}.get((draw - 500) // 10)


def worth(text):
    """The score of a sample that does not fail; never 0."""
    return 1.0 + len(text) / 8


class Two:
    """Two numbers where one is wanted."""

    shape = (2,)

    def reshape(self, _):
        return self

    def tolist(self):
        return [1.0, 2.0]


def faulty(text, task_id, step, *, salt: int = 0):
    """Fail by ``fate``."""
    kind = fate(text, task_id, step, salt)
    if kind == "exception":
        raise KeyError("injected")
    if kind == "memory":
        return float(len(bytearray(10**9)))
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "timeout":
        time.sleep(1000)
    odd = {"nan": float("nan"), "infinite": float("inf"), "type": "one", "length": Two()}
    return odd.get(kind, worth(text))


@batched
def partly_failing(text):
    """Characters, but for texts with a question, which get the error of whoever was asked."""
    return [ConnectionError("nobody answers") if "?" in t else float(len(t)) for t in text]
