"""How a name in a recipe finds its function, and how the function's parameters find the batch's fields.

A method is a pure function. Its positional parameters are named after batch fields (``fields.FIELDS``); its
keyword-only parameters are hyper-parameters, with the source's defaults. Reading the signature tells what a
method needs, and the same function can be called by hand on plain tensors::

    @register("credit", paper="Shao et al. 2024, arXiv 2402.03300")
    def grpo(reward, group, mask, *, eps=1e-4): ...

A method with memory is a class: hyper-parameters go to ``__init__``, fields to ``__call__``, and
``state_dict``/``load_state_dict`` carry its memory into the checkpoint.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from guerdon.errors import MissingField, RecipeError, nearest
from guerdon.fields import FIELDS

# The field a stage's method produces when it returns a bare tensor.
OUTPUTS = {"shaping": "reward", "credit": "advantage", "objective": "loss", "term": "loss", "reward": "value"}
# Modules and packages whose import registers the built-in methods of a stage; of a package, every module in it.
HOMES = {
    "task": (
        "guerdon.tasks.reasoning_gym",
        "guerdon.tasks.dataset",
        "guerdon.tasks.gymnasium",
        "guerdon.tasks.digits",
        "guerdon.tasks.recommendation",
        "guerdon.tasks.text_to_sql",
        "guerdon.tasks.knowledge_graph",
        "guerdon.tasks.tool_calls",
        "guerdon.tasks.small_functions",
        "guerdon.tasks.gridtext",
        "guerdon.tasks.gridimage",
        "guerdon.tasks.image_count",
        "guerdon.tasks.textworld",
        "guerdon.tasks.webnav",
        "guerdon.tasks.agents",
        "guerdon.tasks.gym_text",
        "guerdon.tasks.self_correct",
        "guerdon.tasks.constraint_graph",
        "guerdon.tasks.segments",
        "guerdon.tasks.templates",
    ),
    "policy": (
        "guerdon.policies.tiny_lm",
        "guerdon.policies.causal_lm",
        "guerdon.policies.vision_language",
        "guerdon.policies.tiny_vlm",
        "guerdon.policies.flow",
        "guerdon.policies.control",
    ),
    "curriculum": ("guerdon.curriculum",),
    "source": ("guerdon.sampling",),
    "reward": ("guerdon.rewards", "guerdon.shaping.length", "guerdon.reward_models.conciseness"),
    "shaping": ("guerdon.shaping", "guerdon.rewards.likelihood", "guerdon.rewards.progress_attribution"),
    "credit": ("guerdon.credit", "guerdon.reward_models.implicit", "guerdon.control"),
    "objective": ("guerdon.objectives", "guerdon.control"),
    "term": ("guerdon.objectives",),
    "logger": ("guerdon.monitor.loggers",),
}
# Stages whose objects are built from a recipe section and a context, not bound to batch fields.
BUILT = frozenset({"task", "policy", "curriculum", "source", "logger"})

_Target = TypeVar("_Target", bound=Callable[..., Any])

_methods: dict[str, dict[str, Method]] = {stage: {} for stage in HOMES}


@dataclass(frozen=True)
class Outcome:
    """What a bound method gave: named fields, and scalars for the metrics."""

    fields: dict[str, Any]
    stats: dict[str, float]


@dataclass(frozen=True)
class Method:
    """A registered function or class: where it belongs, what it reads, what can be set."""

    stage: str
    name: str
    target: Any
    requires: tuple[str, ...]
    optional: tuple[str, ...]
    options: type[pydantic.BaseModel]
    produces: tuple[str, ...]
    paper: str = ""
    aliases: tuple[str, ...] = field(default=())
    needs_group: bool = False
    credit_only: bool = False

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.target) or "").partition("\n")[0]

    @property
    def home(self) -> str:
        """Import path of the function or class."""
        return f"{self.target.__module__}.{self.target.__qualname__}"

    def validate(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Check hyper-parameters against the signature; refuse unknown names and wrong types.

        Raises:
            RecipeError: naming the method, the parameter, the value seen and the value wanted.
        """
        for key in params:
            if key not in self.options.model_fields:
                raise RecipeError(
                    f"{self.stage} '{self.name}' has no option '{key}'{nearest(key, self.options.model_fields)}"
                )
        try:
            model = self.options.model_validate(dict(params))
        except pydantic.ValidationError as error:
            raise RecipeError(f"{self.stage} '{self.name}': {explain(error)}") from None
        return {key: getattr(model, key) for key in self.options.model_fields}

    def bind(self, params: Mapping[str, Any] | None = None) -> Bound:
        """Fix the hyper-parameters; the result is called with a mapping of fields."""
        options = self.validate(params or {})
        is_class = inspect.isclass(self.target)
        call: Any = self.target(**options) if is_class else functools.partial(self.target, **options)
        return Bound(self, call, options)


