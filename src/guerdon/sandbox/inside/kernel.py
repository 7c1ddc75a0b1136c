"""System calls that Python 3.11 does not offer: namespaces, mounts, capabilities, process attributes."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8

_MNT_DETACH = 0x2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_MOUNT_SETATTR = 442  # the same number on every architecture
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapabilityData(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def checked(result: int, what: str) -> int:
    """Raise what the C library left in errno.

    Raises:
        OSError: naming the call.
    """
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name, for fresh ones."""
    checked(libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount a file system, or with ``MS_BIND`` a folder or file, at a place."""
    checked(
        libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode()),
        f"mount on {target}",
    )


def restrict_mount(target: str, attributes: int, *, recursive: bool = True) -> None:
    """Add attributes such as read-only to a mount and those below it (Linux 5.12)."""
    wanted = _MountAttributes(attr_set=attributes)
    checked(
        libc.syscall(
            ctypes.c_long(_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            target.encode(),
            ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
            ctypes.byref(wanted),
            ctypes.c_size_t(ctypes.sizeof(wanted)),
        ),
        f"mount_setattr on {target}",
    )


def pivot_root(new: str, old: str) -> None:
    """Make a mount the root, and put the root it replaces at ``old``."""
    number = _PIVOT_ROOT[os.uname().machine]
    checked(libc.syscall(ctypes.c_long(number), new.encode(), old.encode()), "pivot_root")


def detach(target: str) -> None:
    """Unmount a tree as soon as nothing uses it, and hide it now."""
    checked(libc.umount2(target.encode(), _MNT_DETACH), f"umount {target}")


def drop_bounding_set() -> None:
    """Let no program that is executed from now on gain any capability."""
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # beyond the last one the kernel knows, or not ours to drop


def drop_capabilities() -> None:
    """Give up every capability of this process for good."""
    header = _CapabilityHeader(version=0x20080522, pid=0)
    nothing = (_CapabilityData * 2)()
    checked(libc.capset(ctypes.byref(header), nothing), "capset")


def no_new_privileges() -> None:
    """Let no executed program, set-user-id ones included, have more rights than this process."""
    checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def hide_memory() -> None:
    """Keep processes of the same user from tracing this one and reading its memory."""
    checked(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "set_dumpable")


def die_with_parent() -> None:
    """Be killed when the parent ends."""
    checked(libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "set_pdeathsig")


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    checked(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "set_child_subreaper")
