"""Verifiers of form: tags exactly once and in order, JSON that a schema accepts."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from guerdon.errors import RewardError
from guerdon.rewards.extract import Where, needed, read_json
from guerdon.rewards.forms import Score, reward


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("every tag may be named once")
    return names


TagName = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_-]*$")]
TagNames = Annotated[tuple[TagName, ...], Field(min_length=1), AfterValidator(_distinct)]
Award = Literal["all", "share"]


@reward()
def tags(
    text: str,
    *,
    names: TagNames = ("think", "answer"),
    award: Award = "all",
    outside: Literal["refuse", "allow"] = "refuse",
    opened: bool = False,
) -> Score:
    """Give 1, or a share of it, where each tag stands exactly once, in order, with something in it.

    all: 1 if every condition holds, else 0.  share: conditions that hold / conditions

    A condition for each tag: ``<name>`` and ``</name>`` stand once, in this order, after the end of the tag before it,
    with more than white space between them. Under ``outside: refuse`` one more: all tags are right, and there is
    nothing but white space outside of them. What resembles a tag (``<Think>``, ``< /answer>``, ``<think/>``) spoils it.

    Args:
        text: what the policy wrote.
        names: the tags, in order.
        award: whether some of the conditions earn some of the reward.
        outside: whether text may stand outside of the tags.
        opened: whether the prompt ends with the first tag's ``<name>``, so that the text begins inside.

    Returns:
        The value in [0,1]; its detail says under ``why`` what is wrong with which tag.
    """
    whole = f"<{names[0]}>{text}" if opened else text
    faults: dict[str, str] = {}
    spans: list[tuple[int, int]] = []
    markers = _markers(whole, names)
    for name in names:
        problem, span = _place(whole, name, markers[name], spans[-1][1] if spans else 0)
        if problem:
            faults[name] = problem
        if span is not None:
            spans.append(span)
    conditions = len(names) + (outside == "refuse")
    if outside == "refuse" and (faults or _remainder(whole, spans)):
        faults[""] = "text outside of the tags" if not faults else "not looked at"
    value = 1 - len(faults) / conditions if award == "share" else float(not faults)
    why = {name or "outside": problem for name, problem in faults.items()}
    return Score(value, detail={"why": why} if why else None)


def _markers(text: str, names: tuple[str, ...]) -> dict[str, list[re.Match[str]]]:
    """Whatever opens or closes a tag, or looks like it, by the tag's name."""
    known = {name.casefold(): name for name in reversed(names)}
    pattern = rf"<\s*+/?\s*+(?P<name>{'|'.join(sorted(known, key=len, reverse=True))})(?=[\s/>])[^<>]*+>?"
    found: dict[str, list[re.Match[str]]] = {name: [] for name in names}
    for match in re.finditer(pattern, text, re.IGNORECASE):
        exact = match["name"] if match["name"] in found else known[match["name"].casefold()]
        found[exact].append(match)
    return found


def _place(text: str, name: str, markers: list[re.Match[str]], after: int) -> tuple[str, tuple[int, int] | None]:
    """What is wrong with a tag, and from where to where it reaches if it stands there once."""
    strange = next((m[0] for m in markers if m[0] not in (f"<{name}>", f"</{name}>")), None)
    if strange is not None:
        return f"is written {strange!r:.40}", None
    for marker in (f"<{name}>", f"</{name}>"):
        count = sum(m[0] == marker for m in markers)
        if count != 1:
            return f"{marker} stands {count} times", None
    opening, closing = markers
    if opening[0] != f"<{name}>":
        return "ends before it begins", None
    span = (opening.start(), closing.end())
    if opening.start() < after:
        return "begins before the tag in front of it ends", span
    return ("" if text[opening.end() : closing.start()].strip() else "is empty"), span


def _remainder(text: str, spans: list[tuple[int, int]]) -> str:
    """What stands outside of spans that are in order."""
    edges = [0, *itertools.chain(*spans), len(text)]
    return "".join(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)).strip()


