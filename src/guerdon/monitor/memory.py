"""How much memory a step needed at its peak."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak since the last look, in megabytes (2^20 bytes): of the accelerator where there is one, else of the process.

    On Linux the kernel's own high-water mark is set back at every look. Where that can't be done, the peak is the one
    since the process began.
    """

    def __init__(self) -> None:
        self.look()

    def look(self) -> float:
        """The peak since the last look."""
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**20
            torch.cuda.reset_peak_memory_stats()
            return peak
        try:
            mark = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            _RESET.write_text("5")
        except (OSError, StopIteration):
            unit = 1 if sys.platform == "darwin" else 2**10
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
        return int(mark.split()[1]) / 2**10
