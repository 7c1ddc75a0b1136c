"""The process in which a reward function works: reads one pickled call at a time, answers in JSON.

Run as a script of its own, so that it starts without torch and without whatever the parent's main script does.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

READY, BEGUN = b"ready", b"begun"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Load the function that the parent names, then answer calls until the parent closes the connection."""
    connection = Connection(int(sys.argv[1]))
    setup = pickle.loads(connection.recv_bytes())
    _die_with(setup["parent"])
    sys.path[:] = setup["sys_path"]
    from guerdon.rewards.forms import failure
    from guerdon.rewards.wire import encode

    try:
        function = _load(setup)
    except BaseException as error:
        connection.send_bytes(json.dumps(failure(error).message).encode())
        return
    connection.send_bytes(READY)
    limited = False
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        try:
            arguments = pickle.loads(request)
            if setup["memory_mb"] and not limited:
                limit_memory(setup["memory_mb"])
                limited = True
            connection.send_bytes(BEGUN)
            reply = json.dumps({"result": encode(function(**arguments))})
        except BaseException as error:
            reply = json.dumps(failure(error)._asdict())
        connection.send_bytes(reply.encode())


def _load(setup: Mapping[str, Any]) -> Callable[..., Any]:
    """The function with its options fixed; a coroutine function is run to its end."""
    import functools

    import cloudpickle

    target, options = cloudpickle.loads(setup["function"])
    if isinstance(target, str):
        from guerdon.registry import import_object

        target = import_object(target)
    function: Any = target(**options) if inspect.isclass(target) else functools.partial(target, **options)
    from guerdon.rewards.forms import is_async

    if not is_async(function):
        return function
    runner = asyncio.Runner()
    return lambda **arguments: runner.run(function(**arguments))


def limit_memory(megabytes: int) -> None:
    """Let this process take so much memory beyond what it holds now; more raises ``MemoryError``."""
    import resource

    with open("/proc/self/status") as file:
        held = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + megabytes * 2**20, hard))


def _die_with(parent: int) -> None:
    """End this process with its parent, even in the middle of a call that never ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
