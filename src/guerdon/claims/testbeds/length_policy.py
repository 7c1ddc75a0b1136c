"""Policies that choose how long they think before they answer.

A table says at every step whether to think on or to answer. A problem needs so many steps of thought; who answers
sooner is probably wrong, and who has not answered at the last step is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guerdon.claims.testbeds.episodes import Environment, EpisodeHistory, Episodes, Step

ANSWER, GO_ON = 0, 1


@dataclass(frozen=True)
class Thinking(Environment):
    """state = problem * longest + steps before this one. An answer after L steps is right with the chance ``succeeds``.

    Rewarded is ``right``; ``ratio``, the steps taken over those needed, is only watched.

    Attributes:
        needs: steps of thought that each problem needs.
        longest: steps after which an episode is cut.
        width: how many steps the chance takes to rise; 0 for all at once.
        best: chance of a right answer after enough steps.
        guess: chance of a right answer before.
        shared: whether one policy has to do for all problems, without seeing which one it is.
    """

    needs: tuple[int, ...]
    longest: int = 16
    width: float = 1.0
    best: float = 1.0
    guess: float = 0.0
    shared: bool = False

    actions = 2
    names = ("right", "ratio")
    weights = (1.0, 0.0)
    outcomes = frozenset(names)

    @property
    def turns(self) -> int:  # type: ignore[override]
        return self.longest

    @property
    def states(self) -> int:  # type: ignore[override]
        return len(self.needs) * self.longest

    @property
    def observations(self) -> int:  # type: ignore[override]
        return self.longest if self.shared else self.states

    def reset(self, chance: Tensor) -> Tensor:
        """Any problem."""
        return (chance * len(self.needs)).long() * self.longest

    def observe(self, state: Tensor) -> Tensor:
        """The step, and the problem unless the policy is shared."""
        return state % self.longest if self.shared else state

    def succeeds(self, problem: Tensor, length: Tensor) -> Tensor:
        """Chance of a right answer after ``length`` steps."""
        beyond = length - torch.tensor(self.needs, dtype=torch.float64)[problem]
        risen = (beyond / self.width).sigmoid() if self.width else (beyond >= 0).double()
        return self.guess + (self.best - self.guess) * risen

    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        """Answer now, or go on; to go on at the last step is to be cut."""
        problem, length = state // self.longest, state % self.longest + 1
        answered = action == ANSWER
        right = answered & (chance < self.succeeds(problem, length))
        over = answered | (length == self.longest)
        ratio = torch.where(over, length / torch.tensor(self.needs)[problem], 0.0)
        after = torch.where(length < self.longest, state + 1, state)
        return Step(after, torch.stack([right.double(), ratio.double()], dim=1), answered)


def hesitant(environment: Thinking, stop: float) -> Tensor:
    """(O,2) logits of a policy that answers after each step with the chance ``stop``."""
    return torch.tensor([stop, 1 - stop]).log().expand(environment.observations, 2)


def trained(environment: Environment, initial: Tensor, **settings: object) -> EpisodeHistory:
    """Train policies from the same start; credit compares within groups and the loss is the mean over tokens."""
    return Episodes(environment, initial).train(**{"per_seed": True, **settings})  # type: ignore[arg-type]


def summary(history: EpisodeHistory, names: Sequence[str] = ("right", "turns"), last: int = 3) -> dict[str, Tensor]:
    """(S,) means over the last measurements."""
    return {name: history.means[name][-last:].mean(dim=0) for name in names}


Trainer = Callable[..., EpisodeHistory]


SOLVE, RECHECK, DONE = 0, 1, 2


@dataclass(frozen=True)
class Solving(Environment):
    """Steps of two kinds: those that solve a part of the problem, and those that only look at it again.

    state = (problem * (most needed steps + 1) + steps solved) * longest + steps before this one. The policy sees how
    many steps are solved, not how many are needed. Rewarded is ``right``; ``rechecks``, the number of them once the
    problem is solved, and ``solved``, the share of the needed steps that was done, are only watched.

    Attributes:
        needs: steps that each problem needs.
        longest: steps after which an episode is cut.
        best, guess: chance of a right answer once solved, and before.
    """

    needs: tuple[int, ...]
    longest: int = 16
    best: float = 1.0
    guess: float = 0.0

    actions = 3
    names = ("right", "rechecks", "solved")
    weights = (1.0, 0.0, 0.0)
    outcomes = frozenset(names)

    @property
    def depth(self) -> int:
        """Numbers of solved steps that are told apart."""
        return max(self.needs) + 1

    @property
    def turns(self) -> int:  # type: ignore[override]
        return self.longest

    @property
    def states(self) -> int:  # type: ignore[override]
        return len(self.needs) * self.depth * self.longest

    @property
    def observations(self) -> int:  # type: ignore[override]
        return self.depth

    def reset(self, chance: Tensor) -> Tensor:
        """Any problem, nothing solved."""
        return (chance * len(self.needs)).long() * self.depth * self.longest

    def observe(self, state: Tensor) -> Tensor:
        """The number of solved steps."""
        return state // self.longest % self.depth

    def missing(self, state: Tensor) -> Tensor:
        """Steps still needed in states; 0 once the problem is solved."""
        need = torch.tensor(self.needs)[state // (self.depth * self.longest)]
        return (need - self.observe(state)).clamp(min=0)

    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        """Solve a step, look again, or answer; to go on at the last step is to be cut."""
        time, solved = state % self.longest, self.missing(state) == 0
        answered = action == DONE
        right = answered & (chance < torch.where(solved, self.best, self.guess))
        over = answered | (time == self.longest - 1)
        need = torch.tensor(self.needs)[state // (self.depth * self.longest)]
        share = torch.where(over, 1 - self.missing(state) / need, 0.0)
        further = (action == SOLVE) & (self.observe(state) < self.depth - 1)
        after = state + further * self.longest + (time < self.longest - 1)
        numbers = [right.double(), (solved & (action == RECHECK)).double(), share.double()]
        return Step(after, torch.stack(numbers, dim=1), answered)
