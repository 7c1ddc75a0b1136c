"""Text adventures made and played by the TextWorld package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from guerdon.cache import cache_folder
from guerdon.errors import RecipeError, TaskError
from guerdon.registry import register
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Problem
from guerdon.tasks.environments import EnvironmentTask, Seconds, Step, Turns

Count = Annotated[int, Field(ge=1)]
Pay = Literal["win", "progress"]

INSTALL = "task 'textworld' needs the package textworld; pip install \"guerdon[agents]\""
_STATUS = re.compile(r"\s*-= .*? =-\s*\d+/\d+\s*$")


class Level(NamedTuple):
    """How hard a game is: its rooms, its objects, and the commands that winning takes at least."""

    rooms: int
    objects: int
    quest: int


DEMONSTRATIONS = 8  # of each game, which are played once
LEVELS = {"easy": Level(1, 3, 2), "medium": Level(2, 4, 3), "hard": Level(5, 8, 5)}


class Adventure:
    """One game, played through TextWorld's interpreter.

    Args:
        pay: ``win`` pays 1 for winning and nothing else; ``progress`` pays an equal share for each command that leads
            on, takes it back for one that leads away, and so 1 in total for a win without detours.
        commands: whether observations end with the commands that would do something.
    """

    def __init__(self, pay: Pay = "win", commands: bool = True) -> None:
        self._pay, self._commands = pay, commands
        self._game: Any = None

    def reset(self, problem: Problem, seed: int) -> Step:
        """Begin the game in the file that the problem names; nothing is random."""
        import textworld

        self.close()
        wanted = ("description", "inventory", "objective", "admissible_commands", "policy_commands", "facts")
        infos = textworld.EnvInfos(**dict.fromkeys((*wanted, "won", "lost", "intermediate_reward"), True))
        with warnings.catch_warnings():  # the interpreter does not know new games, and need not
            warnings.filterwarnings("ignore", message="Game .* is not fully supported")
            self._game = textworld.start(str(problem.start), infos)
            state = self._game.reset()
        self._quest = max(len(state["policy_commands"]), 1)
        self.state = state
        return self._heard(f"{_plain(state['objective'])}\n{_plain(state['description'])}", 0.0)

    def step(self, action: str) -> Step:
        """Type a command."""
        state, _, done = self._game.step(action.strip() or "look")
        self.state = state
        won = bool(state["won"])
        reward = float(won) if self._pay == "win" else float(state["intermediate_reward"]) / self._quest
        return self._heard(_plain(state["feedback"]), reward, over=bool(done))

    def close(self) -> None:
        """End the interpreter."""
        if self._game is not None:
            self._game.close()

    def _heard(self, text: str, reward: float, *, over: bool = False) -> Step:
        state = self.state
        if self._commands and not over:
            text += f"\nYou can: {', '.join(sorted(state['admissible_commands']))}."
        known = sorted(str(fact) for fact in state["facts"])
        return Step(text, reward, terminated=over, info={"state": known, "won": bool(state["won"])})


def _plain(text: str) -> str:
    """What a game prints, without the prompt, the status line and empty lines."""
    text = _STATUS.sub("", text.replace("*** The End ***", "").split("Would you like to RESTART")[0])
    lines = (re.sub(r"\s+", " ", line).strip(" >") for line in text.splitlines())
    return "\n".join(line for line in lines if line)


@register("task", name="textworld")
class TextWorld(EnvironmentTask):
    """Text adventures: an objective and a room are described, commands are typed, and reaching the objective pays.

    Games are made by TextWorld once, a few seconds each, and kept in the cache folder. Seeds of held-out games are
    others than those of training.

    Args:
        level: ``easy`` (1 room, 3 objects, 2 commands), ``medium`` (2, 4, 3) or ``hard`` (5, 8, 5).
        rooms, objects, quest: any other size.
        games: training games.
        eval_games: held-out games; 0 evaluates on the training games, which is all that a vocabulary made from those
            can be asked for.
        pay: what is paid, see ``Adventure``.
        commands: whether observations list the commands that would do something.
        skill: what a warm start imitates: the chance that a command of a demonstration is of the shortest solution;
            others are drawn from those that do something.
        max_turns, workers, timeout: see ``EnvironmentTask``.

    Raises:
        RecipeError: when TextWorld is not installed.

    Source: Côté et al. 2018, arXiv 1806.11532.
    """

    def __init__(
        self,
        *,
        level: Literal["easy", "medium", "hard"] = "easy",
        rooms: Count | None = None,
        objects: Count | None = None,
        quest: Count | None = None,
        games: Count = 8,
        eval_games: Annotated[int, Field(ge=0)] = 4,
        pay: Pay = "win",
        commands: bool = True,
        skill: Annotated[float, Field(ge=0, le=1)] = 0.5,
        max_turns: Turns = 10,
        workers: int = 0,
        timeout: Seconds = 60.0,
    ) -> None:
        super().__init__(max_turns=max_turns, workers=workers, timeout=timeout)
        try:
            import textworld  # noqa: F401
        except ImportError:
            raise RecipeError(INSTALL) from None
        given = Level(*LEVELS[level])
        self.level = Level(rooms or given.rooms, objects or given.objects, quest or given.quest)
        self._known: dict[tuple[int, int], Problem] = {}
        self.games, self.eval_games, self.commands, self.skill = games, eval_games, commands, skill
        self.pay: Pay = pay

    def environment(self) -> Callable[[], Adventure]:
        """One game."""
        return partial(Adventure, self.pay, self.commands)

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Games drawn with replacement, each with one of its demonstrations."""
        drawn = numpy_generator(seed, "textworld").integers([self.games, DEMONSTRATIONS], size=(n, 2))
        return [self._demonstrated(int(game), int(which)) for game, which in drawn]

    def eval_problems(self, n: int) -> list[Problem]:
        """Held-out games, or the training games where none are held out.

        Raises:
            TaskError: when there are fewer.
        """
        first, count = (self.games, self.eval_games) if self.eval_games else (0, self.games)
        if n > count:
            raise TaskError(
                f"task 'textworld' has {count} games to evaluate on, and evaluation.problems is {n}; ask for at most "
                f"{count}, or raise eval_games"
            )
        return [Problem(first + game, start=self._paths[first + game]) for game in range(n)]

    def corpus(self) -> Iterable[str]:
        """What training games say along their solutions, and what can be typed there."""
        for game in range(self.games):
            yield from self._solution[game]

    def _demonstrated(self, game: int, which: int) -> Problem:
        if (game, which) not in self._known:
            random, start = numpy_generator(which, "textworld", "demonstration", game), self._paths[game]
            said = _played(self.environment()(), Problem(game, start=start), self.max_turns, self.skill, random)
            self._known[game, which] = Problem(game, prompt=said[0], start=start, episode=tuple(said[1:]))
        return self._known[game, which]

    @cached_property
    def _paths(self) -> list[str]:
        return [str(make_game(self.level, seed)) for seed in range(self.games + self.eval_games)]

    @cached_property
    def _solution(self) -> list[list[str]]:
        random = numpy_generator(0, "textworld", "corpus")
        problems = [Problem(game, start=path) for game, path in enumerate(self._paths[: self.games])]
        return [_played(self.environment()(), problem, self.max_turns, 1.0, random) for problem in problems]


