"""A judge that scores answers one by one puts them all into a narrow band, where its noise decides. Asked which of two
is better it sees the difference; a tournament turns its verdicts into ranks, and ranks into advantages.

The judge is scripted: skills are standard normal, a comparison errs with standard deviation 1 over both orders, a
single score is 0.05 skill + noise of 0.3. Groups have 16 answers. The rank correlations expected here come from a
simulation written apart from this code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, above, equal, paired
from guerdon.claims.testbeds.judges import SkillJudge
from guerdon.claims.testbeds.tabular import Tabular
from guerdon.credit.rank import group_rank, rank_to_advantage
from guerdon.reward_models.evaluate import arena
from guerdon.rewards.judge import Referee, Standings, tournament
from guerdon.seeding import torch_generator

SIZE, GROUPS, PROMPTS, ANSWERS = 16, 500, 4, 16
# Comparisons, and mean rank correlation with the truth.
TOPOLOGIES = {"anchor": (15, 0.68), "single_elimination": (30, 0.75), "round_robin": (120, 0.91)}
ALSO = {"double_elimination": 0.75, "swiss": 0.75}
SKILL = torch.randn(PROMPTS, ANSWERS, generator=torch_generator(0, "arenarl", "skill"), dtype=torch.float64)


class Parts(NamedTuple):
    """From comparisons to places, and from places to credit."""

    tournament: Any
    credit: Any


def spearman(x: Tensor, y: Tensor, group: Tensor) -> float:
    """Mean rank correlation inside groups of equal size; 0 in a group that is all equal."""
    a, b = (torch.stack(group_rank(z.double(), group).split(SIZE)) - (SIZE - 1) / 2 for z in (x, y))
    norm = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    return float(((a * b).sum(dim=1) / norm.clamp(min=1e-9)).mean())


def shorter(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[Any]:
    """A judge of texts that prefers the shorter, and cannot read question marks."""
    return [None if "?" in a + b else (9 - len(a), 9 - len(b)) for a, b in zip(first, second, strict=True)]


def broken(first: Tensor, second: Tensor) -> list[None]:
    """A judge that never answers."""
    return [None] * len(first)


def verdicts(hold: Any) -> Iterator[Check]:
    """What tournaments find, by topology."""
    skill = torch.randn(GROUPS * SIZE, generator=torch_generator(0, "arenarl"), dtype=torch.float64)
    key = torch.rand(GROUPS * SIZE, generator=torch_generator(1, "arenarl"), dtype=torch.float64)
    group = torch.arange(GROUPS).repeat_interleave(SIZE)
    judge = SkillJudge(skill, key)
    best = torch.stack(skill.split(SIZE)).argmax(dim=1)

    yield equal("scored one by one: rank correlation", spearman(judge.pointwise(), skill, group), 0.13, tol=0.03)
    for topology, (count, wanted) in TOPOLOGIES.items():
        standings: Standings = hold(Referee(judge), group, topology=topology)
        yield equal(f"{topology}: comparisons", standings.comparisons / GROUPS, count)
        yield equal(f"{topology}: rank correlation", spearman(standings.reward, skill, group), wanted, tol=0.03)
    for topology, wanted in ALSO.items():
        reward = hold(Referee(judge), group, topology=topology).reward
        yield equal(f"{topology}: rank correlation", spearman(reward, skill, group), wanted, tol=0.03)
    for topology in ("single_elimination", "double_elimination", "swiss", "round_robin"):
        reward = hold(Referee(SkillJudge(skill, key, pair_noise=0.0)), group, topology=topology).reward
        first = torch.stack(reward.split(SIZE)).argmax(dim=1) == best
        yield equal(f"{topology}: groups in which a judge without noise puts the best first", first.float().mean(), 1)
    straight = hold(Referee(judge), group).reward
    partial = SkillJudge(skill, key, bias=3.0)
    fair = hold(Referee(partial), group).reward
    yield equal("places that change if the judge favours whoever stands first", (fair != straight).sum(), 0)
    once = [hold(Referee(who, both_orders=False), group).reward for who in (judge, partial)]
    yield above("and if it is asked in one order only", (once[0] != once[1]).sum(), 0)
    yield equal("a judge that never answers", hold(Referee(broken), group).reward.abs().max(), 0.0)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """What tournaments find, credit by hand, and policies trained on either kind of verdict."""
    yield from verdicts(method.tournament)
    credit = method.credit(torch.tensor([9.0, 0.1, 0.0, -7.0]), torch.zeros(4).long(), torch.ones(4, 1).bool())
    wanted = torch.tensor([0.5, 1 / 6, -1 / 6, -0.5]) / math.sqrt(5 / 27)
    yield equal("places 1, 2/3, 1/3, 0 as credit", credit[:, 0], wanted, tol=1e-4)
    alone = method.credit(torch.ones(1), torch.zeros(1).long(), torch.ones(1, 1).bool())
    yield equal("a group of one", alone[:, 0], [0.0])
    result = arena(shorter, ["p"] * 4, ["a", "bbb", "cc", "?"], ["aa", "b", "dd", "e"])
    yield equal("win rate: a win, a loss, a tie and a failure", result.win_rate, 0.5)

    def judge(actions: Tensor, prompt: Tensor, uniform: Tensor) -> SkillJudge:
        return SkillJudge(SKILL[prompt, actions[:, 0]], uniform)

    def by_rank(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
        group = torch.arange(len(prompt)) // SIZE
        return method.tournament(Referee(judge(actions, prompt, uniform)), group).reward

    def alone_scored(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
        return judge(actions, prompt, uniform).pointwise()

    def skill(reward: Callable[..., Tensor], credit: Any) -> Tensor:
        bed = Tabular(torch.full((PROMPTS, ANSWERS), 1 / ANSWERS), reward)
        return bed.train(seeds=seeds, steps=40, group_size=SIZE, lr=4.0, credit=credit).expected(SKILL).mean(dim=-1)

    ours, theirs = skill(by_rank, method.credit), skill(alone_scored, "grpo")
    yield paired(
        "true skill after 40 steps",
        ours[-1],
        theirs[-1],
        share=1.0,
        curves={"tournament": ours.T, "scored one by one": theirs.T},
        axis="true skill by step",
    )


def mixed_up(compare: Any, group: Tensor, *, topology: Any = "single_elimination") -> Standings:
    """A tournament that hands each place to another contestant, as when a shuffled list is read by its numbers."""
    standings = tournament(compare, group, topology=topology)
    return standings._replace(reward=standings.reward.roll(5))


CLAIM = Claim(
    system="arenarl",
    run=run,
    method=Parts(tournament, rank_to_advantage),
    mutation=Mutation("places go to other contestants than those who won them", Parts(mixed_up, rank_to_advantage)),
    recipe="""
rewards:
  - {name: tournament, judge: "guerdon.claims.testbeds.judges:share_of_letters"}
  - {name: task, watch: true}
sampling: {prompts: 32, group_size: 16, max_new_tokens: 8}
credit: rank_to_advantage
objective: {name: ppo_clip, clip_low: 0.2, clip_high: 0.28}
""",
    seeds=10,
    quick=True,
)
