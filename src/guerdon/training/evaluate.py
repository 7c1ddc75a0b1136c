"""Held-out evaluation: sampled and greedy, scored by every reward of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.policies.base import Policy, SamplingOptions
from guerdon.rewards.base import Reward, score
from guerdon.rollouts import total
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
        seen = _pass(policy, rewards, settings, held_out, batch, seed, greedy=True)
        return seen.means | _told(seen.faults)
    faults = 0
    out: dict[str, float] = {}
    for mode in ("sampled", "greedy"):
        seen = _pass(policy, rewards, settings, held_out, batch, seed, greedy=mode == "greedy")
        optimised = [r for r in rewards if not r.watch]
        out[mode] = seen.outcome
        detailed = [r for r in rewards if r.watch or len(optimised) > 1]
        out |= {f"{mode}/{r.name}": seen.means[r.name] for r in detailed}
        faults += seen.faults
    return out | _told(faults)


def _told(faults: int) -> dict[str, float]:
    return {"faults": float(faults)} if faults else {}


class _Seen(NamedTuple):
    """What the rewards say of the problems, in one pass.

    Attributes:
        outcome: mean over the problems of the weighted sum of the rewards that training sees.
        means: mean of each reward over the problems to which it applies.
        faults: calls that gave no usable number.
    """

    outcome: float
    means: dict[str, float]
    faults: int


def _pass(
    policy: Policy,
    rewards: Sequence[Reward],
    options: Any,
    problems: list[Problem],
    batch: int,
    seed: int,
    *,
    greedy: bool,
) -> _Seen:
    """Write one trajectory for each problem, and score it."""
    faults = 0
    lenient = [replace(r, on_fault="floor", floor=0.0) for r in rewards]
    columns: dict[str, list[Tensor]] = {r.name: [] for r in rewards}
    for first in range(0, len(problems), batch):
        starts = Starts.repeat(problems[first : first + batch], 1)
        with torch.no_grad():
            rollouts = policy.sample(starts, options, seed=derive(seed, "evaluation", first), greedy=greedy)
        rollouts, found = score(rollouts, lenient)
        faults += len(found)
        for spec in rewards:
            component = (rollouts.watch if spec.watch else rollouts.rewards)[spec.name]
            columns[spec.name].append(total(component, rollouts.mask).double().cpu())
    values = {name: torch.cat(parts) for name, parts in columns.items()}
    means = {name: float(x.nansum() / x.isfinite().sum().clamp(min=1)) for name, x in values.items()}
    outcome = sum(float(r.weight * values[r.name].nansum()) for r in rewards if not r.watch) / len(problems)
    return _Seen(outcome, means, faults)
