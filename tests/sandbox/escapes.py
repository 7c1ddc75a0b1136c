"""Programs that try to reach what is outside the sandbox. See ``attacks``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Escape:
    """One attempt: ``code`` defines ``attempt``, which gives True where it succeeds.

    Attributes:
        ends: how the program may end where the attempt is contained.
    """

    kind: str
    name: str
    tried: str
    code: str
    ends: tuple[str, ...] = ("ok",)
    limits: dict[str, Any] = field(default_factory=dict)


_BRIEF = {"wall_time": 0.5}
ESCAPES = [
    Escape(
        "files", "read a file", "open a file of the user by its path", "attempt = lambda: MARK in open(SECRET).read()"
    ),
    Escape(
        "files",
        "search for a file",
        "walk all folders from / but those of the system for the file's name",
        """
def attempt():
    for folder, below, files in os.walk("/"):
        if os.path.basename(SECRET) in files:
            return True
        if folder == "/":
            below.remove("usr")
        if "python3" in folder:
            below.clear()
""",
    ),
    Escape("files", "read /etc/passwd", "open it", "attempt = lambda: bool(open('/etc/passwd').read())"),
    Escape(
        "files",
        "poison the standard library",
        "append to json's own source",
        "import json\nattempt = lambda: open(json.__file__, 'a').write('x') == 1",
    ),
    Escape(
        "files",
        "write outside the scratch folder",
        "create a file in every folder but the scratch folder and the library's own subfolders",
        """
def attempt():
    for folder, below, _ in os.walk("/"):
        if folder.startswith("/usr/lib/") or "python3" in folder:
            below.clear()
        if not (folder + "/").startswith("/tmp/"):
            try:
                open(folder + "/left", "w").close()
                return True
            except OSError as error:
                met = error
    raise met
""",
    ),
    Escape(
        "files",
        "write beside a file of the user",
        "create the folder and a file in it",
        """
def attempt():
    os.makedirs(os.path.dirname(SECRET), exist_ok=True)
    open(SECRET + ".left", "w").close()
    # Below /tmp this is the scratch folder, which is nobody's: what counts is the outside.
    return os.path.exists(SECRET)
""",
    ),
    Escape(
        "files",
        "leave a message for the next program",
        "write into the scratch folder, and look whether an earlier program did",
        """
def attempt():
    found = os.path.exists("/tmp/message")
    open("/tmp/message", "w").close()
    return found
""",
    ),
    Escape(
        "files",
        "make the root writable",
        "remount / through libc",
        "attempt = lambda: checked(libc.mount(None, b'/', None, ctypes.c_ulong(0x20), None))",
    ),
    Escape(
        "files",
        "make a disk's device file",
        "mknod a block device and read it",
        """
def attempt():
    os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))
    return bool(open("/tmp/disk", "rb").read(1))
""",
    ),
    Escape(
        "files",
        "fill the disk",
        "write files of 4 MiB without end",
        """
def attempt():
    for number in range(64):
        with open(f"/tmp/{number}", "wb") as file:
            file.write(bytes(4 << 20))
    return True
""",
    ),
    Escape(
        "files",
        "write a file of 1 GiB",
        "write until an error",
        """
def attempt():
    with open("/tmp/large", "wb") as file:
        for _ in range(1024):
            file.write(bytes(1 << 20))
    return True
""",
    ),
    Escape(
        "files",
        "open a file by its handle",
        "open_by_handle_at, which ignores mount points",
        "attempt = lambda: checked(libc.open_by_handle_at(-100, ctypes.create_string_buffer(128), 0))",
    ),
    Escape(
        "symlinks",
        "link to a file",
        "a symbolic link in the scratch folder to a file of the user",
        """
def attempt():
    os.symlink(SECRET, "/tmp/link")
    return MARK in open("/tmp/link").read()
""",
    ),
    Escape(
        "symlinks",
        "climb out of a link",
        "a link to /dev/shm, then ../../.. and the file's path",
        """
def attempt():
    os.symlink("/dev/shm", "/tmp/link")
    return MARK in open("/tmp/link/../../../../.." + SECRET).read()
