"""Gymnasium environments played in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from guerdon.errors import TaskError
from guerdon.registry import import_object, register
from guerdon.seeding import numpy_generator
from guerdon.tasks.base import Problem
from guerdon.tasks.environments import EnvironmentTask, Seconds, Step, Turns

Describe = Callable[[Any], str]
_HELD_OUT = 2**30  # reset seeds from here on are never trained on


def describe_numbers(observation: Any) -> str:
    """Numbers in a row, floats to two digits; mappings by their keys."""
    if isinstance(observation, Mapping):
        return " ".join(f"{key} {describe_numbers(value)}" for key, value in observation.items())
    flat = np.asarray(observation).reshape(-1).tolist()
    return " ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in flat)


class GymInWords:
    """One environment; an action is the name of a discrete action, and a word that is none is told so.

    Args:
        make: builds the environment.
        actions: names, in the order of the environment's numbers.
        describe: text of an observation.
        penalty: reward of a turn that is no action.
    """

    def __init__(
        self, make: Callable[[], gym.Env], actions: Sequence[str], describe: Describe, penalty: float = 0.0
    ) -> None:
        self._env, self._describe, self._penalty = make(), describe, penalty
        self._numbers = {name: number for number, name in enumerate(actions)}

    def reset(self, problem: Problem, seed: int) -> Step:
        """Begin from the problem's reset seed; further chance is the environment's own and follows from that."""
        self._seen, _ = self._env.reset(seed=int(problem.start))
        return self._step(0.0)

    def step(self, action: str) -> Step:
        """Take an action by its name."""
        number = self._numbers.get(action.strip())
        if number is None:
            return self._step(self._penalty)
        self._seen, reward, terminated, truncated, _ = self._env.step(number)
        return self._step(float(reward), terminated=bool(terminated), truncated=bool(truncated))

    def _step(self, reward: float, **ends: bool) -> Step:
        return Step(self._describe(self._seen), reward, **ends, info={"state": self._seen})

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


@register("task", name="gym_text")
class GymText(EnvironmentTask):
    """Any Gymnasium environment with discrete actions, played by a language policy.

    Args:
        env: its id, or ``package.module:function`` that builds it.
        actions: names of its actions in order; ``0``, ``1``, ... by default.
        describe: ``package.module:function`` from an observation to text; numbers in a row by default.
        penalty: reward of a turn that is no action.
        kwargs: of the environment.
        max_turns, workers, timeout: see ``EnvironmentTask``.

    Raises:
        TaskError: when there is no such environment, its actions are not discrete, or not as many as names.
    """

    def __init__(
        self,
        *,
        env: str,
        actions: list[str] | None = None,
        describe: str | None = None,
        penalty: float = 0.0,
        kwargs: dict[str, Any] | None = None,
        max_turns: Turns = 32,
        workers: int = 0,
        timeout: Seconds = 60.0,
    ) -> None:
        super().__init__(max_turns=max_turns, workers=workers, timeout=timeout)
        target: Any = import_object(env) if ":" in env else partial(gym.make, env)
        self._make, self._penalty = partial(target, **(kwargs or {})), penalty
        self._describe: Describe = import_object(describe) if describe else describe_numbers
        try:
            built = self._make()
        except gym.error.Error as error:
            raise TaskError(f"task 'gym_text': cannot build env '{env}': {error}") from None
        space = built.action_space
        if not isinstance(space, gym.spaces.Discrete):
            raise TaskError(f"task 'gym_text': env '{env}' has action space {space}, want a Discrete one")
        self.actions = actions or [str(number) for number in range(int(space.n))]
        if len(self.actions) != int(space.n):
            raise TaskError(f"task 'gym_text': {len(self.actions)} names for the {space.n} actions of env '{env}'")
        built.close()

    def environment(self) -> Callable[[], GymInWords]:
        """One environment."""
        return partial(GymInWords, self._make, self.actions, self._describe, self._penalty)

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Reset seeds, each with random actions to imitate."""
        random = numpy_generator(seed, "gym_text")
        return [self._problem(int(random.integers(_HELD_OUT)), random) for _ in range(n)]

    def eval_problems(self, n: int) -> list[Problem]:
        """Reset seeds that are never trained on."""
        return [Problem(_HELD_OUT + i, start=_HELD_OUT + i) for i in range(n)]

    def corpus(self) -> Iterable[str]:
        """What random play shows."""
        yield " ".join([*self.actions, "0 1 2 3 4 5 6 7 8 9 . -"])
        for problem in self.train_batch(32, 0):
            yield problem.prompt
            yield from problem.episode

    def _problem(self, start: int, random: np.random.Generator) -> Problem:
        game = self.environment()()
        problem = Problem(start, start=start)
        prompt, said = game.reset(problem, 0).observation, []
        for _ in range(self.max_turns):
            said.append(str(random.choice(self.actions)))
            heard = game.step(said[-1])
            if heard.terminated or heard.truncated:
                break
            said.append(heard.observation)
        game.close()
        return Problem(start, prompt=prompt, start=start, episode=tuple(said[: len(said) - 1 + len(said) % 2]))
