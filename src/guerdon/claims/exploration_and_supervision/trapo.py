"""Where few problems have labels, the vote on the others reinforces right and wrong answers alike. TraPO watches the
pass rates: a problem whose rate of agreement with its own majority moves as the pass rates of labelled problems do is
trusted, and only then does its vote count.

First histories alone: 12 epochs, a labelled curve rising from 0.2 to 0.8, noise of 0.08. Then training: six topics of
two labelled and eight other problems, of which four have a wrong majority. A problem has parameters of its own and
shares a skill with its topic, so labelled practice makes right answers to all of them likelier, and agreement with a
wrong majority falls. Baselines: the labelled problems alone, and the vote on all others.
The two learning rates and the group size were searched on seeds 100 and up. TraPO was best wherever the skill moves the
rates beyond their noise within the 40 epochs. Where it does not (16 answers a problem and a skill that learns eight
times slower, for 80 epochs) hardly more than the 10 % that are always accepted were, and the vote on all others was
better (0.49 against 0.39 right). What is not hidden below: a history that rises and stays at a wrong answer is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, above, below, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import bind
from guerdon.claims.testbeds.voters import Topics
from guerdon.curriculum.trust import PassRateHistory, trapo_score, trapo_select
from guerdon.registry import Bound
from guerdon.rewards.label_free import vote
from guerdon.seeding import torch_generator
from guerdon.shaping.trust import Trapo

EPOCHS, NOISE = 12, 0.08
TOPICS, LABELLED, OTHERS, GROUP, STEPS = 6, 2, 8, 32, 40


class Parts(NamedTuple):
    """What is under test: the selection, and the options of the shaping that uses it."""

    select: Callable[..., Tensor]
    options: Mapping[str, Any]


def histories(method: Parts) -> Iterator[Check]:
    """Pearson's correlation, and which histories are accepted."""
    draw = torch_generator(0, "trapo")

    def noisy(curve: Tensor, count: int) -> Tensor:
        return curve + NOISE * torch.randn(count, EPOCHS, generator=draw, dtype=torch.float64)

    time = torch.linspace(0, 1, EPOCHS, dtype=torch.float64)
    rising = 0.2 + 0.6 * time
    labelled, other = noisy(rising, 20), noisy(rising, 3)
    pearson = [np.mean([np.corrcoef(u, d)[0, 1] for d in labelled.numpy()]) for u in other.numpy()]
    yield equal("score: the mean of Pearson's correlations", trapo_score(labelled, other), pearson, tol=1e-5)
    constant = trapo_score(labelled, torch.full((1, EPOCHS), 0.7, dtype=torch.float64))
    yield equal("score of a constant history", constant, [0.0])

    def accepted(curve: Tensor) -> float:
        """Share of 500 such histories that reach the threshold."""
        return method.select(labelled, noisy(curve, 500), topk=0.0).double().mean().item()

    yield equal("share of rising histories that are accepted", accepted(rising), 1.0)
    yield below("share of high and flat ones", accepted(torch.full_like(time, 0.9)), 0.25)
    yield equal("share of falling ones", accepted(1 - rising), 0.0)
    yield above(
        "share of those that rise and stay at a wrong answer: the limit", accepted(1 - 0.8 * (-4 * time).exp()), 0.99
    )
    ten = method.select(labelled, noisy(1 - rising, 30))
    yield equal("of thirty falling ones, with a tenth always accepted", ten.sum(), 3)
    ties = vote(torch.tensor([0, 0, 1, 1, 2]), torch.zeros(5).long()).won.double().mean()
    yield equal("pass rate where two answers are first", ties, 0.0)
    before, after = PassRateHistory(warmup=2), PassRateHistory(warmup=2)
    before.append([1, 2], [0.1, 0.2], labelled=True)
    after.load_state_dict(before.state_dict())
    yield equal("histories after a checkpoint", after.rates[2], before.rates[2])


def problems() -> tuple[Topics, Tensor, Tensor]:
    """The problems, which ones have a label, and which have a wrong majority."""
    plain, sure = torch.tensor([0.3] + [0.175] * 4), torch.tensor([0.4] + [0.15] * 4)
    rows, topic, labelled, wrong = [], [], [], []
    for number in range(TOPICS):
        for i in range(LABELLED + OTHERS):
            misled = i >= LABELLED and i % 2 == 0
            row = torch.full((5,), 0.09).index_fill(0, torch.tensor(1 + i // 2 % 4), 0.65)
            rows.append(row.index_fill(0, torch.tensor(0), 0.08) if misled else plain if i < LABELLED else sure)
            topic.append(number)
            labelled.append(i < LABELLED)
            wrong.append(misled)
    return Topics(torch.stack(rows), torch.tensor(topic), 6.0, 4.8), torch.tensor(labelled), torch.tensor(wrong)


def labels_alone(components: Tensor) -> Tensor:
    """Learn from labelled problems only."""
    return components[:, 0].nan_to_num(0.0)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Histories; then accuracy on the problems without labels."""
    yield from histories(method)
    bed, labelled, wrong = problems()

    def scored(answer: Tensor, group: Tensor) -> Tensor:
        known = labelled[group % len(labelled)]
        true = torch.where(known, (answer == 0).double(), math.nan)
        return torch.stack([true, torch.where(known, math.nan, vote(answer, group).won.double())], dim=1)

    made: list[Bound] = []

    def trusting() -> list[Bound]:
        spec = {"name": "trapo", "labelled": "reward0", "vote": "reward1", **method.options}
        made.append(bind("shaping", spec))
        return [made[-1], bind("shaping", "weighted_sum")]

    def accuracy(shaping: Callable[[], list[Bound]]) -> Tensor:
        """(steps + 1,S) probability of the right answer on problems without labels."""
        probs = bed.train(scored, shaping, seeds=seeds, steps=STEPS, group_size=GROUP)
        return probs[:, :, ~labelled, 0].mean(dim=-1)

    ours = accuracy(trusting)
    every, few = accuracy(lambda: [bind("shaping", "weighted_sum")]), accuracy(lambda: [bind("shaping", labels_alone)])
    curves = {"trapo": ours.T, "vote on all": every.T, "labels alone": few.T}
    yield paired(
        "right answers without labels, against the vote on all",
        ours[-1],
        every[-1],
        margin=0.1,
        curves=curves,
        axis="right answers to problems without labels by epoch",
    )
    yield paired("right answers without labels, against labels alone", ours[-1], few[-1], margin=0.1)
    trusted = [bound.call.history.trusted for bound in made if isinstance(bound.call, Trapo)]
    good = (~labelled & ~wrong).nonzero().flatten().tolist()
    found = [len(seen & set(good)) / len(good) for seen in trusted]
    yield every_seed("share trusted at some time of those with a right majority", found, above=0.9)
    astray = [len(seen - set(good)) / int(wrong.sum()) for seen in trusted]
    yield every_seed("share trusted at some time of those with a wrong majority", astray, below=0.5)


def everything(labelled: Tensor, unlabelled: Tensor, **options: Any) -> Tensor:
    """Accept all."""
    return torch.ones(len(unlabelled), dtype=torch.bool)


CLAIM = Claim(
    system="trapo",
    run=run,
    method=Parts(trapo_select, {}),
    mutation=Mutation("every problem is trusted, whatever its history", Parts(everything, {"thres": -2.0})),
    seeds=10,
)
