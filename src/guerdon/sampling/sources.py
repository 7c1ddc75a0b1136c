"""Where further trajectories of a batch come from, beside the policy's plain samples.

A source joins the batch at one of three moments. ``sampling``: its rows are members of their groups and are scored and
credited like all others (demonstrations). ``scoring``: it sees the rewards and may ask for more, round after round,
until it is content (budgets by uncertainty, another try with a hint); a reward that names ``group`` is computed anew
over all rows then. ``credit``: its rows have neither reward nor credit, and only objectives and terms that name
``external`` see them (rehearsal).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from guerdon.policies.base import Policy, SamplingOptions
from guerdon.rewards.base import Fault, Reward
from guerdon.rollouts import Rollouts, total
from guerdon.tasks.base import Starts, Task

Moment = Literal["sampling", "scoring", "credit"]


@dataclass(frozen=True)
class Draw:
    """What a source sees when it is asked.

    Attributes:
        policy, task, rewards, sampling: of the run; ``sampling`` are the policy's sampling options.
        starts: the problems of the batch, one per trajectory of the plain sample; none before training.
        rollouts: the batch so far; none before training.
        reward: (N,) weighted sum of the raw rewards of ``rollouts`` at the moment ``scoring``, nan where a reward
            faulted.
        step: the training step; -1 before training.
        round: how often the source has been asked in this step.
        seed: for whatever it draws; a pure function of the run's seed, the step, the source's place and the round.
        track: passes the items of a list on, one by one; before training it shows how far it has come.
    """

    policy: Policy
    task: Task
    rewards: Sequence[Reward]
    sampling: SamplingOptions
    starts: Starts | None
    rollouts: Rollouts | None
    reward: Tensor | None
    step: int
    round: int
    seed: int
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter


class Source(ABC):
    """Draws further trajectories of a batch. Registered under stage ``source``; options go to ``__init__``.

    Attributes:
        when: the moment at which its rows join.
        external: whether its rows hold actions that the present policy did not sample; they carry the field
            ``external`` there, and objectives and terms that don't name it never see them.
        replaces: whether its rows stand for the plain samples of the moment ``sampling``, which are then not drawn.
            It is asked first, and sees no rollouts; a recipe has one such source at most.
    """

    when: ClassVar[Moment]
    external: ClassVar[bool] = False
    replaces: ClassVar[bool] = False

    def prepare(self, draw: Draw) -> None:  # noqa: B027 - most sources need no preparation
        """Look round once, before the first step and after the warm start."""

    @abstractmethod
    def draw(self, draw: Draw) -> Rollouts | None:
        """Further rows, or None for no more in this step. Rows of known groups take those groups' keys."""

    def state_dict(self) -> dict[str, Any]:
        """Memory of the source, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most sources remember nothing
        """Restore what ``state_dict`` gave."""


def raw_reward(rollouts: Rollouts, rewards: Sequence[Reward], faults: Iterable[Fault] = ()) -> Tensor:
    """(N,) weighted sum of the raw rewards that training sees: nan where one faulted, 0 for one that does not apply."""
    out = torch.zeros(len(rollouts))
    for spec in rewards:
        if spec.watch:
            continue
        value = total(rollouts.rewards[spec.name], rollouts.mask).cpu()
        faulted = torch.zeros_like(value, dtype=torch.bool)
        faulted[[fault.row for fault in faults if fault.reward == spec.name]] = True
        out = out + spec.weight * torch.where(value.isnan() & ~faulted, 0.0, value)
    return out
