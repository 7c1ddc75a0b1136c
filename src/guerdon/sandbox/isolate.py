"""How a program is shut in: bubblewrap if it works here, else namespaces, else resource limits alone."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from guerdon.sandbox.limits import SandboxError

Level = Literal["bubblewrap", "namespaces", "rlimits"]
LEVELS: tuple[Level, ...] = get_args(Level)
ISOLATED: frozenset[Level] = frozenset({"bubblewrap", "namespaces"})

_INSIDE = Path(__file__).with_name("inside")
_MOUNTED = "/guerdon"  # where the folder of this package that runs inside is mounted
# Device files without which ordinary programs fail; none gives access to hardware.
_DEVICES = ("null", "zero", "full", "random", "urandom")
_START = "import sys; sys.path.insert(0, sys.argv.pop()); from inside.zygote import main; sys.path.pop(0); main()"
# Imported before the fork, so that no program waits for them; they are what solutions import most.
_PRELOAD = (
    *("bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "json"),
    *("math", "operator", "queue", "random", "re", "statistics", "string", "threading", "typing", "dataclasses"),
)


@dataclass(frozen=True)
class Launch:
    """What starts a worker: a command, and the first message it reads.

    Attributes:
        command: the program and its arguments.
        environment: all of its environment.
        config: see ``inside.zygote``.
    """

    command: list[str]
    environment: dict[str, str]
    config: dict[str, Any]


def launch(level: Level, *, readable: Sequence[str] = (), preload: Sequence[str] = ()) -> Launch:
    """Describe the start of a worker at a level.

    Args:
        level: how it is isolated.
        readable: folders besides the interpreter that programs may read and import from.
        preload: modules imported once, before programs are forked.

    Raises:
        SandboxError: when the level's program is not installed.
    """
    isolated, root = level in ISOLATED, os.geteuid() == 0
    mounts = layout(readable)
    environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    python = [_interpreter(), "-s", "-S", "-c", _START, _MOUNTED if isolated else str(_INSIDE.parent)]
    if level == "namespaces":
        python[-1] = str(_INSIDE.parent)  # read before the root changes; everything needed is imported by then
    config = {
        "isolated": isolated,
        "layout": mounts if level == "namespaces" else None,
        # Root leaves its own user for one that owns nothing: a root without capabilities still owns root's files.
        "user": (1 << 30) + secrets.randbelow(1 << 29) if isolated and root else None,
        # The worker's own processes count where they share the program's user.
        "own_processes": 4 if isolated and not root else 0,
        "count_user": not isolated and not root,
        "path": [*(_mounted(place) for place in range(len(readable) if isolated else 0)), *readable],
        "preload": [*_PRELOAD, *preload],
        "environment": environment,
    }
    command = [*_bubblewrap(mounts, root), "--", *python] if level == "bubblewrap" else python
    return Launch(command, environment, config)


def layout(readable: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    """List what a program can see of the file system, all of it read-only: ``(kind, source, target)``.

    The kinds: ``read`` shows a file or folder, ``device`` a device file, ``symlink`` makes a link to ``source``,
    ``folder`` an empty folder. There is no ``/proc``, no ``/sys``, no ``/etc``, no home and no program but the
    interpreter.
    """
    mounts: list[tuple[str, str, str]] = []
    for path in ("/lib", "/lib64", "/lib32"):
        if os.path.islink(path):
            mounts.append(("symlink", os.readlink(path), path))
        elif os.path.isdir(path):
            mounts.append(("read", path, path))
    prefix = Path(sys.base_prefix)
    folders = ["/usr/lib", "/usr/lib64", "/usr/lib32", str(prefix / "lib"), *_standard_library(), *readable]
    mounts += [("read", folder, folder) for folder in _outermost(f for f in folders if os.path.isdir(f))]
    mounts += [("read", file, file) for file in ("/etc/ld.so.cache", _interpreter()) if os.path.exists(file)]
    mounts.append(("read", str(_INSIDE), f"{_MOUNTED}/inside"))
    # Imported from a place of their own: where they lie may be below /tmp, which is each program's own.
    mounts += [("read", os.path.realpath(folder), _mounted(place)) for place, folder in enumerate(readable)]
    mounts += [("device", f"/dev/{name}", f"/dev/{name}") for name in _DEVICES]
    mounts.append(("device", "/dev/null", "/dev/stdin"))  # each program's own input is mounted over it
    return [*mounts, ("folder", "", "/tmp"), ("symlink", "/tmp", "/dev/shm")]


def _mounted(place: int) -> str:
    return f"{_MOUNTED}/readable/{place}"


def _interpreter() -> str:
    """The real file behind the interpreter, outside any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _standard_library() -> list[str]:
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    return [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]


def _outermost(folders: Any) -> list[str]:
    """Leave out folders that lie in another one of the list."""
    chosen: list[str] = []
    for folder in sorted({os.path.realpath(f) for f in folders}):
        if not any(Path(folder).is_relative_to(above) for above in chosen):
            chosen.append(folder)
    return chosen


def _bubblewrap(mounts: list[tuple[str, str, str]], root: bool) -> list[str]:
    """Arguments that make the same place as ``inside.namespaces.enter``.

    The worker keeps the capabilities it needs to shut in each program once more; the programs lose them.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("sandbox level 'bubblewrap' does not start: there is no 'bwrap' on the PATH")
    options = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    options += ["--new-session", "--cap-drop", "ALL"]
    capabilities = ["CAP_SYS_ADMIN", "CAP_SETPCAP"]
    if root:
        capabilities += ["CAP_SETUID", "CAP_SETGID"]
    else:
        options.append("--unshare-user")
    for capability in capabilities:
        options += ["--cap-add", capability]
    names = {"read": "--ro-bind", "device": "--dev-bind", "symlink": "--symlink"}
    made = {"/"}
    for kind, source, target in mounts:
        # Made on its own, a parent folder would be open to nobody but root.
        folders = [*reversed(Path(target).parents), *([Path(target)] if kind == "folder" else [])]
        for folder in map(str, folders):
            if folder not in made:
                options += ["--perms", "0755", "--dir", folder]
                made.add(folder)
        if kind != "folder":
            options += [names[kind], source, target]
    return [program, *options, "--remount-ro", "/", "--chdir", "/"]
