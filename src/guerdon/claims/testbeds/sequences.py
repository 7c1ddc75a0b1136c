"""Small networks that write short sequences of symbols, one network per seed, all seeds at once.

What a network sees before each symbol is a function of the prompt and of the symbols so far; two layers turn it into
logits and a value. The networks of different seeds share nothing but the code.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from guerdon.seeding import torch_generator

Observe = Callable[[Tensor, Tensor], Tensor]


class Reading(NamedTuple):
    """What networks say of sequences.

    Attributes:
        logp: (S,B,T) log-probability of each symbol.
        values: (S,B,T) the critic's value of the state before each symbol.
        log_probs: (S,B,T,A) log-probabilities of all symbols.
        features: (S,B,T,H) what the policy's hidden layer makes of a sequence up to and including each symbol; no
            gradient passes.
        end_value: (S,B) the critic's value of whole sequences.
    """

    logp: Tensor
    values: Tensor
    log_probs: Tensor
    features: Tensor
    end_value: Tensor


@dataclass(frozen=True)
class Writing:
    """What is written: ``length`` symbols out of ``symbols``, seeing ``size`` numbers before each.

    Attributes:
        observe: ``(prompt (S,B,Q) int64, tokens (S,B,T) int64) -> (S,B,T+1,F)``: what is seen before each symbol and
            after the last; entry t may depend on the first t symbols only.
    """

    symbols: int
    length: int
    size: int
    observe: Observe


class Networks:
    """S networks of two layers, with a critic of their own; weights are drawn from each seed."""

    def __init__(self, task: Writing, seeds: Sequence[int], *, hidden: int = 64) -> None:
        self.task, self.seeds = task, list(seeds)
        shapes = [(task.size, hidden), (1, hidden), (hidden, task.symbols), (1, task.symbols)]
        shapes += [(task.size, hidden), (1, hidden), (hidden, 1), (1, 1)]
        generators = [torch_generator(seed, "networks") for seed in self.seeds]
        self.weights = []
        for rows, columns in shapes:
            drawn = torch.stack([torch.randn(rows, columns, generator=g) for g in generators])
            scale = 0.0 if rows == 1 or columns == 1 else (2.0 if rows == task.size else 1.0) / rows**0.5
            self.weights.append((scale * drawn).requires_grad_())

    def copy(self) -> Networks:
        """The same networks with weights of their own."""
        twin = Networks(self.task, self.seeds, hidden=self.weights[0].shape[-1])
        for mine, theirs in zip(twin.weights, self.weights, strict=True):
            mine.data.copy_(theirs.data)
        return twin

    def only(self, index: int) -> Networks:
        """The networks of one seed, with the same weights."""
        one = copy.copy(self)
        one.seeds, one.weights = [self.seeds[index]], [x.detach()[index : index + 1] for x in self.weights]
        return one

    def read(self, prompt: Tensor, tokens: Tensor) -> Reading:
        """What the networks say of sequences; differentiable."""
        seen = self.task.observe(prompt, tokens)
        features = self._hidden(seen, 0)
        log_probs = self._out(features[:, :, :-1], 2).log_softmax(dim=-1)
        logp = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        values = self._out(self._hidden(seen, 4), 6).squeeze(-1)
        return Reading(logp, values[:, :, :-1], log_probs, features[:, :, 1:].detach(), values[:, :, -1])

    @torch.no_grad()
    def value_after(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """(S,B,T+1) value of the state before each symbol and after the last."""
        return self._out(self._hidden(self.task.observe(prompt, tokens), 4), 6).squeeze(-1)

    @torch.no_grad()
    def write(self, prompt: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """(S,B,T) sequences for prompts (S,B,Q): sampled, or, without generators, the likeliest symbol each time."""
        seeds, rows = prompt.shape[:2]
        tokens = torch.zeros(seeds, rows, self.task.length, dtype=torch.int64)
        draws = torch.zeros(tokens.shape)
        if generators is not None:
            draws = torch.stack([torch.rand(tokens.shape[1:], generator=g) for g in generators])
        for t in range(self.task.length):
            logits = self._out(self._hidden(self.task.observe(prompt, tokens)[:, :, t], 0), 2)
            edges = logits.double().softmax(dim=-1).cumsum(dim=-1)
            drawn = torch.searchsorted(edges, draws[:, :, t : t + 1].double()).squeeze(-1)
            drawn = drawn.clamp(max=self.task.symbols - 1)
            tokens[:, :, t] = logits.argmax(dim=-1) if generators is None else drawn
        return tokens

    def _hidden(self, seen: Tensor, first: int) -> Tensor:
        return torch.tanh(self._out(seen, first))

    def _out(self, x: Tensor, first: int) -> Tensor:
        weight, bias = self.weights[first : first + 2]
        flat = x.reshape(len(x), -1, x.shape[-1])
        return (flat @ weight + bias).reshape(*x.shape[:-1], weight.shape[-1])


class Adam:
    """Adam on networks; each seed's losses are summed, so that seeds do not touch."""

    def __init__(self, networks: Networks, lr: float) -> None:
        self.inner = torch.optim.Adam(networks.weights, lr=lr)

    def step(self, loss: Tensor) -> None:
        """Follow the gradient of a sum over seeds."""
        self.inner.zero_grad()
        loss.backward()
        self.inner.step()


