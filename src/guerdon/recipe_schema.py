"""The JSON schema of a recipe, by which editors complete and check it."""

from __future__ import annotations

from typing import Any

import pydantic

from guerdon import registry
from guerdon.recipe import Recipe, RewardSpec

_STAGE_OF = {key: key for key in ("task", "policy", "curriculum", "credit", "objective")}
_STAGE_OF_ITEMS = {"rewards": "reward", "shaping": "shaping", "terms": "term"}


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe, with the options of every registered method, for editors to complete and check."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    for key, stage in _STAGE_OF.items():
        schema["properties"][key] = _method_schema(stage, definitions, {})
    schema["properties"]["curriculum"]["anyOf"].append({"type": "null"})
    alone = schema["properties"]["credit"]
    schema["properties"]["credit"] = {"anyOf": [*alone["anyOf"], {"type": "array", "items": alone, "minItems": 1}]}
    for key, stage in _STAGE_OF_ITEMS.items():
        shared = RewardSpec.model_json_schema()["properties"] if key == "rewards" else {}
        shared.pop("name", None)
        schema["properties"][key] = {"type": "array", "items": _method_schema(stage, definitions, shared)}
    loggers = definitions["LoggingSpec"]["properties"]["loggers"]
    loggers["items"] = _method_schema("logger", definitions, {})
    sources = definitions["SamplingSpec"]["properties"]["sources"]
    sources["items"] = _method_schema("source", definitions, {})
    for unused in ("MethodSpec", "RewardSpec"):
        definitions.pop(unused, None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "guerdon recipe"}


def _method_schema(stage: str, definitions: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    methods = registry.methods(stage)
    names = [m.name for m in methods] + (["task"] if stage == "reward" else [])
    variants: list[dict[str, Any]] = [
        {"type": "string", "enum": names},
        {"type": "string", "pattern": ":", "description": "import path: package.module:function or file.py:function"},
    ]
    for method in methods:
        options = method.options.model_json_schema(mode="validation", schema_generator=Lenient)
        definitions.update(options.pop("$defs", {}))
        properties = {"name": {"const": method.name, "description": method.summary}}
        properties |= options.get("properties", {}) | shared
        variants.append(
            {
                "type": "object",
                "title": method.name,
                "properties": properties,
                "required": ["name", *options.get("required", [])],
                "additionalProperties": False,
            }
        )
    pattern = {"const": "task"} if stage == "reward" else {"pattern": ":"}
    variants.append({"type": "object", "properties": {"name": pattern}, "required": ["name"]})
    return {"anyOf": variants}


class Lenient(pydantic.json_schema.GenerateJsonSchema):
    """Describes what JSON cannot express (callables, tensors) as anything."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}
