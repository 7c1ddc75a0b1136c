"""Small graphs of states on which flows, policies and what they end in are known exactly, for many seeds at once.

A policy is a table of logits (S,V,A), one per seed, over V states and A actions; all of its statistics follow by
passing probability along the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

from guerdon.seeding import torch_generator


@dataclass(frozen=True)
class Paths:
    """Trajectories of S seeds, B each.

    Attributes:
        states: (S,B,T+1) states that were passed; off the mask the last one is repeated.
        actions: (S,B,T).
        mask: (S,B,T) true on transitions.
        done: (S,B) whether the last state is a terminal.
    """

    states: Tensor
    actions: Tensor
    mask: Tensor
    done: Tensor

    @property
    def last(self) -> Tensor:
        """(S,B) the state in which each ends."""
        return self.states[..., -1]

    def cut(self, share: float, generators: Sequence[torch.Generator]) -> Paths:
        """The same, a share of them cut before their last transition, at a place drawn anew for each."""
        length = self.mask.sum(dim=-1)
        draws = torch.stack([torch.rand(2, length.shape[1], generator=g) for g in generators], dim=1)
        kept = (1 + (draws[1] * (length - 1)).long()).clamp(max=(length - 1).clamp(min=1))
        kept = torch.where(draws[0] < share, kept, length)
        place = torch.arange(self.mask.shape[-1])
        at = torch.arange(self.states.shape[-1]).clamp(max=kept.unsqueeze(-1))
        return Paths(
            self.states.gather(-1, at),
            self.actions,
            self.mask & (place < kept.unsqueeze(-1)),
            self.done & (kept == length),
        )


@dataclass(frozen=True)
class Graph:
    """States, what follows each by which action, and no way back; state 0 is the start.

    Attributes:
        child: (V,A) int64 state that each action leads to, -1 where it can't be taken.
        depth: most transitions of a trajectory.
    """

    child: Tensor
    depth: int

    @cached_property
    def allowed(self) -> Tensor:
        """(V,A)."""
        return self.child >= 0

    @cached_property
    def terminal(self) -> Tensor:
        """(V,) whether nothing follows."""
        return ~self.allowed.any(dim=1)

    @cached_property
    def log_pb(self) -> Tensor:
        """(V,) log-probability of each parent of a state, all alike; 0 at the start."""
        parents = torch.bincount(self.child[self.allowed], minlength=len(self.child))
        return -parents.clamp(min=1).double().log()

    def log_policy(self, logits: Tensor) -> Tensor:
        """(S,V,A) log-probabilities of the actions that can be taken; -inf at others, 0 at terminals' first."""
        open_ended = self.allowed | (self.terminal.unsqueeze(1) & (torch.arange(self.child.shape[1]) == 0))
        return logits.masked_fill(~open_ended, float("-inf")).log_softmax(dim=-1)

    def ends(self, logits: Tensor) -> Tensor:
        """(S,V) probability that a trajectory ends in each terminal."""
        policy = self.log_policy(logits).exp()
        mass = torch.zeros(policy.shape[:2], dtype=policy.dtype)
        mass[:, 0] = 1.0
        ended = torch.zeros_like(mass)
        to = self.child.clamp(min=0).flatten()
        for _ in range(self.depth + 1):
            ended += torch.where(self.terminal, mass, 0.0)
            moved = (mass.unsqueeze(-1) * policy * self.allowed).flatten(1)
            mass = torch.zeros_like(mass).index_add_(1, to, moved)
        return ended

    def flow(self, log_reward: Tensor) -> tuple[Tensor, Tensor]:
        """(V,) log F of each state and (V,A) log P_F that balance rewards log R (V,) of terminals with P_B."""
        flow = torch.where(self.terminal, log_reward.double(), float("-inf"))
        edges = torch.full(self.child.shape, float("-inf"), dtype=torch.float64)
        for _ in range(self.depth + 1):
            known = flow[self.child] + self.log_pb[self.child]
            edges = torch.where(self.allowed, known, float("-inf"))
            flow = torch.where(self.terminal, flow, edges.logsumexp(dim=1))
        return flow, torch.where(self.allowed, edges - flow.unsqueeze(1), float("-inf"))

    @torch.no_grad()
    def sample(
        self, logits: Tensor, count: int, generators: Sequence[torch.Generator], *, explore: float = 0.0
    ) -> Paths:
        """``count`` trajectories of each seed; ``explore`` is the share of actions drawn from all alike."""
        policy = self.log_policy(logits).exp()
        uniform = self.log_policy(torch.zeros_like(logits)).exp()
        edges = ((1 - explore) * policy + explore * uniform).cumsum(dim=-1)
        draws = torch.stack([torch.rand(count, self.depth, generator=g, dtype=torch.float64) for g in generators])
        seed = torch.arange(len(logits)).unsqueeze(1)
        state = torch.zeros(len(logits), count, dtype=torch.int64)
        states, actions, mask = [state], [], []
        for t in range(self.depth):
            going = ~self.terminal[state]
            row = edges[seed, state]
            action = torch.searchsorted(row, (draws[..., t : t + 1] * row[..., -1:]).contiguous(), right=True)
            last = self.child.shape[1] - 1 - self.allowed[state].flip(-1).int().argmax(dim=-1)
            action = torch.minimum(action.squeeze(-1), last)
            state = torch.where(going, self.child[state, action], state)
            states.append(state)
            actions.append(torch.where(going, action, 0))
            mask.append(going)
        return Paths(torch.stack(states, -1), torch.stack(actions, -1), torch.stack(mask, -1), self.terminal[state])

    def logp(self, logits: Tensor, paths: Paths) -> tuple[Tensor, Tensor]:
        """(S,B,T) log P_F, differentiable, and log P_B of the transitions; 0 off the mask."""
        seed = torch.arange(len(logits)).reshape(-1, 1, 1)
        forward = self.log_policy(logits)[seed, paths.states[..., :-1], paths.actions]
        back = self.log_pb[paths.states[..., 1:]]
        return torch.where(paths.mask, forward, 0.0), torch.where(paths.mask, back, 0.0)


