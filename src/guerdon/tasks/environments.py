"""Environments that a language policy acts in by writing: their protocol, and episodes of many at once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import inspect
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

from pydantic import Field

from guerdon.rewards.forms import Calls
from guerdon.rewards.forms import failure as failure_of
from guerdon.rewards.workers import WorkerPool, pack
from guerdon.tasks.base import Kind, Problem, Task

Turns = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Step(NamedTuple):
    """What an environment says to an action.

    Attributes:
        observation: the text that the policy reads next.
        reward: of this turn.
        terminated: the episode ended by itself.
        truncated: it was cut by the environment.
        info: whatever else there is to know. ``state``, if given, identifies the state that follows, for credit that
            compares equal states (``state_key``); the observation does otherwise.
    """

    observation: str
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, Any] = {}


class TextEnvironment(Protocol):
    """One environment; its methods may be async.

    Everything that happens must follow from the problem, the seed and the actions, for episodes are replayed when a
    trajectory branches or a worker had to be replaced.
    """

    def reset(self, problem: Problem, seed: int) -> str | Step:
        """Begin an episode; return what the policy reads first."""
        ...

    def step(self, action: str) -> Step:
        """Take the text of a turn, without its end token."""
        ...


class Failure(NamedTuple):
    """An environment broke: the kind of fault and what happened."""

    kind: str
    message: str


Heard = Step | Failure


class EnvironmentTask(Task):
    """A task of several turns, in which environments answer; they write the reward ``task``, one number per turn.

    Subclasses make problems and say in ``environment`` how one is built. An environment that raises, hangs or dies ends
    its trajectory with a recorded fault; the run goes on.

    Args:
        max_turns: turns of an episode; one that takes more is cut.
        workers: processes that hold the environments; 0 keeps them in the trainer's.
        timeout: seconds that one call may take, in workers.
    """

    kind: ClassVar[Kind] = "language"
    supplies = frozenset({"reward", "turn_reward", "state_key"})
    answer_form: ClassVar[str] = "{}"  # how an answer is given in a turn

    def __init__(self, *, max_turns: Turns = 8, workers: int = 0, timeout: Seconds = 60.0) -> None:
        self.max_turns, self.workers, self.timeout = max_turns, workers, timeout
        self._pools: list[WorkerPool] = []

    @abstractmethod
    def environment(self) -> Callable[[], TextEnvironment]:
        """What builds an environment, and can be sent to a worker: a class, or a ``partial`` of one."""

    def begin(self, problems: Sequence[Problem], seeds: Sequence[int]) -> Session:
        """Episodes of some problems, side by side."""
        if self.workers and not self._pools:
            calls = Calls(workers=1, timeout=self.timeout)
            function = pack(Host, {"make": self.environment()})
            self._pools = [WorkerPool(function, calls) for _ in range(self.workers)]
        return Session([Episode(*pair) for pair in zip(problems, seeds, strict=True)], self.environment(), self._pools)

    def close(self) -> None:
        """End the workers; a later episode starts new ones."""
        for pool in self._pools:
            pool.close()


@dataclass
class Episode:
    """What has happened to one trajectory: enough to play it again."""

    problem: Problem
    seed: int
    actions: list[str] = field(default_factory=list)


class Session:
    """Episodes side by side; each row is an environment of its own."""

    def __init__(
        self, episodes: Sequence[Episode], make: Callable[[], TextEnvironment], pools: Sequence[WorkerPool]
    ) -> None:
        self.episodes = list(episodes)
        self._pools = list(pools)
        self._host = Host(make)
        # Slots of sessions that share workers must differ.
        self._name = hashlib.blake2b(f"{id(self)}".encode(), digest_size=6).hexdigest()

    def reset(self) -> list[Heard]:
        """Begin all episodes, or come back to where those stand that have actions already."""
        return self.replay(range(len(self.episodes)))

    def replay(self, rows: Iterable[int]) -> list[Heard]:
        """Bring some rows to where their actions lead, from the beginning."""
        return self._ask([(row, "replay", self._past(row)) for row in rows])

    def step(self, rows: Sequence[int], actions: Sequence[str]) -> list[Heard]:
        """Let some rows act."""
        heard = self._ask([(row, "step", {"action": text}) for row, text in zip(rows, actions, strict=True)])
        lost = [place for place, step in enumerate(heard) if isinstance(step, Failure) and step.message == LOST]
        for row, action in zip(rows, actions, strict=True):
            self.episodes[row].actions.append(action)
        if lost:  # the worker was replaced, for another row's fault: come back by replaying this step too
            again = self.replay(rows[place] for place in lost)
            for place, step in zip(lost, again, strict=True):
                heard[place] = step
        return heard

    def close(self) -> None:
        """Forget the environments."""
        self._ask([(row, "close", {}) for row in range(len(self.episodes))])

    def _past(self, row: int) -> dict[str, Any]:
        episode = self.episodes[row]
        return {"problem": episode.problem, "seed": episode.seed, "actions": list(episode.actions)}

    def _ask(self, calls: Sequence[tuple[int, str, Mapping[str, Any]]]) -> list[Heard]:
        asked = [({"op": op, "slot": f"{self._name}/{row}"} | dict(more), row) for row, op, more in calls]
        if not self._pools:
            return list(self._host.together([arguments for arguments, _ in asked]))
        futures = [self._pools[row % len(self._pools)].submit(arguments) for arguments, row in asked]
        heard: list[Heard] = []
        for future in futures:
            reply = future.result()
            if reply.kind is None:
                heard.append(_from_json(reply.result))
            else:
                heard.append(Failure(reply.kind, reply.message))
        return heard


LOST = "the environment's worker was replaced"


class Host:
    """Environments by slot, in whatever process they live.

    Args:
        make: builds one.
    """

    def __init__(self, make: Callable[[], TextEnvironment]) -> None:
        self._make, self._open = make, {}

    def __call__(self, **arguments: Any) -> str:
        """One call in a worker, answered in JSON."""
        return _as_json(next(self.together([arguments])))

    def together(self, calls: Sequence[Mapping[str, Any]]) -> Iterator[Heard]:
        """Calls of different slots, those of async environments at the same time."""
        results = [self._attempt(**arguments) for arguments in calls]
        waiting = [result for result in results if inspect.isawaitable(result)]
        done = iter(_gathered(waiting) if waiting else ())
        for result in results:
            yield next(done) if inspect.isawaitable(result) else result

    def _attempt(self, op: str, slot: str, **more: Any) -> Any:
        try:
            if op == "close":
                return self._closed(slot)
            if op == "step" and slot not in self._open:
                return Failure("killed", LOST)
            environment = self._open[slot] if op == "step" else self._open.setdefault(slot, self._make())
            if inspect.iscoroutinefunction(environment.step):
                return _awaited(environment, op, **more)
            if op == "step":
                return _checked(environment.step(more["action"]))
            heard = _checked(environment.reset(more["problem"], more["seed"]))
            for action in more["actions"]:
                heard = _checked(environment.step(action))
            return heard
        except (Exception, SystemExit) as error:
            return _failed(error)

    def _closed(self, slot: str) -> Step:
        environment = self._open.pop(slot, None)
        if hasattr(environment, "close"):
            environment.close()
        return Step("")


async def _awaited(environment: Any, op: str, **more: Any) -> Heard:
    try:
        if op == "step":
            return _checked(await environment.step(more["action"]))
        begun = environment.reset(more["problem"], more["seed"])
        heard = _checked(await begun if inspect.isawaitable(begun) else begun)
        for action in more["actions"]:
            heard = _checked(await environment.step(action))
        return heard
    except (Exception, SystemExit) as error:
        return _failed(error)


def _gathered(waiting: Sequence[Any]) -> list[Heard]:
    async def everything() -> list[Heard]:
        return list(await asyncio.gather(*waiting))

    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # the caller may be inside an event loop of its own
        return thread.submit(asyncio.run, everything()).result()


def _checked(heard: Any) -> Step:
    """What an environment said, as a ``Step``; refused where it is none."""
    if isinstance(heard, str):
        heard = Step(heard)
    if not isinstance(heard, tuple) or not isinstance(heard[0], str):
        raise TypeError(f"the environment gave {type(heard).__name__} {heard!r:.60}, want text or a Step")
    step = Step(*heard)
    reward = float(step.reward)
    if not math.isfinite(reward):
        raise ValueError(f"the environment gave reward {step.reward}, want a finite number")
    ends = {"terminated": bool(step.terminated), "truncated": bool(step.truncated)}
    return step._replace(reward=reward, **ends, info={**step.info, "state_key": state_key(step)})


def _failed(error: BaseException) -> Failure:
    reply = failure_of(error)
    return Failure(str(reply.kind), reply.message)


def _as_json(heard: Heard) -> str:
    kind = "failure" if isinstance(heard, Failure) else "step"
    return json.dumps({kind: heard._asdict()}, default=repr)


def _from_json(text: str) -> Heard:
    ((kind, content),) = json.loads(text).items()
    return Failure(**content) if kind == "failure" else Step(**content)


def state_key(step: Step) -> int:
    """Identity (int64) of the state that a step led to: its ``info["state"]``, or else its observation.

    Arrays count by shape, type and content; mappings by their items in order of their keys. Sessions add it to every
    step's ``info`` as ``state_key``.
    """
    state = step.info.get("state", step.observation)
    digest = hashlib.blake2b(_canonical(state), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _canonical(value: Any) -> bytes:
    if hasattr(value, "tobytes") and hasattr(value, "shape"):
        return b"array" + f"{value.dtype}{tuple(value.shape)}".encode() + value.tobytes()
    if isinstance(value, Mapping):
        items = sorted((repr(key), _canonical(item)) for key, item in value.items())
        return b"{" + b",".join(key.encode() + b":" + item for key, item in items) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(_canonical, value)) + b"]"
    return f"{type(value).__name__}:{value!r}".encode()
