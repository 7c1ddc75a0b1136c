"""A right answer may have come about by wrong steps, and scores of steps that enter the reward are farmed. PROF lets
them choose instead: right answers with good steps and wrong ones with bad steps stay, and are learned from by their
outcome.

A quarter of made-up right answers is flawed, and a model of steps tells flawed ones from sound ones with an area of
0.75; 4 of 12 are kept beside 4 of 4 wrong ones. Trained is the table of the claim of PURE, in which fillers are worth
0.5 each, on groups of 16 of which 8 stay; blended with it, the scores of steps are added to the outcome. All settings
but the size of the groups are those of that claim; none was tried before the default seeds. Nothing in that table makes
right answers flawed, so the filter only has to do no harm there: on seeds 100 to 109 the outcome alone ends at 0.99 of
the answers right with all 16, and at 0.99 with 8 drawn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.credit_and_agents.pure import END, LENGTH, RATE, STEPS, TOKENS, step_scores, writing
from guerdon.credit.grouping import per_action, whiten
from guerdon.credit.process import steps_of
from guerdon.curriculum.process_filter import process_consistency_filter
from guerdon.seeding import torch_generator

GROUP, KEEP, FLAWED, APART = 16, 8, 0.26, 0.9539  # the distance of two normal distributions with an area of 0.75
TRIALS = 2000


def least_consistent(score: Tensor, *rest: Any, **options: Any) -> Tensor:
    """Keep those whose steps contradict their outcome."""
    return process_consistency_filter(-score, *rest, **options)


def flaw_rate(method: Callable[..., Tensor], seed: int) -> tuple[float, float]:
    """Part of the right answers that is flawed, of all and of those that are kept."""
    generator = torch_generator(seed, "prof")
    right = (torch.arange(GROUP) < 12).repeat(TRIALS)
    flawed = (torch.rand(len(right), generator=generator) < FLAWED) & right
    score = torch.randn(len(right), generator=generator) + APART * (right & ~flawed)
    group = torch.arange(TRIALS).repeat_interleave(GROUP)
    kept = method(score, torch.full_like(group, 5), right, group, keep=KEEP) & right
    return (flawed.sum() / right.sum()).item(), ((flawed & kept).sum() / kept.sum()).item()


def by_hand(method: Callable[..., Tensor]) -> Iterator[Check]:
    """The model of steps, how many of each side stay, and which."""
    yield equal("area under the curve of the model of steps", 0.5 * (1 + math.erf(APART / 2)), 0.75, tol=1e-4)
    for n_right, wanted in ((6, [2, 2]), (1, [1, 3]), (8, [4, 0])):
        right = torch.arange(8) < n_right
        kept = method(torch.rand(8), torch.full((8,), 5), right, torch.zeros(8, dtype=torch.int64), keep=4)
        seen = [int((kept & right).sum()), int((kept & ~right).sum())]
        yield equal(f"right and wrong answers that stay, 4 of 8 of which {n_right} are right", seen, wanted)
    score, right = torch.tensor([0.9, 0.1, 0.8, -0.9]), torch.tensor([True, True, False, False])
    kept = method(score, torch.full((4,), 5), right, torch.zeros(4, dtype=torch.int64), keep=2)
    yield equal("sound and flawed right answer, sound and bad wrong one", kept, [1, 0, 0, 1])


def run(method: Callable[..., Tensor], seeds: int) -> Iterator[Check]:
    """Numbers by hand, flaws, then training beside blending."""
    yield from by_hand(method)
    rates = [flaw_rate(method, seed) for seed in range(seeds)]
    yield every_seed(
        f"flawed among the kept right answers, in all right ones ({rates[0][0]:.2f})",
        [after / before for before, after in rates],
        below=0.5,
    )
    bed = writing()

    def score(walks: Any) -> dict[str, Tensor]:
        return {**step_scores(walks), "right": walks.took(TOKENS, END).any(dim=1).double()}

    bed = dataclasses.replace(bed, score=score)

    def chosen(
        dense: Tensor,
        group: Tensor,
        mask: Tensor,
        components: Tensor,
        component_names: tuple[str, ...],
        component_weights: Tensor,
    ) -> Tensor:
        steps = steps_of(dense, mask, components, component_names, component_weights, outcome="right")
        count = steps.ends.sum(dim=1)
        mean = steps.score.sum(dim=1) / count.clamp(min=1)
        kept = method(mean, count, steps.outcome > 0, group, keep=KEEP)
        return per_action(whiten(steps.outcome, group, kept), mask)

    ours: Any = chosen
    if method is process_consistency_filter:
        ours = {"name": "process_filter", "outcome": "right", "keep": KEEP}
    settings: dict[str, Any] = {"seeds": seeds, "steps": STEPS, "group_size": GROUP, "lr": RATE * LENGTH}
    visits = {
        name: bed.visits(bed.train(credit=credit, **settings).probs)
        for name, credit in (("prof", ours), ("blended", "grpo"))
    }
    right = {name: taken[..., TOKENS, END] for name, taken in visits.items()}
    length = {name: taken.sum(dim=(-1, -2)) for name, taken in visits.items()}
    start = float(right["prof"][0, 0])
    shown = {name: x.T for name, x in right.items()}
    yield every_seed(f"right answers after blending, {start:.2f} before", right["blended"][-1], below=start)
    what = "right answers in the end, against blending"
    yield paired(what, right["prof"][-1], right["blended"][-1], curves=shown, axis="right by step")
    yield paired("tokens of an answer in the end", length["prof"][-1], length["blended"][-1], better="lower")


CLAIM = Claim(
    system="prof",
    run=run,
    method=process_consistency_filter,
    mutation=Mutation("those stay whose steps contradict the outcome", least_consistent),
)
