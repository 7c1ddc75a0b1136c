"""A field with nine colours, walkers who go from one to the next, and a transformer that imitates them.

The walkers' goals are never said. The first move towards a goal already tells which of the eight it is. The transformer
has two blocks; what flows from one to the other is its residual stream in the middle, which a metacontroller may steer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from guerdon.seeding import torch_generator

SIZE, COLOURS, ACTIONS, LENGTH = 15, 9, 8, 36
CELLS = SIZE**2
LINES = torch.tensor([0, 4, 9])  # rows and columns of the colours, 4, 5 and 6 apart on the ring
PLACES = (LINES.unsqueeze(1) * SIZE + LINES).flatten()
MOVES = torch.tensor([[r, c] for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)])

Cache = tuple[Tensor, Tensor]


class Walks(NamedTuple):
    """Cells and actions (N,T), and the steps (N,T) at which a goal had just been reached and a new one was chosen."""

    cell: Tensor
    action: Tensor
    fresh: Tensor


def move(cell: Tensor, action: Tensor) -> Tensor:
    """Cells (B,) after moves (B,); who leaves on one side comes back on the other."""
    step = MOVES[action]
    return (cell // SIZE + step[:, 0]) % SIZE * SIZE + (cell % SIZE + step[:, 1]) % SIZE


def towards(cell: Tensor, goal: Tensor) -> Tensor:
    """The king's move (B,) from cells (B,) on the shorter way to colours (B,)."""
    half = SIZE // 2
    down = ((PLACES[goal] // SIZE - cell // SIZE + half) % SIZE - half).sign()
    right = ((PLACES[goal] % SIZE - cell % SIZE + half) % SIZE - half).sign()
    index = 3 * down + right
    return index + 4 - (index > 0).long()


def habits(seed: int, rare: float) -> Tensor:
    """(COLOURS, COLOURS) chance of going from one colour to another.

    The colours are in three quarters of three, by chance. Walkers seldom leave a quarter: with a chance of ``rare`` at
    each colour, and then to any colour outside.
    """
    near = same_quarter(seed)
    away, other = ~near, ~torch.eye(COLOURS, dtype=torch.bool)
    inside, outside = (near & other).float(), away.float()
    return (1 - rare) * inside / inside.sum(1, keepdim=True) + rare * outside / outside.sum(1, keepdim=True)


def same_quarter(seed: int) -> Tensor:
    """(COLOURS, COLOURS) whether two colours lie in the same quarter."""
    quarter = torch.randperm(COLOURS, generator=torch_generator(seed, "quarters")) % 3
    return quarter.unsqueeze(1) == quarter


def errand(seed: int, colours: int) -> tuple[int, Tensor]:
    """A first colour and an order (K,) of others to visit from there, each in another quarter than the one before."""
    generator, away = torch_generator(seed, "errand"), (~same_quarter(seed)).float()
    path = [int(torch.randint(COLOURS, (1,), generator=generator))]
    while len(path) <= colours:
        weight = away[path[-1]].index_fill(0, torch.tensor(path), 0.0)
        path.append(int(torch.multinomial(weight, 1, generator=generator)))
    return path[0], torch.tensor(path[1:])


def walk(count: int, generator: torch.Generator, chance: Tensor, length: int = LENGTH) -> Walks:
    """Walkers who go from colour to colour.

    Args:
        count: N.
        generator: of their choices.
        chance: (COLOURS, COLOURS) of going from one to another.
        length: T.
    """
    here = torch.randint(COLOURS, (count,), generator=generator)
    cell, goal = PLACES[here], here
    columns = []
    for _ in range(length):
        fresh = PLACES[goal] == cell
        goal = torch.where(fresh, torch.multinomial(chance[goal], 1, generator=generator).squeeze(1), goal)
        action = towards(cell, goal)
        columns.append((cell, action, fresh))
        cell = move(cell, action)
    return Walks(*(torch.stack(column, dim=1) for column in zip(*columns, strict=True)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, for whole sequences or one step at a time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """x (N,T,D), causal; with a cache x is the one step after what it holds."""
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        read = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=cache is None and t > 1)
        x = x + self.out(read.transpose(1, 2).reshape(n, t, -1))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x)))), (k, v)


class Imitator(nn.Module):
    """Two blocks over cells and the actions before them, that say what the next action is.

    Args:
        seed: of the weights.
        width: D of the residual stream.
    """

    def __init__(self, seed: int, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.cell, self.before = nn.Embedding(CELLS, width), nn.Embedding(ACTIONS + 1, width)
        self.time = nn.Embedding(LENGTH, width)
        self.lower, self.upper = Block(width, 4), Block(width, 4)
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, ACTIONS)
        generator = torch_generator(seed, "imitator")
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.5 * p.shape[1] ** -0.5, generator=generator)

    def residual(self, cell: Tensor, before: Tensor) -> Tensor:
        """e (N,T,D) of cells and the actions that led to them, ``ACTIONS`` at the start."""
        x = self.cell(cell) + self.before(before) + self.time.weight[: cell.shape[1]]
        return self.lower(x)[0]

    def step(self, cell: Tensor, before: Tensor, t: int, cache: Cache | None) -> tuple[Tensor, Cache]:
        """e (N,D) at time t of cells (N,), given what the lower block knows of the steps before."""
        x = self.cell(cell) + self.before(before) + self.time.weight[t]
        e, kept = self.lower(x.unsqueeze(1), cache)
        return e.squeeze(1), kept

    def answer(self, residual: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """(N,4) logits from residuals (N,D), steered or not, given what the upper block knows of the steps before."""
        x, kept = self.upper(residual.unsqueeze(1), cache)
        return self.head(self.norm(x)).squeeze(1), kept

    def logits(self, residual: Tensor) -> Tensor:
        """(N,T,4) from residuals, steered or not."""
        return self.head(self.norm(self.upper(residual)[0]))

    def forward(self, cell: Tensor, before: Tensor) -> Tensor:
        """(N,T,4) logits of the next actions."""
        return self.logits(self.residual(cell, before))


def shifted(action: Tensor) -> Tensor:
    """The action before each one (N,T)."""
    return nn.functional.pad(action[:, :-1], (1, 0), value=ACTIONS)


def imitate(seed: int, chance: Tensor, steps: int, batch: int = 64, lr: float = 3e-3) -> Imitator:
    """An imitator of the walkers, frozen afterwards; with 0 steps it knows nothing."""
    model, generator = Imitator(seed), torch_generator(seed, "walks")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        data = walk(batch, generator, chance)
        logits = model(data.cell, shifted(data.action))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), data.action.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False)


def in_order(cell: Tensor, order: Tensor) -> Tensor:
    """(N,) whether colours were visited in an order (K,), by the cells (N,T) that were walked; others in between count
    for nothing."""
    due = torch.zeros_like(cell[:, 0])
    for t in range(cell.shape[1]):
        place = PLACES[order[due.clamp(max=len(order) - 1)]]
        due = due + ((cell[:, t] == place) & (due < len(order))).long()
    return due >= len(order)
