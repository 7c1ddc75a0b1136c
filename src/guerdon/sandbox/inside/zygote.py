"""The process that forks one child per program, so that no program meets what another one left behind.

It never runs a program itself. Per program it forks a *monitor*, which reads the request, gives the program fresh
namespaces and a fresh scratch folder, and waits; the monitor forks an *init*, the first process of the program's
own namespace, and that forks the *program*, which gives up every right before the first line of foreign code. When
init ends, the kernel kills whatever the program left running.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import site
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from . import kernel, namespaces, programs, seccomp, wire

Run = Callable[[], None]


def main() -> None:
    """Serve on file descriptor 0 until it closes; in a program's process, run the program and return."""
    channel = socket.socket(fileno=0)
    config = wire.receive(channel)
    sys.path[:] = [*config["path"], *sys.path]
    for module in config["preload"]:
        importlib.import_module(module)
    if config["layout"] is not None:
        namespaces.enter(config["layout"])
        importlib.invalidate_caches()  # there are folders now that were not
    site.setquit()  # `exit` and `quit`, which a program may count on
    kernel.hide_memory()
    gc.collect()
    gc.freeze()  # collections in programs need not visit, and so copy, what they share
    channel.send(b"r")
    run = _serve(channel, config)
    del channel, config
    run()


def _serve(channel: socket.socket, config: dict[str, Any]) -> Run:
    """Fork a monitor per request; return only in a program's process."""
    if not config["isolated"]:
        kernel.adopt_orphans()
    while True:
        go, descriptors, _, _ = socket.recv_fds(channel, 1, 8)
        if not go:
            if config["scratch"] is not None:
                shutil.rmtree(config["scratch"], ignore_errors=True)
            os._exit(0)
        monitor = os.fork()
        if monitor == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), channel.detach())
            return _monitor(descriptors, config)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(monitor, 0)
        if not config["isolated"]:
            _end_children()  # of a monitor that was killed itself


def _monitor(descriptors: list[int], config: dict[str, Any]) -> Run:
    """Run one program and report how it ended; return only in the program's process."""
    if not config["isolated"]:
        kernel.adopt_orphans()
    control = socket.socket(fileno=descriptors[0])
    request = wire.receive(control)
    scratch = _scratch(request, config)
    stdin = _stdin_file(request.pop("stdin", ""), scratch, config)
    status, report = os.pipe()
    began = time.monotonic()
    init = os.fork()
    if init == 0:
        os.close(control.detach())  # its number will be another descriptor's
        os.close(status)
        return _init(report, [stdin, *descriptors[1:]], request, config, scratch)
    os.close(report)
    for descriptor in [stdin, *descriptors[1:]]:
        os.close(descriptor)
    ended = _wait(status, control, began + request["limits"]["wall_time"])
    seconds = time.monotonic() - began
    _kill(init, config)
    # A program that filled the report's pipe is impossible: it does not have it.
    text = b"" if ended else os.read(status, 4096)
    result = {"exit": None, "cpu": 0.0} | (json.loads(text) if text else {})
    if not config["isolated"]:
        shutil.rmtree(scratch, ignore_errors=True)
    with contextlib.suppress(OSError):
        wire.send(control, result | {"seconds": seconds, "ended": ended})
    os._exit(0)


def _wait(status: int, control: socket.socket, deadline: float) -> str | None:
    """Wait for the program's end; give the reason where it was ended from outside."""
    poll = select.poll()
    poll.register(status, select.POLLIN)
    poll.register(control, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return "wall_time"
        ready = dict(poll.poll(1000 * min(left, 3600)))
        if status in ready:
            return None
        if ready:  # the trusted side writes nothing after the request: it hung up, or says stop
            return "stopped"


def _scratch(request: dict[str, Any], config: dict[str, Any]) -> str:
    """Make the folder in which the program may write."""
    if not config["isolated"]:
        return tempfile.mkdtemp(prefix="guerdon-", dir=config["scratch"])
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWPID)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    size, flags = request["limits"]["scratch"], kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", "/tmp", "tmpfs", flags, f"size={size},nr_inodes=4096,mode=777")
    return "/tmp"


