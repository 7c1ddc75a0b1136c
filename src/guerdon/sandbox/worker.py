"""A warm worker, and the programs that it forks."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from typing import Any

from guerdon.sandbox.inside import wire
from guerdon.sandbox.isolate import Level, launch
from guerdon.sandbox.limits import Limits, Outcome, SandboxError, Status

_START = 30.0  # seconds for a worker to be ready on a busy machine
_CREDENTIALS = struct.Struct("3i")  # process, user, group
_GRACE = 10.0  # seconds beyond a program's wall time for the worker to have ended it


class Worker:
    """One process inside the isolation that forks one program at a time.

    Args:
        level: how it is isolated.
        readable: folders besides the interpreter that programs may read and import from.
        preload: modules imported once, before programs are forked.

    Raises:
        SandboxError: when the worker does not start, with what it said.
    """

    def __init__(self, level: Level, *, readable: Sequence[str] = (), preload: Sequence[str] = ()) -> None:
        self.level: Level = level
        self._busy = False
        self._zygote = -1
        plan = launch(level, readable=readable, preload=preload)
        # Isolated, a program's files are in memory; otherwise in this folder, which worker and trainer both remove.
        self._folder = None if plan.config["isolated"] else tempfile.mkdtemp(prefix="guerdon-sandbox-")
        self._channel, theirs = socket.socketpair()
        _open_channels.add(self._channel)
        with theirs, tempfile.TemporaryFile() as said:
            try:
                self._process = subprocess.Popen(
                    plan.command,
                    env=plan.environment,
                    cwd="/",
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,
                )
                theirs.close()
                wire.send(self._channel, plan.config | {"scratch": self._folder})
                self._zygote = _await_ready(self._channel)
            except (OSError, EOFError) as error:
                if hasattr(self, "_process"):
                    self.close()
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else str(error)
                raise SandboxError(f"sandbox level '{level}' does not start: {reason}") from None
            finally:
                if self._zygote < 0:
                    self._clean()

    @property
    def ready(self) -> bool:
        """Whether it can take another program."""
        return not self._busy and self._process.poll() is None

    def start(self, request: dict[str, Any], descriptors: Sequence[int]) -> Program:
        """Fork a program.

        Args:
            request: its ``mode``, its ``limits``, and what the mode asks for.
            descriptors: handed to it; the caller closes its own copies.

        Raises:
            SandboxError: when the worker is gone.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._channel, [b"."], [theirs.fileno(), *descriptors])
            wire.send(ours, request)
        except OSError as error:
            ours.close()
            self.close()
            raise SandboxError(f"a sandbox worker of level '{self.level}' is gone: {error}") from None
        self._busy = True
        return Program(self, ours, request["limits"]["wall_time"])

    def free(self) -> None:
        """Note that the program has ended."""
        self._busy = False

    def close(self) -> None:
        """End the worker, and with it every process inside."""
        self._channel.close()
        if self.level == "rlimits":  # the worker must end its program itself; otherwise the kernel does
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
        if self._zygote >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._zygote, signal.SIGKILL)
            os.close(self._zygote)
            self._zygote = -1
        self._process.kill()
        self._process.wait()
        self._clean()

    def _clean(self) -> None:
        self._channel.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _await_ready(channel: socket.socket) -> int:
    """Wait until the process inside is ready, and give a descriptor of it.

    Raises:
        OSError: when it says nothing in time.
        EOFError: when it ended.
    """
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    channel.settimeout(_START)
    ready, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
    channel.settimeout(None)
    if not ready:
        raise EOFError("it ended at once")
    # The kernel says who wrote: the process's number as it is here, outside its namespace.
    return os.pidfd_open(_CREDENTIALS.unpack(ancillary[0][2][: _CREDENTIALS.size])[0])


# Workers end when their channel closes, so a fork of this process must not keep it open.
_open_channels: weakref.WeakSet[socket.socket] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [channel.close() for channel in list(_open_channels)])


class Program:
    """A program that runs in a worker."""

    def __init__(self, worker: Worker, control: socket.socket, wall_time: float) -> None:
        self.worker, self.control = worker, control
        self.deadline = time.monotonic() + wall_time + _GRACE

    def stop(self) -> dict[str, Any]:
        """End the program, if it has not ended, and all it started."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)
        return self.result()

    def ends_within(self, seconds: float) -> bool:
        """Whether the program ends by itself in a while."""
        return bool(select.select([self.control], [], [], seconds)[0])

    def result(self) -> dict[str, Any]:
        """Wait for the end: ``exit``, ``cpu``, ``seconds`` and the reason ``ended``; a dead worker counts as killed."""
        try:
            result = wire.receive(self.control, deadline=self.deadline)
        except (OSError, EOFError, ValueError):
            self.worker.close()
            return {"exit": -signal.SIGKILL, "cpu": 0.0, "seconds": 0.0, "ended": None}
        finally:
            self.control.close()
        self.worker.free()
        return result


def run_script(worker: Worker, code: str, stdin: str, limits: Limits) -> Outcome:
    """Run a program from start to end and read what it writes."""
    pipes = [os.pipe() for _ in range(2)]
    request = {"mode": "script", "limits": limits.request(), "stdin": stdin, "code": code}
    try:
        program = worker.start(request, [write for _, write in pipes])
    except SandboxError:
        for read, _ in pipes:
            os.close(read)
        raise
    finally:
        for _, write in pipes:
            os.close(write)
    written = [bytearray(), bytearray()]
    overflown = _read([read for read, _ in pipes], written, program, limits.output)
    result = program.stop() if overflown else program.result()
    for (read, _), text in zip(pipes, written, strict=True):
        if not overflown:
            _drain(read, text, limits.output + 1)
        os.close(read)
    overflown = overflown or any(len(text) > limits.output for text in written)
    stdout, stderr = (bytes(text[: limits.output]).decode(errors="replace") for text in written)
    status = "output" if overflown else _status(result, limits)
    exit_code = None if status == "output" or result["ended"] else result["exit"]
    return Outcome(status, stdout, stderr, exit_code, result["seconds"], result["cpu"], worker.level)


def _read(pipes: list[int], written: list[bytearray], program: Program, limit: int) -> bool:
    """Read until the program's end is reported or a stream has more than the limit; say whether one had."""
    with selectors.DefaultSelector() as selector:
        selector.register(program.control, selectors.EVENT_READ)
        for pipe, text in zip(pipes, written, strict=True):
            selector.register(pipe, selectors.EVENT_READ, text)
        while (left := program.deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.data is None:
                    return False
                part = os.read(key.fd, 1 << 16)
                key.data.extend(part)
                if not part:
                    selector.unregister(key.fd)
                if len(key.data) > limit:
                    return True
    return False


def _drain(pipe: int, text: bytearray, limit: int) -> None:
    """Read what is left in a pipe whose writers are gone."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while len(text) < limit and (part := os.read(pipe, 1 << 16)):
            text.extend(part)


def _status(result: dict[str, Any], limits: Limits) -> Status:
    if result["ended"] == "wall_time":
        return "wall_time"
    if result["exit"] is None or result["exit"] < 0:
        # The kernel enforces the limit by ticks, which on a busy machine run ahead of the time it reports.
        exhausted = result["exit"] == -signal.SIGKILL and result["cpu"] > limits.request()["cpu_time"] / 2
        return "cpu_time" if exhausted else "killed"
    return "ok" if result["exit"] == 0 else "error"
