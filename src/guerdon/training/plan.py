"""From a recipe to bound methods: every name, option and field is checked here, before any compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pydantic
import torch
from torch import Tensor

from guerdon import registry
from guerdon.curriculum.base import Curriculum
from guerdon.errors import RecipeError, nearest
from guerdon.policies.base import Policy, SamplingOptions
from guerdon.recipe import MethodSpec, Recipe
from guerdon.registry import Bound, Method, explain, missing_field
from guerdon.rewards.base import Reward, resolve_task_reward
from guerdon.rewards.forms import Calls
from guerdon.sampling.sources import Source
from guerdon.seeding import derive
from guerdon.shaping.stages import Stage
from guerdon.tasks.base import Task
from guerdon.tasks.environments import EnvironmentTask
from guerdon.training.build import make_rewards
from guerdon.training.signal import Signal

_SAMPLED = frozenset(
    "group task_id mask turn length done truncated old_logp entropy answer metadata payload version step".split()
)
_SCORED = frozenset({"components", "component_names", "component_weights"})
_SHAPED = frozenset({"reward", "dense", "greedy_reward", "ref_logp"})
# Fields that the loop asks the policy for on demand, before credit.
_AFTER_SHAPING = frozenset({"prompt_logp", "features", "answer_logp", "marks"})
_IN_LOSS = frozenset({"ref_kl"})  # a policy's fields that an update adds on demand
_DRAWING = frozenset({"seed"})  # given to shaping and credit alone
_OPTIMISED = frozenset({"logp", "ref_logp"})
Remembers = Bound | Source | Curriculum
_Made = TypeVar("_Made", Source, Curriculum)


@dataclass(frozen=True)
class Plan:
    """A recipe whose every method is found, validated, bound, and known to get the fields it names.

    Attributes:
        needs: fields that some method requires, so that the loop computes the costly ones only on demand.
        stage: the stage of the run that it is for.
    """

    recipe: Recipe
    task: Method
    policy: Method
    rewards: list[Reward]
    shaping: list[Bound]
    credit: list[Bound]
    objective: Bound
    terms: list[Bound]
    needs: frozenset[str]
    sources: list[Source]
    curriculum: Curriculum | None = None
    stage: Stage | None = None

    @property
    def optimised(self) -> list[Reward]:
        """Rewards that training sees."""
        return [r for r in self.rewards if not r.watch]

    @property
    def weights(self) -> Tensor:
        """(K,) weights of the components."""
        return torch.tensor([r.weight for r in self.optimised])

    @property
    def signal(self) -> Signal:
        """Shaping and credit, with the components that they read."""
        names = tuple(reward.name for reward in self.optimised)
        return Signal(self.shaping, self.credit, names, self.weights, self.recipe.seed)

    @property
    def methods(self) -> list[tuple[str, Remembers]]:
        """Whatever may remember something, with a key that is stable across restarts, for checkpoints."""
        named: list[tuple[str, Remembers]] = [(f"shaping/{i}", bound) for i, bound in enumerate(self.shaping)]
        named += [(f"credit/{i}", bound) for i, bound in enumerate(self.credit)]
        named.append(("objective", self.objective))
        named += [(f"sources/{i}", source) for i, source in enumerate(self.sources)]
        named += [("curriculum", self.curriculum)] if self.curriculum else []
        return named + [(f"terms/{i}", bound) for i, bound in enumerate(self.terms)]


def make_plan(recipe: Recipe) -> Plan:
    """Resolve every name of a recipe and walk the fields through the stages in order.

    Raises:
        MissingField: when a method asks for a field that no earlier stage supplies; names field, method, remedy.
        RecipeError: for unknown names, wrong options and combinations that cannot work.
    """
    task, policy = _method("task", recipe.task), _method("policy", recipe.policy)
    if task.target.kind != policy.target.kind:
        raise RecipeError(
            f"policy '{policy.name}' acts on {policy.target.kind} tasks, but task '{task.name}' is a "
            f"{task.target.kind} task; use {_of_kind('policy', task.target.kind)}"
        )
    rewards = make_rewards(recipe)
    shaping = [_bind("shaping", spec) for spec in recipe.shaping]
    if not any("reward" in bound.method.produces for bound in shaping):
        shaping.append(registry.get("shaping", "weighted_sum").bind())
    budget = action_budget(_sampling(recipe, policy), task, recipe.task.options)
    plan = Plan(
        recipe=recipe,
        task=task,
        policy=policy,
        rewards=rewards,
        shaping=shaping,
        credit=[_bind("credit", spec) for spec in recipe.credits],
        objective=_bind_loss("objective", recipe.objective, budget),
        terms=[_bind_loss("term", spec, budget) for spec in recipe.terms],
        needs=frozenset(),
        sources=[_made("source", spec, Source) for spec in recipe.sampling.sources],
        curriculum=_made("curriculum", recipe.curriculum, Curriculum) if recipe.curriculum else None,
    )
    for stage in recipe.stages:
        staged(rewards, stage)
    needs = _walk_fields(plan)
    _refuse_impossible(plan, needs)
    return replace(plan, needs=needs)


@dataclass(frozen=True)
class Parts:
    """What a plan builds before anything runs; the reward named ``task`` is bound to the task's own scorer."""

    task: Task
    rewards: list[Reward]
    policy: Policy
    sampling: SamplingOptions


