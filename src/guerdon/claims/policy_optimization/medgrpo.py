"""Scores of several datasets have different medians and spreads, so under one baseline the easy dataset teaches and the
hard one is noise. A logistic per dataset, set by percentiles of the policy before training, gives both the same median
and the same spread.

Two families of problems have scores of one shape: medians 0.5 and 0.12. Credit is the outcome minus the mean of the
batch, plain policy gradient; a z-score inside groups would remove the difference of scale by itself, which is checked
too. Progress is the share of what a family's mean score could gain; the hard family counts as learning if it makes at
least half the progress of the easy one. (Left to itself it would get there in the end: its gradient is small, not 0.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.grouping import center, per_action
from guerdon.rewards.judge import ComparativeRubricJudge
from guerdon.shaping.normalise import PercentileLogistic, Percentiles, percentile_logistic, percentiles

PROMPTS, NAMES = 4, ("easy", "hard")
SCORES = torch.tensor([0.2, 0.35, 0.42, 0.48, 0.52, 0.58, 0.65, 0.8], dtype=torch.float64)
FAMILIES = torch.stack([SCORES, 0.24 * SCORES])
ANSWERS = len(SCORES)
# What each answer to each prompt scores: the order of the answers differs from prompt to prompt.
TABLE = torch.stack([FAMILIES[p // PROMPTS].roll(-p) for p in range(2 * PROMPTS)])
CELLS = {name: tuple(percentiles(scores)) for name, scores in zip(NAMES, FAMILIES, strict=True)}


class Parts(NamedTuple):
    """The map by itself, and as shaping."""

    map: Any
    shaping: Any


def score(actions: Tensor, prompt: Tensor) -> Tensor:
    """(N,2) one column per family; the other does not apply."""
    out = torch.full((len(prompt), 2), float("nan"), dtype=torch.float64)
    out[torch.arange(len(prompt)), prompt // PROMPTS] = TABLE[prompt, actions[:, 0]]
    return out


BED = Tabular(torch.full((2 * PROMPTS, ANSWERS), 1 / ANSWERS), score, names=NAMES)


def batch_baseline(reward: Tensor, mask: Tensor) -> Tensor:
    """Credit against the mean of the batch."""
    return per_action(center(reward, None), mask)


def progress(history: History) -> Tensor:
    """(2,S,steps + 1) share of each family's possible gain."""
    mean = history.expected(TABLE).unflatten(2, (2, PROMPTS)).mean(dim=-1)
    start, best = FAMILIES.mean(dim=1), FAMILIES.amax(dim=1)
    return ((mean - start) / (best - start)).permute(2, 1, 0)


def meanwhile(easy: Tensor, hard: Tensor) -> Tensor:
    """(S,) progress of the hard family at the first step at which the easy one has reached half of its own."""
    step = History.first(easy.T, 0.5).long().clamp(max=easy.shape[1] - 1)
    return hard[torch.arange(len(hard)), step]


def rubric(text: Any, reference: Any, dimensions: list[str]) -> list[list[int]]:
    """A judge of five dimensions."""
    return [[1, 2, 3, 4, 5], [5, 5, 5, 5, 4]]


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Exact checks, then two families under one baseline."""
    for name, cell in CELLS.items():
        of = Percentiles(*cell)
        x = torch.tensor(cell[2], dtype=torch.float64, requires_grad=True)
        y = method.map(x, of)
        (slope,) = torch.autograd.grad(y, x)
        yield equal(f"the median of the {name} family earns 0.5", y, 0.5)
        yield equal(f"the slope there is 3 / (4 IQR), {name}", slope, 3 / (4 * (cell[3] - cell[1])))
    dense = method.map(torch.linspace(0, 1, 101, dtype=torch.float64), Percentiles(*CELLS["easy"]))
    yield check("strictly monotone", (dense.diff() > 0).all(), expected="yes", seen=float(dense.diff().min()))
    binary = method.map(torch.tensor([0.0, 1.0], dtype=torch.float64), Percentiles(0.0, 1.0, 1.0, 1.0, 1.0))
    yield equal("0/1 scores, most of them 1, are told apart by p90 - p10", binary, [torch.tensor(-3.0).sigmoid(), 0.5])
    judged = ComparativeRubricJudge(judge=rubric)(["a", "b"], ["a", "b"])
    yield equal("scores 1..5 on five dimensions become [0,1]", judged, [0.5, 0.95])
    shaping = method.shaping(cells=CELLS)
    seen, _ = shaping(torch.tensor([[0.5, 0.12]], dtype=torch.float64), NAMES, torch.tensor([0.5, 0.5]))
    yield equal("caption reward: half of each mapped score", seen, [0.5])

    run = {"seeds": seeds, "steps": 60, "group_size": 8, "lr": 8.0, "per_seed": True}
    mapped = [{"name": method.shaping, "cells": CELLS}]
    easy, hard = progress(BED.train(credit=batch_baseline, shaping=mapped, **run))
    raw_easy, raw_hard = progress(BED.train(credit=batch_baseline, **run))
    yield every_seed(
        "progress of the hard family when the easy one is half-way, mapped", meanwhile(easy, hard), above=0.25
    )
    yield every_seed("the same without the map", meanwhile(raw_easy, raw_hard), below=0.25)
    curves = {"hard, mapped": hard, "hard, raw": raw_hard, "easy, raw": raw_easy}
    yield paired(
        "progress of the hard family after 60 steps",
        hard[:, -1],
        raw_hard[:, -1],
        share=1.0,
        curves=curves,
        axis="progress by step",
    )
    _, grouped = progress(BED.train(credit="grpo", **{**run, "lr": 1.5}))
    yield every_seed("z-scores inside groups need no map: the hard family, raw", grouped[:, -1], above=0.5)


class Pooled(PercentileLogistic):
    """One set of percentiles for all sources."""

    def __init__(self, *, cells: dict[str, tuple[float, float, float, float, float]] | None = None) -> None:
        super().__init__(cells=cells)
        pooled = Percentiles(*(sum(levels) / len(levels) for levels in zip(*self.known.values(), strict=True)))
        self.known = dict.fromkeys(self.known, pooled)


POOLED = Percentiles(*(sum(levels) / 2 for levels in zip(*CELLS.values(), strict=True)))

CLAIM = Claim(
    system="medgrpo",
    run=run,
    method=Parts(percentile_logistic, PercentileLogistic),
    mutation=Mutation(
        "all datasets share one set of percentiles", Parts(lambda x, of: percentile_logistic(x, POOLED), Pooled)
    ),
    recipe="""
rewards:
  - {name: semantic_similarity, weight: 0.5}
  - {name: comparative_rubric_judge, judge: "guerdon.claims.testbeds.judges:closeness", weight: 0.5}
shaping: [{name: percentile_logistic, calibration: 512}]
credit: reinforce++_baseline
objective: {name: ppo_clip, clip_low: 0.2, clip_high: 0.3}
""",
    seeds=10,
    quick=True,
)