def _played(adventure: Adventure, problem: Problem, turns: int, skill: float, random: np.random.Generator) -> list[str]:
    """What is read and typed in turn, beginning with the prompt and ending with a command."""
    said = [adventure.reset(problem, 0).observation]
    for _ in range(turns):
        state = adventure.state
        solution, possible = state["policy_commands"], sorted(state["admissible_commands"])
        good = bool(solution) and random.random() < skill
        said.append(solution[0] if good else str(random.choice(possible)))
        heard = adventure.step(said[-1])
        if heard.terminated:
            adventure.close()
            return said
        said.append(heard.observation)
    adventure.close()
    return said[:-1]


def make_game(level: Level, seed: int) -> Path:
    """The file of a game, which TextWorld's own tool makes if it is not in the cache folder yet.

    Raises:
        TaskError: when the tool fails.
    """
    folder = cache_folder() / "textworld"
    path = folder / f"rooms{level.rooms}-objects{level.objects}-quest{level.quest}-seed{seed}.z8"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    making = folder / f"making-{os.getpid()}-{path.stem}"
    making.mkdir(exist_ok=True)
    tool = shutil.which("tw-make", path=str(Path(sys.executable).parent)) or shutil.which("tw-make") or "tw-make"
    sizes = ["--world-size", level.rooms, "--nb-objects", level.objects, "--quest-length", level.quest]
    command = [tool, "custom", *map(str, sizes), "--seed", str(derive(0, "textworld", seed) % 2**31)]
    out = making / path.name
    try:
        done = subprocess.run(
            [*command, "--output", str(out), "--silent"], capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode or not out.is_file():
            raise TaskError(f"task 'textworld': {' '.join(command)} failed:\n{(done.stderr or done.stdout)[-2000:]}")
        # The world's description must lie beside the game before the game is there to be found.
        out.with_suffix(".json").replace(path.with_suffix(".json"))
        out.replace(path)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return path
