"""Processes in which rewards work, and which can be ended when a call hangs, dies or eats memory."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import cloudpickle

from guerdon.errors import RecipeError, RewardError
from guerdon.rewards.forms import DEFAULT_TIMEOUT, Calls, Reply, counted, failure
from guerdon.rewards.wire import decode
from guerdon.rewards.worker_process import BEGUN, READY

Future = concurrent.futures.Future[Reply]
_START = 120.0  # seconds to import what a function needs, on a busy machine
_PULSE = 0.5  # seconds between looks at a silent worker


def pack(target: Callable[..., Any] | str, options: Mapping[str, Any]) -> bytes:
    """A function or class with its options, as a worker can load it.

    Args:
        target: what can be imported goes by name, anything else (closures, notebook functions) as its code; an import
            path ``package.module:function`` or ``file.py:function`` is imported by the worker.

    Raises:
        RecipeError: when it holds something that cannot be sent to another process.
    """
    if isinstance(target, str):
        source, _, name = target.rpartition(":")
        target = f"{Path(source).resolve()}:{name}" if source.endswith(".py") else target
    try:
        return cloudpickle.dumps((target, dict(options)))
    except Exception as error:
        raise RecipeError(
            f"reward '{getattr(target, '__name__', target)}' cannot be sent to a worker "
            f"({type(error).__name__}: {error}); make it a function of a module or file, or set workers: 0 without "
            "timeout and memory_mb"
        ) from None


class WorkerPool:
    """Processes that make the calls of one function, each one call at a time.

    A worker starts when there is work for it and lives until ``close``. One that exceeds the time limit or runs out of
    memory is killed and replaced, and its call is a fault. Replies belong to their calls, so neither the number of
    workers nor their speed shows in them. Usable from any thread, and after a fork.

    Args:
        function: from ``pack``.
        calls: ``workers`` (at least 1 is taken), ``timeout``, ``memory_mb`` and ``retries``.
        backlog: calls that may wait or work at a time; ``submit`` blocks at more.

    Raises:
        RecipeError: when a memory limit is asked for where the system has none.
    """

    def __init__(self, function: bytes, calls: Calls, *, backlog: int = 4096) -> None:
        if calls.memory_mb and sys.platform != "linux":
            raise RecipeError(f"memory_mb works on Linux, not on '{sys.platform}'; remove it")
        self._function, self._calls = function, calls
        self._slots = threading.BoundedSemaphore(backlog)
        self._lock = threading.Lock()
        self._crew: _Crew | None = None

    def submit(self, arguments: Mapping[str, Any], timeout: float | None = None) -> Future:
        """Ask for a call with keyword arguments; the future gives a ``Reply`` and never raises a reward's error.

        It raises ``RewardError`` when no worker has ever been able to load the function.
        """
        slots = self._slots  # a future that outlives the pool must not keep it
        slots.acquire()
        future: Future = concurrent.futures.Future()
        future.add_done_callback(lambda _: slots.release())
        with self._lock:
            if self._crew is None or self._crew.closed or self._crew.owner != os.getpid():
                self._crew = _Crew(self._function, self._calls)
                weakref.finalize(self, self._crew.close)
            self._crew.jobs.put((future, dict(arguments), timeout or self._calls.timeout or DEFAULT_TIMEOUT))
        return future

    def call(self, arguments: Mapping[str, Any], timeout: float | None = None) -> Any:
        """Make one call and return its result.

        Raises:
            TimeoutError: when it exceeds the limit.
            MemoryError: when it runs out of memory.
            RuntimeError: when the worker dies.
            ValueError: when the function raises anything else.
        """
        reply = self.submit(arguments, timeout).result()
        if reply.kind is None:
            return reply.result
        kinds = {"timeout": TimeoutError, "memory": MemoryError, "killed": RuntimeError}
        raise kinds.get(reply.kind, ValueError)(reply.message)

    def pids(self) -> list[int]:
        """Process ids of the workers that live."""
        return [] if self._crew is None else [worker.process.pid for worker in list(self._crew.workers)]

    def close(self) -> None:
        """End all workers and forget what waits; a later call starts new ones."""
        with self._lock:
            if self._crew is not None:
                self._crew.close()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Crew:
    """The threads of a pool, each in charge of one worker, and the jobs they share."""

    def __init__(self, function: bytes, calls: Calls) -> None:
        self.setup = {"function": function, "memory_mb": calls.memory_mb, "parent": os.getpid()}
        self.retries, self.owner, self.closed, self.proven = calls.retries, os.getpid(), False, False
        self.jobs: queue.SimpleQueue[tuple[Future, dict[str, Any], float] | None] = queue.SimpleQueue()
        self.workers: set[_Worker] = set()
        self.lock = threading.Lock()
        self.threads = max(1, calls.workers)
        for number in range(self.threads):
            threading.Thread(target=self._serve, daemon=True, name=f"reward-worker-{number}").start()

    def _serve(self) -> None:
        worker: _Worker | None = None
        while (job := self.jobs.get()) is not None and not self.closed:
            future, arguments, timeout = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                reply, worker = self._attempts(arguments, timeout, worker)
                future.set_result(reply)
            except BaseException as error:
                future.set_exception(error)
        if job is not None:
            job[0].cancel()
        if worker is not None:
            self._dismiss(worker)

    def _attempts(
        self, arguments: dict[str, Any], timeout: float, worker: _Worker | None
    ) -> tuple[Reply, _Worker | None]:
        """Make a call until it succeeds, fails for good or has had its tries; the worker for the next one."""
        try:
            request = pickle.dumps(arguments, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            message = f"the sample cannot be sent to a worker: {failure(error).message}"
            return Reply(kind="exception", message=message), worker
        tries, excused = 0, False
        while True:
            tries += 1
            if worker is not None and not worker.alive():
                worker = self._dismiss(worker)
            worker = worker or self._hire()
            if worker is None:
                return Reply(kind="killed", message="no new worker could be started"), None
            reply, begun = worker.ask(request, timeout), worker.begun
            if worker.spoiled:
                worker = self._dismiss(worker)
            if reply.kind == "killed" and not begun and not excused and not self.closed:
                tries, excused = tries - 1, True  # it died before the call began, so this call is not to blame
            elif reply.kind is None or not reply.again or tries > self.retries or self.closed:
                return counted(reply, tries), worker

    def _hire(self) -> _Worker | None:
        """A new worker that has loaded the function; None where that failed now but not before."""
        worker: _Worker | None = None
        try:
            worker = _Worker()
            with self.lock:
                self.workers.add(worker)
            if self.closed:
                raise EOFError
            worker.begin({**self.setup, "sys_path": list(sys.path)})
            self.proven = True
            return worker
        except Exception as error:
            if worker is not None:
                self._dismiss(worker)
            if self.proven or self.closed:
                return None
            raise RewardError(f"a worker cannot load the reward function: {error}") from None

    def _dismiss(self, worker: _Worker) -> None:
        worker.stop()
        with self.lock:
            self.workers.discard(worker)

    def close(self) -> None:
        if self.closed or self.owner != os.getpid():
            return
        self.closed = True
        while True:
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job[0].cancel()
        for _ in range(self.threads):
            self.jobs.put(None)
        with self.lock:
            workers = list(self.workers)
            self.workers.clear()
        for worker in workers:
            worker.kill()


class _Worker:
    """One process of a pool, seen from the parent."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        self.spoiled = self.begun = False
        script = str(Path(__file__).with_name("worker_process.py"))
        try:
            # A session of its own: Ctrl-C is the trainer's to handle, and whatever the function starts dies with it.
            self.process = subprocess.Popen(
                [sys.executable, "-P", script, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONHASHSEED": "0"},
            )
        finally:
            theirs.close()

    def begin(self, setup: Mapping[str, Any]) -> None:
        """Have the function loaded, and wait until it is."""
        self.connection.send_bytes(pickle.dumps(dict(setup)))
        answer = self._receive(_START)
        if answer != READY:
            raise RuntimeError(json.loads(answer))

    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: bytes, timeout: float) -> Reply:
        """Have one call made; ``begun`` says that the function was called, ``spoiled`` that the worker must go."""
        self.spoiled, self.begun = True, False
        try:
            self.connection.send_bytes(request)
            answer = self._receive(_START)
            if answer == BEGUN:
                self.begun = True
                answer = self._receive(timeout)
            reply = Reply(**json.loads(answer))
            reply = reply._replace(result=decode(reply.result))
        except TimeoutError:
            return Reply(kind="timeout", message=f"no result within {timeout:g} s", again=True)
        except (EOFError, OSError):
            return Reply(kind="killed", message=f"the worker {self._end()}", again=True)
        self.spoiled = reply.kind == "memory"
        return reply

    def _receive(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while not self.connection.poll(max(0.0, min(_PULSE, deadline - time.monotonic()))):
            # What the function started may hold the connection open after the worker itself is gone.
            if not self.alive() and not self.connection.poll(0):
                raise EOFError
            if time.monotonic() >= deadline:
                raise TimeoutError
        return self.connection.recv_bytes()

    def _end(self) -> str:
        """How the process ended, which closed the connection; what it left running ends too."""
        try:
            self.process.wait(1.0)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        except subprocess.TimeoutExpired:
            self.kill()
        status = self.process.wait()
        return f"died of {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"

    def kill(self) -> None:
        """End the process and whatever it started; the connection is the owner's to close."""
        if self.alive():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End the process and close the connection."""
        self.kill()
        self.connection.close()
