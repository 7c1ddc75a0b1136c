"""Where guerdon keeps what it need not make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$GUERDON_CACHE``, or ``~/.cache/guerdon``; it need not exist yet."""
    return Path(os.environ.get("GUERDON_CACHE", Path.home() / ".cache" / "guerdon"))
