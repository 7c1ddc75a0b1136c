"""Softmax policies in a table that act in small environments, turn by turn, for many seeds at once.

The line of stages is the training loop's: play episodes, score, shape, credit, objective, update; methods are named as
in a recipe and find their fields by name in ``Rollouts``, as they do there. Groups start alike. The numbers that
episodes are drawn from are common to all methods, and a seed is the same whatever runs beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from guerdon.claims.testbeds.tabular import Spec, bind
from guerdon.registry import Bound
from guerdon.rollouts import Fields, Rollouts, make_rollouts
from guerdon.seeding import torch_generator


class Step(NamedTuple):
    """What an action led to.

    Attributes:
        state: (B,) int64.
        reward: (B,K) or, with a single reward, (B,).
        done: (B,) whether the episode ended by itself.
    """

    state: Tensor
    reward: Tensor
    done: Tensor


class Environment(ABC):
    """States numbered from 0, of which B are stepped through side by side; memory lies in the state alone.

    Attributes:
        states, observations, actions: how many there are of each.
        turns: most turns of an episode, after which it is cut.
        turn_length: decisions per turn; the state says which of them is next.
        names: names of the K rewards.
        weights: their weights; a reward that is only watched weighs 0.
        outcomes: those that a trajectory gets as a whole, and not turn by turn.
    """

    states: int
    observations: int
    actions: int
    turns: int
    turn_length: int = 1
    names: tuple[str, ...] = ("reward",)
    weights: tuple[float, ...] = (1.0,)
    outcomes: frozenset[str] = frozenset()

    @abstractmethod
    def reset(self, chance: Tensor) -> Tensor:
        """Starts (B,) from uniform numbers (B,)."""

    @abstractmethod
    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        """What B actions lead to; uniform numbers (B,) decide what is left to chance."""

    def observe(self, state: Tensor) -> Tensor:
        """What the policy sees of states: (...) int64, of any shape; everything by default."""
        return state

    def acts(self, state: Tensor) -> Tensor:
        """Whether there is something to decide in states, of any shape; where not, the action is 0."""
        return torch.ones_like(state, dtype=torch.bool)

    def legal(self) -> Tensor:
        """(O,A) which actions there are, by observation."""
        return torch.ones(self.observations, self.actions, dtype=torch.bool)

    def marks(self, state: Tensor) -> dict[str, Tensor]:
        """Kinds of actions, by the states (N,T) they were taken in: (N,T) bool by name."""
        return {}


@dataclass(frozen=True)
class EpisodeHistory:
    """What a training did to the policy.

    Attributes:
        steps: updates before each measurement.
        means: (points,S) by name: the mean total of each reward, the number of ``turns`` and the share ``done``.
        logits: (S,O,A) in the end.
        values: (S,states) of the critic in the end.
        stats: per step, the numbers that the methods reported.
    """

    steps: list[int]
    means: dict[str, Tensor]
    logits: Tensor
    values: Tensor
    stats: list[dict[str, float]] = field(default_factory=list)

    def first(self, name: str, threshold: float) -> Tensor:
        """(S,) first measured step at which a mean reaches the threshold; one past the last if it never does."""
        reached = self.means[name] >= threshold
        known = torch.tensor([*self.steps, self.steps[-1] + 1], dtype=torch.float64)
        return known[torch.where(reached.any(dim=0), reached.int().argmax(dim=0), len(self.steps))]


class Played(NamedTuple):
    """Episodes: states, actions and whether something was decided (B,L); rewards (B,L,K); how they ended.

    L counts decisions; ``alive`` says which were reached.
    """

    state: Tensor
    action: Tensor
    alive: Tensor
    acted: Tensor
    reward: Tensor
    last: Tensor
    done: Tensor


@dataclass(frozen=True)
class Episodes:
    """Trains policies in one environment.

    Attributes:
        environment: what they act in.
        initial: (O,A) logits of the policy at the start; 0 by default.
        values: (states,) of the critic at the start; 0 by default.
    """

    environment: Environment
    initial: Tensor | None = None
    values: Tensor | None = None

    def train(
        self,
        *,
        seeds: int,
        steps: int,
        group_size: int,
        lr: float,
        groups: int = 1,
        credit: Spec | Sequence[Spec] = "grpo",
        objective: Spec = "reinforce",
        terms: Sequence[Spec] = (),
        shaping: Sequence[Spec] | None = None,
        updates: int = 1,
        optimizer: Literal["sgd", "adam"] = "sgd",
        critic_lr: float | None = None,
        per_seed: bool = False,
        first_seed: int = 0,
        measure: int = 5,
        episodes: int = 64,
        source: Callable[..., Any] | None = None,
    ) -> EpisodeHistory:
        """Train one policy per seed.

        Args:
            seeds: number S of seeds.
            steps: batches.
            group_size: episodes from each start.
            lr: learning rate of the mean loss over a seed's actions.
            groups: starts per batch.
            credit, objective, terms, shaping: methods as a recipe names them: a name, a callable, or a mapping with
                ``name`` and options. ``credit`` may be several; ``shaping`` is the weighted sum by default.
            updates: gradient steps per batch.
            optimizer: of the policy.
            critic_lr: learning rate of a critic, a value per state, by Adam; name the term ``value`` with it. None by
                default, and the values stay as they are.
            per_seed: call the methods of shaping and credit once per seed, which those with statistics or memory
                over the batch need; by default all seeds share one call, for groups never span seeds.
            first_seed: the first seed.
            measure: steps from one measurement to the next.
            episodes: fresh episodes per measurement and seed, the same random numbers each time.
            source: makes an object per seed, which is given each of its batches before shaping, padded to the most
                decisions there can be, and returns the batch to learn from.
        """
        environment, legal = self.environment, self.environment.legal()
        start = torch.zeros(legal.shape) if self.initial is None else self.initial
        logits = start.double().expand(seeds, *legal.shape).clone().requires_grad_(True)
        expected = torch.zeros(environment.states) if self.values is None else self.values
        critic = expected.double().expand(seeds, -1).clone().requires_grad_(True)
        optimizers: list[torch.optim.Optimizer] = [
            (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)([logits], lr=lr)
        ]
        optimizers += [torch.optim.Adam([critic], lr=critic_lr)] if critic_lr else []
        teams = [_Team(environment, credit, shaping) for _ in range(seeds if per_seed else 1)]
        sources = [source() for _ in range(seeds)] if source else []
        losses = [bind("objective", objective), *(bind("term", term) for term in terms)]
        generators = [torch_generator(first_seed + s, "episodes") for s in range(seeds)]
        history = EpisodeHistory([], {}, logits.detach(), critic.detach())

        def look(step: int) -> None:
            fixed = [torch_generator(first_seed + s, "measure") for s in range(seeds)]
            seen = _means(environment, play(environment, masked(logits, legal), fixed, episodes, 1), seeds)
            history.steps.append(step)
            for name, value in seen.items():
                known = history.means.get(name, value.new_zeros(0, seeds))
                history.means[name] = torch.cat([known, value.unsqueeze(0)])

        look(0)
        for step in range(steps):
            table = masked(logits.detach(), legal)
            played = play(environment, table, generators, groups, group_size, whole=bool(sources))
            batch = _rollouts(environment, played, table.log_softmax(dim=-1), critic.detach(), step, group_size)
            each = len(batch) // seeds
            parts = [batch[s * each : (s + 1) * each] for s in range(seeds)] if per_seed or sources else [batch]
            if sources:
                parts = [source(part) for source, part in zip(sources, parts, strict=True)]
                parts = parts if per_seed else [_joined(parts)]
            credited = [team(part, step) for team, part in zip(teams, parts, strict=True)]
            stats: dict[str, float] = {}
            for _, numbers in credited:
                stats |= numbers
            for update in range(updates):
                total = torch.zeros((), dtype=torch.float64)
                for fields, _ in credited:
                    loss, numbers = _loss(losses, fields, masked(logits, legal), critic, fresh=update == 0)
                    total, stats = total + loss, stats | numbers
                for each_optimizer in optimizers:
                    each_optimizer.zero_grad()
                total.backward()
                for each_optimizer in optimizers:
                    each_optimizer.step()
            history.stats.append(stats)
            if (step + 1) % measure == 0 or step + 1 == steps:
                look(step + 1)
        return history


@torch.no_grad()
def play(
    environment: Environment,
    logits: Tensor,
    generators: Sequence[torch.Generator],
    groups: int,
    group_size: int,
    *,
    whole: bool = False,
) -> Played:
    """Play S * groups * group_size episodes, seed by seed and group by group; those of a group start alike.

    Args:
        logits: (S,O,A) of the policies.
        generators: one per seed.
        whole: whether L is the most decisions there can be, or those of the longest episode.
    """
    length, each = environment.turns * environment.turn_length, groups * group_size
    starts = torch.cat([torch.rand(groups, generator=g, dtype=torch.float64) for g in generators])
    draws = torch.cat([torch.rand(each, length, 2, generator=g, dtype=torch.float64) for g in generators])
    seed = torch.arange(len(generators)).repeat_interleave(each)
    edges = logits.softmax(dim=-1).cumsum(dim=-1)
    state = environment.reset(starts).repeat_interleave(group_size)
    alive, done = torch.ones_like(state, dtype=torch.bool), torch.zeros_like(state, dtype=torch.bool)
    seen: list[tuple[Tensor, ...]] = []
    for t in range(length):
        acts = environment.acts(state)
        cut = edges[seed, environment.observe(state), :-1]
        action = torch.where(acts, (draws[:, t, :1] > cut).sum(dim=-1), 0)
        after = environment.step(state, action, draws[:, t, 1])
        reward = after.reward.double().reshape(len(state), -1) * alive.unsqueeze(1)
        seen.append((state, action, alive, acts & alive, reward))
        state, done = torch.where(alive, after.state, state), done | (alive & after.done)
        alive = alive & ~after.done
        if not alive.any() and not whole:
            break
    states, actions, lived, acted, rewards = (torch.stack(column, dim=1) for column in zip(*seen, strict=True))
    return Played(states, actions, lived, acted, rewards, state, done)


def masked(logits: Tensor, legal: Tensor) -> Tensor:
    """Logits with those of actions that are not legal far below."""
    return logits.masked_fill(~legal, -1e9)


class _Team:
    """The bound methods of shaping and credit, with their memory."""

    def __init__(self, environment: Environment, credit: Spec | Sequence[Spec], shaping: Sequence[Spec] | None) -> None:
        several = credit if isinstance(credit, Sequence) and not isinstance(credit, str) else [credit]
        self.bound = [bind("shaping", spec) for spec in shaping or ["weighted_sum"]]
        self.bound += [bind("credit", spec) for spec in several]
        self.names = environment.names
        self.weights = torch.tensor(environment.weights, dtype=torch.float64)

    def __call__(self, batch: Rollouts, step: int) -> tuple[Fields, dict[str, float]]:
        """The fields of a batch once it is shaped and credited, and what the methods reported."""
        stats: dict[str, float] = {}
        columns = {"component_names": self.names, "component_weights": self.weights}
        fields = Fields(batch, step=step, seed=step, **columns, **_turn_reward(batch, self.names, self.weights))
        for bound in self.bound:
            outcome = bound(fields)
            for name, value in outcome.fields.items():
                spread = name == "advantage" and value.ndim == 1
                setattr(batch, name, value.unsqueeze(1) * batch.mask if spread else value)
            stats |= {f"{bound.name}/{key}": float(value) for key, value in outcome.stats.items()}
        return fields, stats


def _turn_reward(batch: Rollouts, names: Sequence[str], weights: Tensor) -> dict[str, Tensor]:
    """Weighted sum of the rewards per turn, if any, which ``Fields`` can't tell from rewards per action where M = T."""
    columns = [w * batch.rewards[name] for w, name in zip(weights, names, strict=True) if batch.rewards[name].ndim == 2]
    return {"turn_reward": torch.stack(columns).sum(dim=0)} if columns else {}


