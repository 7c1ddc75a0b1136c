"""Softmax policies in a table, for many seeds at once, trained by the methods that recipes name.

Every prompt has a distribution over the symbols of each of its T positions, independent of one another. The line of
stages is the training loop's: sample groups, score, shape, credit, objective, update; methods find their fields by
name, as they do there.
Probabilities are known exactly, so nothing has to be estimated but what the method itself estimates.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon import registry
from guerdon.registry import Bound
from guerdon.seeding import torch_generator

Spec = str | Callable[..., Any] | Mapping[str, Any]
RewardFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class History:
    """What a training did to the policy.

    Attributes:
        probs: (steps + 1, S, P, T, A) probabilities before the first and after every step.
        stats: per step, the numbers that the methods reported.
    """

    probs: Tensor
    stats: list[dict[str, float]] = field(default_factory=list)

    def expected(self, values: Tensor) -> Tensor:
        """(steps + 1, S, P) expectation of ``values`` (P,A), or (A,) for every prompt, at the first position."""
        return (self.probs[:, :, :, 0] * values.to(self.probs)).sum(dim=-1)

    def entropy(self) -> Tensor:
        """(steps + 1, S, P) entropy in nats, summed over positions."""
        return -torch.special.xlogy(self.probs, self.probs).sum(dim=(-1, -2))

    @staticmethod
    def first(curve: Tensor, threshold: float) -> Tensor:
        """(S,) first step at which ``curve`` (steps + 1, S) reaches the threshold; steps + 1 if it never does."""
        reached = curve >= threshold
        return torch.where(reached.any(dim=0), reached.int().argmax(dim=0), len(curve)).double()


@dataclass(frozen=True)
class Tabular:
    """P prompts with answers of T positions and A symbols, and what each answer earns.

    Attributes:
        initial: (P,A) or (P,T,A) probabilities of the policy at the start, and of the reference.
        reward: ``(actions (N,T) int64, prompt (N,) int64) -> (N,) or (N,K)``; with a third parameter it is also given
            (N,) uniform numbers, common to all methods, from which to draw noise.
        weights: (K,) weights of the rewards; 1 by default.
        names: names of the rewards.
    """

    initial: Tensor
    reward: RewardFunction
    weights: Sequence[float] | None = None
    names: Sequence[str] | None = None

    def train(
        self,
        *,
        seeds: int,
        steps: int,
        group_size: int,
        lr: float,
        credit: Spec | Sequence[Spec] = "grpo",
        objective: Spec = "reinforce",
        terms: Sequence[Spec] = (),
        shaping: Sequence[Spec] | None = None,
        updates: int = 1,
        optimizer: Literal["sgd", "adam"] = "sgd",
        per_seed: bool = False,
        first_seed: int = 0,
        prompts: int | None = None,
    ) -> History:
        """Train one policy per seed.

        Args:
            seeds: number S of seeds.
            steps: batches.
            group_size: answers per prompt.
            lr: learning rate of the mean loss over a seed's actions.
            credit, objective, terms, shaping: methods as a recipe names them: a name, a callable, or a mapping with
                ``name`` and options. ``credit`` may be several, one after the other; ``shaping`` is the weighted sum by
                default.
            updates: gradient steps per batch; from the second on, the policy has moved away from the samples.
            optimizer: plain gradient descent or Adam.
            per_seed: call the methods once per seed, which those with statistics or memory over the batch need; by
                default all seeds share one call, for groups never span seeds.
            first_seed: the first seed.
            prompts: prompts drawn for each batch; all of them by default.
        """
        table = self.initial if self.initial.ndim == 3 else self.initial.unsqueeze(1)
        start = table.double().clamp(min=1e-30).log().log_softmax(dim=-1)
        logits = start.expand(seeds, *start.shape).clone().requires_grad_(True)
        update = (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)([logits], lr=lr)
        teams = [
            _Team(self, credit, objective, terms, shaping, seeds=1 if per_seed else seeds)
            for _ in range(seeds if per_seed else 1)
        ]
        generators = [torch_generator(first_seed + s, "tabular") for s in range(seeds)]
        probs = [logits.detach().softmax(dim=-1)]
        stats: list[dict[str, float]] = []
        for step in range(steps):
            batch = _Batch.draw(self, logits.detach(), start, generators, group_size, prompts)
            parts = [batch.rows(s) for s in range(seeds)] if per_seed else [slice(None)]
            seen: dict[str, float] = {}
            credited = [team.credit(batch.fields(part, step)) for team, part in zip(teams, parts, strict=True)]
            for _, numbers in credited:
                seen |= numbers
            for turn in range(updates):
                evaluation = batch.evaluate(logits, fresh=turn == 0)
                losses = [
                    team.loss({key: x[part] for key, x in evaluation.items()}, fields)
                    for team, part, (fields, _) in zip(teams, parts, credited, strict=True)
                ]
                update.zero_grad()
                torch.stack([loss for loss, _ in losses]).sum().backward()
                update.step()
                for _, numbers in losses:
                    seen |= numbers
            probs.append(logits.detach().softmax(dim=-1))
            stats.append(seen)
        return History(torch.stack(probs), stats)


class _Team:
    """The bound methods of one training, with their memory."""

    def __init__(
        self,
        bed: Tabular,
        credit: Spec | Sequence[Spec],
        objective: Spec,
        terms: Sequence[Spec],
        shaping: Sequence[Spec] | None,
        *,
        seeds: int,
    ) -> None:
        several = credit if isinstance(credit, Sequence) and not isinstance(credit, str) else [credit]
        self.credits = [bind("credit", spec) for spec in several]
        self.losses = [bind("objective", objective), *(bind("term", term) for term in terms)]
        self.shaping = [bind("shaping", spec) for spec in shaping or ["weighted_sum"]]
        self.seeds = seeds

    def credit(self, fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        """Shape the scores and hand out credit; every field so far, and what the methods reported."""
        stats: dict[str, float] = {}
        for bound in [*self.shaping, *self.credits]:
            outcome = bound(fields)
            fields = fields | outcome.fields
            if "advantage" in fields and fields["advantage"].ndim == 1:
                fields["advantage"] = fields["advantage"].unsqueeze(1) * fields["mask"]
            stats |= {f"{bound.name}/{key}": float(value) for key, value in outcome.stats.items()}
        return fields, stats

    def loss(self, evaluation: dict[str, Tensor], fields: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The sum over seeds of each seed's mean loss."""
        fields = fields | evaluation
        total, stats = torch.zeros((), dtype=torch.float64), {}
        for bound in self.losses:
            outcome = bound(fields)
            total = total + outcome.fields["loss"] * self.seeds
            stats |= {f"{bound.name}/{key}": float(value) for key, value in outcome.stats.items()}
        return total, stats


