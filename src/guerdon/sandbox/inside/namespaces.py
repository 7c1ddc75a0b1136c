"""Isolation without bubblewrap: fresh namespaces, and a root folder that holds only what the layout names."""

from __future__ import annotations

import os
import sys
from typing import Any

from . import kernel

_ISOLATED = (
    kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)
_READ_ONLY = kernel.ATTR_RDONLY | kernel.ATTR_NOSUID


def enter(layout: list[Any]) -> None:
    """Move this process into fresh namespaces and continue as their first process, which sees only the layout.

    The calling process stays behind until that one ends. Root needs no user namespace; anyone else gets one in which
    only the own user exists.

    Args:
        layout: ``[kind, source, target]`` in the order of mounting; the kinds are those of ``isolate.layout``.

    Raises:
        OSError: when the kernel refuses a step.
    """
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(_ISOLATED if user == 0 else _ISOLATED | kernel.CLONE_NEWUSER)
    if user != 0:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    _build_root(layout)
    child = os.fork()
    if child:
        os.close(0)
        status = os.waitpid(child, 0)[1]
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    kernel.die_with_parent()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _build_root(layout: list[Any]) -> None:
    """Mount the layout below a fresh root, step into it, and let go of the old one."""
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    # Every source stays reachable below /old, whatever the layout puts in its place.
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
    os.mkdir("/tmp/old")
    kernel.pivot_root("/tmp", "/tmp/old")
    os.chdir("/")
    os.mkdir("/new")
    kernel.mount("tmpfs", "/new", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
    os.umask(0o022)
    for kind, source, target in layout:
        _mount(kind, source, f"/new{target}")
    os.chdir("/new")
    kernel.pivot_root(".", ".")
    kernel.detach(".")
    os.chdir("/")
    kernel.restrict_mount("/", kernel.ATTR_RDONLY, recursive=False)


def _mount(kind: str, source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if kind == "symlink":
        os.symlink(source, target)
    elif kind == "folder":
        os.makedirs(target, exist_ok=True)
    elif kind in ("read", "device"):
        original = f"/old{source}"
        if os.path.isdir(original):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        kernel.mount(original, target, flags=kernel.MS_BIND | kernel.MS_REC)
        own = kernel.ATTR_NOEXEC if kind == "device" else kernel.ATTR_NODEV
        kernel.restrict_mount(target, _READ_ONLY | own)
    else:
        sys.exit(f"unknown kind of mount {kind!r}")