def progressions(modulus: int = 7, length: int = 4, *, whole: bool = False) -> tuple[Writing, Tensor, Tensor]:
    """Arithmetic progressions: for (a, b) write a + b, a + 2 b, ... modulo ``modulus``.

    Args:
        modulus, length: how many numbers there are, and how many are written.
        whole: whether a network sees all symbols so far, or the last one alone.

    Returns:
        The task; all prompts (P,2), P = modulus^2; and their answers (P,T). Before each symbol a network sees a, b,
        symbols before and the position.
    """
    prompt = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    answer = (prompt[:, :1] + torch.arange(1, length + 1) * prompt[:, 1:]) % modulus
    place = torch.arange(length + 1)
    written = (torch.arange(length) < place.unsqueeze(1)).unsqueeze(-1)

    def observe(prompt: Tensor, tokens: Tensor) -> Tensor:
        places = one_hot(place, length + 1).expand(*tokens.shape[:2], -1, -1)
        asked = one_hot(prompt, modulus).flatten(-2).unsqueeze(-2).expand(-1, -1, length + 1, -1)
        symbols = one_hot(tokens, modulus)
        if whole:
            before = (symbols.unsqueeze(2) * written).flatten(-2)
        else:
            before = torch.nn.functional.pad(symbols, (0, 0, 1, 0))
        return torch.cat([asked, before, places], dim=-1).float()

    shown = length if whole else 1
    return Writing(modulus, length, (2 + shown) * modulus + length + 1, observe), prompt, answer


@dataclass(frozen=True)
class Countdown:
    """From a number to a goal in ``length`` operations, modulo ``modulus``: + 1, + 3, * 2 or * 3 each time.

    A prompt is (start, goal). Before each operation a network sees the number so far, the goal and the position, as a
    trace shows the results of its steps. Several traces are right.
    """

    modulus: int = 7
    length: int = 4

    @functools.cached_property
    def table(self) -> Tensor:
        """(modulus, 4) the number that each operation makes of each number."""
        x = torch.arange(self.modulus)
        return torch.stack([x + 1, x + 3, 2 * x, 3 * x], dim=1) % self.modulus

    @functools.cached_property
    def prompt(self) -> Tensor:
        """(P,2) all prompts that have a right trace."""
        return self.reachable[-1].nonzero()

    @functools.cached_property
    def traces(self) -> Tensor:
        """(4^T, T) all traces."""
        return torch.cartesian_prod(*[torch.arange(4)] * self.length)

    @functools.cached_property
    def reachable(self) -> Tensor:
        """(T+1, modulus, modulus) whether ``k`` operations can lead from one number to another."""
        known = [torch.eye(self.modulus, dtype=torch.bool)]
        for _ in range(self.length):
            known.append(known[-1][self.table].any(dim=1))
        return torch.stack(known)

    def numbers(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """(...,T+1) the number before each operation of (...,T) and after the last, for prompts (...,2)."""
        seen = [prompt[..., 0].expand(torch.broadcast_shapes(prompt.shape[:-1], tokens.shape[:-1]))]
        for t in range(self.length):
            seen.append(self.table[seen[-1], tokens[..., t]])
        return torch.stack(seen, dim=-1)

    def right(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """(...) whether traces end at the goal."""
        return self.numbers(prompt, tokens)[..., -1] == prompt[..., 1]

    def hopeful(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """(...,T+1) whether the goal can still be reached before each operation, and is after the last."""
        left = torch.arange(self.length, -1, -1)
        return self.reachable[left, self.numbers(prompt, tokens), prompt[..., 1:]]

    def writing(self) -> Writing:
        """The task of the networks."""
        length, modulus = self.length, self.modulus

        def observe(prompt: Tensor, tokens: Tensor) -> Tensor:
            places = one_hot(torch.arange(length + 1), length + 1).expand(*tokens.shape[:2], -1, -1)
            goal = one_hot(prompt[..., 1:], modulus).expand(-1, -1, length + 1, -1)
            return torch.cat([one_hot(self.numbers(prompt, tokens), modulus), goal, places], dim=-1).float()

        return Writing(4, length, 2 * modulus + length + 1, observe)


def imitate(
    networks: Networks, prompt: Tensor, answer: Tensor, *, steps: int, lr: float = 3e-3, batch: int = 32
) -> None:
    """Supervised steps on random batches of prompts (P,Q) with answers (P,T), in a different order for every seed."""
    optimizer = Adam(networks, lr)
    generators = [torch_generator(seed, "imitate") for seed in networks.seeds]
    for _ in range(steps):
        rows = torch.stack([torch.randint(len(prompt), (batch,), generator=g) for g in generators])
        optimizer.step(-networks.read(prompt[rows], answer[rows]).logp.mean(dim=(1, 2)).sum())
