"""Verdicts that were paid for, on disk: one SQLite file that any number of processes may share."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from guerdon.cache import cache_folder
from guerdon.rewards.judges.questions import JudgeError

WAIT = 60.0  # seconds to wait for another process that is writing


def default_cache() -> Path:
    """``judge.sqlite`` in ``$GUERDON_CACHE``, or in ``~/.cache/guerdon``."""
    return cache_folder() / "judge.sqlite"


class AnswerCache:
    """What judges answered, by the SHA-256 of all that the answer depends on.

    The first answer to a question stays: whoever writes a later one gets the first back, so processes that share the
    file agree. A context manager that closes the file.

    Args:
        path: the file; made with its folder where missing.

    Raises:
        JudgeError: when the file is no cache, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
            self._file.execute(
                "create table if not exists answers (key text primary key, model text, answer text, at real)"
            )
        except (OSError, sqlite3.Error) as error:
            raise JudgeError(f"cannot use '{path}' as a judge's cache ({error}); delete it, or set 'cache'") from None

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, key: str) -> str | None:
        """The answer under a key, if there is one."""
        found = self._file.execute("select answer from answers where key = ?", (key,)).fetchone()
        return None if found is None else found[0]

    def put(self, key: str, model: str, answer: str) -> str:
        """Keep an answer unless there is one, and return the one that is kept."""
        self._file.execute("insert or ignore into answers values (?, ?, ?, ?)", (key, model, answer, time.time()))
        kept = self.get(key)
        assert kept is not None
        return kept
