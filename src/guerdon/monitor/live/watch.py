"""Tells open pages what changed: one look at the files for all of them, as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from anyio import to_thread

from guerdon.monitor.live.store import RunRow

# Metrics are written every two seconds at most; looking once a second shows them soon and costs one stat per file.
LOOK_SECONDS = 1.0
# Where nothing has changed for a while, looking less often is soon enough.
IDLE_AFTER, IDLE_SECONDS = 30.0, 5.0
# A look may take this share of the time, which matters where a file system is slow.
LOOK_SHARE = 0.1
# Proxies close connections that are silent for a minute, and writing is how a vanished reader is noticed.
HEARTBEAT_SECONDS = 15.0

Rows = Mapping[str, RunRow]
# What a page shows, by key, as versions that change with it.
Versions = Mapping[str, Any]


class Watcher:
    """Looks at the runs while anyone is watching, and wakes the watchers when something changed.

    Args:
        look: gives the runs as they are; called in a thread.
        seconds: time between looks while something happens.
    """

    def __init__(self, look: Callable[[], Rows], *, seconds: float = LOOK_SECONDS) -> None:
        self._look = look
        self._seconds = seconds
        self._rows: Rows | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.watchers = 0
        self.closed = False

    async def states(self) -> AsyncGenerator[Rows | None, None]:
        """The runs as they are now and whenever they changed, and None when that took longer than a heartbeat; ends
        when the watcher is closed. A slow reader gets the newest state, not every one."""
        self.watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
        try:
            seen = None
            while not self.closed:
                if self._rows is not None and self._rows is not seen:
                    seen = self._rows
                    yield seen
                    continue
                try:
                    await asyncio.wait_for(self._changed.wait(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield None
        finally:
            self.watchers -= 1
            if not self.watchers and self._task is not None:
                self._task.cancel()
                self._task = self._rows = None

    def close(self) -> None:
        """End every watcher, so that a server can stop while pages are open."""
        self.closed = True
        self._wake()

    async def _watch(self) -> None:
        changed_at = time.monotonic()
        while True:
            began = time.monotonic()
            try:
                rows = await to_thread.run_sync(self._look)
            except Exception:  # a file system that fails for a moment must not end the page's updates
                logging.getLogger(__name__).exception("cannot look at the runs")
                rows = self._rows or {}
            now = time.monotonic()
            if self._rows is None or _versions(rows) != _versions(self._rows):
                self._rows, changed_at = rows, now
                self._wake()
            pause = self._seconds if now - changed_at < IDLE_AFTER else max(self._seconds, IDLE_SECONDS)
            await asyncio.sleep(max(pause, (now - began) / LOOK_SHARE))

    def _wake(self) -> None:
        waiting, self._changed = self._changed, asyncio.Event()
        waiting.set()


async def events(watcher: Watcher, versions: Callable[[Rows], Versions]) -> AsyncGenerator[bytes, None]:
    """Server-sent events: first every version that the page shows, then those that changed; null for what is gone.

    A page that connects again, after sleep or a restart, finds by itself what it missed.
    """
    sent: dict[str, Any] = {}
    yield b"retry: 2000\n\n"
    async with aclosing(watcher.states()) as states:
        async for rows in states:
            if rows is None:
                yield b": still here\n\n"
                continue
            now = dict(versions(rows))
            fresh = {key: value for key, value in now.items() if sent.get(key) != value}
            fresh |= {key: None for key in sent if key not in now}
            if fresh or not sent:
                yield f"data: {json.dumps(fresh)}\n\n".encode()
            sent = now


def _versions(rows: Rows) -> dict[str, str]:
    return {name: row.version for name, row in rows.items()}
