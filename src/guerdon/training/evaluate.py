"""Held-out evaluation: sampled and greedy, scored by every reward of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from guerdon.policies.base import Policy, SamplingOptions
from guerdon.rewards.base import Reward, score
from guerdon.rollouts import Fields
from guerdon.seeding import derive
from guerdon.tasks.base import Problem, Starts, Task


def evaluate_policy(
    policy: Policy,
    task: Task,
    rewards: Sequence[Reward],
    options: SamplingOptions,
    *,
    problems: int,
    batch: int = 512,
    seed: int = 0,
) -> dict[str, float]:
    """Mean reward over the first ``problems`` held-out problems, one trajectory each.

    Language and control policies give ``sampled`` (temperature 1, no truncation of the distribution) and
    ``greedy``; a flow policy is evaluated on its noise-free path. Every component appears by name too when there
    are several, and watch-only rewards always. A sample whose reward faulted counts as 0, and ``faults`` says how many
    there were, if any.

    Args:
        problems: how many held-out problems.
        batch: how many are sampled at once.
        seed: seed of the sampled pass; always the same, so that evaluations of one run are paired.
    """
    held_out = task.eval_problems(problems)
    settings = policy.evaluation_options(options)
    if policy.kind == "flow":
        means, faults = _pass(policy, rewards, settings, held_out, batch, seed, greedy=True)
        return means | _told(faults)
    faults = 0
    out: dict[str, float] = {}
    for mode in ("sampled", "greedy"):
        means, found = _pass(policy, rewards, settings, held_out, batch, seed, greedy=mode == "greedy")
        optimised = [r for r in rewards if not r.watch]
        out[mode] = sum(r.weight * means[r.name] for r in optimised)
        detailed = [r for r in rewards if r.watch or len(optimised) > 1]
        out |= {f"{mode}/{r.name}": means[r.name] for r in detailed}
        faults += found
    return out | _told(faults)


def _told(faults: int) -> dict[str, float]:
    return {"faults": float(faults)} if faults else {}


def _pass(
    policy: Policy,
    rewards: Sequence[Reward],
    options: Any,
    problems: list[Problem],
    batch: int,
    seed: int,
    *,
    greedy: bool,
) -> tuple[dict[str, float], int]:
    """Mean of every reward over the problems, and the number of faults."""
    faults = 0
    totals = {r.name: 0.0 for r in rewards}
    lenient = [replace(r, on_fault="floor", floor=0.0) for r in rewards]
    for first in range(0, len(problems), batch):
        starts = Starts.repeat(problems[first : first + batch], 1)
        with torch.no_grad():
            rollouts = policy.sample(starts, options, seed=derive(seed, "evaluation", first), greedy=greedy)
        rollouts, found = score(rollouts, lenient)
        faults += len(found)
        names = tuple(rollouts.rewards.keys())
        if names:
            sums = Fields(rollouts)["components"].nan_to_num(0.0).sum(dim=0)
            for name, total in zip(names, sums.tolist(), strict=True):
                totals[name] += total
        for name, values in rollouts.watch.items():
            totals[name] += float(values.reshape(len(rollouts), -1).nan_to_num(0.0).sum())
    return {name: total / len(problems) for name, total in totals.items()}, faults
