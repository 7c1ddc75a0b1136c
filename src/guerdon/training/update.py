"""From credit to weights: minibatches, the objective and its terms, one optimiser step each."""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from guerdon.policies.base import Evaluation, Policy
from guerdon.policies.critic import soft_critics
from guerdon.registry import Bound
from guerdon.rollouts import Fields, Rollouts
from guerdon.seeding import derive, torch_generator
from guerdon.training.optim import Updates
from guerdon.training.plan import Plan, learns_from_credit_alone, reads_external
from guerdon.training.preview import shorten, weights_of

FROM_REWARDS = frozenset({"components", "component_names", "dense", "turn_reward"})


def update(
    plan: Plan, policy: Policy, optimizer: Updates, rollouts: Rollouts, *, step: int, lr: float
) -> dict[str, float]:
    """Take the recipe's epochs of minibatch steps on one batch; return the mean of every stat.

    With a single update of a batch that was sampled just now the policy has not moved since, so the ratio is exactly 1
    and ``old_logp`` is the detached ``logp``.
    """
    training, seed = plan.recipe.training, plan.recipe.seed
    methods, critics = [plan.objective, *plan.terms], soft_critics(policy.module)
    if training.minibatch_by == "action":
        flat = policy.flatten(rollouts)  # type: ignore[attr-defined]  # the plan has checked that it exists
        rollouts = _read_fields(methods, flat)
    single = training.epochs * training.minibatches == 1 and training.mode == "sync"
    torch.manual_seed(derive(seed, step, "update"))  # dropout, where a policy has any
    collected: dict[str, list[float]] = defaultdict(list)
    for epoch in range(training.epochs):
        generator = torch_generator(seed, step, "order", epoch)
        for batch in _minibatches(rollouts, training.minibatches, generator):
            evaluation, exact = _evaluate(plan, policy, batch)
            fields = Fields(
                batch,
                logp=evaluation.logp,
                old_logp=_old_logp(batch, evaluation.logp) if single else batch.old_logp,
                entropy=evaluation.entropy,
                value_prediction=evaluation.value_prediction,
                step=step,
                **exact,
                **_trained(plan, batch),
            )
            total, stats = _loss(methods, fields)
            total.backward()
            before = weights_of(policy) if training.max_step_kl is not None else {}
            stats["grad_norm"] = optimizer.step(lr)
            if training.max_step_kl is not None:
                own = _own(fields)
                stats |= shorten(policy, before, own.rollouts, own["logp"], limit=training.max_step_kl)
            for critic in critics:
                critic.follow()
            stats["loss"] = total.item()
            for key, value in stats.items():
                collected[key].append(value)
    return {f"update/{key}": sum(values) / len(values) for key, values in collected.items()} | {"update/lr": lr}


def _read_fields(methods: list[Bound], rollouts: Rollouts) -> Rollouts:
    """The batch without the fields that neither a method nor the policy reads, which need not be shuffled."""
    read = {name for bound in methods for name in (*bound.method.requires, *bound.method.optional)}
    if read & FROM_REWARDS:
        read |= {"rewards", "components", "reward", "dense", "turn"}
    return rollouts.select(
        "mask", "old_logp", "entropy", "payload", *read & Rollouts.__annotations__.keys(), strict=False
    )


def _loss(methods: list[Bound], fields: Fields) -> tuple[Tensor, dict[str, float]]:
    """Sum of the objective and its terms; every stat under its method's name.

    A method that does not name ``external`` sees the policy's own actions only, and is left out where there are none.
    """
    losses: list[Tensor] = []
    stats: dict[str, float] = {}
    own = _own(fields)
    for method in methods:
        seen = fields if reads_external(method.method) else own
        if not len(seen.rollouts):
            continue
        outcome = method(seen)
        losses.append(outcome.fields["loss"])
        stats |= {f"{method.name}/{key}": float(value) for key, value in outcome.stats.items()}
        if len(methods) > 1:
            stats[f"{method.name}/loss"] = losses[-1].item()
    return functools.reduce(operator.add, losses), stats


