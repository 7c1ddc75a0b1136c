"""A sum of rewards gives different combinations of them the same advantage, and the one that varies most takes the
credit. GDPO compares every reward with its group on its own scale, and adds up afterwards.

Learned side by side are an easy reward (format, earned 30 % of the time at first) and a hard one (answer, 5 %). The
baseline is GRPO on their sum. Most of the steps saved come from the batch step, which enlarges credit while many
groups are silent; so the sum is also given a batch step, and what is left is the gain from keeping rewards apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement, product
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.group import gdpo, grpo
from guerdon.shaping.gate import conditioned_reward

PROMPTS, FORMAT, ANSWER = 4, 0.3, 0.05


def summed(components: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-4, batch_norm: str = "none") -> Tensor:
    """GRPO on the sum of the rewards."""
    return grpo(components.sum(dim=1), group, mask, eps=eps)


def summed_in_batch(
    components: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-4, batch_norm: Any = "sequence"
) -> Tensor:
    """The same with GDPO's batch step: GDPO on the sum, beside a reward that is always 0."""
    whole = components.sum(dim=1, keepdim=True)
    return gdpo(torch.cat([whole, torch.zeros_like(whole)], dim=1), group, mask, eps=eps, batch_norm=batch_norm)


def multisets(credit: Any, size: int) -> int:
    """Distinct multisets of advantages over all groups of two 0/1 rewards."""
    answers = list(product((0.0, 1.0), repeat=2))
    groups = torch.tensor(list(combinations_with_replacement(answers, size)), dtype=torch.float64)
    key = torch.arange(len(groups)).repeat_interleave(size)
    mask = torch.ones(len(key), 1, dtype=torch.bool)
    advantage = credit(groups.reshape(-1, 2), key, mask, eps=0.0, batch_norm="none").reshape(-1, size)
    return len({tuple(row) for row in advantage.sort(dim=1).values.mul(1e6).round().long().tolist()})


def run(method: Any, seeds: int) -> Iterator[Check]:
    """Two groups by hand, all small groups counted, then a race."""
    components = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    group, mask = torch.tensor([0, 0, 1, 1]), torch.ones(4, 1, dtype=torch.bool)
    yield equal("GRPO on sums", summed(components, group, mask)[:, 0], [-0.7071, 0.7071] * 2, tol=1e-3)
    told_apart = method(components, group, mask, batch_norm="none")[:, 0]
    yield equal("GDPO before the batch step", told_apart, [-0.7071, 0.7071, -1.4142, 1.4142], tol=1e-3)
    for size, sums, apart in ((2, 2, 3), (4, 7, 14), (6, 16, 38)):
        seen = [multisets(summed, size), multisets(method, size)]
        yield equal(f"multisets of advantages of {size} answers, on sums and apart", seen, [sums, apart])
    kept = conditioned_reward(components, ("format", "answer"), easy="format", hard="answer")
    yield equal("format counts only with a right answer", kept[:, 0], [0.0, 0.0, 0.0, 1.0])

    initial = torch.tensor([[FORMAT, 1 - FORMAT], [ANSWER, 1 - ANSWER]]).expand(PROMPTS, 2, 2)
    bed = Tabular(initial, lambda actions, prompt: (actions == 0).double(), names=("format", "answer"))
    settings: dict[str, Any] = {"seeds": seeds, "steps": 120, "group_size": 8, "lr": 1.0}

    def slower(history: History) -> Tensor:
        """(steps + 1, S) probability of the reward that is learned less."""
        return history.probs[..., 0].mean(dim=2).amin(dim=-1)

    ours, theirs = (
        slower(bed.train(credit=method, per_seed=True, **settings)),
        slower(bed.train(credit=summed, **settings)),
    )
    whitened = slower(bed.train(credit=summed_in_batch, per_seed=True, **settings))
    yield paired(
        "steps until both rewards exceed 0.9",
        History.first(ours, 0.9),
        History.first(theirs, 0.9),
        better="lower",
        curves={"gdpo": ours.T, "grpo on the sum": theirs.T, "with the batch step": whitened.T},
        axis="the rarer reward by step",
    )
    yield paired(
        "mean of the rarer reward over training, where the sum has a batch step as well",
        ours.mean(dim=0),
        whitened.mean(dim=0),
    )


CLAIM = Claim(
    system="gdpo",
    run=run,
    method=gdpo,
    mutation=Mutation("the rewards are summed before they are normalised", summed_in_batch),
    recipe="""
rewards: [task, {name: regex, pattern: "^[a-z]+$"}]
credit: gdpo
""",
    seeds=6,
    quick=True,
)
