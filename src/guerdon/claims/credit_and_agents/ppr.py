"""A judge of single steps likes what looks good, whether or not the answer comes out right. ReNorm adds the outcome to
every step's score and centres both, so that no step of a failed episode pays.

An agent has five turns to search and answer. A useful query finds one of two pieces of evidence with a chance of 0.8,
and the judge gives it 0.7; a long and well-formed one finds nothing, and the judge gives it 0.9. The answer is right
with a chance of 0.3, 0.6 or 0.9, by the evidence found. All are trained by PPO with GAE and a value per state: on the
sum, with scores at their steps and the outcome at the end, on ReNorm, and on the outcome alone.

ReNorm repairs what the sum does: an agent that is paid per step hardly answers. (A first version of this claim took for
the sum a ReNorm that is not centred, with the outcome at every step. On the seeds 0 to 9 it stays to the end as well,
and right answers fall from 0.39 to 0.23, but not on 8 of 10 seeds: to be right pays five times then.)

That it also beats the outcome alone does not appear here, for a policy and a critic in a table learn five turns from
the outcome, and a judge that is wrong about what is useful can only mislead them. On seeds 100 to 104 ReNorm ends at
0.86 right against 0.88. Where the judge tells more (two sloppy queries at 0.2 or 0.1 beside these, useful ones at 0.8),
fewer answers are right at first, and ReNorm's price per step makes the agent answer sooner: 0.34 against 0.85, 0.55
against 0.62, 0.64 against 0.72 and 0.75 against 0.84 in four settings, and with evidence at a chance of 0.5 it answers
at once, 0.10 against 0.68. The centre of one half of right answers is an assumption, and this is what it costs where it
does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, above, below, check, equal, paired
from guerdon.claims.testbeds.episodes import Environment, Episodes, Step
from guerdon.credit.grouping import center
from guerdon.credit.turn import returns_to_go
from guerdon.rollouts import at_last_action
from guerdon.seeding import torch_generator
from guerdon.shaping.renorm import ReNorm, Renormed, renorm

USEFUL, PADDED, ANSWER = 0, 1, 2
JUDGED = torch.tensor([0.7, 0.9, 0.0])
RIGHT = torch.tensor([0.3, 0.6, 0.9])
FINDS = 0.8


class Parts(NamedTuple):
    """The reward of a step, and the shaping method that gives it."""

    renorm: Callable[..., Tensor]
    shaping: Any


@dataclass(frozen=True)
class Searching(Environment):
    """state = turn * 3 + pieces of evidence."""

    turns: int = 5

    actions = 3
    names = ("answer", "judge")
    weights = (1.0, 1.0)
    outcomes = frozenset({"answer"})

    @property
    def states(self) -> int:  # type: ignore[override]
        return 3 * (self.turns + 1)

    @property
    def observations(self) -> int:  # type: ignore[override]
        return self.states

    def reset(self, chance: Tensor) -> Tensor:
        """Nothing was found."""
        return torch.zeros_like(chance, dtype=torch.int64)

    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        """Search or answer."""
        found, answered = state % 3, action == ANSWER
        right = answered & (chance < RIGHT[found])
        found = (found + ((action == USEFUL) & (chance < FINDS))).clamp(max=2)
        rewards = torch.stack([right.double(), JUDGED[action].double()], dim=1)
        return Step((state // 3 + 1) * 3 + found, rewards, answered)


def by_hand(centred: Callable[..., Tensor]) -> Iterator[Check]:
    """The sign of a step's reward, and what becomes of the shift in advantages."""
    score = torch.linspace(0, 1, 11, dtype=torch.float64).unsqueeze(0).expand(2, 11)
    seen = centred(score, torch.tensor([0.0, 1.0]), torch.ones(2, 11, dtype=torch.bool))
    yield check(
        "no step of a wrong episode pays", bool((seen[0] <= 0).all()), expected="<= 0", seen=float(seen[0].max())
    )
    yield check(
        "no step of a right episode costs", bool((seen[1] >= 0).all()), expected=">= 0", seen=float(seen[1].min())
    )
    yield equal("score 0.8, wrong and right", seen[:, 8], [-0.2, 0.8])

    random = torch_generator(0, "ppr claim")
    process = torch.rand(40, 5, generator=random, dtype=torch.float64)
    outcome = (torch.rand(40, generator=random) < 0.5).double()
    length = torch.randint(1, 6, (40, 1), generator=random)
    number = torch.arange(5).expand(40, 5)

    def difference(steps: Tensor) -> Tensor:
        """Largest difference that the shift makes to advantages with the mean return of each turn as baseline."""
        credit = [
            center(returns_to_go(centred(process, outcome, steps, **c)), number, steps) for c in ({}, {"centre": 0.0})
        ]
        return (credit[0] - credit[1]).abs().max()

    yield below("what the shift does to advantages, episodes of equal length", difference(number >= 0), 1e-9)
    yield above("what it does where lengths differ", difference(number < length), 0.1)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Rewards by hand; then the search."""
    yield from by_hand(method.renorm)
    ppo: dict[str, Any] = {
        "credit": {"name": "gae", "gamma": 1.0},
        "objective": "ppo_clip",
        "updates": 2,
        "terms": [{"name": "value", "coef": 1.0}],
        "critic_lr": 0.05,
        "per_seed": True,
    }
    settings: dict[str, Any] = {"seeds": seeds, "steps": 100, "group_size": 1, "groups": 32, "lr": 4.0, "episodes": 512}
    train = partial(Episodes(Searching()).train, measure=10, **settings, **ppo)
    ours = train(shaping=[{"name": method.shaping, "outcome": "answer"}])
    raw = train(shaping=["weighted_sum"])
    alone = train(shaping=[outcome_alone])
    right = {"renorm": ours.means["answer"], "sum": raw.means["answer"], "outcome alone": alone.means["answer"]}
    yield paired("turns under the sum, in the end against the start", raw.means["turns"][-1], raw.means["turns"][0])
    yield paired("right answers under the sum, at the start against the end", right["sum"][0], right["sum"][-1])
    yield paired("right answers, ReNorm against the sum", right["renorm"][-1], right["sum"][-1])
    yield paired(
        "right answers, ReNorm against the outcome alone",
        right["renorm"][-1],
        right["outcome alone"][-1],
        curves={name: curve.T for name, curve in right.items()},
        axis="right answers, every 10 updates",
    )


def outcome_alone(components: Tensor, component_names: Any, mask: Tensor) -> Renormed:
    """The outcome, at the last action."""
    outcome = components[:, list(component_names).index("answer")]
    return Renormed(outcome, at_last_action(outcome, mask))


class NotCentred(ReNorm):
    """Add the two up as they are."""

    def __init__(self, *, outcome: str) -> None:
        super().__init__(outcome=outcome, centre=0.0)


CLAIM = Claim(
    system="ppr",
    run=run,
    method=Parts(renorm, ReNorm),
    mutation=Mutation("score and outcome are added up and not centred", Parts(partial(renorm, centre=0.0), NotCentred)),
)