class Bound:
    """A method with its hyper-parameters fixed, called on a mapping of batch fields."""

    def __init__(self, method: Method, call: Any, options: dict[str, Any]) -> None:
        self.method, self.call, self.options = method, call, options

    @property
    def name(self) -> str:
        return self.method.name

    def __call__(self, fields: Mapping[str, Any]) -> Outcome:
        """Pass the fields the method names, and return what it gave under canonical names.

        Raises:
            MissingField: when a required field is absent from ``fields``.
        """
        missing = [name for name in self.method.requires if name not in fields]
        if missing:
            raise missing_field(self.method, missing[0], "this batch")
        arguments = {name: fields[name] for name in self.method.requires}
        arguments |= {name: fields[name] for name in self.method.optional if name in fields}
        return _outcome(self.call(**arguments), self.method.produces)

    def state_dict(self) -> dict[str, Any]:
        """Memory of the method, empty for a pure function."""
        return self.call.state_dict() if hasattr(self.call, "state_dict") else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        if state:
            self.call.load_state_dict(state)


def _outcome(result: Any, produces: tuple[str, ...]) -> Outcome:
    """Normalise a bare tensor, a NamedTuple of fields, or either followed by a dict of stats."""
    stats: dict[str, float] = {}
    if type(result) is tuple and len(result) == 2 and isinstance(result[1], dict):
        result, stats = result
    named = getattr(result, "_asdict", None)
    if named is not None:
        return Outcome({key: value for key, value in named().items() if value is not None}, stats)
    return Outcome({produces[0]: result}, stats)


def register(
    stage: str,
    name: str | None = None,
    *,
    paper: str = "",
    aliases: tuple[str, ...] = (),
    output: str | None = None,
    needs_group: bool = False,
    credit_only: bool = False,
) -> Callable[[_Target], _Target]:
    """Give a function or class a name that recipes can use.

    Args:
        stage: one of ``HOMES``.
        name: the name in recipes; the function's own name by default.
        paper: authors, year and arXiv id of the source.
        aliases: further names.
        output: field produced by a bare return value; the stage's own by default.
        needs_group: whether the method compares trajectories of one group, so that group size 1 is refused.
        credit_only: whether an objective's gradient in an action is 0 where its advantage is, and does not depend on
            other trajectories, so that trajectories without credit need not be evaluated.

    Raises:
        RecipeError: when a data parameter is not a canonical field, or the name is taken.
    """

    def wrap(target: _Target) -> _Target:
        flags = {"needs_group": needs_group, "credit_only": credit_only}
        method = describe(stage, target, name, paper=paper, aliases=aliases, output=output, **flags)
        known = _methods[stage]
        for key in (method.name, *method.aliases):
            if key in known and known[key].home != method.home:
                raise RecipeError(f"{stage} '{key}' is already registered by {known[key].home}")
            known[key] = method
        return target

    return wrap


def describe(stage: str, target: Callable[..., Any], name: str | None = None, **extra: Any) -> Method:
    """Read a function's or class's signature into a ``Method`` without registering it."""
    if stage not in HOMES:
        raise RecipeError(f"no stage '{stage}'{nearest(stage, HOMES)}")
    label = name or getattr(target, "__name__", type(target).__name__)
    is_class = inspect.isclass(target)
    settings = inspect.signature(target).parameters.values() if is_class else _parameters(target)
    data = _parameters(target.__call__) if is_class and stage not in BUILT else () if is_class else settings
    requires, optional = [], []
    for parameter in data:
        if parameter.name == "self" or parameter.kind not in _POSITIONAL:
            continue
        if parameter.name not in FIELDS:
            raise RecipeError(
                f"{stage} '{label}': parameter '{parameter.name}' is not a batch field"
                f"{nearest(parameter.name, FIELDS)}; make a hyper-parameter keyword-only (after *)"
            )
        (requires if parameter.default is parameter.empty else optional).append(parameter.name)
    output = extra.pop("output", None) or OUTPUTS.get(stage, stage)
    # A built class takes its context (a policy its task) by position, and its options by keyword.
    by_position = stage in BUILT or not is_class
    hidden = _POSITIONAL if by_position else ()
    return Method(
        stage=stage,
        name=label,
        target=target,
        requires=tuple(requires),
        optional=tuple(optional),
        options=_options_model(label, target, [p for p in settings if p.kind not in hidden]),
        produces=_produced(target.__call__ if is_class else target) or (output,),
        **extra,
    )


