"""Rewards for steps are earned sooner than the outcome, and an agent may live on them. G-RA lets a lower reward count
only in episodes whose higher reward has passed its gate.

An agent edits a file or submits it, for 26 turns at most. An edit earns 0.1, and after the first each breaks the file
with a chance of 0.1; a submission ends the episode and scores 1, or 0.5 if the file is broken or was never edited; no
submission scores 0. The agent sees how often it has edited, up to three times. Adding up directly (D-RA), it is worth
more to go on editing than to submit. With gates the best agent of this kind still edits for long and submits in about
94 % of its episodes, and policies hover about that.

So they are judged by the mean over the second half of training. Before, without broken files and at the last update
alone, 8 of the seeds 0 to 9 submitted in more than 0.9 of their episodes, and over the second half 9; edits that may
break the file were put in then, and were tried on seeds 100 to 119 (20 of 20) before the seeds below. Credit is
``dr_grpo``: with division by the deviation the few failures of a group count less, and 0.03 fewer are submitted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.episodes import Environment, Episodes, Step
from guerdon.shaping.gated import gated_accumulation

EDIT, SUBMIT = 0, 1
LEVELS = [["outcome"], ["edit"]]


@dataclass(frozen=True)
class Editing(Environment):
    """state = edits so far, 3 for more, and 4 more once an edit has broken the file, which the agent does not see."""

    turns: int = 26
    bonus: float = 0.1
    breaks: float = 0.1

    states, observations, actions = 8, 4, 2
    names = ("outcome", "edit")
    weights = (1.0, 1.0)
    outcomes = frozenset({"outcome"})

    def reset(self, chance: Tensor) -> Tensor:
        """Nothing was edited."""
        return torch.zeros_like(chance, dtype=torch.int64)

    def observe(self, state: Tensor) -> Tensor:
        """The edits."""
        return state % 4

    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        """Edit or submit."""
        edits, broken, submitted = state % 4, state >= 4, action == SUBMIT
        outcome = torch.where(submitted, 0.5 + 0.5 * ((edits > 0) & ~broken), 0.0)
        rewards = torch.stack([outcome, self.bonus * ~submitted], dim=1)
        broken = broken | (~submitted & (edits > 0) & (chance < self.breaks))
        return Step((edits + ~submitted).clamp(max=3) + 4 * broken, rewards, submitted)


def by_hand(method: Callable[..., Any]) -> Iterator[Check]:
    """Three levels, then two with rewards per turn."""
    names, weights = ("tests", "patch", "format"), torch.ones(3)
    components = torch.tensor([[1.0, 1.0, 0.5], [0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.5, 1.0, 0.5]])
    mask, turn = torch.ones(4, 2, dtype=torch.bool), torch.zeros(4, 2, dtype=torch.int64)
    settings: dict[str, Any] = {"levels": [[name] for name in names], "gates": {"tests": 0.5, "patch": 0.5}}

    def rewards(**options: Any) -> Tensor:
        return method(components, names, weights, mask, turn, **(settings | options))[0].reward

    yield equal("open, top shut, middle shut, top at its gate", rewards(), [2.5, 0.0, 1.0, 0.5])
    yield equal("the same where a gate is passed by what equals it", rewards(strict=False), [2.5, 0.0, 1.0, 2.0])
    yield equal(
        "gates of minus infinity: the sum", rewards(gates={"tests": -99.0, "patch": -99.0}), components.sum(dim=1)
    )
    low = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    outcome = torch.tensor([1.0, 0.0])
    two = torch.stack([outcome, low.sum(dim=1)], dim=1)
    turns = torch.arange(3).expand(2, 3)
    given = (two, ("outcome", "edit"), torch.ones(2), turns >= 0, turns, low)
    dense = method(*given, levels=LEVELS, gates={"outcome": 0.25})[0].dense
    yield equal("turn by turn, with the outcome at the end", dense, [[0.1, 0.2, 1.3], [0.0, 0.0, 0.0]])


def run(method: Callable[..., Any], seeds: int) -> Iterator[Check]:
    """Rewards by hand; then the agent, under four gates."""
    yield from by_hand(method)
    train = functools.partial(
        Episodes(Editing()).train, credit="dr_grpo", group_size=8, groups=8, lr=6.0, measure=10, episodes=512
    )

    def gated(gate: float) -> dict[str, Any]:
        return {"shaping": [{"name": method, "levels": LEVELS, "gates": {"outcome": gate}}]}

    sparse: dict[str, Any] = {"shaping": [outcome_only]}
    for gate, other, name in ((-1.0, {}, "direct accumulation"), (1.5, sparse, "the outcome alone")):
        same = torch.equal(*(train(seeds=2, steps=20, **options).logits for options in (gated(gate), other)))
        yield check(f"a gate at {gate:g} gives the policies of {name}", same, expected="equal", seen=same)
    ours, direct = (train(seeds=seeds, steps=200, **options) for options in (gated(0.25), {}))
    curves = {"gates": ours.means["done"].T, "direct accumulation": direct.means["done"].T}
    late = ours.means["done"][len(ours.steps) // 2 :].mean(dim=0)
    yield every_seed("episodes submitted with gates, over the second half", late, above=0.9)
    yield every_seed("episodes submitted without, in the end", direct.means["done"][-1], below=0.1)
    total = direct.means["outcome"] + direct.means["edit"]
    yield paired("reward without gates, in the end against the start", total[-1], total[0])
    yield paired(
        "outcome in the end",
        ours.means["outcome"][-1],
        direct.means["outcome"][-1],
        curves=curves,
        axis="episodes submitted, every 10 updates",
    )


def outcome_only(components: Tensor, component_names: Any) -> Tensor:
    """The outcome, whatever else was earned."""
    return components[:, list(component_names).index("outcome")]


@functools.wraps(gated_accumulation)
def ungated(*fields: Any, gates: Any, **options: Any) -> Any:
    """Leave every gate open."""
    return gated_accumulation(*fields, gates={}, **options)


CLAIM = Claim(
    system="g-ra",
    run=run,
    method=gated_accumulation,
    mutation=Mutation("no gate ever shuts", ungated),
)