""",
    ),
    Escape(
        "symlinks",
        "hard link to a file",
        "os.link into the scratch folder",
        "attempt = lambda: os.link(SECRET, '/tmp/l') is None",
    ),
    Escape(
        "symlinks",
        "link in the place of the library",
        "replace the folder of what runs inside by a link",
        "attempt = lambda: os.rename('/guerdon/inside', '/tmp/inside') is None",
    ),
    Escape(
        "/proc",
        "environment of the trainer",
        "/proc/PID/environ",
        "attempt = lambda: MARK.encode() in open(f'/proc/{PARENT}/environ', 'rb').read()",
    ),
    Escape(
        "/proc",
        "root of the first process",
        "/proc/1/root and the file's path",
        "attempt = lambda: MARK in open('/proc/1/root' + SECRET).read()",
    ),
    Escape(
        "/proc",
        "memory of the parent",
        "/proc/PPID/mem for writing",
        "attempt = lambda: open(f'/proc/{os.getppid()}/mem', 'r+b') is not None",
    ),
    Escape(
        "/proc",
        "a handler of core dumps",
        "/proc/sys/kernel/core_pattern for writing, which root may without any capability",
        "attempt = lambda: os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY) >= 0",
    ),
    Escape(
        "/proc",
        "a /proc of its own",
        "mount proc in the scratch folder",
        """
def attempt():
    os.mkdir("/tmp/proc")
    return checked(libc.mount(b"proc", b"/tmp/proc", b"proc", ctypes.c_ulong(0), None))
""",
    ),
    Escape("/proc", "the kernel's /sys", "list it", "attempt = lambda: bool(os.listdir('/sys'))"),
    Escape(
        "environment secrets",
        "os.environ",
        "look for the trainer's variable",
        "attempt = lambda: VARIABLE in os.environ or MARK in str(os.environ)",
    ),
    Escape(
        "environment secrets",
        "the C library's environment",
        "read libc's own block of variables",
        """
def attempt():
    block = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
    number = 0
    while block[number]:
        if MARK.encode() in block[number]:
            return True
        number += 1
""",
    ),
    Escape(
        "environment secrets",
        "what the fork left in memory",
        "search all objects for the text of an earlier program",
        """
import gc
def attempt():
    needle = "".join(["an earlier", " program's text"])
    near = [item for one in gc.get_objects() for item in gc.get_referents(one)]
    return any(isinstance(item, str) and item is not needle and needle in item for item in near)
""",
    ),
    Escape(
        "network",
        "connect to the trainer's machine",
        "TCP to a port that listens on 127.0.0.1",
        "attempt = lambda: socket.create_connection(('127.0.0.1', PORT), 2) is not None",
    ),
    Escape(
        "network",
        "ask a name server",
        "UDP to 8.8.8.8",
        "attempt = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53)) > 0",
    ),
    Escape("network", "resolve a name", "getaddrinfo", "attempt = lambda: bool(socket.getaddrinfo('example.com', 80))"),
    Escape(
        "network",
        "a local socket",
        "an abstract UNIX address, which needs no file",
        "attempt = lambda: socket.socket(socket.AF_UNIX).bind(PLACE) is None",
    ),
    Escape(
        "network",
        "around the filter of calls",
        "io_uring, which opens sockets without the call",
        "attempt = lambda: checked(libc.syscall(425, 8, ctypes.create_string_buffer(120)))",
    ),
    Escape(
        "fork bomb",
        "fork until an error",
        "processes that sleep",
        """
def attempt():
    for _ in range(200):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    return True
""",
    ),
    Escape(
        "fork bomb",
        "fork in every fork",
        "while True: os.fork(), in all of them, errors ignored",
        """
def attempt():
    while True:
        try:
            os.fork()
        except OSError:
            pass
""",
        ("wall_time", "cpu_time"),
        _BRIEF,
    ),
    Escape(
        "fork bomb",
        "threads until an error",
        "threads that sleep",
        """
import threading
def attempt():
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return True
""",
    ),
    Escape("memory bomb", "4 GiB at once", "bytearray(4 << 30)", "attempt = lambda: bool(bytearray(4 << 30))"),
    Escape(
        "memory bomb",
        "a list that grows",
        "append 1 MiB until an error",
        """
def attempt():
    kept = []
    while len(kept) < 4096:
        kept.append(bytearray(1 << 20))
    return True
