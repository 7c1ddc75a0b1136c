"""Paid by its answers alone, a policy that may search either does not or does not stop. First its form is paid, then
every search, each less than the one before, then right answers, the less the more searches they took.

The policy knows how many searches a question takes (1, 2 or 3), writes in a good or a bad form, and searches up to six
times; its text is rendered and scored by the registered rewards. At first it hardly searches, and an answer without
enough evidence is right one time in twenty. The mask is checked on rows that a small language model wrote with a tool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, above, below, equal, every_seed, paired
from guerdon.claims.testbeds.searching import gradient_of, searched_rows
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.rewards.forms import Score
from guerdon.rewards.process import (
    DOCUMENTS,
    QUERY,
    cost_aware_f1,
    retrieval_bonus,
    search_format,
)
from guerdon.shaping.stages import Stage, Stages, Until

MOST, HOPS = 6, (1, 2, 3)
LUCK, AGAIN, GOOD = 0.05, 0.1, 0.5  # chance of a right answer without evidence; of one more search and of form at first
# Before each search the policy decides whether to make it (symbol 1), and at the end in which form to write.
INITIAL = torch.tensor([[1 - AGAIN, AGAIN]] * MOST + [[1 - GOOD, GOOD]]).expand(len(HOPS), -1, -1)
FORM, SEARCH = 30, 100  # updates of the first two stages
SETTINGS: dict[str, Any] = {"steps": 300, "group_size": 16, "lr": 3.0}
NAMES = ("form", "searches", "cost_aware_f1", "f1")


class Parts(NamedTuple):
    """The two rewards of the process."""

    bonus: Callable[..., Score]
    cost_aware: Callable[..., Score]


def written(queries: Sequence[str], good: bool, right: bool) -> str:
    """What the policy writes."""
    searches = "".join(f"{q.join(QUERY)}{f'fact {i}'.join(DOCUMENTS)}" for i, q in enumerate(queries))
    return f"<think>So: {searches}{'</think>' if good else ''}<answer>{'yes' if right else 'no'}</answer>"


def parts(count: int) -> list[str]:
    """Different queries."""
    return [f"part {i}" for i in range(count)]


def table(rewards: Parts) -> Tensor:
    """(MOST + 1, 2, 2, 4) every reward of every text, by its searches, its form and whether it is right."""
    cells = [
        [
            search_format(text).value,
            rewards.bonus(text).value,
            rewards.cost_aware(text, "yes").value,
            cost_aware_f1(text, "yes", scale=1.0, cost=0.0).value,
        ]
        for searches, good, right in product(range(MOST + 1), (False, True), (False, True))
        for text in [written(parts(searches), good, right)]
    ]
    return torch.tensor(cells, dtype=torch.float64).view(MOST + 1, 2, 2, len(NAMES))


def made(actions: Tensor) -> Tensor:
    """(N,) searches of decisions (N,MOST): those before the first that is not made."""
    return actions[:, :MOST].cumprod(dim=1).sum(dim=1)


def train(rewards: Parts, stages: Sequence[Stage], seeds: int, first_seed: int = 0) -> History:
    """Train by GRPO on what the stage pays that a batch belongs to."""
    control, values = Stages(stages), table(rewards)

    def reward(actions: Tensor, prompt: Tensor, noise: Tensor) -> Tensor:
        searches = made(actions)
        right = (searches > prompt) | (noise < LUCK)
        paid = control.current.rewards
        weights = torch.tensor([float(paid[n]["weight"]) if n in paid else 0.0 for n in NAMES], dtype=torch.float64)
        control.update({})
        return values[searches, actions[:, MOST], right.long()] @ weights

    bed = Tabular(INITIAL, reward)
    return bed.train(seeds=seeds, first_seed=first_seed, **SETTINGS)


def stage(name: str, steps: int | None = None, **weights: float) -> Stage:
    """A stage that pays the form, and some rewards."""
    rewards = {key: {"weight": weight} for key, weight in {"form": 1.0, **weights}.items()}
    return Stage(name, rewards, until=None if steps is None else Until(steps=steps))


def reach(history: History) -> Tensor:
    """(steps + 1, S, P, MOST) chance of at least 1, 2, ... searches."""
    return history.probs[:, :, :, :MOST, 1].cumprod(dim=-1)


def count(history: History) -> Tensor:
    """(steps + 1, S, P) expected number of searches."""
    return reach(history).sum(dim=-1)


def f1(history: History) -> Tensor:
    """(steps + 1, S) expected F1 over the questions."""
    enough = torch.stack([reach(history)[:, :, place, hops - 1] for place, hops in enumerate(HOPS)], dim=-1)
    return (enough + (1 - enough) * LUCK).mean(dim=-1)


def exact(method: Parts) -> Iterator[Check]:
    """The rewards by hand, and the mask on real rows."""
    bonus = [method.bonus(written(parts(n), True, True)).value for n in range(MOST + 1)]
    yield equal("what each search adds", [b - a for a, b in pairwise(bonus)], [0.5 * 0.5**j for j in range(MOST)])
    yield below("all searches together", bonus[-1], 0.5 / (1 - 0.5))
    farmed = written(["part", "", " ", "part", "Part?", "the part"], True, True)
    yield equal("empty and repeated queries add nothing", method.bonus(farmed).value, 0.5)
    for cost in (0.01, 0.1, 1.0):
        for hops in HOPS:
            texts = [written(parts(n), True, n >= hops) for n in range(MOST + 1)]
            values = [method.cost_aware(text, "yes", cost=cost).value for text in texts]
            best = max(range(MOST + 1), key=values.__getitem__)
            yield equal(f"best number of searches, {hops} needed, cost {cost:g}", best, hops)
    flat = [cost_aware_f1(written(parts(n), True, True), "yes", scale=1.0, cost=0.0).value for n in range(MOST + 1)]
    yield equal("F1 alone does not care how often a right answer searched", flat, [1.0] * (MOST + 1))
    rows = searched_rows()
    gradient = gradient_of(rows, rows.rollouts.mask)
    yield above("inserted tokens in rows of a small model", float(rows.inserted.sum()), 100)
    yield equal("gradient by their log-probabilities", gradient[rows.inserted].abs().amax(), 0.0, tol=0.0)
    yield above("the same by those of the policy's own", gradient[rows.rollouts.mask].abs().amin(), 0.0)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """The rewards by hand, the mask on real rows, and three ways to train."""
    yield from exact(method)
    form, search = stage("form", FORM), stage("searching", SEARCH, searches=1.0)
    whole = train(method, [form, search, stage("sparing", cost_aware_f1=1.0)], seeds)
    outcome = train(method, [stage("answers", f1=1.0)], seeds)
    stopped = train(method, [form, stage("searching", searches=1.0)], seeds)
    hard = HOPS.index(3)
    yield every_seed("F1 alone: searches where 3 are needed", count(outcome)[-1, :, hard], below=1.0, share=0.6)
    for place, hops in enumerate(HOPS):
        yield every_seed(
            f"three stages: searches where {hops} are needed",
            count(whole)[-1, :, place],
            above=hops - 0.3,
            below=hops + 0.3,
        )
        yield every_seed(
            f"two stages: searches where {hops} are needed", count(stopped)[-1, :, place], above=hops + 0.3
        )
    yield every_seed("three stages: F1", f1(whole)[-1], above=0.9)
    yield paired(
        "F1 after training, three stages against F1 alone",
        f1(whole)[-1],
        f1(outcome)[-1],
        curves={"three stages": f1(whole).T, "F1 alone": f1(outcome).T, "two stages": f1(stopped).T},
        axis="expected F1 by update",
    )
    yield paired(
        "searches after training, three stages against two",
        count(whole)[-1].mean(dim=-1),
        count(stopped)[-1].mean(dim=-1),
        better="lower",
        curves={
            "three stages": count(whole).mean(dim=-1).T,
            "two stages": count(stopped).mean(dim=-1).T,
            "F1 alone": count(outcome).mean(dim=-1).T,
        },
        axis="searches by update",
    )


def every_query(text: str, **options: Any) -> Score:
    """The same for every query, whatever it asks."""
    return Score(0.5 * text.count(QUERY[0]))


def free(text: str, answer: Any, **options: Any) -> Score:
    """F1, however many searches it took."""
    return cost_aware_f1(text, answer, cost=0.0)


CLAIM = Claim(
    system="graphrag-r1",
    run=run,
    method=Parts(retrieval_bonus, cost_aware_f1),
    mutation=Mutation(
        "every query earns the same, empty and repeated ones too, and none costs anything", Parts(every_query, free)
    ),
    recipe="""
task: {name: graph_qa, hops: [1, 2], entities: 20, relations: [b, f, r], shallow: 0.5}
sampling:
  prompts: 16
  group_size: 8
  max_new_tokens: 300
  tool: {name: task, max_calls: 4}
rewards:
  - {name: search_format, think: null}
  - {name: retrieval_bonus, weight: 0}
  - {name: cost_aware_f1, weight: 0}
stages:
  - {name: form, until: {metric: reward/search_format/mean, above: 0.95, steps: 50}}
  - {name: searching, rewards: {retrieval_bonus: {weight: 1}}, until: {steps: 50}, fresh: [optimizer]}
  - {name: sparing, rewards: {cost_aware_f1: {weight: 1}}, fresh: [optimizer]}
terms: [{name: kl, beta: 0.05}]
evaluation: {every: 50, problems: 32}
""",
    seeds=5,
)