_POSITIONAL = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)


def _produced(function: Any) -> tuple[str, ...]:
    """Fields of the NamedTuple that a method is annotated to return, bare or first of a (result, stats) pair."""
    try:
        annotation = typing.get_type_hints(function).get("return")
    except (TypeError, NameError):
        return ()
    for candidate in (annotation, *typing.get_args(annotation)):
        fields = getattr(candidate, "_fields", None)
        if fields:
            return tuple(fields)
    return ()


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _options_model(name: str, target: Any, parameters: list[inspect.Parameter]) -> type[pydantic.BaseModel]:
    """Build the pydantic model of a method's hyper-parameters from its signature."""
    annotated = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(
        annotated if inspect.isroutine(annotated) else type(annotated).__call__, include_extras=True
    )
    definitions: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        definitions[parameter.name] = (hints.get(parameter.name, Any), default)
    config = pydantic.ConfigDict(
        arbitrary_types_allowed=True, protected_namespaces=(), validate_default=False, extra="forbid"
    )
    return pydantic.create_model(f"{name}_options", __config__=config, **definitions)


def load_home(stage: str) -> None:
    """Import the modules that register a stage's built-in methods."""
    for name in HOMES[stage]:
        module = importlib.import_module(name)
        for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
            importlib.import_module(f"{name}.{found.name}")


def get(stage: str, name: str | Callable[..., Any]) -> Method:
    """Find a method by registered name, by import path ``package.module:function`` or ``file.py:function``,
    or take a callable as it is.

    Raises:
        RecipeError: naming the nearest known name.
    """
    load_home(stage)
    if not isinstance(name, str):
        known = [m for m in _methods[stage].values() if m.target is name]
        return known[0] if known else describe(stage, name)
    if ":" in name:
        target = import_object(name)
        known = [m for m in _methods[stage].values() if m.target is target]
        return known[0] if known else describe(stage, target, name)
    if name not in _methods[stage]:
        raise RecipeError(f"no {stage} '{name}'{nearest(name, _methods[stage])}")
    return _methods[stage][name]


def methods(stage: str) -> list[Method]:
    """All registered methods of a stage, by name, without aliases."""
    load_home(stage)
    return sorted({m.name: m for m in _methods[stage].values()}.values(), key=lambda m: m.name)


def import_object(path: str) -> Any:
    """Import ``package.module:name`` or ``path/to/file.py:name``.

    Raises:
        RecipeError: when the file, the module or the name does not exist.
    """
    source, _, name = path.rpartition(":")
    if source.endswith(".py"):
        if not Path(source).is_file():
            raise RecipeError(f"'{path}': no file '{source}'")
        module_name = f"guerdon_user_{Path(source).stem}"
        spec = importlib.util.spec_from_file_location(module_name, source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise RecipeError(f"'{path}': cannot import module '{source}' ({error})") from None
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise RecipeError(f"'{path}': '{source}' has no '{name}'{nearest(name, public)}")
    return getattr(module, name)


def imported(given: Any) -> Any:
    """What an import path names; anything but a string as it is."""
    return import_object(given) if isinstance(given, str) else given


def missing_field(method: Method, name: str, where: str, remedy: str | None = None) -> MissingField:
    """Build the error of a method that asks for a field nobody supplies; the remedy is that of a recipe by default."""
    return MissingField(
        f"{method.stage} '{method.name}' needs '{name}' ({FIELDS[name].meaning}), "
        f"which {where} does not provide; {remedy or FIELDS[name].remedy}"
    )


def explain(error: pydantic.ValidationError) -> str:
    """One line per problem: where, the value seen, what was wanted."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "recipe"
        missing = problem["type"] == "missing"
        lines.append(f"'{where}' is missing" if missing else f"'{where}' is {problem['input']!r}: {problem['msg']}")
    return "; ".join(lines)