""",
    ),
    Escape(
        "memory bomb",
        "memory that no limit counts",
        "memfd_create",
        "attempt = lambda: os.memfd_create('x') >= 0",
    ),
    Escape(
        "memory bomb",
        "shared memory that outlives it",
        "a System V segment",
        "attempt = lambda: checked(libc.shmget(0, ctypes.c_size_t(1 << 20), 0o1600))",
    ),
    Escape(
        "endless output",
        "standard output",
        "print without end",
        "def attempt():\n    while True: print('x' * 1000)",
        ("output",),
        _BRIEF,
    ),
    Escape(
        "endless output",
        "standard error",
        "write without end",
        "def attempt():\n    while True: os.write(2, b'x' * 1000)",
        ("output",),
        _BRIEF,
    ),
    Escape(
        "signals to the parent",
        "signal the trainer",
        "os.kill(PID, SIGUSR1)",
        "attempt = lambda: os.kill(PARENT, signal.SIGUSR1) is None",
    ),
    Escape(
        "signals to the parent",
        "kill what started it",
        "SIGKILL and SIGSTOP to every process it can name, the first one of its namespace included",
        """
def attempt():
    for number in (signal.SIGKILL, signal.SIGSTOP):
        for pid in range(1, 300):
            if pid != os.getpid():
                try:
                    os.kill(pid, number)
                except OSError:
                    pass
    time.sleep(0.1)
    return os.getppid() != 1
""",
    ),
    Escape(
        "signals to the parent",
        "kill everything",
        "os.kill(-1, SIGKILL)",
        "attempt = lambda: os.kill(-1, signal.SIGKILL)",
        ("ok", "killed"),
    ),
    Escape(
        "signals to the parent",
        "signal through a descriptor",
        "pidfd_open of the trainer",
        "attempt = lambda: signal.pidfd_send_signal(os.pidfd_open(PARENT), signal.SIGUSR1) is None",
    ),
    Escape(
        "survivors",
        "double fork and setsid",
        "a daemon that sleeps for a minute",
        """
def attempt():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    os.wait()
    os._exit(0)
""",
    ),
    Escape(
        "survivors",
        "a daemon that ignores signals",
        "it holds the output open and burns processor time",
        """
def attempt():
    if os.fork() == 0:
        os.setsid()
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True:
            pass
    os._exit(0)
""",
    ),
    Escape(
        "ptrace",
        "attach to the parent",
        "PTRACE_ATTACH",
        "attempt = lambda: checked(libc.ptrace(16, os.getppid(), 0, 0))",
    ),
    Escape(
        "ptrace",
        "attach to the trainer",
        "PTRACE_SEIZE",
        "attempt = lambda: checked(libc.ptrace(0x4206, PARENT, 0, 0))",
    ),
    Escape(
        "ptrace",
        "read the parent's memory",
        "process_vm_readv",
        "attempt = lambda: checked(libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0))",
    ),
    Escape(
        "privileges",
        "become root again",
        "os.setuid(0)",
        "attempt = lambda: os.setuid(0) is None and os.getuid() == 0 and os.listdir('/root') != []",
    ),
    Escape(
        "privileges",
        "root of an own namespace",
        "unshare(CLONE_NEWUSER), the first step of many kernel exploits",
        "attempt = lambda: checked(libc.unshare(0x10000000))",
    ),
    Escape(
        "privileges",
        "a namespace through clone",
        "clone with CLONE_NEWUSER",
        "attempt = lambda: checked(libc.syscall(56, ctypes.c_ulong(0x10000011), 0, 0, 0, 0))",
    ),
    Escape(
        "privileges",
        "load a program into the kernel",
        "bpf",
        "attempt = lambda: checked(libc.syscall(321, 0, None, 0))",
    ),
    Escape("privileges", "another root folder", "os.chroot", "attempt = lambda: os.chroot('/tmp') is None"),
    Escape(
        "time-outs",
        "catch the time-out",
        "an endless loop that catches every exception and handles every signal",
        """
def attempt():
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, lambda *_: None)
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
""",
        ("cpu_time", "wall_time"),
        {"wall_time": 2.0},
    ),
    Escape(
        "time-outs",
        "sleep beyond the limit",
        "time.sleep, repeated on every exception",
        """
def attempt():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
""",
        ("wall_time",),
        _BRIEF,
    ),
    Escape(
        "time-outs",
        "raise its own limits",
        "setrlimit to infinity",
        """
import resource
def attempt():
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return True
""",
    ),
]
