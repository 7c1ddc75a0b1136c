"""A filter of system calls that no solution to a problem needs and that escapes from sandboxes are made of."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from . import kernel

# Numbers for (x86_64, aarch64); None where the architecture has no such call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # the network
    "socket": (41, 198),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # memory that no limit counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large and seldom used parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
# What may be done to the own process only, which these calls name by its number or 0.
_TO_ITSELF = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "prlimit64": (302, 261),
}
_TO_OTHERS = {"rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424)}
_AUDIT = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NAMESPACES = (
    kernel.CLONE_NEWNS
    | kernel.CLONE_NEWCGROUP
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
)

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(*, only_itself: bool) -> bool:
    """Deny the listed calls to this process and all it starts, for good; they fail with EPERM.

    ``clone3`` fails with ENOSYS, whereupon C libraries use ``clone``, whose flags can be read.

    Args:
        only_itself: also deny signals to other processes, and limits for them, where no namespace hides them.

    Returns:
        False, and nothing is denied, where the architecture's numbers are not known.
    """
    machine = os.uname().machine
    if machine not in _AUDIT or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    column, audit = _AUDIT[machine]
    code = b"".join(struct.pack("=HBBI", *step) for step in _filter(column, audit, only_itself))
    buffer = ctypes.create_string_buffer(code)
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    kernel.no_new_privileges()
    kernel.checked(kernel.libc.prctl(22, 2, ctypes.byref(program), 0, 0), "seccomp")
    return True


def _filter(column: int, audit: int, only_itself: bool) -> list[tuple[int, int, int, int]]:
    """Steps ``(operation, skip if true, skip if false, value)`` of the filter."""
    refuse = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, 0x40000000),  # the x32 calls, which have numbers of their own
        refuse,
        (_EQUAL, 0, 1, _CLONE3[column]),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
    ]
    denied = [numbers[column] for numbers in _DENIED.values()]
    if only_itself:
        denied += [numbers[column] for numbers in _TO_OTHERS.values()]
    for number in denied:
        if number is not None:
            steps += [(_EQUAL, 0, 1, number), refuse]
    steps += [
        (_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _NAMESPACES),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    if only_itself:
        for numbers in _TO_ITSELF.values():
            steps += [
                (_EQUAL, 0, 5, numbers[column]),
                (_LOAD, 0, 0, _FIRST_ARGUMENT),
                (_EQUAL, 2, 0, 0),
                (_EQUAL, 1, 0, os.getpid()),
                refuse,
                (_RETURN, 0, 0, _ALLOW),
            ]
    return [*steps, (_RETURN, 0, 0, _ALLOW)]