@reward("json_schema")
class JsonSchema:
    """Give 1, or a share of it, for JSON in the text that a JSON schema accepts.

    all: 1 if the schema accepts it, else 0.
    share: (required properties that are there and accepted + 1 if the schema accepts all) / (required properties + 1)

    Where the JSON stands and what is refused as JSON: see ``read_json``. The properties of ``share`` are those that the
    schema's own ``required`` names. Formats are not checked, and references to other documents are not followed. A
    pattern with nested repetition and ``uniqueItems`` over many objects can take long: set ``timeout``.

    Args:
        json_schema: the schema, by its ``$schema`` or else draft 2020-12; by default the problem's.
        award: whether part of the required properties earns part of the reward.
        where: ``whole`` wants nothing but JSON in the text.
        longest: characters of a text that are read; a longer one earns 0.

    Raises:
        RecipeError: when the jsonschema library is missing.
        RewardError: when the recipe's schema is none.
    """

    def __init__(
        self,
        *,
        json_schema: dict[str, Any] | None = None,
        award: Award = "all",
        where: Where = "anywhere",
        longest: Annotated[int, Field(ge=1)] = 100_000,
    ) -> None:
        self._library = needed("jsonschema", "json_schema", "json")
        self._award, self._longest = award, longest
        self._where: Where = where
        self._validator = None if json_schema is None else self._validator_of(json_schema)

    def __call__(self, text: str, answer: Any = None, metadata: Any = None) -> Score:
        """Score one text.

        Args:
            text: what the policy wrote.
            answer: the schema, as a mapping or as JSON, if neither recipe nor metadata has one.
            metadata: what the task knows of the problem: ``schema``, if the recipe has none.

        Returns:
            The value in [0,1]; its detail holds ``errors``, the first five.

        Raises:
            RewardError: when there is no schema, or it is none, or it refers to what cannot be found.
        """
        validator = self._validator
        if validator is None:
            known = metadata.get("schema") if isinstance(metadata, Mapping) else None
            validator = self._validator_of(answer if known is None else known)
        if len(text) > self._longest:
            return _refused(f"the text has {len(text)} characters, more than {self._longest}")
        try:
            value = read_json(text, where=self._where)
        except ValueError as error:
            return _refused(f"{error}"[:200])
        return self._scored(validator, value)

    def _scored(self, validator: Any, value: Any) -> Score:
        required = dict.fromkeys(validator.schema.get("required", ()))
        accepted = {name for name in required if isinstance(value, dict) and name in value}
        shown: list[str] = []
        try:
            for error in validator.iter_errors(value):
                accepted -= set(itertools.islice(error.absolute_path, 1))
                if len(shown) < 5:
                    shown.append(f"{error.json_path}: {error.message}"[:200])
                elif self._award == "all":
                    break
        except ArithmeticError as error:  # such as 1e308 / 0.1 for multipleOf
            return _refused(f"a number that cannot be checked: {error}")
        except Exception as error:  # the JSON is harmless and shallow, so what fails is the schema
            raise RewardError(
                f"reward 'json_schema': the schema cannot be applied ({type(error).__name__}: {error!s:.200}); fix it"
            ) from None
        valid = not shown
        share = (len(accepted) + valid) / (len(required) + 1)
        return Score(share if self._award == "share" else float(valid), detail={"errors": shown} if shown else None)

    def _validator_of(self, schema: Any) -> Any:
        from referencing import Registry

        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
            if not isinstance(schema, Mapping):
                raise TypeError("want an object")
            kind = self._library.validators.validator_for(schema, default=self._library.Draft202012Validator)
            kind.check_schema(schema)
        except Exception as error:
            raise RewardError(
                f"reward 'json_schema': {schema!r:.80} is no JSON schema ({getattr(error, 'message', error)!s:.200}); "
                "give one as option 'json_schema', as 'schema' in the problem's metadata, or as its answer"
            ) from None
        return kind(schema, registry=Registry())  # an empty registry: nothing is fetched


def _refused(why: str) -> Score:
    return Score(0.0, detail={"errors": [why]})
