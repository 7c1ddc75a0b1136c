"""What acts: the protocol of a policy, and its named snapshots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pydantic
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from guerdon.rollouts import Rollouts, join
from guerdon.tasks.base import Kind, Problem, Starts, Task


@dataclass(frozen=True)
class Evaluation:
    """What the policy says now of actions that were taken before; differentiable.

    Attributes:
        logp: (N,T) log-probability of each action, 0 off the mask.
        entropy: (N,T) entropy of the action distribution in nats, 0 off the mask.
        value_prediction: (N,T) critic's value of the state before each action, if the policy has a critic.
        logits: (N,T,V) on request, if actions are discrete.
    """

    logp: Tensor
    entropy: Tensor
    value_prediction: Tensor | None = None
    logits: Tensor | None = None


class SamplingOptions(pydantic.BaseModel):
    """Options of the recipe's ``sampling`` section that a policy understands; subclassed by each policy."""

    model_config = pydantic.ConfigDict(extra="forbid")

    def bound_to(self, task: Task) -> SamplingOptions:
        """The options for a task that has been built, with whatever they take from it."""
        return self


class Policy(ABC):
    """Something that acts, can be evaluated on its past actions, and holds named snapshots of its weights.

    Registered under stage ``policy``. The constructor takes the task by position and its recipe options by
    keyword; it draws initial weights from torch's global generator, which the caller has seeded.
    """

    kind: ClassVar[Kind]
    Sampling: ClassVar[type[SamplingOptions]] = SamplingOptions
    module: nn.Module
    hands_over: ClassVar[bool] = False  # whether ``sample`` takes ``ended``, to be called with trajectories as they end
    max_tokens: int | None = None  # whose activations are held at a time, by policies that read tokens

    def __init__(self) -> None:
        self.snapshots: dict[str, dict[str, Tensor]] = {}

    @classmethod
    def supplied_fields(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Batch fields that exist because of this policy, given its recipe options."""
        return frozenset()

    @abstractmethod
    def sample(self, starts: Starts, options: Any, *, seed: int, greedy: bool = False) -> Rollouts:
        """Draw one trajectory per start; a pure function of the weights, ``starts``, ``options`` and ``seed``.

        Args:
            options: an instance of ``self.Sampling``.
            greedy: take the most likely action (or the noise-free path) instead of sampling.
        """

    @abstractmethod
    def evaluate(self, rollouts: Rollouts, *, logits: bool = False) -> Evaluation:
        """Log-probability and entropy of the actions in ``rollouts`` under the current weights."""

    def join(self, parts: Sequence[Rollouts]) -> Rollouts:
        """Put batches of this policy below one another; they may differ in the number of actions."""
        return join(parts, self.join_payloads(parts))

    def join_payloads(self, parts: Sequence[Rollouts]) -> TensorDict:
        """The policy's own material of several batches in one."""
        return torch.cat([part.payload for part in parts])  # type: ignore[arg-type]  # TensorDicts concatenate

    def replay(
        self,
        starts: Starts,
        actions: Sequence[Any],
        options: Any,
        *,
        logp: Sequence[Sequence[float]] | None = None,
    ) -> Rollouts:
        """Rollouts of given actions, marked ``external``.

        Args:
            starts: one problem per trajectory.
            actions: what was done in each.
            options: an instance of ``self.Sampling``; how the present policy samples.
            logp: log-probability of each action under whoever took it; by default the present policy's.

        Raises:
            RecipeError: for policies whose actions can't be written down beforehand.
        """
        from guerdon.errors import RecipeError

        raise RecipeError(f"policy '{type(self).__name__}' cannot replay given actions; remove the source that does")

    def evaluation_options(self, options: Any) -> Any:
        """How to sample when the policy is evaluated: ``options`` without what only serves training."""
        return options

    def supervised_loss(self, problems: list[Problem], seed: int) -> Tensor:
        """Loss of imitating the problems' answers, for the warm start; a scalar with gradient.

        Raises:
            RecipeError: for policies that have nothing to imitate.
        """
        from guerdon.errors import RecipeError

        raise RecipeError(f"policy '{type(self).__name__}' cannot be warm-started; remove 'warm_start'")

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that training changes, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def token_text(self, rollouts: Rollouts) -> list[list[str]] | None:
        """The text of each action, row by row, for policies that write; None for others."""
        return None

    def save_pretrained(self, path: str) -> bool:
        """Write the policy in its ecosystem's own format, if it has one; return whether it does."""
        return False

    # Snapshots --------------------------------------------------------------------------------------------

    def snapshot(self, name: str) -> None:
        """Remember the current trainable weights under ``name`` (``ref``, ``old``, ``ema``, ``anchor``)."""
        self.snapshots[name] = {key: p.detach().clone() for key, p in self.trainable().items()}

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Act with the weights of a snapshot inside the block.

        Raises:
            KeyError: when no such snapshot was taken.
        """
        saved, current = self.snapshots[name], self.trainable()
        kept = {key: p.data for key, p in current.items()}
        for key, p in current.items():
            p.data = saved[key]
        try:
            yield
        finally:
            for key, p in current.items():
                p.data = kept[key]

    # State ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Trainable weights and buffers, and the snapshots under ``snapshot/NAME/``; plain tensors."""
        state = {name: p.detach() for name, p in self.trainable().items()}
        state |= {f"buffer/{name}": b for name, b in self.module.named_buffers()}
        for label, weights in self.snapshots.items():
            state |= {f"snapshot/{label}/{name}": w for name, w in weights.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave."""
        self.snapshots = {}
        for name, p in self.trainable().items():
            p.copy_(state[name])
        for name, b in self.module.named_buffers():
            if f"buffer/{name}" in state:
                b.copy_(state[f"buffer/{name}"])
        for key, value in state.items():
            if key.startswith("snapshot/"):
                _, label, name = key.split("/", 2)
                self.snapshots.setdefault(label, {})[name] = value.clone()
