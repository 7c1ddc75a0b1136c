"""The event loop on which async rewards work, several calls at a time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from guerdon.rewards.forms import DEFAULT_TIMEOUT, Calls, Reply, counted, failure

Future = concurrent.futures.Future[Reply]
_PULSE = 0.5  # seconds between looks at the loop
_GRACE = 5.0  # seconds beyond the time limit of a call that the loop may stand still


class EventLoop:
    """An event loop in a thread of its own, on which async rewards work; it is given up when something blocks it."""

    _current: EventLoop | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.blocked = False
        threading.Thread(target=self.loop.run_forever, daemon=True, name="reward-loop").start()

    @classmethod
    def current(cls) -> EventLoop:
        """The loop of this process."""
        with cls._lock:
            if cls._current is None or cls._current.blocked:
                cls._current = cls()
            return cls._current

    def wait(self, future: Future, patience: float) -> Reply | None:
        """The result of a future of this loop; None if the loop stood still for longer than ``patience``."""
        alive = threading.Event()
        self.loop.call_soon_threadsafe(alive.set)
        asked = time.monotonic()
        while not concurrent.futures.wait([future], _PULSE).done:
            if alive.is_set():
                alive.clear()
                self.loop.call_soon_threadsafe(alive.set)
                asked = time.monotonic()
            elif self.blocked or time.monotonic() - asked > patience:
                self.blocked = True
                return None
        return future.result()


class AsyncCalls:
    """Calls of an async function on the event loop of this process, several at a time.

    A call that exceeds the time limit is cancelled and not waited for. A function that blocks instead of awaiting
    stops all calls; when that exceeds the limit they are faults, and a new loop takes over.
    """

    def __init__(self, function: Callable[..., Any], calls: Calls) -> None:
        self._function, self._calls = function, calls
        self._timeout = calls.timeout or DEFAULT_TIMEOUT
        self._place: tuple[EventLoop, asyncio.Semaphore] | None = None
        self._pending: set[Future] = set()

    def submit(self, arguments: Mapping[str, Any]) -> Callable[[], Reply]:
        """Begin a call with keyword arguments; the result waits for its reply."""
        events = EventLoop.current()
        if self._place is None or self._place[0] is not events:
            self._place = events, asyncio.Semaphore(self._calls.concurrency)
        future = asyncio.run_coroutine_threadsafe(self._attempts(dict(arguments), self._place[1]), events.loop)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)

        def wait() -> Reply:
            reply = events.wait(future, self._timeout + _GRACE)
            if reply is None:
                return Reply(kind="timeout", message="the function blocks the event loop; await, or set workers: 1")
            return reply

        return wait

    def cancel(self) -> None:
        """Forget the calls that are not done."""
        for future in list(self._pending):
            future.cancel()

    async def _attempts(self, arguments: dict[str, Any], places: asyncio.Semaphore) -> Reply:
        async with places:
            reply, tries = await self._once(arguments), 1
            while reply.again and tries <= self._calls.retries:
                reply, tries = await self._once(arguments), tries + 1
        return counted(reply, tries)

    async def _once(self, arguments: dict[str, Any]) -> Reply:
        task = asyncio.ensure_future(self._guarded(arguments))
        await asyncio.wait({task}, timeout=None if math.isinf(self._timeout) else self._timeout)
        if not task.done():
            task.cancel()
            return Reply(kind="timeout", message=f"no result within {self._timeout:g} s", again=True)
        return task.result()

    async def _guarded(self, arguments: dict[str, Any]) -> Reply:
        try:
            return Reply(await self._function(**arguments))
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            return failure(error)
