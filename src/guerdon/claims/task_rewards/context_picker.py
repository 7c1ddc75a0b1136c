"""Which passages a question needs is found before training: one passage after the other is left out for good while the
rest still answers it. The policy is then paid for what it covers of that set and charged for what is superfluous, first
mildly, so that it learns to find everything, then strictly, so that it learns to leave the rest.

A question has twenty passages, of which two or three are needed: those whose topics resemble its own, by five standard
deviations once the policy knows how to compare them. It chooses each passage by itself, with a logit linear in the
products of topics, and at first takes four in five. What it chose is written as a list of ids and scored by the
registered reward. Two stages of equal length are compared with either stage alone for as long as both.

Under the second stage alone the policy learns to choose little before it has learned what to choose, and its coverage
falls to half on the way. That is no trap, though: while fewer passages are chosen than are needed, this reward charges
for none, so with five times the steps the second stage alone ends where two stages do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import bind
from guerdon.rewards.sets import evidence_set
from guerdon.seeding import torch_generator
from guerdon.shaping.stages import Stage, Stages, Until
from guerdon.tasks.evidence import mine_minimal_sets

PASSAGES, TOPICS, APART = 20, 8, 5.0
QUESTIONS, GROUP, STEPS, RATE, TAKEN = 8, 8, 24, 3.0, 0.8
HELD_OUT = 500
IDS = [f"p{i}" for i in range(PASSAGES)]
KNOWN = {"candidates": IDS}
RECALL, PRECISION = {"margin": 4, "penalty": 0.1}, {"margin": 0, "penalty": 0.5}
BOTH = {"recall": RECALL, "precision": PRECISION}


class Parts(NamedTuple):
    """What is under test: how the evidence is mined, and what a choice is worth."""

    mine: Callable[..., Any]
    reward: Callable[..., Any]


def questions(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Products (count,20,64) of what is asked and what the passages say, and which passages are needed (count,20)."""
    needed = torch.randint(2, 4, (count, 1), generator=generator)
    gold = torch.rand(count, PASSAGES, generator=generator).argsort(dim=1).argsort(dim=1) < needed
    asked = torch.randn(count, 1, TOPICS, generator=generator)
    asked = asked / asked.norm(dim=-1, keepdim=True)
    said = torch.randn(count, PASSAGES, TOPICS, generator=generator) + APART * gold.unsqueeze(-1) * asked
    return (asked.unsqueeze(-1) * said.unsqueeze(-2)).flatten(2), gold


def ids(chosen: Sequence[bool]) -> list[str]:
    """The ids of what was chosen."""
    return [name for name, taken in zip(IDS, chosen, strict=True) if taken]


