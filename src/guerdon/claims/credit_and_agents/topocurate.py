"""Which tasks succeed half of the time does not say where there is something to learn. TopoCurate merges the turns of
all rollouts of a task into a graph and takes tasks whose branches lead to failure and to different successes; among
successful rollouts it takes those that recover from errors, waste nothing, and go ways that others don't.

For RL there are 40 tasks of three tool calls with three tools each. In 16 the calls decide: at one, two or three of
them a tool leads into a chain of errors. In 16 nothing decides: every tool does, and a coin says whether the answer
passes. Four always pass and four always fail. 24 rollouts of each are drawn, and 8 tasks chosen: by TopoCurate, by
the pass rate nearest to one half, or at random. For imitation, a task has four calls, at each of which a detour is
possible and every third call fails; the agent then tries again or answers anyway. The best quarter of the successful
rollouts is counted into a policy.

The published comparison of squared advantages with selection by pass rate can't hold for the outcome's: those are p
(1 - p) on average, of which one half is the largest (seeds 100 to 105: 0.198 against 0.213). It holds against random
selection, and a check bounds it. What the graph adds is that the advantages mean something: their gradient's signal,
over its noise. These are the first settings; none were searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, below, equal, paired
from guerdon.claims.testbeds.stepwise import Stepwise, Walks
from guerdon.curriculum.topology import (
    Topology,
    Turn,
    error_branch_ratio,
    strategy_heterogeneity,
    task_scores,
    topology,
    trajectory_scores,
)
from guerdon.seeding import numpy_generator, torch_generator

Merge = Callable[..., Topology]
TASKS, CHOSEN, CALLS, TOOLS, DRAWN = 40, 8, 3, 3, 24
DECIDED, LUCKY, MASTERED = 16, 16, 4
STATES = 2 * CALLS  # of a task: well or in error, before each call

FIVE, WON = ("abc", "abc", "adbc", "adf", "e"), [True, True, True, False, False]


def letters(merge: Merge, words: tuple[str, ...], success: list[bool]) -> Topology:
    """A task whose turns are letters."""
    return merge([[Turn(letter, "") for letter in word] for word in words], success)


def by_hand(merge: Merge) -> Iterator[Check]:
    """Five rollouts, a single path, and a node that is visited twice."""
    tree = letters(merge, FIVE, WON)
    yield equal("success potential, from the start", tree.potential(), [0.6, 0.75, 1, 1, 0.5, 0, 0])
    yield equal("share of branches that lead to failure", error_branch_ratio(tree), 2 / 6)
    yield equal("strategy heterogeneity", strategy_heterogeneity(tree), 2 / 3)
    yield equal("recovery, gained after a drop", trajectory_scores(tree).recovery, [0, 0, 0.5, 0, 0])
    single = letters(merge, ("abc", "abc", "abc"), [True, True, False])
    yield equal("a task with a single path", task_scores([single, tree]), [0, 2])
    twice = trajectory_scores(letters(merge, ("abab", "ab"), [True, True]))
    yield equal("efficiency of a path that visits nodes twice", twice.efficiency[0], 0.5)


@dataclass(frozen=True)
class Market:
    """The 40 tasks of a seed: ``traps`` (P,C,A), the tools that lead to errors, and ``chance`` (P,) to pass without."""

    traps: Tensor
    chance: Tensor

    @classmethod
    def draw(cls, seed: int) -> Market:
        """Tasks of a seed, the four kinds one after the other."""
        random = numpy_generator(seed, "market")
        traps = torch.zeros(TASKS, CALLS, TOOLS, dtype=torch.bool)
        for task in range(DECIDED):
            for call in random.choice(CALLS, size=random.integers(1, CALLS + 1), replace=False):
                traps[task, call, random.integers(TOOLS)] = True
        kinds = [torch.ones(DECIDED), 0.3 + 0.4 * torch.tensor(random.random(LUCKY)), torch.ones(MASTERED)]
        failing = TASKS - DECIDED - LUCKY - MASTERED
        return cls(traps, torch.cat([*kinds, torch.zeros(failing)]).double())

    def bed(self, tasks: Tensor) -> Stepwise:
        """Some of the tasks, to train on."""
        p = len(tasks)
        state = torch.arange(p * STATES).reshape(p, CALLS, 2, 1)
        onward = (state - state % 2 + 2 + (state % 2)).expand(p, CALLS, 2, TOOLS).clone()
        onward[:, :, 0] += self.traps[tasks]
        onward[:, -1] = -1
        last_trap = torch.zeros(p, CALLS, 2, TOOLS, dtype=torch.bool)
        last_trap[:, -1, 0], last_trap[:, -1, 1] = self.traps[tasks, -1], True
        lost, chance = last_trap.reshape(-1, TOOLS), self.chance[tasks]

        def score(walks: Walks) -> dict[str, Tensor]:
            failed = lost[walks.states[:, -1], walks.actions[:, -1]]
            return {"passed": ((walks.noise[:, -1] < chance[walks.prompt]) & ~failed).double()}

        uniform = torch.full((p * STATES, TOOLS), 1 / TOOLS, dtype=torch.float64)
        return Stepwise(onward.reshape(-1, TOOLS), uniform, CALLS, score, torch.arange(p) * STATES)

    def success(self, bed: Stepwise, probs: Tensor, tasks: Tensor) -> Tensor:
        """(...) exact success summed over some tasks."""
        visits = bed.visits(probs) * len(tasks)
        last = visits.unflatten(-2, (len(tasks), CALLS, 2))[..., -1, 0, :]
        right = (last * ~self.traps[tasks, -1]).sum(dim=-1)
        return (right * self.chance[tasks]).sum(dim=-1)

    def topologies(self, merge: Merge, seed: int) -> tuple[list[Topology], Tensor]:
        """What rollouts of the untrained policy show of each task, and its pass rate."""
        bed = self.bed(torch.arange(TASKS))
        walks = bed.write(bed.initial.unsqueeze(0), DRAWN, [torch_generator(seed, "market rollouts")])
        passed = bed.score(walks)["passed"].view(TASKS, DRAWN)
        call, error = walks.states % STATES // 2, walks.states % 2
        trapped = error.bool() | self.traps[walks.prompt.unsqueeze(1), call, walks.actions]
        said = [
            [Turn(f"call {c} tool {a}", "error" if bad else "done") for c, a, bad in zip(*row, strict=True)]
            for row in zip(call.tolist(), walks.actions.tolist(), trapped.tolist(), strict=True)
        ]
        trees = [merge(said[p * DRAWN : (p + 1) * DRAWN], [bool(x) for x in passed[p].tolist()]) for p in range(TASKS)]
        return trees, passed.mean(dim=1)


def signal_to_noise(bed: Stepwise, batches: int, seed: int) -> tuple[float, float]:
    """Squared norm of the mean gradient over its variance, and the mean squared advantage."""
    settings: dict[str, Any] = {"steps": 1, "group_size": 8, "lr": 1.0, "credit": {"name": "grpo", "eps": 1e-6}}
    probs = bed.train(seeds=batches, first_seed=1000 * (seed + 1), **settings).probs[-1]
    gradient = (probs / probs[..., :1]).log().double()
    gradient = gradient - gradient.mean(dim=-1, keepdim=True)
    mean, noise = gradient.mean(dim=0).square().sum(), gradient.var(dim=0).sum()
    squared = float((mean - noise / batches).clamp(min=0) / noise)
    walks = bed.write(bed.initial.expand(batches, -1, -1), 8, [torch_generator(s, "power") for s in range(batches)])
    passed = bed.score(walks)["passed"].view(-1, 8)
    return squared, float((passed - passed.mean(dim=1, keepdim=True)).square().mean())


def curated_tasks(merge: Merge, seeds: int) -> Iterator[Check]:
    """Eight tasks of forty, chosen in three ways."""
    gain: dict[str, list[float]] = {name: [] for name in ("topology", "pass rate", "random")}
    ratio, power = ({name: [] for name in gain} for _ in range(2))
    for seed in range(seeds):
        market = Market.draw(seed)
        trees, rate = market.topologies(merge, seed)
        chosen = {
            "topology": task_scores(trees).argsort(descending=True, stable=True),
            "pass rate": (rate - 0.5).abs().argsort(stable=True),
            "random": torch.randperm(TASKS, generator=torch_generator(seed, "random tasks")),
        }
        for name, order in chosen.items():
            tasks = order[:CHOSEN]
            bed = market.bed(tasks)
            snr, squares = signal_to_noise(bed, 64, seed)
            lessons = bed.train(seeds=1, steps=40, group_size=8, lr=4.0, first_seed=seed)
            before, after = (market.success(bed, lessons.probs[t, 0], tasks) for t in (0, -1))
            gain[name].append(float(after - before) / TASKS)
            ratio[name].append(snr)
            power[name].append(squares)
    for other in ("random", "pass rate"):
        yield paired(f"gain in success over all tasks, against {other}", gain["topology"], gain[other])
        yield paired(f"signal to noise of the gradient, against {other}", ratio["topology"], ratio[other])
    yield paired("squared advantage per rollout, against random", power["topology"], power["random"])
    yield below("squared advantage per rollout, chosen by pass rate", max(power["pass rate"]), 0.25 * 7 / 8 + 0.01)


STEPS, WRONG, AGAIN = 4, 0.33, 0.5
GO, ASIDE, RETRY, ANSWER = range(4)  # what an agent can do


def play(policy: Tensor, random: np.random.Generator, rollouts: int, broken: int = -1) -> tuple[list[Any], list[bool]]:
    """Rollouts of a policy (S,2,4), by step and whether a call failed: what was done, and whether it succeeded.

    Args:
        broken: a step whose first call fails, in every rollout.
    """
    written, success = [], []
    for _ in range(rollouts):
        step, error, done, hurt = 0, 0, False, broken
        taken: list[tuple[int, int, int, str]] = []
        while not done and len(taken) < 30:
            action = int(random.choice(4, p=policy[step, error].numpy()))
            before, said = (step, error), "done"
            if action in (GO, RETRY):
                error = int(random.random() < WRONG or step == hurt)
                hurt = -1 if step == hurt else hurt
                step, said = (step, "error") if error else (step + 1, "done")
                done = step == STEPS
            elif action == ANSWER:
                done = True
            taken.append((*before, action, f"{said} {before[0]}"))
        written.append(taken)
        success.append(step == STEPS or (bool(taken[-1][2] == ANSWER) and random.random() < 0.3))
    return written, success


def imitated(examples: list[Any]) -> Tensor:
    """The policy that a count of examples gives, with a tenth of one for what was never done."""
    legal = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 1, 1]]], dtype=torch.float64)
    counts = 0.1 * legal.expand(STEPS, 2, 4).clone()
    for taken in examples:
        for step, error, action, _ in taken:
            counts[step, error, action] += 1
    return counts / counts.sum(dim=-1, keepdim=True)


def curated_rollouts(merge: Merge, seeds: int) -> Iterator[Check]:
    """Imitation of the best quarter of the successful rollouts, with each part of the score left out."""
    names = ["GO", "ASIDE", "RETRY", "ANSWER"]
    weights = {"all": (1.0, 1.0, 1.0), "no recovery": (0.0, 1.0, 1.0), "no efficiency": (1.0, 0.0, 1.0)}
    length: dict[str, list[float]] = {name: [] for name in weights}
    mended: dict[str, list[float]] = {name: [] for name in weights}
    behaviour = torch.tensor([[[0.6, 0.4, 0, 0], [0, 0, AGAIN, 1 - AGAIN]]], dtype=torch.float64).expand(STEPS, 2, 4)
    for seed in range(seeds):
        written, success = play(behaviour, numpy_generator(seed, "imitation"), 200)
        turns = [[Turn(names[action], said) for _, _, action, said in taken] for taken in written]
        tree = merge(turns, success)
        for name, parts in weights.items():
            total = trajectory_scores(tree, weights=parts).total.masked_fill(~torch.tensor(success), -1.0)
            best = total.argsort(descending=True, stable=True)[: sum(success) // 4]
            policy = imitated([written[int(row)] for row in best])
            fresh, _ = play(policy, numpy_generator(seed, "fresh"), 400)
            length[name].append(float(np.mean([len(taken) for taken in fresh])))
            mended[name].append(float(np.mean(play(policy, numpy_generator(seed, "injected"), 400, broken=1)[1])))
    yield paired("turns of the imitator, without efficiency against all", length["no efficiency"], length["all"])
    yield paired("success after an injected error, all against without recovery", mended["all"], mended["no recovery"])


def run(merge: Merge, seeds: int) -> Iterator[Check]:
    """Graphs by hand; then tasks for RL, and examples for imitation."""
    yield from by_hand(merge)
    yield from curated_tasks(merge, seeds)
    yield from curated_rollouts(merge, seeds)


def of_the_successful(rollouts: Any, success: Any, **options: Any) -> Topology:
    """Merge what succeeded, and forget the rest."""
    won = [turns for turns, good in zip(rollouts, success, strict=True) if good]
    kept = topology(won, [True] * len(won), **options)
    paths = iter(kept.paths)
    whole = tuple(next(paths) if good else (0,) for good in success)
    return Topology(kept.graph, whole, torch.tensor(success), kept.visits, kept.successes)


CLAIM = Claim(
    system="topocurate",
    run=run,
    method=topology,
    mutation=Mutation("the success potential sees the successful rollouts alone", of_the_successful),
)
