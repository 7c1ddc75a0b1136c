"""From problems to scored rollouts: what is chosen, the policy's samples, and what sources add to them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from guerdon.monitor.progress import Progress
from guerdon.rewards.base import Fault, Reward, Scorer, score
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Moment, raw_reward
from guerdon.seeding import derive
from guerdon.tasks.base import Problem, Starts
from guerdon.training.run import Run

PATIENCE = 2.0  # seconds of silence before a preparation is shown


def choose(run: Run, step: int) -> list[Problem]:
    """The problems of a step: the next that the task draws, or those that the curriculum chooses among more of them."""
    n, seed, curriculum = run.recipe.sampling.prompts, derive(run.recipe.seed, step, "problems"), run.plan.curriculum
    if curriculum is None:
        return run.task.train_batch(n, seed)
    return curriculum.choose(run.task.train_batch(n * curriculum.pool, seed), n, derive(seed, "curriculum"))


def observe(run: Run, scored: Rollouts, faults: Sequence[Fault], starts: Starts) -> dict[str, float]:
    """Tell the curriculum how the policy's own trajectories went."""
    curriculum = run.plan.curriculum
    if curriculum is None:
        return {}
    reward = raw_reward(scored, run.rewards, faults)
    success = (reward >= curriculum.correct).double().masked_fill(reward.isnan(), float("nan"))
    problem_of = starts.of_group
    own = torch.ones(len(scored), dtype=torch.bool) if scored.external is None else ~scored.external.any(dim=1).cpu()
    problems = [problem_of[group] for group in scored.group[own.to(scored.group.device)].tolist()]
    stats = curriculum.observe(problems, success[own])
    return {f"curriculum/{name}": value for name, value in stats.items()}


def collect(run: Run, starts: Starts, step: int, scorer: Scorer | None = None) -> Rollouts:
    """Sample the starts, or let the source do it that replaces plain samples, and let further ones join.

    Args:
        run: what samples.
        starts: what from.
        step: the training step.
        scorer: is given trajectories as they end, while others are still being written, if it can begin to score them.
    """
    for place, source in enumerate(run.plan.sources):
        if source.replaces:
            rollouts = source.draw(_draw(run, None, starts, step, place, 0))
            assert rollouts is not None
            return _joined(run, rollouts, starts, step, "sampling")
    early: dict[str, Any] = {}
    if scorer is not None and scorer.eager and run.policy.hands_over:
        early["ended"] = scorer.submit
    rollouts = run.policy.sample(starts, run.sampling, seed=derive(run.recipe.seed, step, "sample"), **early)
    return _joined(run, rollouts, starts, step, "sampling")


def grade(
    run: Run, rollouts: Rollouts, starts: Starts, step: int, scorer: Scorer | None = None
) -> tuple[Rollouts, list[Fault]]:
    """Score a batch, and whatever sources of the moment ``scoring`` ask for in answer, round after round."""
    apart = [spec for spec in run.rewards if not _compares(spec)]
    together = [spec for spec in run.rewards if _compares(spec)]
    scored, faults = (scorer or Scorer(run.rewards, step)).collect(rollouts)
    for place, source in enumerate(run.plan.sources):
        if source.when != "scoring":
            continue
        turn = 0
        while True:
            draw = _draw(run, scored, starts, step, place, turn)
            more = source.draw(replace(draw, reward=raw_reward(scored, run.rewards, faults)))
            if more is None or not len(more):
                break
            more, found = score(more, apart, step)
            faults += [replace(fault, row=fault.row + len(scored)) for fault in found]
            scored, turn = run.policy.join([scored, more]), turn + 1
            if together:
                scored, found = score(scored, together, step)
                faults = [fault for fault in faults if fault.reward not in {spec.name for spec in together}] + found
    run.folder.add_faults(step, faults, scored)
    return scored, faults


def _compares(reward: Reward) -> bool:
    """Whether a reward of a trajectory depends on the others of its group, so that it changes as they become more."""
    method = reward.method
    return method is not None and (reward.form == "group" or "group" in (*method.requires, *method.optional))


def rehearse(run: Run, rollouts: Rollouts, starts: Starts, step: int) -> Rollouts:
    """The batch as the update sees it: with the rows of sources of the moment ``credit``, which have no credit."""
    rollouts = _joined(run, rollouts, starts, step, "credit")
    if rollouts.external is None and any(source.external for source in run.plan.sources):
        rollouts.external = torch.zeros_like(rollouts.mask)
    return rollouts


def prepare(run: Run) -> None:
    """Let curriculum and sources look round before training; show what takes longer than a moment."""
    if run.plan.curriculum is not None:
        seed = derive(run.recipe.seed, "curriculum")
        run.plan.curriculum.prepare(run.task.train_batch(run.plan.curriculum.sample, seed))
    for place, source in enumerate(run.plan.sources):
        track = _Tracker(run.progress, f"{type(source).__name__} prepares")
        source.prepare(replace(_draw(run, None, None, -1, place, 0), track=track))
        run.progress.stop()


class _Tracker:
    """Passes items on, and shows how many have gone by once that takes longer than ``PATIENCE`` seconds."""

    def __init__(self, progress: Progress, description: str) -> None:
        self.progress, self.description = progress, description

    def __call__(self, items: Sequence[Any]) -> Iterator[Any]:
        began, shown = time.monotonic(), False
        for done, item in enumerate(items):
            yield item
            if not shown and time.monotonic() - began > PATIENCE:
                self.progress.start(len(items), self.description)
                shown = True
            if shown:
                self.progress.step(done, {})


def own_rows(rollouts: Rollouts) -> Rollouts:
    """The trajectories that the policy sampled itself; all, where there are none."""
    if rollouts.external is None:
        return rollouts
    own = ~rollouts.external.any(dim=1)
    return rollouts[own] if own.any() else rollouts


def _joined(run: Run, rollouts: Rollouts, starts: Starts, step: int, moment: Moment) -> Rollouts:
    for place, source in enumerate(run.plan.sources):
        if source.when == moment and not source.replaces:
            more = source.draw(_draw(run, rollouts, starts, step, place, 0))
            if more is not None and len(more):
                rollouts = run.policy.join([rollouts, more])
    return rollouts


def _draw(run: Run, rollouts: Rollouts | None, starts: Starts | None, step: int, place: int, turn: int) -> Draw:
    return Draw(
        policy=run.policy,
        task=run.task,
        rewards=run.rewards,
        sampling=run.sampling,
        starts=starts,
        rollouts=rollouts,
        reward=None,
        step=step,
        round=turn,
        seed=derive(run.recipe.seed, step, "source", place, turn),
    )
