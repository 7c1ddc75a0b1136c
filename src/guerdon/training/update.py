"""From credit to weights: minibatches, the objective and its terms, one optimiser step each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from guerdon.policies.base import Evaluation, Policy
from guerdon.policies.critic import follow
from guerdon.registry import Bound
from guerdon.rollouts import Fields, Rollouts
from guerdon.seeding import derive, torch_generator
from guerdon.training.optim import Updates
from guerdon.training.plan import Plan, reads_external
from guerdon.training.preview import shorten, weights_of


def update(
    plan: Plan, policy: Policy, optimizer: Updates, rollouts: Rollouts, *, step: int, lr: float
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
        generator = torch_generator(seed, step, "order", epoch)
        for rows in _minibatches(rollouts, training.minibatches, generator):
            batch = rollouts[rows]
            evaluation, exact = _evaluate(plan, policy, batch)
            fields = Fields(
                batch,
                logp=evaluation.logp,
                old_logp=_old_logp(batch, evaluation.logp) if single else batch.old_logp,
                entropy=evaluation.entropy,
                value_prediction=evaluation.value_prediction,
                step=step,
                **exact,
            )
            total, stats = _loss([plan.objective, *plan.terms], fields)
            total.backward()
            before = weights_of(policy) if training.max_step_kl is not None else {}
            stats["grad_norm"] = optimizer.step(lr)
            if training.max_step_kl is not None:
                own = _own(fields)
                stats |= shorten(policy, before, own.rollouts, own["logp"], limit=training.max_step_kl)
            follow(policy.module)
            stats["loss"] = float(total.detach())
            for key, value in stats.items():
                collected[key].append(value)
    return {f"update/{key}": sum(values) / len(values) for key, values in collected.items()} | {"update/lr": lr}


def _loss(methods: list[Bound], fields: Fields) -> tuple[Tensor, dict[str, float]]:
    """Sum of the objective and its terms; every stat under its method's name.

    A method that does not name ``external`` sees the policy's own actions only, and is left out where there are none.
    """
    total: Tensor | float = 0.0
    stats: dict[str, float] = {}
    own = _own(fields)
    for method in methods:
        seen = fields if reads_external(method.method) else own
        if not len(seen.rollouts):
            continue
        outcome = method(seen)
        total = total + outcome.fields["loss"]
        stats |= {f"{method.name}/{key}": float(value) for key, value in outcome.stats.items()}
        if len(methods) > 1:
            stats[f"{method.name}/loss"] = float(outcome.fields["loss"].detach())
    assert isinstance(total, Tensor)
    return total, stats


def _evaluate(plan: Plan, policy: Policy, batch: Rollouts) -> tuple[Evaluation, dict[str, Tensor]]:
    """What the policy says of a batch now, and its divergence from the reference if some method wants it exactly."""
    if "ref_kl" not in plan.needs:
        return policy.evaluate(batch), {}
    with torch.no_grad(), policy.using("ref"):
        reference = policy.evaluate(batch, logits=True).logits
    evaluation = policy.evaluate(batch, logits=True)
    assert reference is not None
    assert evaluation.logits is not None
    now = evaluation.logits.log_softmax(dim=-1)
    divergence = (now.exp() * (now - reference.log_softmax(dim=-1))).sum(dim=-1)
    return evaluation, {"ref_kl": divergence.masked_fill(~batch.mask, 0.0)}


def _old_logp(batch: Rollouts, logp: Tensor) -> Tensor:
    """The present policy's own, for it has not moved; that of whoever sampled them for external actions."""
    return logp.detach() if batch.external is None else torch.where(batch.external, batch.old_logp, logp.detach())


def _own(fields: Fields) -> Fields:
    """What a method sees that does not know of external actions: the policy's own, without rows that have none."""
    batch = fields.rollouts
    if batch.external is None:
        return fields
    own = batch.mask & ~batch.external
    rows = own.any(dim=1) | ~batch.external.any(dim=1)
    kept = batch[rows]
    kept.mask = own[rows]
    extra = {name: value[rows] if isinstance(value, Tensor) else value for name, value in fields.extra.items()}
    return Fields(kept, **extra)


def _minibatches(rollouts: Rollouts, parts: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random disjoint parts of near-equal size that together cover all rows; fewer where rows are few.

    Rows with external actions are spread evenly over the parts, so that each holds some of the policy's own.
    """
    if parts == 1:
        yield torch.arange(len(rollouts))
        return
    foreign = rollouts.mask.new_zeros(len(rollouts)) if rollouts.external is None else rollouts.external.any(dim=1)
    kinds = [rows for rows in ((~foreign).nonzero().flatten(), foreign.nonzero().flatten()) if len(rows)]
    parts = min(parts, len(kinds[0]))
    shuffled = [rows[torch.randperm(len(rows), generator=generator)].tensor_split(parts) for rows in kinds]
    for pieces in zip(*shuffled, strict=True):
        yield torch.cat(pieces)
