"""The typed, validated description of a run: YAML in, errors that name the fix."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guerdon.errors import RecipeError, nearest
from guerdon.monitor.pathologies import CODES
from guerdon.registry import explain
from guerdon.shaping.stages import OTHER, Stage, Stages


class Section(BaseModel):
    """A part of a recipe that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class MethodSpec(BaseModel):
    """A method by name, import path or callable, with its options beside the name."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True, protected_namespaces=())

    name: str | Callable[..., Any]

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) or callable(value) else value

    @property
    def options(self) -> dict[str, Any]:
        """What stands beside the name (and beside a subclass's own keys)."""
        return dict(self.model_extra or {})


class RewardSpec(MethodSpec):
    """A reward: a method, and how its component is used."""

    label: str | None = Field(default=None, description="name of the component; the method's own by default")
    weight: float = Field(default=1.0, description="factor of the component in the weighted sum")
    watch: bool = Field(default=False, description="scored and shown, never optimised")
    when: dict[str, Any] | None = Field(
        default=None,
        description="for which samples it is asked: keys of the task's metadata (a.b for nested ones), each with a "
        "value or a list of them",
    )
    on_fault: Literal["drop", "floor", "stop"] = Field(
        default="drop", description="what becomes of a sample whose call failed"
    )
    floor: float = Field(default=0.0, description="value of a faulted sample under on_fault: floor")
    workers: int = Field(default=0, ge=0, le=256, description="processes that make the calls; 0 is the trainer's own")
    timeout: float | None = Field(
        default=None, gt=0, description="seconds a call may take; in workers and for async functions 300 by default"
    )
    memory_mb: int | None = Field(
        default=None, ge=1, description="megabytes a worker may take beyond what it holds when its first call begins"
    )
    retries: int = Field(default=0, ge=0, description="further tries of a call that timed out, died or lost connection")
    concurrency: int | None = Field(
        default=None, ge=1, description="calls of an async function at a time in the trainer's process; 32 by default"
    )


class WarmStart(Section):
    """Supervised steps on the task's own answers before RL."""

    steps: int = Field(ge=1, description="number of supervised updates")
    batch: int = Field(default=64, ge=1, description="problems per update")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate; warm-up then cosine to a tenth")
    warmup: int = Field(default=20, ge=0, description="updates of linear warm-up")
    carry_over: bool = Field(default=True, description="keep the optimiser's moments for RL")


class Preference(Section):
    """Updates on pairs of a better and a worse answer after the warm start, to make the snapshot ``anchor``.

    The policy goes on from where the warm start left it; only the snapshot keeps what was learned here.
    """

    steps: int = Field(ge=1, description="number of updates")
    pairs: int = Field(default=32, ge=1, description="problems per update; each gives one pair or none")
    samples: int = Field(default=4, ge=2, description="answers drawn per problem, of which best and worst are the pair")
    lr: float = Field(default=1e-4, gt=0, description="learning rate, constant")
    beta: float = Field(default=0.1, gt=0, description="strength of the pull towards the reference")


class SamplingSpec(BaseModel):
    """How many trajectories a step draws; further keys go to the policy's sampler."""

    model_config = ConfigDict(extra="allow")

    prompts: int = Field(default=16, ge=1, description="starts per step")
    group_size: int = Field(default=8, ge=1, description="trajectories per start")
    sources: list[MethodSpec] = Field(default_factory=list, description="where further trajectories come from")

    @property
    def options(self) -> dict[str, Any]:
        """Options of the policy's sampler."""
        return dict(self.model_extra or {})


class OptimizerSpec(Section):
    """The optimiser and its schedule: AdamW, or the normalised momentum of N-PG-IGT."""

    name: Literal["adam", "npgigt"] = Field(
        default="adam", description="adam (AdamW), or npgigt, whose step has length lr / (t + 2)"
    )
    lr: float = Field(default=1e-4, gt=0, description="peak learning rate")
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="shape after the warm-up")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="decay of the two moments")
    eps: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled decay per step, times the rate")
    grad_clip: float | None = Field(default=1.0, gt=0, description="largest global gradient norm")
    mask: str | None = Field(default=None, description="safetensors file of a MaskSet: train only its entries")

    @model_validator(mode="after")
    def _refuse_what_has_no_effect(self) -> OptimizerSpec:
        for key in ("betas", "eps", "weight_decay", "grad_clip") if self.name == "npgigt" else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"optimizer 'npgigt' has no '{key}', for its steps are normalised; remove it")
        return self


class TrainingSpec(Section):
    """How long to train and how a batch becomes updates."""

    steps: int = Field(default=100, ge=0, description="batches to draw and learn from")
    epochs: int = Field(default=1, ge=1, description="passes over each batch")
    minibatches: int = Field(default=1, ge=1, description="updates per pass")
    minibatch_by: Literal["trajectory", "action"] = Field(
        default="trajectory", description="what a minibatch is made of; single actions only where the policy allows it"
    )
    max_step_kl: float | None = Field(
        default=None, gt=0, description="KL per action above which a step is shortened; costs one more pass per update"
    )
    mode: Literal["sync", "async"] = Field(
        default="sync",
        description="async samples the next batch while this one's rewards are computed, and so learns from samples "
        "that are one update old",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most tokens whose activations a language policy holds at a time; beyond that they are computed "
        "twice. Everything at once by default",
    )


class EvaluationSpec(Section):
    """Held-out evaluation before, during and after training."""

    every: int = Field(default=0, ge=0, description="steps between evaluations; 0 evaluates before and after only")
    problems: int = Field(default=256, ge=1, description="held-out problems")
    batch: int = Field(default=512, ge=1, description="problems sampled at once")