def set_building(items: int = 8, size: int = 4) -> tuple[Graph, Tensor]:
    """Sets of ``size`` out of ``items``, built one by one.

    Returns:
        The graph, whose terminals are the whole sets, and (V,items) bool: what each state holds.
    """
    sets = [frozenset(c) for k in range(size + 1) for c in combinations(range(items), k)]
    number = {held: i for i, held in enumerate(sets)}
    child = torch.full((len(sets), items), -1)
    for held, i in number.items():
        if len(held) < size:
            for item in set(range(items)) - held:
                child[i, item] = number[held | {item}]
    holds = torch.tensor([[item in held for item in range(items)] for held in sets])
    return Graph(child, size), holds


def hypergrid(side: int = 8) -> tuple[Graph, Tensor]:
    """Walks over a square from its corner, by one step right or up, that may stop anywhere.

    Returns:
        The graph: cell (x,y) is state side x + y, and its terminal that many states further on; and (cells,2) the
        coordinates of cells.
    """
    cells = side * side
    cell = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    child = torch.full((2 * cells, 3), -1)
    here = torch.arange(cells)
    for axis, stride in ((0, side), (1, 1)):
        child[:cells, axis] = torch.where(cell[:, axis] < side - 1, here + stride, -1)
    child[:cells, 2] = here + cells
    return Graph(child, 2 * side - 1), cell


def programs(symbols: int, length: int) -> tuple[Graph, Tensor]:
    """All programs of ``length`` symbols, written one by one: a tree.

    Returns:
        The graph, whose last ``symbols^length`` states are the programs in lexicographic order; and those programs
        (P,length).
    """
    counts = [symbols**k for k in range(length + 1)]
    first = [sum(counts[:k]) for k in range(length + 1)]
    child = torch.full((sum(counts), symbols), -1)
    for k in range(length):
        below = torch.arange(counts[k + 1]).reshape(counts[k], symbols)
        child[first[k] : first[k] + counts[k]] = first[k + 1] + below
    return Graph(child, length), torch.cartesian_prod(*[torch.arange(symbols)] * length).reshape(-1, length)


def stopping(tree: Graph) -> Graph:
    """A tree in which one may stop at each state, by an action of its own: state i then ends in state V + i."""
    states, actions = tree.child.shape
    child = torch.full((2 * states, actions + 1), -1)
    child[:states, :actions] = tree.child
    child[:states, actions] = torch.arange(states) + states
    return Graph(child, tree.depth + 1)


def generators(seeds: Sequence[int], name: str) -> list[torch.Generator]:
    """One generator per seed."""
    return [torch_generator(seed, name) for seed in seeds]
