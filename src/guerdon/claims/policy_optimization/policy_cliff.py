"""Where several actions are equally good, an arbitrarily small edit of the reward decides among them: the map from
rewards to best policies has cliffs. A gap between the best actions, or a weight on entropy, bounds the move.

The bounds are tried on a thousand random decision processes. Then a softmax policy with two equally right answers
learns from a reward that pays one of them 0.01 more, by REINFORCE with a leave-one-out baseline, until it has settled:
without and with entropy weight 0.1. GRPO's division by the spread turns 0.01 into a full unit, and that weight no
longer holds it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.analysis.reward_distance import CliffReport, cliff_report, weight_sweep
from guerdon.claims.core import Check, Claim, Mutation, above, below, check, equal, every_seed
from guerdon.claims.testbeds.tabular import Tabular
from guerdon.seeding import torch_generator

TEMPERATURE, BONUS = 0.1, 0.01
START = torch.tensor([0.4, 0.4, 0.2])  # two right answers and a wrong one
PAYS = torch.tensor([1.0, 1.0 + BONUS, 0.0])


class Parts(NamedTuple):
    """The report, and the terms of the loss that go with its soft policies."""

    report: Callable[..., CliffReport]
    terms: Sequence[dict[str, Any]]


def without_entropy(*tables: Tensor, **options: Any) -> CliffReport:
    """Report the greedy policy's moves as the soft policy's."""
    report = cliff_report(*tables, **options)
    return report._replace(soft_tv=report.greedy_tv)


def processes(count: int) -> tuple[Tensor, Tensor]:
    """Rewards (count,4,3) and transitions (count,4,3,4) of random decision processes."""
    generator = torch_generator(0, "cliffs")
    reward = torch.randn(count, 4, 3, generator=generator, dtype=torch.float64)
    moves = torch.rand(count, 4, 3, 4, generator=generator, dtype=torch.float64) ** 3
    return reward, moves / moves.sum(dim=-1, keepdim=True)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """A tie, the two bounds, a sweep of weights, then what training makes of a bonus of 0.01."""
    tie = method.report(torch.ones(1, 2), temperature=TEMPERATURE, norm=1e-6)
    yield equal("two tied arms: how many are best", tie.degeneracy, [2])
    yield equal("greedy total variation after an edit of 1e-6", tie.greedy_tv, 1.0)
    yield below("soft total variation after the same edit", tie.soft_tv, 1e-6 / TEMPERATURE)

    reward, moves = processes(1000)
    for gamma, norm in ((0.9, 0.01), (0.5, 0.05)):
        report = method.report(reward, moves, gamma=gamma, temperature=TEMPERATURE, norm=norm, draws=8)
        label = f"1000 random processes, gamma {gamma}, edits of {norm}:"
        safe = report.radius > norm
        yield above(f"{label} certified ones", safe.sum(), 50)
        flips = int((report.greedy_tv[safe] > 0).sum())
        yield check(f"{label} certified ones that flip", flips == 0, expected="none", seen=flips)
        yield above(f"{label} others that flip", (report.greedy_tv[~safe] > 0).sum(), 50)
        yield below(f"{label} largest soft move over its bound", (report.soft_tv / report.soft_bound).max(), 1 + 1e-9)

    arms = 0.1 * torch.randn(2000, 1, 2, generator=torch_generator(0, "arms"), dtype=torch.float64)
    tight = method.report(arms, temperature=TEMPERATURE, norm=0.05, draws=64)
    ratio = float((tight.soft_tv / tight.soft_bound).max())
    yield check(
        "the bound is tight: largest ratio in one state", 0.95 < ratio <= 1, expected="0.95 to 1", seen=f"{ratio:.4f}"
    )

    weights = torch.linspace(0, 1, 101, dtype=torch.float64)
    pair = torch.stack([weights, 1 - weights], dim=1)
    sweep = weight_sweep(torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]]), pair, temperature=TEMPERATURE)
    jumps = torch.nonzero(sweep.greedy_tv).flatten().tolist()
    jumped = len(jumps) == 1 and abs(jumps[0] - 25) <= 1
    yield check("weights w and 1 - w: greedy jumps", jumped, expected="one, at w = 0.25", seen=[j / 100 for j in jumps])
    yield below("largest soft move along the same path", sweep.soft_tv.max(), 0.04 / (2 * TEMPERATURE))

    bed = Tabular(START.repeat(16, 1), lambda actions, prompt: PAYS[actions[:, 0]])
    train = partial(bed.train, seeds=seeds, steps=200, group_size=8, lr=8.0 * 16)

    def mass(**methods: Any) -> Tensor:
        return train(**methods).probs[-1, ..., 0, 1].mean(dim=-1)

    yield every_seed("mass on the answer with the bonus", mass(credit="rloo"), above=0.9)
    yield every_seed("the same with entropy weight 0.1", mass(credit="rloo", terms=method.terms), below=0.6)
    held = mass(credit="grpo", terms=[{"name": "entropy", "beta": TEMPERATURE}])
    yield every_seed("the same with GRPO's credit", held, above=0.9)


CLAIM = Claim(
    system="policy-cliff",
    run=run,
    method=Parts(cliff_report, ({"name": "entropy", "beta": TEMPERATURE},)),
    mutation=Mutation("the entropy weight is dropped", Parts(without_entropy, ())),
    recipe="credit: rloo\nterms: [{name: entropy, beta: 0.1}]\n",
    seeds=5,
    quick=True,
)