def _stdin_file(text: str, scratch: str, config: dict[str, Any]) -> int:
    """Open a file without a name that holds what the program reads; isolated, ``/dev/stdin`` is that file, too."""
    path = os.path.join(scratch, "stdin")
    with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        file.write(text)
    descriptor = os.open(path, os.O_RDONLY)
    if config["isolated"]:
        kernel.mount(path, "/dev/stdin", flags=kernel.MS_BIND)
    os.unlink(path)
    return descriptor


def _init(report: int, descriptors: list[int], request: dict[str, Any], config: dict[str, Any], scratch: str) -> Run:
    """Fork the program, wait for it, say how it ended; return only in the program's process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a first process receives only signals that it handles
    program = os.fork()
    if program == 0:
        os.setsid()
        return _program(descriptors, request, config, scratch)
    os.dup2(report, 3)
    os.closerange(4, 1 << 20)
    while True:
        pid, status, usage = os.wait4(-1, 0)
        if pid == program:
            break
    used = usage.ru_utime + usage.ru_stime
    os.write(3, json.dumps({"exit": os.waitstatus_to_exitcode(status), "cpu": used}).encode())
    os._exit(0)


def _kill(init: int, config: dict[str, Any]) -> None:
    """End init and everything that came of it."""
    os.kill(init, signal.SIGKILL)
    os.waitpid(init, 0)
    if not config["isolated"]:  # otherwise the kernel has killed the rest of the namespace by now
        _end_children()


def _end_children() -> None:
    """Kill the children of this process, and theirs as it adopts them, until there is none."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for child in _children():
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)


def _children() -> list[int]:
    """Direct children of this process, orphans it adopted included."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry.name}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry.name))
    return found


def _program(descriptors: list[int], request: dict[str, Any], config: dict[str, Any], scratch: str) -> Run:
    """Become the program's process: own descriptors, environment, limits; no rights."""
    mode, limits = request.pop("mode"), request.pop("limits")
    _take_descriptors(descriptors, mode)
    _limit(limits, config)
    os.environ.clear()
    os.environ.update(config["environment"], HOME=scratch, TMPDIR=scratch)
    os.chdir(scratch)
    kernel.drop_bounding_set()
    user = config["user"]
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    kernel.drop_capabilities()
    kernel.no_new_privileges()
    seccomp.install(only_itself=not config["isolated"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return lambda: programs.PROGRAMS[mode](**request)


def _take_descriptors(descriptors: list[int], mode: str) -> None:
    """Arrange standard input, output and error, and beyond a script's the connection at 3; close all others."""
    stdin, *others = [os.dup2(descriptor, 100 + i) for i, descriptor in enumerate(descriptors)]
    os.dup2(stdin, 0)
    if mode == "script":
        os.dup2(others[0], 1)
        os.dup2(others[1], 2)
    else:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.dup2(others[0], 3)
    os.closerange(3 if mode == "script" else 4, 1 << 20)


def _limit(limits: dict[str, Any], config: dict[str, Any]) -> None:
    """Set the limits that the kernel enforces on each process."""
    processes = limits["processes"] + config["own_processes"]
    if config["count_user"]:
        processes += _tasks_of_user()
    wanted = {
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_CPU: limits["cpu_time"],
        resource.RLIMIT_FSIZE: limits["file_size"],
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_MEMLOCK: 0,
        # 1 and not 0: a core dump of 0 bytes is still handed to a handler outside, where one is installed.
        resource.RLIMIT_CORE: 1,
    }
    for name, value in wanted.items():
        hard = resource.getrlimit(name)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (allowed, allowed))


def _tasks_of_user() -> int:
    """Threads that the user runs by now, which the limit on processes counts where no namespace sets them apart."""
    count, user = 0, os.getuid()
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == user:
                count += len(os.listdir(f"/proc/{entry.name}/task"))
    return count