def build(plan: Plan) -> Parts:
    """Construct the task, its rewards and the policy, whose initial weights are drawn from the run's seed."""
    recipe = plan.recipe
    task = plan.task.target(**plan.task.validate(recipe.task.options))
    rewards = [replace(r, method=resolve_task_reward(task)) if r.method is None else r for r in plan.rewards]
    scored = next((r for r in rewards if r.method is None and r.calls != Calls()), None)
    if scored is not None:
        raise RecipeError(
            f"reward '{scored.name}' is what the environment of task '{plan.task.name}' gives while it is played, so "
            "no call of it can be moved or limited; remove 'workers', 'timeout', 'memory_mb', 'retries', 'concurrency'"
        )
    torch.manual_seed(derive(recipe.seed, "policy"))
    policy = plan.policy.target(task, **plan.policy.validate(recipe.policy.options))
    policy.max_tokens = recipe.training.max_tokens
    return Parts(task, rewards, policy, _sampling(recipe, plan.policy).bound_to(task))


def _method(stage: str, spec: MethodSpec) -> Method:
    method = registry.get(stage, spec.name)
    method.validate(spec.options)
    return method


def _made(stage: str, spec: MethodSpec, base: type[_Made]) -> _Made:
    method = registry.get(stage, spec.name)
    if not (isinstance(method.target, type) and issubclass(method.target, base)):
        wanted = f"{base.__module__}.{base.__qualname__}"
        raise RecipeError(f"{stage} '{method.name}' is no subclass of {wanted}; make it one")
    return method.target(**method.validate(spec.options))


def _bind(stage: str, spec: MethodSpec) -> Bound:
    return registry.get(stage, spec.name).bind(spec.options)


def _sampling(recipe: Recipe, policy: Method) -> SamplingOptions:
    """The recipe's ``sampling`` keys that belong to the policy, validated."""
    model = policy.target.Sampling
    for key in recipe.sampling.options:
        if key not in model.model_fields:
            known = [*model.model_fields, "prompts", "group_size", "sources"]
            raise RecipeError(f"sampling has no key '{key}' for policy '{policy.name}'{nearest(key, known)}")
    try:
        return model.model_validate(recipe.sampling.options)
    except pydantic.ValidationError as error:
        raise RecipeError(f"sampling: {explain(error)}") from None


def action_budget(sampling: SamplingOptions, task: Method, options: Mapping[str, Any]) -> int | None:
    """Largest number of actions a trajectory can have, if the sampling options bound it: that of all turns together."""
    turns = task.validate(options)["max_turns"] if issubclass(task.target, EnvironmentTask) else 1
    tokens = getattr(sampling, "max_new_tokens", None)
    return tokens * turns if tokens else getattr(sampling, "horizon", None)


