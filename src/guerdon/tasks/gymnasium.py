"""Environments with the Gymnasium interface as a task: whole episodes, or environments that stay open between steps."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from guerdon.errors import CheckpointError, TaskError
from guerdon.registry import import_object, register
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Problem, Task

# Reset seeds below are for training, from here to twice this number for evaluation; all fit in 31 bits.
HELD_OUT = 2**30
# An episode this long has no time limit; the longest standard ones (Atari) take 27,000 actions.
LONGEST_EPISODE = 100_000

# (observations (R,...), rows (R,), action number) -> actions (R,) int64 or (R,D) float32
Act = Callable[[Tensor, np.ndarray, int], Tensor]


class Trajectories(NamedTuple):
    """N trajectories of at most T actions, right-padded with zeros.

    Attributes:
        observation: (N,T,...) what each action was chosen from; uint8 images, int64 indices, float32 otherwise.
        action: (N,T) int64 or (N,T,D) float32, as the policy chose it (before clipping to the bounds).
        reward: (N,T) float32.
        mask: (N,T) true where an action was taken.
        done: (N,) the environment terminated.
        truncated: (N,) the time limit ended the episode. Neither is true of a trajectory that a horizon cut.
        final_observation: (N,...) what the last action led to.
        row: (N,) which environment acted.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    mask: Tensor
    done: Tensor
    truncated: Tensor
    final_observation: Tensor
    row: Tensor


class Environments:
    """Environments of one kind, stepped one after another in this process, made as rows are first reset.

    Args:
        make: builds one environment.
        space: its observation space.
    """

    def __init__(self, make: Callable[[], gym.Env], space: gym.Space) -> None:
        self._make = make
        self._envs: list[gym.Env] = []
        self._shape = space.shape or ()
        self._first = np.int64(space.start if isinstance(space, gym.spaces.Discrete) else 0)
        self._dtype = observation_dtype(space)

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """Begin an episode in each of the given rows; returns the first observations (R,...)."""
        while len(self._envs) <= max(rows, default=0):
            self._envs.append(self._make())
        observations = np.empty((len(rows), *self._shape), self._dtype)
        for i, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
            observations[i], _ = self._envs[row].reset(seed=seed)
        return self._from_zero(observations)

    def step(
        self, rows: Sequence[int], actions: Sequence[Any] | np.ndarray
    ) -> tuple[np.ndarray, list[float], list[bool], list[bool]]:
        """Take one action in each of the given rows.

        Returns:
            observations (R,...), and per row: reward, terminated, truncated.
        """
        observations = np.empty((len(rows), *self._shape), self._dtype)
        rewards, terminated, truncated = [], [], []
        envs = self._envs
        for i, (row, action) in enumerate(zip(rows, actions, strict=True)):
            observations[i], reward, ended, cut, _ = envs[row].step(action)
            rewards.append(reward)
            terminated.append(ended)
            truncated.append(cut)
        return self._from_zero(observations), rewards, terminated, truncated

    def _from_zero(self, observations: np.ndarray) -> np.ndarray:
        return observations - self._first if self._first else observations


@dataclass
class _Stream:
    """One environment that stays open between steps, and what replays its current episode."""

    index: int
    start: int
    episode: int = 0
    actions: list[Any] = field(default_factory=list)

    def seed(self, episode: int | None = None) -> int:
        return derive(self.start, self.index, self.episode if episode is None else episode) % HELD_OUT


