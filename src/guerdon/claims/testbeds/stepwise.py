"""Answers written step by step by a table, for many seeds at once, trained by the methods that recipes name.

What the policy sees before each action is a state, and what an action makes of it is known; so success and length are
exact, and nothing has to be estimated but what the method itself estimates. Batches are the training loop's, and so
is the way from rewards with one number per answer or per action to the fields that a credit reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from guerdon.claims.testbeds.tabular import Spec, bind
from guerdon.registry import Bound
from guerdon.rollouts import Fields, Rollouts, make_rollouts
from guerdon.seeding import torch_generator


class Walks(NamedTuple):
    """N answers of at most T actions.

    Attributes:
        states: (N,T) before each action.
        actions: (N,T).
        mask: (N,T) true until the answer ends.
        prompt, seed: (N,) number of the prompt, and of the seed.
        noise: (N,T) uniform numbers, common to all methods.
    """

    states: Tensor
    actions: Tensor
    mask: Tensor
    prompt: Tensor
    seed: Tensor
    noise: Tensor

    def took(self, state: int, action: int) -> Tensor:
        """(N,T) where an action was taken in a state."""
        return self.mask & (self.states == state) & (self.actions == action)


class Lessons(NamedTuple):
    """What a training did to the policy: (steps + 1,S,X,A) probabilities before the first and after every step.

    ``stats`` has, per step, the numbers that the methods reported.
    """

    probs: Tensor
    stats: list[dict[str, float]]


@dataclass(frozen=True)
class Stepwise:
    """X states with A actions, and what answers earn.

    Attributes:
        following: (X,A) int64 state after each action; -1 ends the answer.
        initial: (X,A) or (S,X,A) probabilities of the policy at the start.
        length: most actions of an answer.
        score: rewards of answers by name, (N,) each or (N,T) with one number per action.
        starts: (P,) int64 state in which each prompt begins.
        weights: of the rewards; 1 by default.
        slip: (X,A) chance that an action leads to ``otherwise`` (X,A) instead; none by default.
    """

    following: Tensor
    initial: Tensor
    length: int
    score: Callable[[Walks], Mapping[str, Tensor]]
    starts: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    weights: Sequence[float] | None = None
    slip: Tensor | None = None
    otherwise: Tensor | None = None

    def train(
        self,
        *,
        seeds: int,
        steps: int,
        group_size: int,
        lr: float,
        credit: Spec | Sequence[Spec] = "grpo",
        objective: Spec | None = None,
        optimizer: Literal["sgd", "adam"] = "sgd",
        per_seed: bool = False,
        first_seed: int = 0,
    ) -> Lessons:
        """Train one policy per seed.

        Args:
            seeds: number S of seeds.
            steps: batches, of all prompts each.
            group_size: answers per prompt.
            lr: learning rate of the loss of a seed's batch.
            credit: methods as a recipe names them, one or several.
            objective: one whose aggregation counts answers alone, for all seeds share a call; by default ``reinforce``,
                with the sum over the actions of an answer divided by the largest length.
            optimizer: plain gradient descent or Adam.
            per_seed: call the credit once per seed, which one with statistics over the batch needs.
            first_seed: the first seed.
        """
        logits = self.initial.double().clamp(min=1e-30).log()
        logits = logits.expand(seeds, *logits.shape[-2:]).clone().requires_grad_(True)
        update = (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)([logits], lr=lr)
        several = credit if isinstance(credit, Sequence) and not isinstance(credit, str) else [credit]
        teams = [[bind("credit", spec) for spec in several] for _ in range(seeds if per_seed else 1)]
        whole = {"name": "reinforce", "aggregate": "sum_over_max_length", "max_length": self.length}
        loss = bind("objective", objective or whole)
        generators = [torch_generator(first_seed + s, "stepwise") for s in range(seeds)]
        history, stats = [logits.detach().softmax(dim=-1)], []
        for step in range(steps):
            walks = self.write(history[-1], group_size, generators)
            parts = [walks.seed == s for s in range(seeds)] if per_seed else [torch.ones_like(walks.seed).bool()]
            table = logits.log_softmax(dim=-1)
            logp = table[walks.seed.unsqueeze(1), walks.states, walks.actions]
            total, seen = torch.zeros((), dtype=torch.float64), {}
            for team, part in zip(teams, parts, strict=True):
                mine = Walks(*(x[part] for x in walks))
                rollouts, numbers = self.credited(mine, logp.detach()[part], team, step)
                fields = self._fields(rollouts, step, logp=logp[part])
                total = total + loss(fields).fields["loss"] * (1 if per_seed else seeds)
                seen |= numbers
            update.zero_grad()
            total.backward()
            update.step()
            history.append(logits.detach().softmax(dim=-1))
            stats.append(seen)
        return Lessons(torch.stack(history), stats)

    def write(self, probs: Tensor, group_size: int, generators: Sequence[torch.Generator]) -> Walks:
        """Draw ``group_size`` answers to every prompt from probabilities (S,X,A), one seed after the other."""
        seeds, rows = len(probs), len(self.starts) * group_size
        shape = (2 if self.slip is None else 3, rows, self.length)
        draws = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators])
        uniform, noise, *fate = (x.reshape(seeds * rows, self.length) for x in draws.unbind(dim=1))
        seed = torch.arange(seeds).repeat_interleave(rows)
        prompt = torch.arange(len(self.starts)).repeat_interleave(group_size).repeat(seeds)
        edges = probs.cumsum(dim=-1)
        state, states, actions = self.starts[prompt], [], []
        for t in range(self.length):
            states.append(state)
            at = state.clamp(min=0)
            drawn = (uniform[:, t : t + 1] > edges[seed, at]).sum(dim=1).clamp(max=probs.shape[-1] - 1)
            actions.append(drawn)
            onward = self.following[at, drawn]
            if self.slip is not None and self.otherwise is not None:
                onward = torch.where(fate[0][:, t] < self.slip[at, drawn], self.otherwise[at, drawn], onward)
            state = torch.where(state < 0, -1, onward)
        before = torch.stack(states, dim=1)
        return Walks(before.clamp(min=0), torch.stack(actions, dim=1), before >= 0, prompt, seed, noise)

    def credited(
        self, walks: Walks, old_logp: Tensor, credits: Sequence[Bound], step: int = 0
    ) -> tuple[Rollouts, dict[str, float]]:
        """The batch of some answers with its shaped reward and its credit, and what the methods reported."""
        n = len(walks.seed)
        rewards = {name: x.double() for name, x in self.score(walks).items()}
        rollouts = make_rollouts(
            walks.seed * len(self.starts) + walks.prompt,
            walks.prompt,
            walks.mask,
            old_logp,
            done=torch.ones(n, dtype=torch.bool),
            truncated=torch.zeros(n, dtype=torch.bool),
            payload={},
            tokens=walks.actions,
            rewards=TensorDict(rewards, [n]),
        )
        stats: dict[str, float] = {}
        for bound in [bind("shaping", "weighted_sum"), *credits]:
            outcome = bound(self._fields(rollouts, step))
            for name, value in outcome.fields.items():
                spread = value.unsqueeze(1) * rollouts.mask if name == "advantage" and value.ndim == 1 else value
                setattr(rollouts, name, spread)
            stats |= {f"{bound.name}/{key}": float(value) for key, value in outcome.stats.items()}
        return rollouts, stats

    def visits(self, probs: Tensor, starts: Tensor | None = None) -> Tensor:
        """Exact mean number of times that each action is taken in each state: (...,X,A), as probabilities are.

        Args:
            probs: (...,X,A).
            starts: states to begin in, each as often; those of all prompts by default.
        """
        starts = self.starts if starts is None else starts
        states = probs.shape[-2]
        onward = self._led(self.following, states)
        if self.slip is not None and self.otherwise is not None:
            slip = self.slip.double().unsqueeze(-1)
            onward = (1 - slip) * onward + slip * self._led(self.otherwise, states)
        at = torch.bincount(starts, minlength=states).double() / len(starts)
        at, taken = at.expand(probs.shape[:-1]), torch.zeros_like(probs)
        for _ in range(self.length):
            flow = at.unsqueeze(-1) * probs
            taken = taken + flow
            at = torch.einsum("...xa,xay->...y", flow, onward)
        return taken

    @staticmethod
    def _led(following: Tensor, states: int) -> Tensor:
        """(X,A,X) 1 where an action leads."""
        return torch.nn.functional.one_hot(following.clamp(min=0), states) * (following >= 0).double().unsqueeze(-1)

    def _fields(self, rollouts: Rollouts, step: int, **extra: Any) -> Fields:
        names = tuple(rollouts.rewards.keys())
        weights = torch.tensor([1.0] * len(names) if self.weights is None else list(self.weights), dtype=torch.float64)
        return Fields(rollouts, step=step, seed=step, component_names=names, component_weights=weights, **extra)
