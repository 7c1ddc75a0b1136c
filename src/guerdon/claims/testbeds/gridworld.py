"""A room with a key and a door: reward comes once, at the end, and every step before it has to be right.

``KeyDoor`` is played move by move. ``Planned`` is the same room played by a planner and an executor: every turn decides
whether the subgoal is kept, names another if it is not, and moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guerdon.claims.testbeds.episodes import Environment, Step

MOVES = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])
KEEP, SWITCH = 0, 1
DECIDE, CHOOSE, SKIP, MOVE, BEGIN = range(5)  # what is next within a turn of ``Planned``
PHASES = 5


@dataclass(frozen=True)
class KeyDoor(Environment):
    """Walk to the key, then to the door, which opens for whoever has the key.

    state = cell + size^2 [has the key]; four moves, and a wall leaves everything as it is. Episodes of a group start in
    the same cell, without the key.

    Attributes:
        size: cells in each direction.
        turns: most moves.
        key, door: cells, row by row.
        noise: added to the reward of every move or taken from it, by chance.
    """

    size: int = 6
    turns: int = 30
    key: int = 5
    door: int = 30
    noise: float = 0.0

    names = ("door", "key", "noise")
    weights = (1.0, 0.0, 1.0)

    actions = 4

    @property
    def states(self) -> int:  # type: ignore[override]
        return 2 * self.size**2

    @property
    def observations(self) -> int:  # type: ignore[override]
        return self.states

    def reset(self, chance: Tensor) -> Tensor:
        """Any cell but the key's and the door's."""
        free = [cell for cell in range(self.size**2) if cell not in (self.key, self.door)]
        return torch.tensor(free)[(chance * len(free)).long()]

    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        """Move; the door's reward and the noise are trained on, the key's only watched."""
        cells = self.size**2
        cell, held = state % cells, state >= cells
        place = torch.stack([cell // self.size, cell % self.size], dim=1) + MOVES[action]
        place = place.clamp(0, self.size - 1)
        cell = place[:, 0] * self.size + place[:, 1]
        found = (cell == self.key) & ~held
        held = held | found
        done = (cell == self.door) & held
        noise = torch.where(chance < 0.5, -self.noise, self.noise)
        return Step(cell + cells * held, torch.stack([done.double(), found.double(), noise.double()], dim=1), done)


@dataclass(frozen=True)
class Planned(Environment):
    """``KeyDoor`` in turns of three decisions: keep or switch the subgoal, which one if switched, and a move.

    state = (room state * 2 + subgoal) * 5 + what is next. The planner sees the cell and whether the key is held; the
    executor sees the cell and the subgoal, not whether the key is held. The first turn always names a subgoal.

    Attributes:
        room: the room.
    """

    room: KeyDoor = KeyDoor()

    actions = 4
    turn_length = 3
    names = KeyDoor.names
    weights = KeyDoor.weights

    @property
    def turns(self) -> int:  # type: ignore[override]
        return self.room.turns

    @property
    def states(self) -> int:  # type: ignore[override]
        return self.room.states * 2 * PHASES

    @property
    def observations(self) -> int:  # type: ignore[override]
        return self.states

    def reset(self, chance: Tensor) -> Tensor:
        """As in the room, with no subgoal yet."""
        return self.room.reset(chance) * 2 * PHASES + BEGIN

    def observe(self, state: Tensor) -> Tensor:
        """The subgoal is hidden from who chooses one, the key from who moves."""
        room, subgoal, phase = self._parts(state)
        room = torch.where(phase == MOVE, room % self.room.size**2, room)
        subgoal = torch.where(phase == CHOOSE, 0, subgoal)
        return (room * 2 + subgoal) * PHASES + phase

    def acts(self, state: Tensor) -> Tensor:
        """Nothing is decided where a subgoal is kept, nor before the first is named."""
        phase = state % PHASES
        return (phase != SKIP) & (phase != BEGIN)

    def legal(self) -> Tensor:
        """Two answers but for the move."""
        move = torch.arange(self.states) % PHASES == MOVE
        return (torch.arange(4) < 2) | move.unsqueeze(1)

    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        """The next decision; a move changes the room."""
        room, subgoal, phase = self._parts(state)
        moved = self.room.step(room, action, chance)
        moves = phase == MOVE
        subgoal = torch.where(phase == CHOOSE, action, subgoal)
        opens = (phase == BEGIN) | ((phase == DECIDE) & (action == SWITCH))
        after = torch.where(opens, CHOOSE, torch.where(phase == DECIDE, SKIP, torch.where(moves, DECIDE, MOVE)))
        room = torch.where(moves, moved.state, room)
        return Step((room * 2 + subgoal) * PHASES + after, moved.reward * moves.unsqueeze(1), moved.done & moves)

    def marks(self, state: Tensor) -> dict[str, Tensor]:
        """Decisions on the switch, the subgoal and the move, and, ``boundary``, all of a turn that names a subgoal."""
        phase = state % PHASES
        chosen = torch.nn.functional.pad(phase == CHOOSE, (0, -phase.shape[1] % 3)).unflatten(1, (-1, 3))
        boundary = chosen.any(dim=2).repeat_interleave(3, dim=1)[:, : phase.shape[1]]
        return {"switch": phase == DECIDE, "subgoal": phase == CHOOSE, "action": phase == MOVE, "boundary": boundary}

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return state // (2 * PHASES), state // PHASES % 2, state % PHASES