def _bind_loss(stage: str, spec: MethodSpec, budget: int | None) -> Bound:
    """Bind an objective or term; a constant divisor that the recipe leaves out is the sampler's budget."""
    bound = _bind(stage, spec)
    constant = bound.options.get("aggregate") == "sum_over_max_length" and bound.options.get("max_length") is None
    if not constant:
        return bound
    if budget is None:
        raise RecipeError(
            f"{stage} '{bound.name}': aggregate 'sum_over_max_length' needs 'max_length', for the sampler has no "
            "budget of actions to take it from; set it, or use aggregate 'token_mean'"
        )
    return bound.method.bind({**spec.options, "max_length": budget})


def staged(rewards: Sequence[Reward], stage: Stage) -> list[Reward]:
    """The rewards as a stage changes them; those that it does not name are the same objects.

    Raises:
        RecipeError: when it names a reward, or an option of one, that does not exist.
    """
    out = {reward.name: reward for reward in rewards}
    for name, changes in stage.rewards.items():
        if name not in out:
            raise RecipeError(f"stage '{stage.name}' changes no known reward '{name}'{nearest(name, out)}")
        reward, options = out[name], {key: value for key, value in changes.items() if key != "weight"}
        if options and reward.method is None:
            raise RecipeError(f"stage '{stage.name}': reward 'task' has no option '{next(iter(options))}'")
        if options and reward.method is not None:
            options = reward.method.validate({**reward.options, **options})
        weight = float(changes.get("weight", reward.weight))
        out[name] = reward.changed(options or reward.options, weight)
    return list(out.values())


def _walk_fields(plan: Plan) -> frozenset[str]:
    """Check that each stage's required fields exist when it runs; return all fields anybody requires."""
    policy_options = plan.policy.validate(plan.recipe.policy.options)
    here = f"task '{plan.task.name}' with policy '{plan.policy.name}'"
    supplied = plan.policy.target.supplied_fields(policy_options)
    recalled = {"ref_logp"} if plan.recipe.preference is None else {"ref_logp", "anchor_logp"}
    available = set(_SAMPLED) | plan.task.target.supplies | (supplied - _AFTER_SHAPING - _IN_LOSS)
    several = "state_key" in plan.task.target.supplies
    supplied = supplied - {name for name in ("answer_logp", "marks") if not several}
    supplied = supplied if "answer" in plan.task.target.supplies else supplied - {"answer_logp"}
    needs: set[str] = set()

    def visit(method: Method, extra: Iterable[str] = ()) -> None:
        for name in method.requires:
            if name not in available | set(extra):
                raise missing_field(method, name, here)
        needs.update(method.requires)
        needs.update(name for name in method.optional if name in available | set(extra))

    for reward in plan.rewards:
        if reward.method is not None:
            visit(reward.method)
    available |= _SCORED
    for bound in plan.shaping:
        visit(bound.method, _DRAWING | recalled)
        available |= set(bound.method.produces)
    available |= _SHAPED | recalled | (supplied & _AFTER_SHAPING)
    for bound in plan.credit:
        visit(bound.method, _DRAWING)
        available |= {*bound.method.produces, "advantage"}
    from_policy = supplied & {"value_prediction", *_IN_LOSS}
    foreign = {"external"} if any(source.external for source in plan.sources) else set()
    for bound in (plan.objective, *plan.terms):
        visit(bound.method, {*_OPTIMISED, *from_policy, *foreign})
    return frozenset(needs)


def _refuse_unread_sources(plan: Plan) -> None:
    """Rows that nothing learns from are refused, for they would cost and do nothing."""
    for source in plan.sources:
        if source.external and plan.policy.target.replay is Policy.replay:
            raise RecipeError(
                f"source '{type(source).__name__}' replays given actions, which policy '{plan.policy.name}' cannot; "
                f"use {_of_kind('policy', 'language')}, or remove the source"
            )
        readers = [plan.objective] if source.when == "sampling" else [plan.objective, *plan.terms]
        if source.external and not any(reads_external(bound.method) for bound in readers):
            kind = "objective" if source.when == "sampling" else "objective or term"
            raise RecipeError(
                f"source '{type(source).__name__}' adds actions that the policy did not sample, and no {kind} of this "
                "recipe reads 'external', so nothing would be learned from them; use objective 'rl_plus' for "
                "demonstrations, or term 'f_divergence' for rehearsal"
            )
    instead = [type(source).__name__ for source in plan.sources if source.replaces]
    if len(instead) > 1:
        raise RecipeError(
            f"sources {', '.join(instead)} each replace the policy's samples; name one of them under 'sampling.sources'"
        )
    if plan.sources and plan.recipe.training.minibatch_by == "action":
        raise RecipeError(
            "training.minibatch_by: action takes single actions of the policy's own, so it does not go with "
            "'sampling.sources'; use minibatch_by: trajectory"
        )


