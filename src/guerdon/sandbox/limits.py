"""What a program may use, and how it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal

from guerdon.errors import GuerdonError

MIB = 1 << 20

Status = Literal["ok", "error", "wall_time", "cpu_time", "output", "killed"]


class SandboxError(GuerdonError):
    """No sandbox could be made, or it is not as strong as was asked for."""


class SandboxWarning(UserWarning):
    """Programs run without isolation."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        cpu_time: seconds of processor time of each process, rounded up.
        wall_time: seconds from start to end.
        memory: bytes of address space of each process; together they may use ``memory * processes``.
        processes: processes and threads at a time.
        file_size: bytes of one file.
        scratch: bytes of all files together (not enforced at level ``rlimits``).
        output: bytes of standard output, and of standard error; or of one value that a solution returns.
    """

    cpu_time: float = 5.0
    wall_time: float = 10.0
    memory: int = 512 * MIB
    processes: int = 16
    file_size: int = 16 * MIB
    scratch: int = 64 * MIB
    output: int = MIB

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise SandboxError(f"Limits: {name} is {value!r}, want more than 0")

    def request(self, runs: int = 1) -> dict[str, Any]:
        """The message to a worker, for a program that does the work of some runs."""
        return asdict(self) | {"cpu_time": ceil(self.cpu_time * runs), "wall_time": self.wall_time * runs}


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: ``ok`` (exit status 0), ``error`` (another one, such as after an exception), ``wall_time``,
            ``cpu_time`` or ``output`` where that limit was met, or ``killed`` by any other signal.
        stdout: what it wrote, up to the limit; bytes that are not UTF-8 are replaced.
        stderr: likewise.
        exit_code: the exit status, or minus the number of the signal; None where the program was ended from outside.
        seconds: from start to end.
        cpu_seconds: of the program and the children it waited for; 0 where it was ended from outside.
        level: how it was isolated.
    """

    status: Status
    stdout: str
    stderr: str
    exit_code: int | None
    seconds: float
    cpu_seconds: float
    level: str

    @property
    def ok(self) -> bool:
        return self.status == "ok"
