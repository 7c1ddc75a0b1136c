"""Two attempts at a problem in a table: an answer, then a gate that copies or revises it; many seeds at once.

Several problems look alike, so the first attempt can be right only as often as the commonest of their answers. Before
the gate a check says whether the first answer looks right, and errs sometimes. A revision sees the first answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.testbeds.tabular import Spec, bind
from guerdon.seeding import torch_generator


class Attempts(NamedTuple):
    """What policies do, exactly and averaged over problems; each (S,).

    Attributes:
        first, second: share of right answers in either attempt.
        fixed: share of wrong first answers that the second attempt puts right.
        spoiled: share of right first answers that it loses.
        revised: how often the gate revises.
    """

    first: Tensor
    second: Tensor
    fixed: Tensor
    spoiled: Tensor
    revised: Tensor

    @property
    def gain(self) -> Tensor:
        """What the second attempt adds to the first."""
        return self.second - self.first


@dataclass(frozen=True)
class Correcting:
    """Problems of ``kinds`` kinds; those of a kind look alike, and their right answers are 0 or 1.

    Attributes:
        kinds, answers: how many there are.
        common: share of a kind's problems whose right answer is 0.
        known: chance of 0 and of 1 in the first attempt of the start; other answers share the rest.
        sees: chance that the check is right.
        revises: chance of the start that the gate revises; what it then says is uniform.
    """

    kinds: int = 4
    answers: int = 13
    common: float = 0.6
    known: tuple[float, float] = (0.3, 0.2)
    sees: float = 0.75
    revises: float = 0.2

    def start(self, seeds: int) -> list[Tensor]:
        """Log-odds of the first attempt (S,K,A), of the gate (S,2), and of revisions (S,K,A,A)."""
        rest = (1 - sum(self.known)) / (self.answers - 2)
        first = torch.tensor([*self.known, *[rest] * (self.answers - 2)], dtype=torch.float64).log()
        gate = torch.tensor([1 - self.revises, self.revises], dtype=torch.float64).log()
        shape = (seeds, self.kinds, self.answers)
        revision = torch.zeros(*shape, self.answers, dtype=torch.float64)
        return [first.expand(shape).clone(), gate.expand(seeds, 2, 2).clone(), revision]

    def look(self, tables: Sequence[Tensor]) -> Attempts:
        """What policies do, from their tables."""
        first, gate, revision = (x.detach().softmax(dim=-1) for x in tables)
        share = torch.tensor([self.common, 1 - self.common], dtype=torch.float64)
        right = torch.eye(self.answers, dtype=torch.float64)[:2]  # (2,A) the two problems of a kind
        seen = self.sees * right + (1 - self.sees) * (1 - right)  # (2,A) chance that an answer looks right
        revise = seen * gate[:, 1, 1, None, None] + (1 - seen) * gate[:, 0, 1, None, None]  # (S,2,A)
        answer = first.unsqueeze(2)  # (S,K,1,A)
        hit = revision[..., :2].transpose(2, 3)  # (S,K,2,A) chance that a revision of each answer is right
        chance = (revise.unsqueeze(1) * hit + (1 - revise.unsqueeze(1)) * right) * answer
        weight = share.unsqueeze(1) / self.kinds

        def mean(x: Tensor) -> Tensor:
            return (x * weight).sum(dim=(1, 2, 3))

        one, two = mean(answer * right), mean(chance)
        kept = mean(chance * right)
        return Attempts(one, two, (two - kept) / (1 - one), 1 - kept / one, mean(answer * revise.unsqueeze(1)))

    def train(
        self,
        *,
        seeds: int,
        steps: int,
        shaping: Spec,
        credit: Spec,
        terms: Sequence[Spec] = (),
        problems: int = 16,
        group_size: int = 8,
        lr: float = 0.05,
        first_seed: int = 0,
    ) -> list[Attempts]:
        """Train one policy per seed by REINFORCE; what it does before the first and after every step.

        Args:
            seeds: number S of seeds.
            steps: batches.
            shaping, credit, terms: methods as a recipe names them; terms must divide by a constant, so that seeds do
                not touch.
            problems: of a batch.
            group_size: trajectories per problem.
            lr: learning rate of Adam.
            first_seed: the first seed.
        """
        tables = [x.requires_grad_() for x in self.start(seeds)]
        reference = self.start(seeds)
        update = torch.optim.Adam(tables, lr=lr)
        shape, assign = bind("shaping", shaping), bind("credit", credit)
        constant = {"name": "reinforce", "aggregate": "sum_over_max_length", "max_length": 3}
        losses = [bind("objective", constant), *(bind("term", term) for term in terms)]
        generators = [torch_generator(first_seed + s, "correcting") for s in range(seeds)]
        seen = [self.look(tables)]
        for step in range(steps):
            batch = self._draw(tables, generators, problems, group_size)
            fields: dict[str, Any] = {**batch, "step": step}
            fields |= shape(fields).fields
            fields |= assign(fields).fields
            fields["ref_logp"] = self._logp(reference, batch)
            fields["logp"] = self._logp(tables, batch)
            loss = torch.stack([bound(fields).fields["loss"] for bound in losses]).sum() * seeds
            update.zero_grad()
            loss.backward()
            update.step()
            seen.append(self.look(tables))
        return seen

    @torch.no_grad()
    def _draw(
        self, tables: Sequence[Tensor], generators: Sequence[torch.Generator], problems: int, group_size: int
    ) -> dict[str, Any]:
        """Fields of N = S * problems * group_size trajectories of up to three actions: answer, gate, revision."""
        rows, seeds = problems * group_size, len(generators)
        uniform = torch.stack([torch.rand(4, rows, generator=g, dtype=torch.float64) for g in generators])
        kinds = torch.stack([torch.randint(self.kinds, (problems,), generator=g) for g in generators])
        asked = torch.stack([torch.rand(problems, generator=g, dtype=torch.float64) for g in generators])
        kind = kinds.repeat_interleave(group_size, dim=1).flatten()
        wanted = (asked >= self.common).long().repeat_interleave(group_size, dim=1).flatten()
        seed = torch.arange(seeds).repeat_interleave(rows)
        draws = uniform.transpose(0, 1).flatten(1)
        answer = _pick(tables[0][seed, kind], draws[0])
        check = ((answer == wanted) == (draws[1] < self.sees)).long()
        gate = _pick(tables[1][seed, check], draws[2])
        revision = _pick(tables[2][seed, kind, answer], draws[3])
        final = torch.where(gate == 1, revision, answer)
        group = seed * problems + torch.arange(problems).repeat_interleave(group_size).repeat(seeds)
        mask = torch.stack([torch.ones_like(gate), torch.ones_like(gate), gate], dim=1).bool()
        return {
            "seed_of": seed,
            "kind": kind,
            "check": check,
            "tokens": torch.stack([answer, gate, revision], dim=1),
            "turn_reward": torch.stack([answer == wanted, final == wanted], dim=1).double(),
            "group": group,
            "mask": mask,
            "turn": torch.where(mask, torch.tensor([0, 1, 1]), -1),
        }

    def _logp(self, tables: Sequence[Tensor], batch: dict[str, Any]) -> Tensor:
        """(N,T) log-probability of each action."""
        first, gate, revision = (x.log_softmax(dim=-1) for x in tables)
        seed, kind, (answer, choice, last) = batch["seed_of"], batch["kind"], batch["tokens"].unbind(dim=1)
        of_gate = gate[seed, batch["check"], choice]
        return torch.stack([first[seed, kind, answer], of_gate, revision[seed, kind, answer, last]], dim=1)


def _pick(logits: Tensor, uniform: Tensor) -> Tensor:
    edges = logits.softmax(dim=-1).cumsum(dim=-1)
    return torch.searchsorted(edges, uniform.unsqueeze(1)).squeeze(1).clamp(max=logits.shape[-1] - 1)
