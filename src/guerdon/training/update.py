"""From credit to weights: minibatches, the objective and its terms, one optimiser step each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from guerdon.policies.base import Policy
from guerdon.registry import Bound
from guerdon.rollouts import Fields, Rollouts
from guerdon.seeding import derive, torch_generator
from guerdon.training.optim import Optimizer
from guerdon.training.plan import Plan


def update(
    plan: Plan, policy: Policy, optimizer: Optimizer, rollouts: Rollouts, *, step: int, lr: float
) -> dict[str, float]:
    """Take the recipe's epochs of minibatch steps on one batch; return the mean of every stat.

    With a single update per batch the policy has not moved since it sampled, so the ratio is exactly 1 and
    ``old_logp`` is the detached ``logp``.
    """
    training, seed = plan.recipe.training, plan.recipe.seed
    if training.minibatch_by == "action":
        rollouts = policy.flatten(rollouts)  # type: ignore[attr-defined]  # the plan has checked that it exists
    single = training.epochs * training.minibatches == 1
    torch.manual_seed(derive(seed, step, "update"))  # dropout, where a policy has any
    collected: dict[str, list[float]] = defaultdict(list)
    for epoch in range(training.epochs):
        for rows in _minibatches(len(rollouts), training.minibatches, torch_generator(seed, step, "order", epoch)):
            batch = rollouts[rows]
            evaluation = policy.evaluate(batch)
            fields = Fields(
                batch,
                logp=evaluation.logp,
                old_logp=evaluation.logp.detach() if single else batch.old_logp,
                entropy=evaluation.entropy,
                value_prediction=evaluation.value_prediction,
                step=step,
            )
            total, stats = _loss([plan.objective, *plan.terms], fields)
            total.backward()
            stats["grad_norm"] = optimizer.step(lr)
            stats["loss"] = float(total.detach())
            for key, value in stats.items():
                collected[key].append(value)
    return {f"update/{key}": sum(values) / len(values) for key, values in collected.items()} | {"update/lr": lr}


def _loss(methods: list[Bound], fields: Fields) -> tuple[Tensor, dict[str, float]]:
    """Sum of the objective and its terms; every stat under its method's name."""
    total: Tensor | float = 0.0
    stats: dict[str, float] = {}
    for method in methods:
        outcome = method(fields)
        total = total + outcome.fields["loss"]
        stats |= {f"{method.name}/{key}": float(value) for key, value in outcome.stats.items()}
        if len(methods) > 1:
            stats[f"{method.name}/loss"] = float(outcome.fields["loss"].detach())
    assert isinstance(total, Tensor)
    return total, stats


def _minibatches(n: int, parts: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random disjoint parts of near-equal size that together cover all rows; fewer where rows are few."""
    if parts == 1:
        yield torch.arange(n)
        return
    yield from torch.randperm(n, generator=generator).tensor_split(min(parts, n))
