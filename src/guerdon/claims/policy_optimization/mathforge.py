"""Dividing by the standard deviation gives a group of nearly all wrong answers less credit in total than one of half
right answers, so hard problems are learned last. DGPO gives every useful group the same total, and then weighs hard
ones more; the questions themselves are rewritten in ways that keep their answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.tabular import Tabular
from guerdon.credit.group import dgpo, grpo
from guerdon.curriculum.data import reformulate

PROMPTS, ANSWERS = 20, 10


def solve(question: str) -> int:
    """Reads definitions, then adds, multiplies or subtracts."""
    term = re.search(r"one (\w+) stands for the number (\d+)\. ", question)
    if term:
        question = question[term.end() :].replace(f"one {term[1]}", term[2])
    nested = re.search(r"Let X be the result of (\d+) ([+-]) (\d+)\. ", question)
    if nested:
        value = int(nested[1]) + int(nested[3]) * (1 if nested[2] == "+" else -1)
        question = re.sub(r"\bX\b", str(value), question[nested.end() :])
    found = re.search(r"What is (\d+) (plus|times|minus) (\d+)\?", question)
    assert found is not None
    left, sign, right = found.groups()
    return {"plus": int.__add__, "times": int.__mul__, "minus": int.__sub__}[sign](int(left), int(right))


def run(method: Any, seeds: int) -> Iterator[Check]:
    """Totals by hand, rewrites solved, then twenty problems of all difficulties."""
    size = 8
    reward = torch.tensor([[float(i < c) for i in range(size)] for c in range(1, size)]).flatten()
    group, mask = torch.arange(size - 1).repeat_interleave(size), torch.ones(len(reward), 1, dtype=torch.bool)

    def totals(credit: Any) -> list[float]:
        """Sum of |A| of groups with 1 to 7 right answers of 8."""
        return [float(credit(reward[group == g], group[group == g], mask[group == g]).abs().sum()) for g in range(7)]

    yield equal("total credit of groups of 8 with 1 to 7 right, one group at a time", totals(method), [8.0] * 7, 1e-2)
    published = [4.95, 6.48, 7.24, 7.48, 7.24, 6.48, 4.95]
    yield equal("the same under GRPO", totals(grpo), published, tol=0.01)
    rng = np.random.default_rng(0)
    questions = [f"What is {rng.integers(100)} {sign} {rng.integers(100)}?" for sign in ("plus", "times", "minus") * 40]
    same = [solve(text) == solve(q) for seed, q in enumerate(questions) for text in reformulate(q, seed)]
    yield equal("rewrites of 120 questions whose answer is that of the original", float(np.mean(same)), 1.0)

    chance = torch.linspace(0.02, 0.9, PROMPTS)
    initial = ((1 - chance) / (ANSWERS - 1)).unsqueeze(1).repeat(1, ANSWERS)
    initial[:, 0] = chance
    right = torch.nn.functional.one_hot(torch.tensor(0), ANSWERS).double()
    bed = Tabular(initial, lambda actions, prompt: right[actions[:, 0]])
    settings: dict[str, Any] = {"seeds": seeds, "steps": 60, "group_size": 8, "lr": 5.0, "per_seed": True}
    ours, theirs = (bed.train(credit=credit, **settings).expected(right) for credit in (method, "grpo"))
    hardest = slice(0, PROMPTS // 4)
    curves = [x[:, :, hardest].mean(dim=-1) for x in (ours, theirs)]
    yield paired(
        "accuracy on the hardest quarter after 60 steps",
        curves[0][-1],
        curves[1][-1],
        share=1.0,
        curves={"dgpo": curves[0].T, "grpo": curves[1].T},
        axis="accuracy on the hardest quarter by step",
    )
    useful = bed.train(credit={"name": "gpg", "f_norm": "std"}, **settings).expected(right)
    yield paired(
        "the same on average over training, where GRPO's mean counts only useful groups as well",
        curves[0].mean(dim=0),
        useful[:, :, hardest].mean(dim=(0, -1)),
        share=1.0,
    )
    overall = [x[-1].mean(dim=-1) for x in (ours, theirs)]
    yield paired("accuracy on all problems, at most a point lower", *overall, margin=-0.01, share=1.0)


CLAIM = Claim(
    system="mathforge",
    run=run,
    method=dgpo,
    mutation=Mutation("divided by the standard deviation, without weights", grpo),
    recipe="""
credit: dgpo
objective: {name: ppo_clip, aggregate: token_mean}
""",
    quick=True,
)
