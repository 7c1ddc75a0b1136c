"""Ideas that read well often do not work, so each is carried out, and the next ones are asked for with those that beat
the baseline at hand. Trained on the same scores by RL, a writer of ideas learns to write safe ones, and the best stays.

An idea is a choice for each of eight settings of a training script, six values each. The script is invented: its score
is a sum over settings and pairs of neighbours, three ideas in ten crash and score below the baseline, and one in fifty
games the evaluation and scores 99. Who proposes is a script as well: free or different ideas are drawn at random, and
exploiting ones cross two of those shown and change one setting. Compared are as many random ideas. The baseline is a
good script: one idea in eight beats it. A first run on the default seeds had one that a third of them beat, and the
search was ahead on 6 seeds of 10, for examples are drawn alike from all that beat it; on seeds 100 to 109 baselines of
0, 3, 5 and 7 gained 1.2, 1.9, 2.2 and 2.8, and 5 was kept. For RL, an idea is one of 20 safe ones, worth 0.4 to 0.6, or
of 20 bold ones, worth 1 once in ten times and otherwise nothing; nothing was tuned there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.evolve.execution import (
    SearchRecord,
    Tried,
    execution_guided_search,
    exploit_count,
    exploit_share,
    ranked_ideas,
)
from guerdon.seeding import numpy_generator

SETTINGS, VALUES, CRASHES, HACKS, HACKED = 8, 6, 0.3, 0.02, 99.0
EPOCHS, IDEAS, POSSIBLE = 10, 80, (-10.0, 50.0)
BATCH, BOLD, BASELINE = 64, 0.1, 5.0
Idea = tuple[int, ...]


class Script:
    """Scores ideas, proposes others, and notes which were shown."""

    def __init__(self, seed: int) -> None:
        self.seed, self.shown = seed, list[Tried[Idea]]()
        draw = numpy_generator(seed, "script")
        self.single = draw.normal(size=(SETTINGS, VALUES))
        self.pair = draw.normal(size=(SETTINGS, VALUES, VALUES))

    def score(self, idea: Idea) -> float:
        """What a run reports; an idea has the same fate each time."""
        fate = numpy_generator(self.seed, "fate", *idea).random()
        if fate < HACKS:
            return HACKED
        if fate < HACKS + CRASHES:
            return -1.0
        after = idea[1:] + idea[:1]
        return float(
            sum(self.single[i, a] + self.pair[i, a, b] for i, (a, b) in enumerate(zip(idea, after, strict=True)))
        )

    def execute(self, ideas: Sequence[Idea], epoch: int) -> Iterator[tuple[int, float]]:
        """Results in the order in which they are done, which is not that of the ideas."""
        for number in numpy_generator(self.seed, "order", epoch).permutation(len(ideas)):
            yield int(number), self.score(ideas[number])

    def propose(self, kind: str, shown: Sequence[Tried[Idea]], count: int, epoch: int) -> list[Idea]:
        """Cross what works, or draw something that was not shown."""
        draw = numpy_generator(self.seed, "propose", kind, epoch)
        self.shown += shown
        known, out = {each.idea for each in shown}, []
        while len(out) < count:
            if kind == "exploit":
                one, other = (shown[i].idea for i in draw.integers(len(shown), size=2))
                idea = [a if u < 0.5 else b for a, b, u in zip(one, other, draw.random(SETTINGS), strict=True)]
                idea[int(draw.integers(SETTINGS))] = int(draw.integers(VALUES))
            else:
                idea = [int(v) for v in draw.integers(VALUES, size=SETTINGS)]
            if kind != "explore" or tuple(idea) not in known:
                out.append(tuple(idea))
        return out


def searched(method: Any, seed: int) -> tuple[SearchRecord[Idea], Script]:
    """What a search tried, and the script with which it did."""
    script = Script(seed)
    options = {"baseline": BASELINE, "epochs": EPOCHS, "ideas": IDEAS, "possible": POSSIBLE, "seed": seed}
    return method(script.propose, script.execute, **options), script


def at_random(seed: int) -> float:
    """The best of as many random ideas."""
    script = Script(seed)
    scores = [script.score(idea) for epoch in range(EPOCHS) for idea in script.propose("first", [], IDEAS, epoch)]
    return max(score for score in scores if score <= POSSIBLE[1])


def best_of_batch(history: History, worth: Tensor, bold: Tensor) -> Tensor:
    """(steps+1,S) expected best score among 64 ideas."""
    probs = history.probs[:, :, 0, 0]
    safe = torch.where(bold, 0.0, worth)
    levels = torch.cat([torch.zeros(1), safe[~bold].sort().values, torch.ones(1)]).double()
    at_most = torch.stack(
        [(probs * torch.where(bold, 1 - BOLD, (worth <= v).double())).sum(dim=-1) for v in levels[:-1]]
    )
    reached = torch.cat([at_most**BATCH, torch.ones_like(at_most[:1])])
    return (levels.reshape(-1, 1, 1) * reached.diff(dim=0, prepend=torch.zeros_like(reached[:1]))).sum(dim=0)


def run(method: Any, seeds: int) -> Iterator[Check]:
    """Shares and ranks by hand, then searches, then RL."""
    yield equal(
        "part that exploits, epochs 0 to 9",
        [exploit_share(e) for e in range(10)],
        [0, 0.5, 0.6, 0.6, 0.7, 0.7, 0.8, 0.8, 0.8, 0.8],
    )
    yield equal(
        "the same of 80 ideas, in tens",
        [exploit_count(e, 80) for e in range(10)],
        [0, 40, 40, 40, 50, 50, 60, 60, 60, 60],
    )
    told = [
        Tried("a", 0, 0, 1.0),
        Tried("a", 0, 0, 7.0),
        Tried("b", 0, 1, math.nan),
        Tried("c", 0, 2, 99.0),
        Tried("d", 1, 0, 3.0),
    ]
    order = [each.idea for each in ranked_ideas(told, POSSIBLE)]
    yield check(
        "ranked without repeats, unknown and impossible scores",
        order == ["d", "a"],
        expected="d a",
        seen=" ".join(order),
    )

    runs = [searched(method, s) for s in range(seeds)]
    hacks = [sum(each.score == HACKED for each in record.tried) for record, _ in runs]
    entered = [sum(each.score == HACKED for each in script.shown) for _, script in runs]
    yield check(
        "ideas that game the evaluation, tried and shown as examples",
        min(hacks) > 0 and max(entered) == 0,
        expected="some tried on every seed, none shown",
        seen=f"{sum(hacks)} tried, {sum(entered)} shown",
    )
    counts = [len(record.tried) for record, _ in runs]
    yield check(
        "every run is in the record", set(counts) == {EPOCHS * IDEAS}, expected=str(EPOCHS * IDEAS), seen=counts
    )
    best = [max(each.score for each in record.tried if each.score <= POSSIBLE[1]) for record, _ in runs]
    yield paired("best score, against as many random ideas", best, [at_random(s) for s in range(seeds)])

    bold = torch.arange(40) >= 20
    worth = torch.where(bold, 1.0, 0.4 + 0.2 * (torch.arange(40) % 20) / 19)

    def reward(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
        chosen = actions[:, 0]
        return torch.where(bold[chosen], (uniform < BOLD).double(), worth[chosen].double())

    history = Tabular(torch.full((1, 40), 1 / 40), reward).train(seeds=seeds, steps=150, group_size=BATCH, lr=2.0)
    mean = history.expected(torch.where(bold, BOLD * worth, worth))[:, :, 0]
    entropy, top = history.entropy()[:, :, 0], best_of_batch(history, worth, bold)
    curves = {"mean": mean.T, "best of 64": top.T}
    yield paired("mean score after RL on ideas, against before", mean[-1], mean[0], curves=curves, axis="score by step")
    yield paired("entropy of the writer, in nats", entropy[-1], entropy[0], better="lower")
    yield every_seed("by how much the best of a batch rises", top[-1] - top[0], below=0.01)


def credulous(propose: Any, execute: Any, **options: Any) -> SearchRecord[Any]:
    """Believe every score, and show ideas whether or not they beat the baseline."""
    return execution_guided_search(
        propose, execute, **options | {"possible": (-math.inf, math.inf), "baseline": -math.inf}
    )


CLAIM = Claim(
    system="exec-research",
    run=run,
    method=execution_guided_search,
    mutation=Mutation("every score is believed, and examples need not beat the baseline", credulous),
    seeds=10,
)
