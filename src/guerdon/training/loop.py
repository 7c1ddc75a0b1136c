"""The training loop: task, sampling, rewards, shaping, credit, objective, update, in that order.

    task ─▶ sampling ─▶ rewards ─▶ shaping ─▶ credit ─▶ objective ─▶ update

Raw components are stored before anything shapes them, and shaped before anything turns them into credit. Which
function stands at each stage is the plan's business; there are no flags per method here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from guerdon.credit.hierarchical import segment_tags
from guerdon.errors import RewardError
from guerdon.monitor.batch import batch_metrics
from guerdon.monitor.progress import Progress
from guerdon.monitor.report import write_report
from guerdon.policies.critic import slow_critics
from guerdon.policies.likelihoods import answer_logp, prompt_logp
from guerdon.recipe import Recipe, load_recipe
from guerdon.rewards.base import Fault, Scorer, drop_faulted, fault_counts, reward_stats, score
from guerdon.rollouts import Rollouts
from guerdon.seeding import derive
from guerdon.shaping.stages import mark_segments
from guerdon.tasks.base import Starts
from guerdon.training.collect import choose, collect, grade, observe, own_rows, prepare, rehearse
from guerdon.training.optim import scheduled
from guerdon.training.preference import make_anchor
from guerdon.training.run import Drawn, Result, Run
from guerdon.training.update import update
from guerdon.training.warm_start import warm_start


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Train by a recipe, and return how the run ended.

    Args:
        recipe: a YAML file, a mapping, or a Recipe; methods may be names, import paths or callables.
        overrides: ``a.b=c`` settings that win over the recipe.
        overwrite: replace an earlier run of the same name.
        progress: how to show progress; on standard error by default.

    Raises:
        RecipeError: before any compute, for whatever the recipe gets wrong.
    """
    return _train(Run.start(load_recipe(recipe, overrides), overwrite=overwrite, progress=progress))


def resume(path: str | Path, *, recipe: Recipe | None = None, progress: Progress | None = None) -> Result:
    """Continue a run from its newest sound checkpoint, exactly as if it had never stopped."""
    return _train(Run.resume(path, recipe=recipe, progress=progress))


