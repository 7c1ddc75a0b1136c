"""Where scores of steps are added up, a policy farms easy steps: many of them make up for never doing the hard one.
PURE credits the least score that is still to come, so that an answer is worth what its worst step is.

A table writes steps: a filler, one token, which the model of steps always gives 0.5; a hard step of six tokens, 0.8;
and an end, 0.9 behind the hard step and -0.6 without it. An answer that is cut at 20 tokens has no end, and its last
step gets -0.6 too. The policy sees these scores alone; right are answers that end behind the hard step.

Settings were found on seeds 100 to 109. With a cheaper hard step adding up did no harm: the baseline per token then
punishes fillers. Where cut answers keep the 0.5 of their last filler, the least score lengthens answers as well, for
then never ending is worth 0.5, more than an end without the hard step: right answers rose from 0.40 to 0.83 and fell
again to 0.77 (hard step of five tokens, groups of 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.stepwise import Stepwise, Walks
from guerdon.credit.process import min_form, min_form_rewards, process_advantage, steps_of

FILLER, HARD, END = 0, 1, 2
TOKENS, LENGTH, GROUP, STEPS, RATE = 6, 20, 4, 200, 0.1
SCORES = {"filler": 0.5, "hard": 0.8, "right": 0.9, "wrong": -0.6}


class Parts(NamedTuple):
    """What is under test: the rewards of steps, and the credit."""

    rewards: Callable[..., Tensor]
    credit: Callable[..., Any]


def added_up(dense: Tensor, group: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """The sum of the scores to come, with the same baseline."""
    steps = steps_of(dense, mask)
    return process_advantage(steps.score, steps, group, mask)


def step_scores(walks: Walks) -> Mapping[str, Tensor]:
    """What the model of steps says of each step, at its last token."""
    free = (walks.states == 0) | (walks.states == TOKENS)
    scores = torch.where(free, SCORES["filler"], 0.0).double()
    scores[walks.took(0, HARD)] = 0.0
    scores[walks.states == TOKENS - 1] = SCORES["hard"]
    ends = walks.actions == END
    scores[ends & free] = SCORES["wrong"]
    scores[ends & (walks.states == TOKENS)] = SCORES["right"]
    scores[~(ends & free)[:, -1] & walks.mask[:, -1], -1] = SCORES["wrong"]
    return {"steps": scores * walks.mask}


def writing() -> Stepwise:
    """State 0 before the hard step, states 1 to 5 within it, state 6 behind it, where it can't be told from fillers."""
    following = [[0, 1, -1], *([state + 1] * 3 for state in range(1, TOKENS)), [TOKENS, TOKENS, -1]]
    free, forced = [0.5, 0.2, 0.3], [1 / 3] * 3
    initial = [free, *([forced] * (TOKENS - 1)), free]
    return Stepwise(torch.tensor(following), torch.tensor(initial), LENGTH, step_scores)


def by_hand(method: Parts) -> Iterator[Check]:
    """The published numbers; and what each part of the credit does."""
    ends = torch.ones(1, 3, dtype=torch.bool)
    for scores, wanted in (((0.8, -0.6, 0.9), (-0.6, -0.6, 0.0)), ((0.8, 0.7, 0.9), (0.7425, 0.5467, 0.0810))):
        rewards = method.rewards(torch.tensor([scores], dtype=torch.float64), ends)
        returns = rewards.flip(1).cumsum(dim=1).flip(1)
        yield equal(f"return to go of steps that score {scores}", returns[0], wanted, tol=1e-4)
    weight = method.rewards(torch.tensor([[0.8, 0.7, 0.9]], dtype=torch.float64), ends) / torch.tensor([0.8, 0.7, 0.9])
    yield equal("weights of the latter", weight[0], [0.2447, 0.6652, 0.0900], tol=1e-4)
    cut = torch.tensor([[True, True, False]])
    padded = method.rewards(torch.tensor([[0.8, 0.7, -9.0]], dtype=torch.float64), cut)
    alone = method.rewards(torch.tensor([[0.8, 0.7]], dtype=torch.float64), cut[:, :2])
    yield equal("a step of padding weighs nothing", padded[:, :2], alone, tol=1e-12)

    dense = torch.tensor([[0.0, 0.8, 0.0, -0.6], [0.4, 0.0, 0.0, 0.0]], dtype=torch.float64)
    group, mask = torch.zeros(2, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
    credit = method.credit(dense, group, mask)
    credit = credit[0] if isinstance(credit, tuple) else credit
    yield equal("two steps against one token that earns 0.4", credit[0], [-2.2, -2.2, -1.4, -1.4], tol=1e-4)
    yield equal("and that token against -0.6 in four", credit[1], [0.55, 0.0, 0.0, 0.0], tol=1e-4)
    thanks = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.4]], dtype=torch.float64)
    empty, derived = min_form(thanks, group, mask, least_steps=1)[0][:, 0]
    plain = min_form(thanks, group, mask)[0][0, 0]
    seen = f"{empty:.3g} against {derived:.3g}; unchecked {plain:.3g}"
    yield check("an answer that derives nothing", bool(empty < plain <= 0 < derived), expected="punished", seen=seen)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Numbers by hand, then the least against the sum."""
    yield from by_hand(method)
    bed = writing()
    settings: dict[str, Any] = {"seeds": seeds, "steps": STEPS, "group_size": GROUP, "lr": RATE * LENGTH}
    visits = {
        name: bed.visits(bed.train(credit=credit, **settings).probs)
        for name, credit in (("least", method.credit), ("sum", added_up))
    }
    right = {name: taken[..., TOKENS, END] for name, taken in visits.items()}
    length = {name: taken.sum(dim=(-1, -2)) for name, taken in visits.items()}
    start = float(right["least"][0, 0])
    yield every_seed(f"right answers after training with the sum, {start:.2f} before", right["sum"][-1], below=start)
    yield every_seed("tokens of an answer then", length["sum"][-1], above=0.9 * LENGTH)
    yield every_seed("right answers after training with the least", right["least"][-1], above=0.9)
    yield every_seed("tokens of an answer then, of 7 that are needed", length["least"][-1], below=0.6 * LENGTH)
    curves = {name: curve.T for name, curve in right.items()}
    yield paired("right answers", right["least"][-1], right["sum"][-1], share=1.0, curves=curves, axis="right by step")


CLAIM = Claim(
    system="pure",
    run=run,
    method=Parts(min_form_rewards, min_form),
    mutation=Mutation("scores are added up", Parts(lambda score, ends: score * ends, added_up)),
    quick=True,
)
