"""A room with a key and a door in which failed attempts are looked back on and tried again, for many seeds at once.

Policies are tables. A scripted reflector names the first step that led away from the goal, or by mistake another one;
the retry keeps the moves before it and goes on with advice, which makes moves towards the goal likelier. Every move is
paid for, also those that are played again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.claims.testbeds.episodes import Played, play
from guerdon.claims.testbeds.gridworld import MOVES, KeyDoor
from guerdon.seeding import torch_generator


class Batch(NamedTuple):
    """Attempts, retries and retries with their advice: rows of T moves, seed by seed within each kind.

    Attributes:
        seed, group: (N,) whose it is, and which start.
        state, action, mask: (N,T).
        reward: (N,).
        pivot: (N,) moves that an attempt and its retry share.
        advised: (N,) whether the moves are read with advice.
    """

    seed: Tensor
    group: Tensor
    state: Tensor
    action: Tensor
    mask: Tensor
    reward: Tensor
    pivot: Tensor
    advised: Tensor


class Curve(NamedTuple):
    """Success (points,S) and the moves (points,S) that had been paid for by then."""

    success: Tensor
    moves: Tensor

    def moves_until(self, threshold: float) -> Tensor:
        """(S,) moves until success reaches the threshold; those of the whole training where it never does."""
        reached = self.success >= threshold
        first = torch.where(reached.any(dim=0), reached.int().argmax(dim=0), len(self.success) - 1)
        return self.moves.gather(0, first.unsqueeze(0))[0]


Loss = Callable[[Batch, Tensor], Tensor]


@dataclass(frozen=True)
class Retrying:
    """The room, its reflector and its advice.

    Attributes:
        room: where the policies act.
        sharp: probability with which the reflector names the true step; else any step of the attempt.
        advice: added to the logits of moves towards the goal.
    """

    room: KeyDoor = field(default_factory=lambda: KeyDoor(size=5, turns=20, key=4, door=20))
    sharp: float = 0.8
    advice: float = 1.5

    def towards(self) -> Tensor:
        """(states,A) which moves bring the key nearer, or the door once the key is held."""
        size, cells = self.room.size, self.room.size**2
        state = torch.arange(2 * cells)
        goal = torch.where(state >= cells, self.room.door, self.room.key)
        here = torch.stack([state % cells // size, state % size], dim=1)
        wanted = torch.stack([goal // size, goal % size], dim=1) - here
        return (wanted.unsqueeze(1) * MOVES).sum(dim=2) > 0

    def train(
        self,
        loss: Loss,
        *,
        seeds: int,
        steps: int,
        lr: float,
        groups: int = 4,
        attempts: int = 4,
        retry: bool = True,
        first_seed: int = 0,
        measure: int = 5,
    ) -> Curve:
        """Train a policy per seed by SGD.

        Args:
            loss: of one seed's rows, from the batch and the log-probability (N,T) of its moves.
            seeds: number S.
            steps: updates.
            lr: learning rate.
            groups: starts of an update.
            attempts: from each start.
            retry: whether attempts are tried again.
            first_seed: the first seed.
            measure: updates between measurements.
        """
        towards = self.towards().double()
        logits = torch.zeros(seeds, *towards.shape, dtype=torch.float64, requires_grad=True)
        generators = [torch_generator(first_seed + s, "retrying") for s in range(seeds)]
        paid, success, moves = torch.zeros(seeds, dtype=torch.float64), [], []
        for step in range(steps + 1):
            if step % measure == 0 or step == steps:
                fixed = [torch_generator(first_seed + s, "measure") for s in range(seeds)]
                seen = play(self.room, logits.detach(), fixed, 64, 1)
                success.append(seen.reward[..., 0].sum(dim=1).view(seeds, -1).mean(dim=1))
                moves.append(paid.clone())
            if step == steps:
                return Curve(torch.stack(success), torch.stack(moves))
            batch, cost = self._batch(logits.detach(), generators, groups, attempts, retry)
            paid += cost
            seen_logits = logits[batch.seed.unsqueeze(1), batch.state]
            seen_logits = seen_logits + self.advice * batch.advised.view(-1, 1, 1) * towards[batch.state]
            logp = seen_logits.log_softmax(dim=-1).gather(2, batch.action.unsqueeze(2)).squeeze(2)
            total = logp.new_zeros(())
            for s in range(seeds):
                rows = (batch.seed == s).nonzero().flatten()
                total = total + loss(Batch(*(x[rows] for x in batch)), logp[rows])
            (gradient,) = torch.autograd.grad(total, logits)
            with torch.no_grad():
                logits -= lr * gradient
        raise AssertionError

    def _batch(
        self, logits: Tensor, generators: Sequence[torch.Generator], groups: int, attempts: int, retry: bool
    ) -> tuple[Batch, Tensor]:
        """The rows of an update, and what each seed paid for them."""
        seeds, each = len(generators), groups * attempts
        played = play(self.room, logits, generators, groups, attempts, whole=True)
        seed = torch.arange(seeds).repeat_interleave(each)
        group = torch.arange(seeds * groups).repeat_interleave(attempts)
        reward, length = played.reward[..., 0].sum(dim=1), played.alive.sum(dim=1)
        none = torch.zeros_like(length)
        first = Batch(seed, group, played.state, played.action, played.acted, reward, none, none.bool())
        if not retry:
            return first, length.double().view(seeds, -1).sum(dim=1)
        draws = torch.cat([torch.rand(each, self.room.turns + 3, generator=g, dtype=torch.float64) for g in generators])
        step = self._named(played, draws[:, :2])
        again = self._retry(logits, first, step, draws[:, 2:])
        tried = reward < 1
        first = first._replace(pivot=torch.where(tried, step, 0))
        second = again._replace(
            mask=again.mask & tried.unsqueeze(1), reward=again.reward.masked_fill(~tried, torch.nan)
        )
        taught = second._replace(group=group.max() + 1 + torch.arange(len(group)), advised=tried)
        both = Batch(*(torch.cat(parts) for parts in zip(first, second, taught, strict=True)))
        cost = length + second.mask.sum(dim=1)
        return both, cost.double().view(seeds, -1).sum(dim=1)

    def _named(self, played: Played, chance: Tensor) -> Tensor:
        """(B,) the step that the reflector names."""
        wrong = ~self.towards()[played.state, played.action] & played.alive
        true = wrong.int().argmax(dim=1)
        other = (chance[:, 1] * played.alive.sum(dim=1)).long()
        return torch.where(chance[:, 0] < self.sharp, true, other)

    def _retry(self, logits: Tensor, first: Batch, step: Tensor, chance: Tensor) -> Batch:
        """Keep the moves before ``step``, and go on with advice."""
        guided = (logits + self.advice * self.towards()).softmax(dim=-1).cumsum(dim=-1)
        state, alive = first.state[:, 0], torch.ones_like(first.seed, dtype=torch.bool)
        reward, seen = torch.zeros(len(state), dtype=torch.float64), []
        for t in range(self.room.turns):
            drawn = (chance[:, t : t + 1] > guided[first.seed, state, :-1]).sum(dim=1)
            action = torch.where(t < step, first.action[:, t], drawn)
            after = self.room.step(state, action, chance[:, -1])
            seen.append((state, action, alive))
            reward = reward + after.reward[:, 0] * alive
            state, alive = torch.where(alive, after.state, state), alive & ~after.done
        states, actions, lived = (torch.stack(column, dim=1) for column in zip(*seen, strict=True))
        return first._replace(state=states, action=actions, mask=lived, reward=reward, pivot=step)