@dataclass(frozen=True)
class _Batch:
    """N = S * P * G answers, seed by seed and prompt by prompt."""

    bed: Tabular
    actions: Tensor
    seed: Tensor
    prompt: Tensor
    components: Tensor
    old_logp: Tensor
    ref_logp: Tensor
    prompts: int

    @classmethod
    def draw(
        cls,
        bed: Tabular,
        logits: Tensor,
        start: Tensor,
        generators: list[torch.Generator],
        group_size: int,
        prompts: int | None,
    ) -> _Batch:
        seeds, known, positions, symbols = logits.shape
        count = prompts or known
        chosen, uniform, noise = [], [], []
        for generator in generators:
            order = torch.randperm(known, generator=generator)[:count] if prompts else torch.arange(known)
            chosen.append(order)
            shape = (count, positions, group_size)
            uniform.append(torch.rand(shape, generator=generator, dtype=torch.float64))
            noise.append(torch.rand(count * group_size, generator=generator, dtype=torch.float64))
        prompt = torch.stack(chosen)
        seed = torch.arange(seeds).unsqueeze(1)
        edges = logits[seed, prompt].softmax(dim=-1).cumsum(dim=-1)
        actions = torch.searchsorted(edges, torch.stack(uniform)).clamp(max=symbols - 1)
        actions = actions.transpose(2, 3).reshape(-1, positions)
        flat_seed = seed.expand(seeds, count).repeat_interleave(group_size, dim=1).reshape(-1)
        flat_prompt = prompt.repeat_interleave(group_size, dim=1).reshape(-1)
        extra = (torch.cat(noise),) if len(inspect.signature(bed.reward).parameters) > 2 else ()
        components = bed.reward(actions, flat_prompt, *extra).double()
        old = _logp(logits, flat_seed, flat_prompt, actions)
        ref = _logp(start.unsqueeze(0), torch.zeros_like(flat_seed), flat_prompt, actions)
        return cls(
            bed, actions, flat_seed, flat_prompt, components.reshape(len(actions), -1), old, ref, logits.shape[1]
        )

    def rows(self, seed: int) -> slice:
        """The rows of one seed."""
        each = len(self.actions) // (int(self.seed[-1]) + 1)
        return slice(seed * each, (seed + 1) * each)

    def fields(self, part: slice, step: int) -> dict[str, Any]:
        """Canonical fields of some rows."""
        actions = self.actions[part]
        columns = self.components.shape[1]
        weights = [1.0] * columns if self.bed.weights is None else self.bed.weights
        flags = torch.ones(len(actions), dtype=torch.bool)
        return {
            "group": self.seed[part] * self.prompts + self.prompt[part],
            "task_id": self.prompt[part],
            "mask": torch.ones_like(actions, dtype=torch.bool),
            "turn": torch.zeros_like(actions),
            "length": torch.full((len(actions),), actions.shape[1]),
            "done": flags,
            "truncated": ~flags,
            "tokens": actions,
            "components": self.components[part],
            "component_names": tuple(self.bed.names or (f"reward{k}" for k in range(columns))),
            "component_weights": torch.tensor(weights, dtype=torch.float64),
            "old_logp": self.old_logp[part],
            "ref_logp": self.ref_logp[part],
            "step": step,
            "seed": step,
        }

    def evaluate(self, logits: Tensor, *, fresh: bool) -> dict[str, Tensor]:
        """What the policy says now of the answers; before the first update, exactly what it said when it sampled."""
        logp = _logp(logits, self.seed, self.prompt, self.actions)
        table = logits.log_softmax(dim=-1)
        entropy = -(table.exp() * table).sum(dim=-1)[self.seed, self.prompt]
        return {"logp": logp, "old_logp": logp.detach() if fresh else self.old_logp, "entropy": entropy}


def _logp(logits: Tensor, seed: Tensor, prompt: Tensor, actions: Tensor) -> Tensor:
    table = logits.log_softmax(dim=-1)
    return table[seed.unsqueeze(1), prompt.unsqueeze(1), torch.arange(actions.shape[1]), actions]


def bind(stage: str, spec: Spec) -> Bound:
    """A method with its options, as a recipe names it."""
    if isinstance(spec, Mapping):
        return registry.get(stage, spec["name"]).bind({key: x for key, x in spec.items() if key != "name"})
    return registry.get(stage, spec).bind()
