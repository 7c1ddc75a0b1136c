"""A preference stage before RL: the policy learns from pairs of its own answers, and is kept as the anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.errors import RewardError
from guerdon.objectives.preference import dpo, log_ratio_of_answers
from guerdon.recipe import Preference
from guerdon.rewards.base import score
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import raw_reward
from guerdon.seeding import derive
from guerdon.tasks.base import Starts
from guerdon.training.optim import Optimizer
from guerdon.training.run import Run

REFERENCE, ANCHOR = "ref", "anchor"


def make_anchor(run: Run, settings: Preference) -> None:
    """Train by DPO from where the policy stands, keep the outcome as the snapshot ``anchor``, and go back.

    Each update draws answers from the reference, the policy as it stood before, and pairs the best with the worst of
    each problem by the weighted sum of the raw rewards. A problem whose answers are equally good gives no pair; an
    update without any pair is skipped.

    Raises:
        RewardError: when no update found a pair, so that the anchor would be the reference.
    """
    policy, seed = run.policy, run.recipe.seed
    policy.snapshot(REFERENCE)
    optimizer = Optimizer(policy.trainable())
    taken = 0
    run.progress.start(settings.steps, "preference")
    for step in range(settings.steps):
        with torch.no_grad(), policy.using(REFERENCE):
            rollouts, best, worst = _pairs(run, settings, step)
            reference = policy.evaluate(rollouts).logp if len(rollouts) else None
        told: dict[str, float] = {}
        if reference is not None:
            torch.manual_seed(derive(seed, "preference", step, "update"))
            gain = log_ratio_of_answers(policy.evaluate(rollouts).logp, reference, rollouts.mask)
            loss, told = dpo(gain[best], gain[worst], beta=settings.beta)
            loss.backward()
            optimizer.step(settings.lr)
            taken += 1
        run.progress.step(step, told)
    run.progress.stop()
    if not taken:
        raise RewardError(
            f"preference: in {settings.steps} updates no problem had answers of different reward, so there was no pair "
            "to learn from; use more 'preference.samples', a longer 'warm_start', or a finer reward"
        )
    policy.snapshot(ANCHOR)
    _go_back(run)


def best_and_worst(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (P,) of the best and of the worst member of every group whose members differ, and only of those.

    Args:
        reward: (N,); members whose reward is nan take no part.
        group: (N,) key.
    """
    known = ~reward.isnan()
    stats = grouped(reward, group, known)
    useful = known & ~stats.tied()
    rows = []
    for largest in (True, False):
        extreme = useful & (stats.values == stats.extreme(largest))
        number = torch.arange(len(reward), device=reward.device).double()
        first = grouped(number, group, extreme).extreme(largest=False)
        mine = (extreme & (number == first)).nonzero().flatten()
        rows.append(mine[group[mine].argsort(stable=True)])
    return rows[0], rows[1]


def _pairs(run: Run, settings: Preference, step: int) -> tuple[Rollouts, Tensor, Tensor]:
    """Answers of one update, of which each belongs to a pair; the rows of the better ones, and of the worse ones."""
    seed = run.recipe.seed
    problems = run.task.train_batch(settings.pairs, derive(seed, "preference", step, "problems"))
    starts = Starts.repeat(problems, settings.samples)
    rollouts = run.policy.sample(starts, run.sampling, seed=derive(seed, "preference", step, "sample"))
    scored, faults = score(rollouts, run.rewards, step)
    best, worst = best_and_worst(raw_reward(scored, run.rewards, faults), scored.group)
    places = torch.arange(len(best))
    return scored[torch.cat([best, worst])], places, places + len(best)


@torch.no_grad()
def _go_back(run: Run) -> None:
    """Take up the reference's weights; the snapshot goes unless some method reads it."""
    for name, p in run.policy.trainable().items():
        p.copy_(run.policy.snapshots[REFERENCE][name])
    if not run.plan.needs & {"ref_logp", "ref_kl"}:
        del run.policy.snapshots[REFERENCE]