@contextmanager
def _long_lived_objects_aside() -> Iterator[None]:
    """Keep what exists now out of the garbage collector's sight.

    The imported libraries hold some 430,000 objects that never die; walking them costs 0.2 to 0.3 s every ten small
    steps.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@_long_lived_objects_aside()
def _train(run: Run) -> Result:
    try:
        return _train_to_the_end(run)
    finally:
        run.close()


def _train_to_the_end(run: Run) -> Result:
    steps = run.recipe.training.steps
    if not run.restored:
        _begin(run)
    with run:
        run.progress.start(steps, "training", done=run.step)
        while run.step < steps and not run.interrupted and not (run.stopped and run.ahead is None):
            metrics = training_step(run, run.step)
            metrics |= run.advance(metrics)
            every = run.recipe.evaluation.every
            if every and (run.step + 1) % every == 0 and run.step + 1 < steps:
                metrics |= {f"eval/{key}": value for key, value in run.evaluate().items()}
            run.log(run.step, metrics)
            run.progress.step(run.step, metrics)
            run.step += 1
            due = run.step % run.recipe.checkpoint.every == 0 or run.step == steps or run.interrupted or run.stopped
            if due and run.ahead is None:
                run.save()
    if not run.interrupted and not run.stopped:
        run.evaluations["after"] = run.evaluate()
    result = run.result()
    run.folder.write_summary(result.to_dict())
    write_report(run.folder.path)
    return result


def _begin(run: Run) -> None:
    """Warm start, the snapshots of reference and anchor, the evaluation before training, and checkpoint 0."""
    run.task.eval_problems(run.recipe.evaluation.problems)  # a task that has too few of them says so now
    if run.recipe.warm_start is not None:
        optimizer, seed = run.optimizer.warm(), run.recipe.seed
        warm_start(run.policy, run.task, optimizer, run.recipe.warm_start, seed=seed, progress=run.progress)
    if run.plan.needs & {"ref_logp", "ref_kl"}:
        run.policy.snapshot("ref")
    if run.recipe.preference is not None:
        make_anchor(run, run.recipe.preference)
    with torch.no_grad():
        prepare(run)
    run.evaluations["before"] = run.evaluate()
    run.save()


def training_step(run: Run, step: int) -> dict[str, float]:
    """One batch, from problems to new weights; return its metrics.

    In mode ``async`` the next batch is sampled before this one is learned from, so that its sampling does not wait for
    this one's rewards; what it learns from is then one update old.
    """
    drawn = run.ahead or draw(run, step, version=step)
    run.ahead = draw(run, step + 1, version=step) if _may_run_ahead(run, step) else None
    return learn(run, step, drawn)


def _may_run_ahead(run: Run, step: int) -> bool:
    """Not over the end, nor over a checkpoint: what is sampled but not learned from is in none."""
    training, after = run.recipe.training, step + 1
    if run.stopped:
        return False
    return training.mode == "async" and after < training.steps and after % run.recipe.checkpoint.every != 0


@torch.no_grad()
def draw(run: Run, step: int, *, version: int) -> Drawn:
    """Sample the batch of a step with the weights as they are, which have seen ``version`` updates."""
    began = time.perf_counter()
    starts = Starts.repeat(choose(run, step), run.recipe.sampling.group_size, version=version)
    scorer = Scorer(run.rewards, step)
    rollouts = collect(run, starts, step, scorer)
    return Drawn(starts, rollouts, scorer, time.perf_counter() - began)


def learn(run: Run, step: int, drawn: Drawn) -> dict[str, float]:
    """Score a batch, credit it and update the weights; return its metrics."""
    recipe, plan, starts = run.recipe, run.plan, drawn.starts
    began = time.perf_counter()
    with torch.no_grad():
        scored, faults = grade(run, drawn.rollouts, starts, step, drawn.scorer)
        course = observe(run, scored, faults, starts)
    rollouts = drop_faulted(scored, run.rewards, faults)
    if not len(rollouts):
        return _nothing_left(run, step, scored, faults)
    rollouts, shaping_stats = plan.signal.shape(recall(run, rollouts), step)
    graded = time.perf_counter()

    rollouts = annotate(run, rollouts, starts, step)
    rollouts, credit_stats = plan.signal.assign_credit(rollouts, step)
    lr = scheduled(
        recipe.optimizer.lr * (plan.stage.lr if plan.stage else 1.0),
        step,
        recipe.training.steps,
        warmup=recipe.optimizer.warmup,
        schedule=recipe.optimizer.schedule,
    )
    stats = update(plan, run.policy, run.optimizer, rehearse(run, rollouts, starts, step), step=step, lr=lr)
    updated = time.perf_counter()

    every = recipe.logging.rollouts_every
    if every and (step % every == 0 or step + 1 == recipe.training.steps):
        run.folder.write_rollouts(
            step, rollouts, faults=faults, scored=scored, token_text=run.policy.token_text(scored)
        )
    actions = int(scored.mask.sum())
    return {
        **reward_stats(run.rewards),
        **batch_metrics(own_rows(rollouts)),
        **shaping_stats,
        **credit_stats,
        **stats,
        **fault_counts(faults),
        **course,
        **({"staleness": float((step - scored.version).float().mean())} if recipe.training.mode == "async" else {}),
        "seconds/sample": drawn.seconds,
        "seconds/reward": graded - began,
        "seconds/update": updated - graded,
        "actions_per_second": actions / (drawn.seconds + updated - began),
        "memory/peak_mb": run.memory.look(),
    }


def recall(run: Run, rollouts: Rollouts) -> Rollouts:
    """Add what snapshots of the policy say of the actions, where some method of the plan asked for it."""
    for name in ("ref", "anchor"):
        if f"{name}_logp" in run.plan.needs:
            with torch.no_grad(), run.policy.using(name):
                setattr(rollouts, f"{name}_logp", run.policy.evaluate(rollouts).logp)
    return rollouts


def annotate(run: Run, rollouts: Rollouts, starts: Starts, step: int) -> Rollouts:
    """Add the costly fields that some method of the plan asked for."""
    needs = run.plan.needs
    with torch.no_grad():
        if "values" in needs and rollouts.values is None:
            with slow_critics(run.policy.module):
                rollouts.values = run.policy.evaluate(rollouts).value_prediction
        if run.recipe.segments or "marks" in needs:
            rollouts.marks = TensorDict(_marks(run, rollouts), [len(rollouts)])
        if "features" in needs:
            rollouts.features = run.policy.features(rollouts)  # type: ignore[attr-defined]  # as the plan knows
        if "prompt_logp" in needs:
            rollouts.prompt_logp = prompt_logp(run.policy, rollouts)  # type: ignore[arg-type]  # as the plan knows
        if "answer_logp" in needs:
            rollouts.answer_logp = answer_logp(run.policy, rollouts, run.task.answer_form)  # type: ignore
        if "greedy_reward" in needs:
            rollouts.greedy_reward = _greedy_reward(run, rollouts, starts, step)
    return rollouts


def _marks(run: Run, rollouts: Rollouts) -> dict[str, torch.Tensor]:
    """The parts of texts that the recipe names, and those of turns that set themselves subgoals."""
    texts, segments = run.policy.token_text(rollouts) or [], run.recipe.segments
    marks = mark_segments(texts, rollouts.mask, segments) if segments else {}
    return segment_tags(texts, rollouts.mask, rollouts.turn) | marks if "marks" in run.plan.needs else marks


def _greedy_reward(run: Run, rollouts: Rollouts, starts: Starts, step: int) -> torch.Tensor:
    """Shaped reward (N,) of one greedy trajectory from each trajectory's start; a fault counts as the floor."""
    firsts: dict[int, int] = {}
    for row, group in enumerate(starts.group.tolist()):
        firsts.setdefault(group, row)
    once = Starts([starts.problems[row] for row in firsts.values()], torch.tensor(list(firsts)), starts.version)
    greedy = run.policy.sample(once, run.sampling, seed=derive(run.recipe.seed, step, "greedy"), greedy=True)
    lenient = [replace(r, on_fault="floor") for r in run.rewards if not r.watch]
    greedy, _ = score(greedy, lenient, step)
    shaped, _ = run.plan.signal.shape(recall(run, greedy), step)
    of_group = dict(zip(firsts, shaped.reward.tolist(), strict=True))  # type: ignore[union-attr]
    return torch.tensor([of_group[group] for group in rollouts.group.tolist()])


def _nothing_left(run: Run, step: int, scored: Rollouts, faults: list[Fault]) -> dict[str, float]:
    """Every sample of the batch faulted: stop if the run has never seen a usable reward, else go on."""
    if step == 0:
        raise RewardError(
            f"every sample of the first batch faulted, so nothing can be learned; the first fault: {faults[0]}"
        )
    run.folder.write_rollouts(step, scored[:0], faults=faults, scored=scored, token_text=run.policy.token_text(scored))
    return fault_counts(faults)