def learns_from_credit_alone(plan: Plan) -> bool:
    """Whether trajectories without credit add nothing to any gradient."""
    return plan.objective.method.credit_only and not plan.terms


def reads_external(method: Method) -> bool:
    """Whether a method knows of actions that the policy did not sample; the others never see them."""
    return "external" in (*method.requires, *method.optional)


def _refuse_impossible(plan: Plan, needs: frozenset[str]) -> None:
    _refuse_unread_sources(plan)
    if plan.recipe.segments and plan.policy.target.token_text is Policy.token_text:
        raise RecipeError(
            f"'segments' are parts of a text, and policy '{plan.policy.name}' writes none; remove 'segments', or use "
            f"policy {_of_kind('policy', 'language')}"
        )
    sampling, training = plan.recipe.sampling, plan.recipe.training
    if plan.curriculum is not None and sampling.options.get("horizon") is not None:
        raise RecipeError(
            "'curriculum' chooses what each trajectory starts from, but sampling.horizon goes on with open episodes; "
            "set sampling.horizon: null, or remove 'curriculum'"
        )
    comparing = next((bound.name for bound in plan.credit if bound.method.needs_group), None)
    if comparing and sampling.options.get("horizon") is not None:
        raise RecipeError(
            f"credit '{comparing}' compares the trajectories of a group, but sampling.horizon cuts episodes "
            "into trajectories without company; set sampling.horizon: null, or use credit 'gae'"
        )
    if comparing and sampling.group_size == 1:
        raise RecipeError(
            f"credit '{comparing}' compares the trajectories of a group, but sampling.group_size is 1, so every "
            "advantage would be 0; use group_size >= 2, or credit 'reinforce++' or 'gae'"
        )
    if training.mode == "async" and "old_logp" not in plan.objective.method.requires:
        raise RecipeError(
            f"training.mode: async learns from samples that are one update old, and objective "
            f"'{plan.objective.name}' does not read 'old_logp', by which that is corrected; use objective 'ppo_clip', "
            "or mode: sync"
        )
    trajectories = sampling.prompts * sampling.group_size
    if training.minibatch_by == "trajectory" and training.minibatches > trajectories:
        raise RecipeError(
            f"training.minibatches is {training.minibatches}, but a batch has sampling.prompts * sampling.group_size "
            f"= {trajectories} trajectories; use at most {trajectories}"
        )
    if training.minibatch_by == "action" and not hasattr(plan.policy.target, "flatten"):
        raise RecipeError(
            f"training.minibatch_by: action needs a policy that can be evaluated one action at a time, which "
            f"'{plan.policy.name}' cannot; use minibatch_by: trajectory"
        )
    if plan.recipe.optimizer.name == "npgigt":
        if training.epochs * training.minibatches > 1:
            raise RecipeError(
                "optimizer 'npgigt' moves on to another point after each update, where a batch must be sampled anew; "
                "set training.epochs: 1 and training.minibatches: 1"
            )
        if training.max_step_kl is not None:
            raise RecipeError(
                "training.max_step_kl shortens steps, but those of optimizer 'npgigt' have their length already; "
                "remove one of the two"
            )
    if plan.recipe.preference and "anchor_logp" not in needs:
        raise RecipeError(
            "'preference' makes the snapshot 'anchor', and no method of this recipe reads 'anchor_logp', so it would "
            "serve nothing; use shaping 'rto_token_reward', or remove 'preference'"
        )
    if plan.recipe.warm_start and plan.policy.target.supervised_loss is Policy.supervised_loss:
        raise RecipeError(f"policy '{plan.policy.name}' cannot be warm-started; remove 'warm_start'")


def _of_kind(stage: str, kind: str) -> str:
    names = [f"'{m.name}'" for m in registry.methods(stage) if m.target.kind == kind]
    return " or ".join(names) or f"a {stage} of that kind"
