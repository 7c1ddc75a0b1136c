"""Functions as tools of an agent: schemas from their type hints, and the environment in which they are called."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pydantic

from guerdon.errors import RecipeError
from guerdon.tasks.base import Problem
from guerdon.tasks.environments import Step

Form = Literal["json", "line"]
Tool = Callable[..., str]

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


class Call(NamedTuple):
    """A call that a policy wrote.

    Attributes:
        tool: its name.
        arguments: by name; of a line, the text under the name of the tool's first parameter.
    """

    tool: str
    arguments: Mapping[str, Any]


class Toolbox:
    """Functions that a policy may call by name.

    Arguments are checked against the type hints before a function sees them. Whatever goes wrong, such as an unknown
    tool, an argument of the wrong type or an exception, comes back as a text that says so, for a policy can go on from
    there.

    Args:
        tools: functions with type hints and a docstring, which return text.
        limit: most characters of a result, the rest of which is left out.

    Raises:
        RecipeError: when two tools have one name, or a parameter has no type hint.
    """

    def __init__(self, tools: Sequence[Tool], *, limit: int = 2000) -> None:
        self.limit = limit
        self._tools = {tool.__name__: tool for tool in tools}
        if len(self._tools) < len(tools):
            raise RecipeError(f"two tools have one name: {sorted(tool.__name__ for tool in tools)}; rename one")
        self._models = {name: _model(tool) for name, tool in self._tools.items()}

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """What the tools are and take, as JSON schemas in the form that chat templates and servers expect."""
        return [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": inspect.getdoc(tool) or "",
                    "parameters": _schema(self._models[name]),
                },
            }
            for name, tool in self._tools.items()
        ]

    def read(self, text: str, form: Form) -> Call | None:
        """The call that a turn holds, or None.

        Args:
            text: the turn.
            form: ``json`` reads the first ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; ``line`` reads
                a turn whose first word is the name of a tool, and the rest of which is its first argument.
        """
        if form == "line":
            name, _, rest = text.strip().partition(" ")
            if name not in self._tools:
                return None
            first = next(iter(self._models[name].model_fields), None)
            return Call(name, {} if first is None else {first: rest.strip()})
        found = _CALL.search(text)
        if found is None:
            return None
        try:
            content = json.loads(found[1])
        except json.JSONDecodeError:
            return Call("", {})
        arguments = content.get("arguments", {})
        return Call(str(content.get("name", "")), arguments if isinstance(arguments, dict) else {})

    def call(self, call: Call) -> str:
        """Make a call; the result, or what went wrong."""
        if call.tool not in self._tools:
            return f"error: no tool '{call.tool}'; there are {', '.join(self._tools)}"
        try:
            arguments = self._models[call.tool](**call.arguments)
            result = self._tools[call.tool](**{name: getattr(arguments, name) for name in type(arguments).model_fields})
        except pydantic.ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            return f"error: {call.tool}: {wrong}"[: self.limit]
        except Exception as error:
            return f"error: {call.tool}: {type(error).__name__}: {error}"[: self.limit]
        return str(result)[: self.limit]


def _model(tool: Tool) -> type[pydantic.BaseModel]:
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(tool, eval_str=True).parameters.items():
        if parameter.annotation is parameter.empty:
            raise RecipeError(f"tool '{tool.__name__}': parameter '{name}' has no type hint, and its schema needs one")
        fields[name] = (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
    return pydantic.create_model(tool.__name__, __config__=pydantic.ConfigDict(extra="forbid"), **fields)


def _schema(model: type[pydantic.BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    properties = {name: {k: v for k, v in p.items() if k != "title"} for name, p in schema["properties"].items()}
    rest = {key: value for key, value in schema.items() if key not in ("title", "properties", "additionalProperties")}
    return {**rest, "properties": properties}


class ToolEnvironment:
    """A question, tools, and an answer that ends the episode and is scored.

    In ``line`` form a turn is ``TOOL ARGUMENT`` or ``answer TEXT``; anything else is told so. In ``json`` form a turn
    with a tool call is one, and any other turn is the answer.

    Args:
        tools: builds the tools, so that an environment can be sent to a worker.
        score: reward of an answer, from its text and the problem's answer.
        form: of calls.
        cost: taken off for every call.
        limit: most characters of a result.
    """

    def __init__(
        self,
        tools: Callable[[], Sequence[Tool]],
        score: Callable[[str, Any], float],
        *,
        form: Form = "line",
        cost: float = 0.0,
        limit: int = 2000,
    ) -> None:
        self._tools, self._score, self._cost = Toolbox(tools(), limit=limit), score, cost
        self._form: Form = form

    def reset(self, problem: Problem, seed: int) -> str:
        """Ask the problem's question."""
        self._problem = problem
        return problem.prompt

    def step(self, action: str) -> Step:
        """Call a tool, or take the answer."""
        call = self._tools.read(action, self._form)
        if call is not None:
            return Step(self._tools.call(call), -self._cost, info={"tool": call.tool})
        text = action.strip()
        if self._form == "line":
            word, _, text = text.partition(" ")
            if word != "answer":
                return Step("error: neither a tool nor an answer")
        return Step("", float(self._score(text.strip(), self._problem.answer)), terminated=True, info={"answer": text})
