"""Rewards of different kinds (accuracy, a judge's points, the length of a thought) drown one another when they are
summed. Multi-reward normalisation gives each its own z-score within the group before they are added.

An answer is a thought of 0 to 9 fillers and a label. The label is read through the thought: each filler spoils it with
6 %. Rewarded are the label, a window of 1 to 3 fillers, and a judge who gives up to ten points that say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.analysis.scaling import cost_of_thinking
from guerdon.claims.core import Check, Claim, Mutation, above, below, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.group import grpo, mrn
from guerdon.shaping.length import think_length_window

PROMPTS, LENGTHS, LABELS, SPOILED = 4, 10, 4, 0.06


def summed(components: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """GRPO on the sum of the rewards."""
    return grpo(components.sum(dim=1), group, mask)


def world(low: int, high: int) -> Tabular:
    """Thoughts of every length are equally likely at first, and so are labels; label 0 is right."""
    initial = torch.zeros(PROMPTS, 2, LENGTHS)
    initial[:, 0], initial[:, 1, :LABELS] = 1 / LENGTHS, 1 / LABELS

    def reward(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
        length = actions[:, 0]
        right = (actions[:, 1] == 0) & (uniform > SPOILED * length)
        judge = (uniform * 1e4) % 1 * 10
        return torch.stack([right.double(), ((low <= length) & (length <= high)).double(), judge], dim=1)

    return Tabular(initial, reward, names=("accuracy", "window", "judge"))


def accuracy(history: History) -> Tensor:
    """(steps + 1, S) chance that the label comes out right."""
    thought = history.probs[:, :, :, 0]
    clear = (thought * (1 - SPOILED * torch.arange(LENGTHS))).sum(dim=-1)
    return (clear * history.probs[:, :, :, 1, 0]).mean(dim=-1)


def run(method: Any, seeds: int) -> Iterator[Check]:
    """One reward times 100, then training beside a noisy judge, then the cost of thinking."""
    components = torch.tensor([[1.0, 0.0], [0.0, 0.9], [0.2, 0.1], [0.1, 0.3]])
    group, mask = torch.zeros(4, dtype=torch.int64), torch.ones(4, 1, dtype=torch.bool)
    louder = components * torch.tensor([1.0, 100.0])
    quiet, loud = (method(x, group, mask)[:, 0] for x in (components, louder))
    yield equal("one reward times 100 changes no advantage", loud, quiet, tol=1e-3)
    best = [int(summed(x, group, mask)[:, 0].argmax()) for x in (components, louder)]
    yield check("on the sum, the best answer changes", best == [0, 1], expected="0, then 1", seen=best)
    thoughts = ["<think>twelve chars</think>cat", "<think>1234</think>cat", "cat"]
    scores = [think_length_window(text, low=10, high=20, margin=10) for text in thoughts]
    yield equal("thoughts of 12 and 4 characters and none, window 10 to 20 with a shoulder of 10", scores, [1, 0.4, 0])

    settings: dict[str, Any] = {"seeds": seeds, "steps": 150, "group_size": 8, "lr": 1.0}
    bed = world(1, 3)
    ours, theirs = (bed.train(credit=credit, **settings) for credit in (method, summed))
    inside = ours.probs[-1, :, :, 0, 1:4].sum(dim=-1).mean(dim=-1)
    yield every_seed("thoughts inside the window at the end", inside, above=0.8)
    yield paired(
        "accuracy after 150 steps",
        accuracy(ours)[-1],
        accuracy(theirs)[-1],
        curves={"mrn": accuracy(ours).T, "grpo on the sum": accuracy(theirs).T},
        axis="accuracy by step",
    )

    def train(low: float, high: float) -> tuple[float, float]:
        history = world(int(low), int(high)).train(credit=method, **settings)
        length = (history.probs[-1, :, :, 0] * torch.arange(LENGTHS)).sum(dim=-1)
        return float(length.mean()), float(accuracy(history)[-1].mean())

    cost = cost_of_thinking(train, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)])
    yield below("rank correlation of accuracy with length over five windows", cost.spearman, -0.7)
    yield above("spread of the lengths that the windows brought about", max(cost.length) - min(cost.length), 3.0)


CLAIM = Claim(
    system="mrn",
    run=run,
    method=mrn,
    mutation=Mutation("the rewards are summed before they are normalised", summed),
    recipe="""
rewards: [task, {name: think_length_window, low: 0, high: 4}]
credit: mrn
optimizer: {lr: 5.0e-4}
""",
    quick=True,
)