@register("task", "gymnasium")
class Gymnasium(Task):
    """A Gymnasium environment; a problem is a reset seed, and the environment writes the reward ``task``.

    Args:
        env: registered id (``CartPole-v1``), ``module:Id-v0``, or the import path ``module:Class`` of an
            environment class or of a function that returns an environment.
        kwargs: arguments of the environment's constructor.
        max_steps: time limit of an episode, in actions; the environment's own by default.
        seed: chooses the reset seeds. Those of ``eval_problems`` are at least 2^30, those of training below.

    Raises:
        RecipeError: when an import path does not lead anywhere.
        TaskError: when no such id is registered, the environment cannot be built, or one of its spaces is neither
            ``Box`` nor ``Discrete``.
    """

    kind = "control"
    supplies = frozenset({"reward"})

    def __init__(
        self, *, env: str, kwargs: dict[str, Any] | None = None, max_steps: int | None = None, seed: int = 0
    ) -> None:
        self.env, self.kwargs, self.max_steps, self.seed = env, kwargs or {}, max_steps, seed
        if max_steps is not None and max_steps < 1:
            raise TaskError(f"task 'gymnasium': max_steps is {max_steps}, want at least 1, or null for the env's own")
        self._factory: Callable[..., gym.Env] | None = None
        if ":" in env and not re.search(r"-v\d+$", env):
            self._factory = import_object(env)
        probe = self._make()
        self.observation_space, self.action_space = probe.observation_space, probe.action_space
        probe.close()
        self._check_spaces()
        self._episodes = Environments(self._make, self.observation_space)
        self._open = Environments(self._make, self.observation_space)
        self._streams: list[_Stream] = []
        self._observation = np.empty(0)

    # Problems ---------------------------------------------------------------------------------------------

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Draw ``n`` reset seeds in [0, 2^30)."""
        return [self._problem(s) for s in numpy_generator(self.seed, seed).integers(HELD_OUT, size=n).tolist()]

    def eval_problems(self, n: int) -> list[Problem]:
        """The first ``n`` held-out reset seeds, in [2^30, 2^31)."""
        offset = derive(self.seed, "held-out")
        return [self._problem(HELD_OUT + (offset + i) % HELD_OUT) for i in range(n)]

    def _problem(self, seed: int) -> Problem:
        return Problem(task_id=seed, prompt=f"{self.env}, reset seed {seed}", start=seed)

    # Playing ----------------------------------------------------------------------------------------------

    def play_episodes(self, seeds: Sequence[int], act: Act) -> Trajectories:
        """Play one whole episode from each reset seed; trajectory i is the episode of ``seeds[i]``.

        Raises:
            TaskError: when an episode has not ended after 100,000 actions.
        """

        def drop(rows: np.ndarray, following: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return rows[~ended], following[~ended]

        first = self._episodes.reset(range(len(seeds)), seeds)
        played = _play(self._episodes, first, act, decode=self._decode, after_end=drop, steps=LONGEST_EPISODE)
        last = slice(-len(played.rows[-1]), None)
        if not np.logical_or(played.terminated[last], played.truncated[last]).all():
            raise TaskError(f"env '{self.env}' is still running after {LONGEST_EPISODE:,} actions; set task.max_steps")
        return _cut(played)

    def play_horizon(self, starts: Sequence[int], act: Act, horizon: int) -> tuple[Trajectories, Tensor]:
        """Take ``horizon`` actions in each of the environments that stay open between calls.

        Environment i is opened on the first call, with ``starts[i]``; later calls go on where the last one
        stopped. An episode that ends is followed by another, whose reset seed derives from that start, i and
        the number of the episode, so there are at least as many trajectories as environments.

        Returns:
            the trajectories, by environment and time, and the reset seed (N,) of the episode each belongs to.
        """
        streams = self._open_streams(starts)
        began = [stream.episode for stream in streams]

        def reopen(rows: np.ndarray, following: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            observation = following.copy()
            finished = np.flatnonzero(ended).tolist()
            for row in finished:
                streams[row].episode += 1
            observation[finished] = self._open.reset(finished, [streams[row].seed() for row in finished])
            return rows, observation

        current = self._observation[: len(starts)]
        played = _play(self._open, current, act, decode=self._decode, after_end=reopen, steps=horizon)
        trajectories = _cut(played)
        self._observation[: len(starts)] = played.observation
        seeds = []
        lengths = trajectories.mask.sum(dim=1).tolist()
        ended = (trajectories.done | trajectories.truncated).tolist()
        for n, row in enumerate(trajectories.row.tolist()):
            stream = streams[row]
            seeds.append(stream.seed(began[row]))
            began[row] += 1
            taken = trajectories.action[n, : lengths[n]].tolist()
            stream.actions = [] if ended[n] else stream.actions + taken
        return trajectories, torch.tensor(seeds, dtype=torch.int64)

    def _open_streams(self, starts: Sequence[int]) -> list[_Stream]:
        added = [_Stream(index, starts[index]) for index in range(len(self._streams), len(starts))]
        if added:
            first = self._open.reset([s.index for s in added], [s.seed() for s in added])
            self._observation = np.concatenate([self._observation, first]) if self._streams else first
            self._streams += added
        return self._streams[: len(starts)]

    def _decode(self, actions: Tensor) -> Any:
        """What the environments are given: Python integers, or arrays clipped to the bounds."""
        space = self.action_space
        if isinstance(space, gym.spaces.Discrete):
            return (actions + int(space.start)).tolist() if space.start else actions.tolist()
        assert isinstance(space, gym.spaces.Box)
        shaped = actions.numpy().reshape(-1, *space.shape)
        return np.minimum(np.maximum(shaped, space.low), space.high).astype(space.dtype, copy=False)

    # State ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The open episodes: for each environment its start, its episode's number, and the actions taken in it."""
        if not self._streams:
            return {}
        return {
            "open": [
                {
                    "start": stream.start,
                    "episode": stream.episode,
                    "actions": list(stream.actions),
                    "digest": _digest(self._observation[stream.index]),
                }
                for stream in self._streams
            ]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replay the open episodes: one environment step for each action taken in them so far.

        Raises:
            CheckpointError: when an environment does not come back to the observation it was left at.
        """
        saved = state.get("open", [])
        streams = [_Stream(i, e["start"], e["episode"], list(e["actions"])) for i, e in enumerate(saved)]
        observations = self._open.reset(range(len(streams)), [stream.seed() for stream in streams])
        dtype = torch.int64 if isinstance(self.action_space, gym.spaces.Discrete) else torch.float32
        for stream, entry in zip(streams, saved, strict=True):
            for action in self._decode(torch.tensor(stream.actions, dtype=dtype)) if stream.actions else ():
                observations[stream.index] = self._open.step([stream.index], [action])[0][0]
            if _digest(observations[stream.index]) != entry["digest"]:
                raise CheckpointError(
                    f"env '{self.env}', replayed from reset seed {stream.seed()} over "
                    f"{len(stream.actions)} actions, gave another observation than before: it is not deterministic, "
                    "or its version changed; use sampling.horizon: null, which keeps nothing open between steps"
                )
        self._streams, self._observation = streams, observations

    # Building ---------------------------------------------------------------------------------------------

    def _make(self) -> gym.Env:
        limit = {} if self.max_steps is None else {"max_episode_steps": self.max_steps}
        try:
            if self._factory is not None:
                built = self._factory(**self.kwargs)
                return built if self.max_steps is None else gym.wrappers.TimeLimit(built, self.max_steps)
            return gym.make(self.env, disable_env_checker=True, **limit, **self.kwargs)
        except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
            close = difflib.get_close_matches(self.env, gym.registry, n=3, cutoff=0.5)
            known = f"nearest known: {', '.join(close)}" if close else "no known id is like it"
            raise TaskError(f"task 'gymnasium': no env '{self.env}' ({error}); {known}") from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise TaskError(f"task 'gymnasium': cannot build env '{self.env}' with {self.kwargs}: {reason}") from error

    def _check_spaces(self) -> None:
        for role, space in (("observation", self.observation_space), ("action", self.action_space)):
            box = isinstance(space, gym.spaces.Box)
            if role == "action" and box and not np.issubdtype(space.dtype, np.floating):
                box = False
            if not box and not isinstance(space, gym.spaces.Discrete):
                raise TaskError(
                    f"task 'gymnasium': env '{self.env}' has {role} space {space}; supported are Discrete and "
                    f"{'Box' if role == 'observation' else 'Box of floats'}; name a function 'module:function' as env "
                    "that returns the environment in a wrapper which converts it"
                )


def observation_dtype(space: gym.Space) -> type[np.generic]:
    """How observations of a space are kept: images as uint8, indices as int64, anything else as float32."""
    if isinstance(space, gym.spaces.Discrete):
        return np.int64
    return np.uint8 if space.dtype == np.uint8 else np.float32


def _digest(observation: np.ndarray) -> str:
    return hashlib.blake2b(observation.tobytes(), digest_size=8).hexdigest()


@dataclass
class _Played:
    """What happened, step by step and in it by row, and the observations it ended with.

    Numbers of a row stand in one flat list, arrays of all rows that acted in a list of steps.
    """

    observation: np.ndarray
    rows: list[np.ndarray] = field(default_factory=list)
    observations: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    following: list[np.ndarray] = field(default_factory=list)


def _play(
    envs: Environments,
    observation: np.ndarray,
    act: Act,
    *,
    decode: Callable[[Tensor], Any],
    after_end: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    steps: int,
) -> _Played:
    """Step until ``steps`` or until no row is left; ``after_end`` says which rows go on, and from what."""
    played = _Played(observation)
    rows = np.arange(len(observation))
    indices = rows.tolist()
    for t in range(steps):
        # A tensor of its own, aligned in memory: the same numbers in every process, bit for bit.
        seen = torch.tensor(observation)
        action = act(seen, rows, t)
        following, reward, terminated, truncated = envs.step(indices, decode(action))
        played.rows.append(rows)
        played.observations.append(seen)
        played.actions.append(action)
        played.rewards += reward
        played.terminated += terminated
        played.truncated += truncated
        played.following.append(following)
        observation = following
        if any(terminated) or any(truncated):
            rows, observation = after_end(rows, following, np.logical_or(terminated, truncated))
            indices = rows.tolist()
            if not indices:
                break
    played.observation = observation
    return played


def _cut(played: _Played) -> Trajectories:
    """Cut what happened into one trajectory per row and episode, by row and time."""
    sizes = [len(rows) for rows in played.rows]
    row, time = np.concatenate(played.rows), np.repeat(np.arange(len(sizes)), sizes)
    order = np.argsort(row, kind="stable")
    row, time = row[order], time[order]
    terminated, truncated = (np.array(x, dtype=bool)[order] for x in (played.terminated, played.truncated))
    first = np.ones(len(row), dtype=bool)
    first[1:] = (row[1:] != row[:-1]) | terminated[:-1] | truncated[:-1]
    begins = np.flatnonzero(first)
    trajectory = np.cumsum(first) - 1
    position = np.arange(len(row)) - begins[trajectory]
    last = np.append(begins[1:], len(row)) - 1
    slot = (order - np.append(0, np.cumsum(sizes))[time])[last]

    at = (torch.from_numpy(trajectory), torch.from_numpy(position))
    shape = (len(begins), int(position.max()) + 1)

    def pad(flat: Tensor) -> Tensor:
        padded = torch.zeros(*shape, *flat.shape[1:], dtype=flat.dtype)
        padded[at] = flat[torch.from_numpy(order)]
        return padded

    return Trajectories(
        observation=pad(torch.cat(played.observations)),
        action=pad(torch.cat(played.actions)),
        reward=pad(torch.from_numpy(np.array(played.rewards, dtype=np.float32))),
        mask=pad(torch.ones(len(row), dtype=torch.bool)),
        done=torch.from_numpy(terminated[last]),
        truncated=torch.from_numpy(truncated[last]),
        final_observation=torch.tensor(
            np.stack([played.following[t][i] for t, i in zip(time[last], slot, strict=True)])
        ),
        row=torch.from_numpy(row[begins]),
    )