def train(reward: Callable[..., Any], plan: dict[str, dict[str, float]], seeds: Sequence[int]) -> dict[str, Tensor]:
    """GRPO through stages of equal length, twice ``STEPS`` steps in all; (S,steps) coverage and passages too many."""
    stages = Stages(
        [Stage(name, {"evidence_set": options}, until=Until(2 * STEPS // len(plan))) for name, options in plan.items()]
    )
    credit, objective = bind("credit", "grpo"), bind("objective", "reinforce")
    start = torch.tensor(TAKEN).logit()
    weights = torch.cat([torch.zeros(len(seeds), TOPICS**2), start.expand(len(seeds), 1)], dim=1).requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=RATE)
    draws = [torch_generator(seed, "picker", "questions") for seed in seeds]
    voices = [torch_generator(seed, "picker", "choices") for seed in seeds]
    tests = [questions(HELD_OUT, torch_generator(seed, "picker", "held out")) for seed in seeds]
    features, gold = (torch.stack(x) for x in zip(*tests, strict=True))
    rows = len(seeds) * QUESTIONS
    group, mask = torch.arange(rows).repeat_interleave(GROUP), torch.ones(rows * GROUP, PASSAGES, dtype=torch.bool)
    covered, surplus = [], []
    for _ in range(2 * STEPS):
        taken = logits(weights.detach(), features) > 0
        covered.append(((taken & gold).sum(-1) / gold.sum(-1)).mean(dim=1))
        surplus.append((taken.sum(-1) - gold.sum(-1)).float().mean(dim=1))
        seen, needed = (torch.stack(x) for x in zip(*(questions(QUESTIONS, draw) for draw in draws), strict=True))
        logit = logits(weights, seen).flatten(0, 1).repeat_interleave(GROUP, dim=0)
        chance = torch.cat([torch.rand(QUESTIONS * GROUP, PASSAGES, generator=voice) for voice in voices])
        action = chance < logit.detach().sigmoid()
        wanted = [ids(row) for row in needed.flatten(0, 1).tolist() for _ in range(GROUP)]
        options = dict(stages.current.rewards["evidence_set"])
        value = torch.tensor(
            [
                reward(json.dumps(ids(row)), answer, KNOWN, **options).value
                for row, answer in zip(action.tolist(), wanted, strict=True)
            ]
        )
        advantage = credit({"reward": value, "group": group, "mask": mask}).fields["advantage"]
        logp = logsigmoid(torch.where(action, logit, -logit))
        fields = {"logp": logp, "old_logp": logp.detach(), "advantage": advantage, "mask": mask}
        optimizer.zero_grad()
        (objective(fields).fields["loss"] * len(seeds)).backward()
        optimizer.step()
        stages.update({})
    return {"covered": torch.stack(covered, dim=1), "surplus": torch.stack(surplus, dim=1)}


def logits(weights: Tensor, features: Tensor) -> Tensor:
    """(S,B,20) of weights (S,9) on features (S,B,20,8)."""
    return torch.einsum("sbpf,sf->sbp", features, weights[:, :-1]) + weights[:, -1, None, None]


def one_shot(pool: Sequence[str], sufficient: Callable[[list[str]], bool], **_: object) -> list[frozenset[str]]:
    """Keep the passages without which the whole pool does not suffice."""
    return [frozenset(one for one in pool if not sufficient([other for other in pool if other != one]))]


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Oracles of which the answer is known, choices by hand, then three plans of training."""

    def mined(holds: Callable[[set[str]], bool], **options: int) -> list[list[str]]:
        return sorted(sorted(one) for one in method.mine(IDS, lambda chosen: holds(set(chosen)), **options))

    both = mined(lambda chosen: chosen >= {"p3", "p11"})
    yield check("of twenty passages two are needed together", both == [["p11", "p3"]], expected="p3 and p11", seen=both)
    either = mined(lambda chosen: bool(chosen & {"p3", "p11"}))
    yield check("either of two will do", either in ([["p3"]], [["p11"]]), expected="one of them", seen=either)
    several = mined(lambda chosen: bool(chosen & {"p3", "p11"}), orders=20)
    yield check("the same, left out in twenty orders", several == [["p11"], ["p3"]], expected="both sets", seen=several)
    whole = one_shot(IDS, lambda chosen: bool({"p3", "p11"} & set(chosen)))
    yield check("the same, each passage tried once against all", whole == [frozenset()], expected="none", seen=whole)

    gold = ["p3", "p11"]

    def worth(chosen: list[str], stage: str, answer: Any = gold) -> float:
        return method.reward(json.dumps(chosen), answer, KNOWN, **BOTH[stage]).value

    yield equal("the evidence, in both stages", [worth(gold, stage) for stage in BOTH], [1.0, 1.0])
    yield equal("with four passages more", [worth(gold + IDS[4:8], stage) for stage in BOTH], [1.0, 0.0])
    yield equal("with five more", [worth(gold + IDS[4:9], stage) for stage in BOTH], [0.95, -0.25])
    yield equal("everything, in the second stage", worth(IDS, "precision"), -1.0)
    yield equal(
        "an id that is not there, one twice", [worth([*gold, "p99"], "recall"), worth(["p3", "p3"], "recall")], [-1, -1]
    )
    yield equal("the second of two sufficient sets", worth(["p5"], "precision", [gold, ["p5"]]), 1.0)

    known = list(range(seeds))
    staged = train(method.reward, BOTH, known)
    strict = train(method.reward, {"precision": PRECISION}, known)
    mild = train(method.reward, {"recall": RECALL}, known)
    yield every_seed("coverage after two stages", staged["covered"][:, -1], above=0.95, share=0.8)
    yield every_seed("passages too many after two stages", staged["surplus"][:, -1], below=1.0, share=0.8)
    yield paired(
        "coverage of two stages against the second alone",
        staged["covered"][:, -1],
        strict["covered"][:, -1],
        curves={"two stages": staged["covered"], "second alone": strict["covered"], "first alone": mild["covered"]},
        axis="coverage by step",
    )
    yield paired(
        "lowest coverage on the way, of two stages against the second alone",
        staged["covered"].amin(dim=1),
        strict["covered"].amin(dim=1),
        margin=0.2,
        share=1.0,
    )
    yield paired(
        "passages too many of two stages against the first alone",
        staged["surplus"][:, -1],
        mild["surplus"][:, -1],
        better="lower",
        margin=0.3,
        curves={"two stages": staged["surplus"], "second alone": strict["surplus"], "first alone": mild["surplus"]},
        axis="passages too many by step",
    )


CLAIM = Claim(
    system="context-picker",
    run=run,
    method=Parts(mine_minimal_sets, evidence_set),
    mutation=Mutation("each passage is tried once, against the whole pool", Parts(one_shot, evidence_set)),
    recipe="""
rewards: [{name: evidence_set, candidates: null}]
stages:
  - {name: recall, until: {steps: 200}}
  - {name: precision, rewards: {evidence_set: {margin: 0, penalty: 0.5}}}
""",
    seeds=5,
)
