"""Answerers in a table whose answers vote: what tells their groups, what breaks their ties, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guerdon.credit.group import grpo
from guerdon.registry import Bound
from guerdon.seeding import torch_generator


def adjacent(count: int, size: int) -> Tensor:
    """(N,) key of groups of ``size`` whose members stand side by side, as ``Tabular`` hands them to its reward."""
    return torch.arange(count) // size


def tie_lots(answer: Tensor, uniform: Tensor, size: int) -> Tensor:
    """(N,) numbers that are equal for equal answers of a group, drawn from its first uniform numbers.

    Args:
        answer: (N,) below ``size``.
        uniform: (N,) common random numbers.
        size: of the groups.
    """
    return uniform.view(-1, size).repeat_interleave(size, dim=0).gather(1, answer.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class Topics:
    """Problems of several topics whose answers share a skill, for many seeds at once.

    logit(p, a) = log start(p, a) + own(p, a) + skill(topic of p) [a = 0];  answer 0 is right

    What is learned of one problem helps all of its topic, as practice does; what is learned by heart helps none.

    Attributes:
        start: (P,A) probabilities at first.
        topic: (P,) int64.
        own_rate, skill_rate: learning rates of the two kinds of parameters.
    """

    start: Tensor
    topic: Tensor
    own_rate: float
    skill_rate: float

    def train(
        self,
        scored: Callable[[Tensor, Tensor], Tensor],
        shaping: Callable[[], Sequence[Bound]],
        *,
        seeds: int,
        steps: int,
        group_size: int,
        first_seed: int = 0,
        watch: Callable[[int, list[dict[str, float]]], None] | None = None,
    ) -> Tensor:
        """Train on all problems in every step, with credit ``grpo`` and one step on policy each.

        Args:
            scored: from answers (N,) and groups (N,) to components (N,K), named reward0, reward1, ...
            shaping: makes the stages of one seed.
            seeds: number S.
            steps: batches.
            group_size: answers per problem.
            first_seed: the first seed.
            watch: is told the step and what the shaping of each seed reported.

        Returns:
            (steps + 1,S,P,A) probabilities before the first and after every step.
        """
        problems, answers = self.start.shape
        base = self.start.double().log()
        own = torch.zeros(seeds, problems, answers, dtype=torch.float64, requires_grad=True)
        skill = torch.zeros(seeds, int(self.topic.max()) + 1, dtype=torch.float64, requires_grad=True)
        right = torch.zeros(answers, dtype=torch.float64).index_fill(0, torch.tensor(0), 1.0)
        generators = [torch_generator(first_seed + s, "topics") for s in range(seeds)]
        stages = [shaping() for _ in range(seeds)]
        size = problems * group_size
        group = adjacent(seeds * size, group_size)
        problem = torch.arange(problems).repeat_interleave(group_size)
        mask = torch.ones(seeds * size, 1, dtype=torch.bool)
        curve = []
        for step in range(steps + 1):
            table = (base + own + skill[:, self.topic].unsqueeze(-1) * right).log_softmax(dim=-1)
            probs = table.detach().exp()
            curve.append(probs)
            if step == steps:
                break
            drawn = torch.stack(
                [
                    torch.multinomial(p, group_size, replacement=True, generator=g)
                    for p, g in zip(probs, generators, strict=True)
                ]
            )
            components = scored(drawn.flatten(), group).view(seeds, size, -1)
            rewards, told = zip(
                *(_shaped(bounds, rows, problem) for bounds, rows in zip(stages, components, strict=True)), strict=True
            )
            if watch is not None:
                watch(step, list(told))
            advantage = grpo(torch.cat(rewards), group, mask)
            logp = table.gather(2, drawn).reshape(-1, 1)
            loss = -(logp * advantage).sum() / size
            at_own, at_skill = torch.autograd.grad(loss, [own, skill])
            with torch.no_grad():
                own -= self.own_rate * at_own
                skill -= self.skill_rate * at_skill
        return torch.stack(curve)


def _shaped(bounds: Sequence[Bound], components: Tensor, problem: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The reward that stages make of components, and what they reported."""
    columns = components.shape[1]
    fields = {
        "components": components,
        "component_names": tuple(f"reward{k}" for k in range(columns)),
        "component_weights": torch.ones(columns, dtype=torch.float64),
        "task_id": problem,
    }
    told: dict[str, float] = {}
    for bound in bounds:
        outcome = bound(fields)
        fields |= outcome.fields
        told |= outcome.stats
    return fields["reward"], told
