"""What a judge is, and how a recipe names one."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    PrivateAttr,
    SkipValidation,
    ValidationError,
)

from guerdon.errors import RecipeError, nearest
from guerdon.registry import explain, import_object
from guerdon.rewards.judges.questions import Answer, JudgeError, Question


@runtime_checkable
class Judge(Protocol):
    """Whoever answers questions."""

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer a batch: a verdict for each question, in order, or the error that came instead of it."""
        ...

    def stats(self) -> dict[str, float]:
        """What was asked and spent so far; sums, so that differences mean something."""
        ...


class Backend(BaseModel):
    """A judge whose settings a recipe can hold: ``judge: {backend: NAME, ...}``.

    Settings are pydantic fields, so they are checked before any compute and written with the recipe. What a backend
    opens or loads, it does at the first question.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    _counts: Counter[str] = PrivateAttr(default_factory=Counter)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer a batch, and count."""
        if not questions:
            return []
        began = time.perf_counter()
        answers = self._answer(questions)
        self._count(
            questions=len(questions),
            failures=sum(isinstance(answer, JudgeError) for answer in answers),
            seconds=time.perf_counter() - began,
        )
        return answers

    def stats(self) -> dict[str, float]:
        """Sums so far: ``questions``, ``failures`` (those without a verdict), ``seconds``, and the backend's own."""
        return {name: float(value) for name, value in self._counts.items()}

    def _count(self, **more: float) -> None:
        for name, value in more.items():
            self._counts[name] += value  # type: ignore[assignment]  # a Counter adds floats as well

    @abstractmethod
    def _answer(self, questions: Sequence[Question]) -> list[Answer]: ...


def imported(value: Any) -> Any:
    """The object behind an import path; anything else as it is."""
    return import_object(value) if isinstance(value, str) else value


def resolve_judge(value: Any) -> Any:
    """Make a judge of what a recipe says: a mapping with ``backend``, or a judge or an import path to one.

    Raises:
        RecipeError: when it is none of these, names an unknown backend or option, or holds a key.
    """
    judge = resolve_judge_or_function(value)
    if not isinstance(judge, Judge):
        raise RecipeError(f"judge {value!r:.60} has no methods 'ask' and 'stats'; want {_WANTED}")
    return judge


def resolve_judge_or_function(value: Any) -> Any:
    """As ``resolve_judge``, for rewards that take a function or an import path to one as well."""
    value = imported(value)
    if isinstance(value, Mapping):
        return _backend(value)
    if isinstance(value, type):
        value = value()
    if not isinstance(value, Judge) and not callable(value):
        raise RecipeError(f"judge is {type(value).__name__} {value!r:.60}, want {_WANTED}, or a function")
    return value


def ask_counted(judge: Any, questions: Sequence[Question]) -> tuple[list[Answer], dict[str, float]]:
    """Ask, and return the answers with what these questions added to the judge's sums."""
    counted = Counting(judge)
    return judge.ask(questions), counted.stats()


class Counting:
    """What a judge's sums gained since this was made; nothing, for a judge without ``stats``."""

    def __init__(self, judge: Any) -> None:
        self._now: Callable[[], dict[str, float]] = getattr(judge, "stats", dict)
        self._before = self._now()

    def stats(self) -> dict[str, float]:
        return {name: value - self._before.get(name, 0.0) for name, value in self._now().items()}


def _backend(settings: Mapping[str, Any]) -> Backend:
    from guerdon.rewards.judges import BACKENDS

    secret = next((key for key in settings if str(key).lower() in _SECRETS), None)
    if secret is not None:
        raise RecipeError(
            f"judge has an option '{secret}', but keys don't belong in a recipe: put it into an environment variable, "
            "name that in 'api_key_env', and make a fresh key if this file was shared"
        )
    name = settings.get("backend")
    if name not in BACKENDS:
        raise RecipeError(f"judge has no backend {name!r:.60}{nearest(str(name), BACKENDS)}")
    try:
        return BACKENDS[name].model_validate(dict(settings))
    except ValidationError as error:
        raise RecipeError(f"judge '{name}': {explain(error)}") from None


_WANTED = "a mapping such as {backend: openai, model: NAME}, or an import path to a judge"
_SECRETS = frozenset({"api_key", "apikey", "key", "token", "secret", "password", "authorization", "headers"})


class _Described:
    """Tells editors what a judge may be in a recipe: the settings of a backend, or an import path."""

    def __get_pydantic_json_schema__(self, _: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        from guerdon.rewards.judges import BACKENDS

        settings = [handler(backend.__pydantic_core_schema__) for backend in BACKENDS.values()]
        return {"anyOf": [*settings, {"type": "string", "pattern": ":"}]}


DESCRIBED = _Described()
# The type of the option of a reward that takes a judge.
JudgeOption = Annotated[Judge, SkipValidation, BeforeValidator(resolve_judge), DESCRIBED]
