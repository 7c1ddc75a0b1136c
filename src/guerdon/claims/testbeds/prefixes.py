"""Softmax policies with a row of logits for every prefix of a sequence, for many seeds at once.

What is written is exact: the probability of every whole sequence, and the entropy of every prefix. Losses are the
training loop's objectives and terms, found and bound by name, one call per seed, for some of them look at the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.testbeds.tabular import Spec, bind
from guerdon.objectives.entropy import categorical_entropy
from guerdon.seeding import torch_generator


class Draws(NamedTuple):
    """B sequences of T symbols for each of S seeds.

    Attributes:
        tokens: (S,B,T).
        mask: (S,B,T) false on symbols that were given.
    """

    tokens: Tensor
    mask: Tensor


Write = Callable[["Prefixes", Tensor, Sequence[torch.Generator], int], Draws]
More = Callable[[Tensor, Tensor], Mapping[str, Any]]


class Lessons(NamedTuple):
    """What a training did: (points,S,X,A) logits before the first and after every ``every`` steps, and its samples.

    ``numbers`` has, per step, what the losses of the first seed reported; ``tokens`` (steps,S,B,T) what was drawn.
    """

    logits: Tensor
    numbers: list[dict[str, float]]
    tokens: Tensor


@dataclass(frozen=True)
class Prefixes:
    """Sequences of ``length`` symbols out of ``symbols``, and the chance that each is right.

    Attributes:
        symbols, length: A and T.
        chance: (A^T,) chance that each sequence is rewarded, in the order of its digits.
        frozen: the last symbols of the alphabet whose probabilities never change, if any.
        mass: their probability together, in equal parts.
    """

    symbols: int
    length: int
    chance: Tensor
    frozen: int = 0
    mass: float = 0.0

    @functools.cached_property
    def first(self) -> Tensor:
        """(T,) the row of the first prefix of each length; prefixes of a length are in the order of their digits."""
        sizes = torch.tensor([self.symbols**t for t in range(self.length)])
        return sizes.cumsum(0) - sizes

    @property
    def rows(self) -> int:
        """X, the number of prefixes that something follows."""
        return int(self.first[-1]) + self.symbols ** (self.length - 1)

    def number(self, tokens: Tensor) -> Tensor:
        """(...) place of whole sequences (...,T) among all."""
        places = self.symbols ** torch.arange(tokens.shape[-1] - 1, -1, -1)
        return (tokens * places).sum(dim=-1)

    def states(self, tokens: Tensor) -> Tensor:
        """(...,T) row of the prefix before each symbol."""
        before = [torch.zeros_like(tokens[..., 0])]
        for t in range(self.length - 1):
            before.append(before[-1] * self.symbols + tokens[..., t])
        return torch.stack(before, dim=-1) + self.first

    def log_probs(self, logits: Tensor) -> Tensor:
        """(...,A) log-probabilities by logits (...,A); those of frozen symbols are not read."""
        if not self.frozen:
            return logits.log_softmax(dim=-1)
        free = logits[..., : -self.frozen].log_softmax(dim=-1)
        held = torch.full_like(logits[..., -self.frozen :], self.mass / self.frozen).log()
        return torch.cat([free + torch.tensor(1 - self.mass, dtype=logits.dtype).log(), held], dim=-1)

    def whole(self, logits: Tensor) -> Tensor:
        """(...,A^T) exact probability of every sequence, by logits (...,X,A)."""
        table = self.log_probs(logits)
        total = table[..., 0, :]
        for t in range(1, self.length):
            block = table[..., int(self.first[t]) : int(self.first[t]) + self.symbols**t, :]
            total = (total.unsqueeze(-1) + block).flatten(-2)
        return total.exp()

    def success(self, logits: Tensor) -> Tensor:
        """(...) exact chance of a reward."""
        return (self.whole(logits) * self.chance.double()).sum(dim=-1)

    def entropy(self, logits: Tensor) -> Tensor:
        """(...) exact entropy of whole sequences, in nats."""
        probs = self.whole(logits)
        return -torch.special.xlogy(probs, probs).sum(dim=-1)

    def write(
        self, logits: Tensor, generators: Sequence[torch.Generator], count: int, given: Tensor | None = None
    ) -> Tensor:
        """(S,B,T) sequences drawn by logits (S,X,A); ``given`` (S,B,T) holds symbols to keep, and -1 elsewhere."""
        uniform = torch.stack([torch.rand(count, self.length, generator=g, dtype=torch.float64) for g in generators])
        edges = self.log_probs(logits).exp().cumsum(dim=-1)
        seed = torch.arange(len(logits)).unsqueeze(1)
        at, drawn = torch.zeros(len(logits), count, dtype=torch.int64), []
        for t in range(self.length):
            row = edges[seed, at + self.first[t]]
            symbol = (uniform[:, :, t : t + 1] > row).sum(dim=-1).clamp(max=self.symbols - 1)
            if given is not None:
                symbol = torch.where(given[..., t] < 0, symbol, given[..., t])
            drawn.append(symbol)
            at = at * self.symbols + symbol
        return torch.stack(drawn, dim=-1)

    def train(
        self,
        *,
        seeds: int,
        steps: int,
        group_size: int,
        groups: int,
        lr: float,
        initial: Tensor | None = None,
        credit: Spec = "grpo",
        objective: Spec = "ppo_clip",
        terms: Sequence[Spec] = (),
        write: Write | None = None,
        more: More | None = None,
        updates: int = 1,
        every: int = 1,
        first_seed: int = 0,
    ) -> Lessons:
        """Train one policy per seed by plain gradient descent on what recipes name.

        Args:
            seeds: number S of seeds.
            steps: batches of groups x group_size sequences.
            group_size, groups: of a batch.
            lr: learning rate of a seed's loss.
            initial: (X,A) or (S,X,A) logits; uniform by default.
            credit, objective, terms: methods, as recipes name them, each with memory of its own for every seed.
            write: draws a batch by ``(bed, logits, generators, step)``; plain samples by default.
            more: further fields of a seed's batch, by its tokens (B,T) and the log-probabilities (B,T,A) that they
                were drawn by.
            updates: gradient steps per batch.
            every: how many steps lie between two points of the result.
            first_seed: the first seed.
        """
        begin = torch.zeros(self.rows, self.symbols) if initial is None else initial
        logits = begin.double().expand(seeds, self.rows, self.symbols).clone().requires_grad_(True)
        optimizer = torch.optim.SGD([logits], lr=lr)
        credits = [bind("credit", credit) for _ in range(seeds)]
        losses = [[bind("objective", objective), *(bind("term", t) for t in terms)] for _ in range(seeds)]
        generators = [torch_generator(first_seed + s, "prefixes") for s in range(seeds)]
        chances = [torch_generator(first_seed + s, "rewards") for s in range(seeds)]
        group = torch.arange(groups).repeat_interleave(group_size)
        points, numbers, seen = [logits.detach().clone()], [], []
        for step in range(steps):
            now = logits.detach()
            drawn = write(self, now, generators, step) if write else plain(self, now, generators, len(group))
            luck = torch.stack([torch.rand(len(group), generator=g, dtype=torch.float64) for g in chances])
            reward = (luck < self.chance.double()[self.number(drawn.tokens)]).double()
            states = self.states(drawn.tokens)
            rows = torch.arange(seeds)[:, None, None], states
            old = self.log_probs(now)[rows]
            at = drawn.tokens.unsqueeze(-1)
            batches = [self._fields(s, drawn, reward, old, group, step, credits[s], more) for s in range(seeds)]
            for _ in range(updates):
                table = self.log_probs(logits)[rows]
                logp, entropy = table.gather(-1, at).squeeze(-1), categorical_entropy(table)
                total = torch.zeros((), dtype=torch.float64)
                for s, fields in enumerate(batches):
                    fields |= {"logp": logp[s], "entropy": entropy[s]}
                    outcomes = [bound(fields) for bound in losses[s]]
                    total = total + sum(outcome.fields["loss"] for outcome in outcomes)
                    if s == 0:
                        numbers = [*numbers[:step], {k: v for o in outcomes for k, v in o.stats.items()}]
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
            seen.append(drawn.tokens)
            if (step + 1) % every == 0:
                points.append(logits.detach().clone())
        return Lessons(torch.stack(points), numbers, torch.stack(seen))

    @staticmethod
    def _fields(
        s: int,
        drawn: Draws,
        reward: Tensor,
        table: Tensor,
        group: Tensor,
        step: int,
        credit: Any,
        more: More | None,
    ) -> dict[str, Any]:
        tokens, mask = drawn.tokens[s], drawn.mask[s]
        fields: dict[str, Any] = {"tokens": tokens, "mask": mask, "group": group, "reward": reward[s], "step": step}
        fields["turn"] = torch.where(mask, torch.arange(mask.shape[1]), -1)
        fields["old_logp"] = table[s].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        fields |= more(tokens, table[s]) if more else {}
        advantage = credit(fields).fields["advantage"]
        fields["advantage"] = advantage.unsqueeze(1) * mask if advantage.ndim == 1 else advantage
        return fields


def plain(bed: Prefixes, logits: Tensor, generators: Sequence[torch.Generator], count: int) -> Draws:
    """Whole sequences, all of whose symbols are learned from."""
    tokens = bed.write(logits, generators, count)
    return Draws(tokens, torch.ones_like(tokens, dtype=torch.bool))
