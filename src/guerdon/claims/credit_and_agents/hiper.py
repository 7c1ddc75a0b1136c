"""A flat policy pushes a late reward back through every turn. HiPER lets the policy keep or switch a subgoal each turn,
and gives credit on two scales: from one subgoal to the next, and, within a subgoal, to the actions that pursue it.

Played is a room of 4 x 4 cells with a key and a door. A planner, who sees whether the key is held, keeps or switches
one of two subgoals; an executor sees its cell and the subgoal alone. The baseline is GAE over the same decisions of the
same policies, with a critic of its own (a value per state) and a discount of 0.97 per turn, or 0.99 per decision. Every
move adds or takes 0.3 by chance, which is where credit within a segment should help: without that noise, or with moves
that slip, both learn alike.

The executor's gradient is less noisy, as published. A higher success does not appear at this scale. On seeds 100 to 109
success over training is 0.42 against 0.42, and two levels lead on 7 of 10; with less noise 0.31 against 0.29 (6 of 10),
with 30 turns 0.52 against 0.49 (6 of 10), with policies that at first keep their subgoal in 88 % of the turns 0.43
against 0.42 (3 of 10), with 16 episodes a batch behind. In a room that is learned in a hundred updates the flat credit
reaches back far enough, and low-level credit that stops at the segment's end leans on a critic that is still learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.episodes import Episodes
from guerdon.claims.testbeds.gridworld import MOVE, PHASES, KeyDoor, Planned
from guerdon.credit.hierarchical import hae
from guerdon.credit.step import GAE

FLAT = {"name": "gae", "gamma": 0.99, "lam": 0.95, "whiten": False}
CRITIC: dict[str, Any] = {"terms": [{"name": "value", "coef": 1.0}], "critic_lr": 0.3}
ROOM = Planned(KeyDoor(size=4, turns=20, key=3, door=12, noise=0.3))
BATCHES = 64  # by which the variance of a gradient is estimated


def with_marks(method: Callable[..., GAE]) -> Callable[..., GAE]:
    """The method as a credit that finds its marks where this testbed's policy keeps them."""

    def hierarchical(
        dense: Tensor, values: Tensor, turn: Tensor, mask: Tensor, bootstrap: Tensor, done: Tensor, payload: Any
    ) -> GAE:
        return method(dense, values, payload["marks"], turn, mask, bootstrap, done, gamma=0.97)

    return hierarchical


def by_hand(method: Callable[..., GAE]) -> Iterator[Check]:
    """Four turns of a subgoal and an action, in two segments."""
    mask = torch.ones(1, 8, dtype=torch.bool)
    turn, action = torch.arange(8).unsqueeze(0) // 2, (torch.arange(8) % 2 == 1).unsqueeze(0)
    boundary = (turn == 0) | (turn == 2)
    marks = {"subgoal": ~action, "action": action, "boundary": boundary}
    dense = torch.zeros(1, 8, dtype=torch.float64)
    dense[0, 7] = 1.0
    values = torch.tensor([[0.5, 0.1, 9.0, 0.2, 0.6, 0.3, 9.0, 0.4]], dtype=torch.float64)
    end, done = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.bool)

    def credit(marks: Any, dense: Tensor, **options: float) -> Tensor:
        return method(dense, values, marks, turn, mask, end, done, **options).advantage[0]

    decay = {"gamma": 0.9, "lam_turn": 0.95, "lam_seg": 0.95}
    seen = credit(marks, dense, **decay)
    yield equal("credit of the actions", seen[1::2], [0.3707, 0.34, 0.573, 0.6])
    yield equal("credit of the subgoals, none where one is kept", seen[::2], [0.21685, 0.0, 0.3, 0.0])
    later = dense + torch.tensor([0.0, 0, 0, 0, 0, 5, 0, 7], dtype=torch.float64)
    yield equal(
        "rewards of the second segment do not touch actions of the first",
        credit(marks, later, **decay)[1:4:2],
        seen[1:4:2],
    )
    whole = marks | {"boundary": turn == 0}
    yield equal(
        "one segment: discounted return minus the value", credit(whole, dense, gamma=0.9, lam_seg=1.0)[0], 0.9**3 - 0.5
    )


def executor_variance(credit: Any, logits: Tensor, values: Tensor, seed: int) -> float:
    """Variance of the gradient by the executor's logits, summed over them, at a given policy and critic."""
    bed = Episodes(ROOM, logits, values)
    settings: dict[str, Any] = {"steps": 1, "group_size": 1, "groups": 16, "lr": 1.0, "episodes": 1}
    moved = bed.train(seeds=BATCHES, first_seed=1000 * (seed + 1), credit=credit, **settings).logits - logits
    return float(moved[:, torch.arange(ROOM.states) % PHASES == MOVE].var(dim=0).sum())


def run(method: Callable[..., GAE], seeds: int) -> Iterator[Check]:
    """Credit by hand; then the room, and the noise of the executor's gradient."""
    yield from by_hand(method)
    ours = with_marks(method)
    train = partial(Episodes(ROOM).train, seeds=seeds, group_size=1, groups=48, lr=150.0, measure=10, **CRITIC)
    two, flat = train(steps=160, credit=ours), train(steps=160, credit=FLAT)
    curves = {"two levels": two.means["door"].T, "flat": flat.means["door"].T}
    yield paired(
        "success over training",
        two.means["door"].mean(dim=0),
        flat.means["door"].mean(dim=0),
        curves=curves,
        axis="success, every 10 updates",
    )
    half = train(steps=80, credit=FLAT)
    noise = [
        [executor_variance(credit, half.logits[s], half.values[s], s) for s in range(seeds)] for credit in (ours, FLAT)
    ]
    yield paired("variance of the executor's gradient, same policy and critic", *noise, better="lower")


def one_level(
    dense: Tensor, values: Tensor, marks: Any, turn: Tensor, mask: Tensor, *others: Tensor, **options: Any
) -> GAE:
    """Never end a segment."""
    whole = {name: marks[name] for name in marks.keys()} | {"boundary": torch.zeros_like(mask)}  # noqa: SIM118
    return hae(dense, values, whole, turn, mask, *others, **options)


CLAIM = Claim(
    system="hiper",
    run=run,
    method=hae,
    mutation=Mutation("segments never end, so all credit flows on one level", one_level),
)
