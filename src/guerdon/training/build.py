"""The optimiser and the rewards that a recipe describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from guerdon import registry
from guerdon.errors import RecipeError
from guerdon.recipe import OptimizerSpec, Recipe, RewardSpec
from guerdon.registry import Method
from guerdon.rewards.base import Reward
from guerdon.rewards.forms import Calls, is_async
from guerdon.sparsity.masks import MaskSet, masked_finetune
from guerdon.training.optim import Optimizer, Updates
from guerdon.training.stochastic import NPGIGT


def make_optimizer(spec: OptimizerSpec, parameters: Mapping[str, nn.Parameter]) -> Updates:
    """Build the optimiser of a recipe over trainable weights, under a mask if it names one.

    Raises:
        RecipeError: when the file of the mask cannot be read, or its masks do not fit the weights.
    """
    if spec.name == "npgigt":
        optimizer: Updates = NPGIGT(parameters)
    else:
        optimizer = Optimizer(
            parameters, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, grad_clip=spec.grad_clip
        )
    if spec.mask is None:
        return optimizer
    if not Path(spec.mask).is_file():
        raise RecipeError(f"optimizer.mask: no file '{spec.mask}'; write one with guerdon.sparsity.MaskSet.save")
    try:
        return masked_finetune(optimizer, MaskSet.load(spec.mask))
    except (SafetensorError, ValueError) as error:
        raise RecipeError(f"optimizer.mask '{spec.mask}': {error}; it must come from a policy like this one") from None


def make_reward(spec: RewardSpec) -> Reward:
    """A reward as a recipe describes it; the one named ``task`` has no function yet."""
    method = None if spec.name == "task" else registry.get("reward", spec.name)
    label = spec.label or ("task" if method is None else method.name.rpartition(":")[2])
    if method is None and spec.options:
        raise RecipeError(f"reward 'task' has no option '{next(iter(spec.options))}'; options belong to the task")
    options, calls = _reward_options(spec, method)
    shared = {key: getattr(spec, key) for key in ("weight", "watch", "on_fault", "floor")}
    when = {key: tuple(v) if isinstance(v, list) else (v,) for key, v in (spec.when or {}).items()}
    return Reward(label, method, options, **shared, calls=calls, when=when)


def make_rewards(recipe: Recipe) -> list[Reward]:
    """The rewards that a recipe lists, each under a name of its own."""
    rewards: list[Reward] = []
    for spec in recipe.rewards:
        rewards.append(make_reward(spec))
        if rewards[-1].name in {r.name for r in rewards[:-1]}:
            raise RecipeError(f"two rewards are called '{rewards[-1].name}'; give one of them another 'label'")
    if all(r.watch for r in rewards):
        raise RecipeError("every reward is watch-only, so there is nothing to learn from; set watch: false on one")
    return rewards


def _reward_options(spec: RewardSpec, method: Method | None) -> tuple[dict[str, Any], Calls]:
    """The options of a reward function, and how it is called."""
    calls = Calls(spec.workers, spec.timeout, spec.memory_mb, spec.retries, spec.concurrency or Calls.concurrency)
    if method is None:
        return {}, calls
    options = dict(spec.options)
    if "timeout" in method.options.model_fields:  # the function sees to its own limit, by a process of its own
        options |= {} if spec.timeout is None else {"timeout": spec.timeout}
        options = method.validate(options)
        calls = replace(calls, timeout=options["timeout"] if spec.workers else None)
    if spec.concurrency is not None and not is_async(method.target):
        raise RecipeError(
            f"reward '{method.name}' is no async function, so its calls in the trainer's process come one after the "
            "other; remove 'concurrency', or set 'workers'"
        )
    return method.validate(options), calls