def _rollouts(
    environment: Environment, played: Played, log_probs: Tensor, critic: Tensor, step: int, group_size: int
) -> Rollouts:
    """What was played, as the batch that flows through the stages."""
    rows, length = played.state.shape
    per, seeds = environment.turn_length, len(critic)
    seed = torch.arange(seeds).repeat_interleave(rows // seeds)
    seen = environment.observe(played.state)
    old = log_probs[seed.unsqueeze(1), seen, played.action]
    turn = torch.where(played.acted, torch.arange(length) // per, -1)
    by_turn = torch.nn.functional.pad(played.reward, (0, 0, 0, -length % per)).unflatten(1, (-1, per)).sum(dim=2)
    columns = dict(zip(environment.names, by_turn.unbind(dim=-1), strict=True))
    rewards = {name: x.sum(dim=1) if name in environment.outcomes else x for name, x in columns.items()}
    marks = {name: x & played.acted for name, x in environment.marks(played.state).items()}
    payload = {"seed": seed, "observation": seen, "state": played.state}
    return make_rollouts(
        torch.arange(rows // group_size).repeat_interleave(group_size),
        played.state[:, 0],
        played.acted,
        old,
        done=played.done,
        truncated=~played.done,
        payload=payload | ({"marks": TensorDict(marks, [rows])} if marks else {}),  # type: ignore[arg-type]
        turn=turn,
        version=step,
        rewards=TensorDict(rewards, [rows]),
        tokens=played.action,
        state_key=played.state[:, ::per].contiguous(),
        values=critic[seed.unsqueeze(1), played.state],
        bootstrap=torch.where(played.done, 0.0, critic[seed, played.last]),
    )


def _loss(
    methods: Sequence[Bound], fields: Fields, logits: Tensor, critic: Tensor, *, fresh: bool
) -> tuple[Tensor, dict[str, float]]:
    """The sum over seeds of each seed's mean loss; before the first update ``old_logp`` is ``logp`` itself."""
    batch = fields.rollouts
    seed, seen = batch.payload["seed"], batch.payload["observation"]
    place = seed.unsqueeze(1), seen
    table = logits.log_softmax(dim=-1)
    logp = table[(*place, batch.tokens)]  # type: ignore[index]
    known: dict[str, Any] = {"logp": logp, "value_prediction": critic[seed.unsqueeze(1), batch.payload["state"]]}
    own = fresh and batch.external is None
    known |= {"entropy": -(table.exp() * table).sum(dim=-1)[place], **({"old_logp": logp.detach()} if own else {})}
    wanted = {name for bound in methods for name in (*bound.method.requires, *bound.method.optional)}
    known |= {name: fields[name] for name in wanted - known.keys() if name in fields}
    total, stats = torch.zeros((), dtype=torch.float64), {}
    for s in seed.unique().tolist():
        rows = (seed == s).nonzero().flatten()
        part = {name: x[rows] if isinstance(x, Tensor) and x.ndim else x for name, x in known.items()}
        for bound in methods:
            outcome = bound(part)
            total = total + outcome.fields["loss"]
            stats |= {f"{bound.name}/{key}": float(value) for key, value in outcome.stats.items()}
    return total, stats


def _joined(parts: Sequence[Rollouts]) -> Rollouts:
    """Batches of the same number of actions below one another."""
    return torch.cat(list(parts))  # type: ignore[arg-type, return-value]


def _means(environment: Environment, played: Played, seeds: int) -> dict[str, Tensor]:
    """Means (S,) of episodes."""
    totals = played.reward.sum(dim=1).view(seeds, -1, len(environment.names)).mean(dim=1)
    turns = played.alive.sum(dim=1).double() / environment.turn_length
    means = dict(zip(environment.names, totals.unbind(dim=-1), strict=True))
    return means | {
        "turns": turns.view(seeds, -1).mean(dim=1),
        "done": played.done.double().view(seeds, -1).mean(dim=1),
    }