class CheckpointSpec(Section):
    """When to save."""

    every: int = Field(default=20, ge=1, description="steps between checkpoints; the last step is always saved")
    keep: int = Field(default=2, ge=1, description="how many to keep")


class LoggingSpec(Section):
    """What is recorded besides the metrics."""

    rollouts_every: int = Field(default=10, ge=0, description="steps between saved rollouts; 0 saves none")
    loggers: list[MethodSpec] = Field(default_factory=list, description="tensorboard, wandb, mlflow")
    stop_on: list[str] = Field(
        default_factory=list, description="codes of alarms at which, from a warning on, the run saves and stops"
    )

    @field_validator("stop_on")
    @classmethod
    def _know_codes(cls, codes: list[str]) -> list[str]:
        for code in codes:
            if code not in CODES:
                raise ValueError(f"no alarm has the code '{code}'{nearest(code, CODES)}")
        return codes


class Recipe(Section):
    """A run from problems to weights."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run's folder")
    seed: int = Field(default=0, ge=0, description="every random draw of the run derives from it")
    runs_dir: str = Field(default="runs", description="where run folders are made")
    task: MethodSpec
    policy: MethodSpec
    warm_start: WarmStart | None = None
    preference: Preference | None = None
    curriculum: MethodSpec | None = None
    sampling: SamplingSpec = Field(default_factory=SamplingSpec)
    rewards: list[RewardSpec] = Field(default_factory=lambda: [RewardSpec(name="task")], min_length=1)
    shaping: list[MethodSpec] = Field(default_factory=list)
    credit: MethodSpec | Annotated[list[MethodSpec], Field(min_length=1)] = Field(
        default_factory=lambda: MethodSpec(name="grpo")
    )
    objective: MethodSpec = Field(default_factory=lambda: MethodSpec(name="ppo_clip"))
    terms: list[MethodSpec] = Field(default_factory=list)
    segments: dict[str, tuple[str, str]] = Field(
        default_factory=dict, description="parts of what a language policy writes: name, opening and closing mark"
    )
    stages: list[Stage] = Field(default_factory=list, description="what changes while training goes on, in order")
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    logging: LoggingSpec = Field(default_factory=LoggingSpec)

    @model_validator(mode="after")
    def _check_stages(self) -> Recipe:
        if OTHER in self.segments:
            raise ValueError(f"segment '{OTHER}' stands for what lies in no segment; give it another name")
        if self.stages:
            Stages(self.stages)
        for stage in self.stages:
            for name in stage.train or ():
                if name not in (known := [*self.segments, OTHER]):
                    raise ValueError(f"stage '{stage.name}' trains no known segment '{name}'{nearest(name, known)}")
        return self

    @property
    def credits(self) -> list[MethodSpec]:
        """The method that estimates credit, and those that adjust it, in order."""
        return self.credit if isinstance(self.credit, list) else [self.credit]

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain values; callables appear by import path."""
        return _plain(self.model_dump())

    def to_yaml(self) -> str:
        """The resolved recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a YAML file, a mapping or a Recipe, and apply ``a.b=c`` overrides.

    Raises:
        RecipeError: for a missing file, unparsable YAML, an unknown key (with the nearest known name), a wrong
            type, or an override that does not parse.
    """
    overrides = list(overrides)
    if isinstance(source, Recipe):
        if not overrides:
            return source
        data: dict[str, Any] = source.model_dump()
    elif isinstance(source, Mapping):
        data = copy.deepcopy(dict(source))
    else:
        data = _read(Path(source))
    for override in overrides:
        _apply(data, override)
    _refuse_unknown_keys(data, Recipe, "")
    try:
        return Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        raise RecipeError(f"recipe: {explain(error)}") from None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise RecipeError(f"no recipe file '{path}'{nearest(str(path), siblings)}")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe '{path}' is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"recipe '{path}' holds {type(data).__name__}, want a mapping of sections")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one dotted key; list items by index; a bare method name becomes a mapping when an option is set."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise RecipeError(f"--set '{override}' is not of the form a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set '{override}': the value is not valid YAML: {error}") from None
    node: Any = data
    keys = path.split(".")
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        where = ".".join(keys[: depth + 1])
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise RecipeError(f"--set '{override}': '{where}' is not an item; the list has {len(node)} items")
            index: Any = int(key)
        else:
            index = key
            if not last and node.get(index) is None:
                node[index] = _default(key) if depth == 0 else {}
        if last:
            node[index] = value
            return
        if isinstance(node[index], str):
            node[index] = {"name": node[index]}
        if not isinstance(node[index], dict | list):
            raise RecipeError(f"--set '{override}': '{where}' is {node[index]!r}, which has no keys")
        node = node[index]


def _default(key: str) -> Any:
    """What an absent top-level key stands for, in the form a recipe would write it."""
    if key not in Recipe.model_fields:
        return {}
    default = Recipe.model_fields[key].get_default(call_default_factory=True)  # type: ignore[call-arg]
    if isinstance(default, list):
        return [item.model_dump(exclude_defaults=True) for item in default]
    return default.model_dump(exclude_defaults=True) if isinstance(default, BaseModel) else {}


def _refuse_unknown_keys(data: Mapping[str, Any], model: type[BaseModel], where: str) -> None:
    for key, value in data.items():
        if key not in model.model_fields:
            known = [f"{where}{name}" for name in model.model_fields]
            raise RecipeError(f"recipe has no key '{where}{key}'{nearest(f'{where}{key}', known)}")
        section = _section_of(model, key)
        if section is not None and isinstance(value, Mapping):
            _refuse_unknown_keys(value, section, f"{where}{key}.")


def _section_of(model: type[BaseModel], key: str) -> type[Section] | None:
    annotation = model.model_fields[key].annotation
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if callable(value):
        return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__name__)}"
    return value