def _evaluate(plan: Plan, policy: Policy, batch: Rollouts) -> tuple[Evaluation, dict[str, Tensor]]:
    """What the policy says of a batch now, and its divergence from the reference if some method wants it exactly.

    Trajectories that can add nothing to the gradient are left out; what was known of them stands for what is not asked.
    """
    if "ref_kl" not in plan.needs:
        live = _live(plan, batch)
        return (policy.evaluate(batch) if live is None else _among(batch, policy.evaluate(batch[live]), live)), {}
    with torch.no_grad(), policy.using("ref"):
        reference = policy.evaluate(batch, logits=True).logits
    evaluation = policy.evaluate(batch, logits=True)
    assert reference is not None
    assert evaluation.logits is not None
    now = evaluation.logits.log_softmax(dim=-1)
    divergence = (now.exp() * (now - reference.log_softmax(dim=-1))).sum(dim=-1)
    return evaluation, {"ref_kl": divergence.masked_fill(~batch.mask, 0.0)}


def _live(plan: Plan, batch: Rollouts) -> Tensor | None:
    """The trajectories that can add to the gradient, at least one; None if that is all of them.

    Without any the gradient is still 0 and not missing, which an optimiser with momentum tells apart.
    """
    if not learns_from_credit_alone(plan) or batch.advantage is None or batch.entropy is None or not len(batch):
        return None
    credited = ((batch.advantage != 0) & batch.mask).any(dim=1)
    if bool(credited.all()):
        return None
    credited[0] |= not bool(credited.any())
    return credited.nonzero().flatten()


def _among(batch: Rollouts, seen: Evaluation, rows: Tensor) -> Evaluation:
    """An evaluation of some rows, among what is known of the others."""
    assert batch.entropy is not None
    logp, entropy = (
        known.index_copy(0, rows, now) for known, now in ((batch.old_logp, seen.logp), (batch.entropy, seen.entropy))
    )
    value = seen.value_prediction
    if value is not None:
        value = value.new_zeros(batch.mask.shape).index_copy(0, rows, value)
    return Evaluation(logp, entropy, value)


def _trained(plan: Plan, batch: Rollouts) -> dict[str, Tensor]:
    """The policy's own actions that the stage of the run learns from, as the mask that methods see, if not all."""
    if plan.stage is None or plan.stage.train is None or batch.marks is None:
        return {}
    kept = torch.stack([batch.marks[name] for name in plan.stage.train]).any(dim=0)
    return {"mask": batch.mask & (kept if batch.external is None else kept | batch.external)}


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
    if "mask" in extra:
        extra["mask"] = extra["mask"] & kept.mask
    return Fields(kept, **extra)


def _minibatches(rollouts: Rollouts, parts: int, generator: torch.Generator) -> Iterator[Rollouts]:
    """Random disjoint parts of near-equal size that together cover all rows; fewer where rows are few.

    Rows with external actions are spread evenly over the parts, so that each holds some of the policy's own.
    """
    if parts == 1:
        yield rollouts
        return
    foreign = rollouts.mask.new_zeros(len(rollouts)) if rollouts.external is None else rollouts.external.any(dim=1)
    kinds = [rows for rows in ((~foreign).nonzero().flatten(), foreign.nonzero().flatten()) if len(rows)]
    parts = min(parts, len(kinds[0]))
    shuffled = [rows[torch.randperm(len(rows), generator=generator)].tensor_split(parts) for rows in kinds]
    minibatches = [torch.cat(pieces) for pieces in zip(*shuffled, strict=True)]
    # Selected once and split into views: every selection of a batch costs as much as some of a small network's layers.
    yield from rollouts[torch.cat(minibatches)].split([len(rows) for rows in minibatches])
