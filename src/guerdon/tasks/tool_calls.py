"""Requests that a call of the right tool with the right arguments answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from guerdon.registry import register
from guerdon.rewards.forms import Score
from guerdon.rewards.tool_calls import Call, correct_tool_calls
from guerdon.seeding import derive
from guerdon.tasks.base import Problem
from guerdon.tasks.generated import GeneratedTask, pick

POLITE = ("", "please ", "now ", "could you ")


@dataclass(frozen=True)
class Tool:
    """A tool, and how people ask for it.

    Attributes:
        name: the tool's.
        description: what it does.
        parameters: every argument's values; the last argument may be left out.
        whole: wordings that name every argument.
        short: wordings that leave the last argument out.
    """

    name: str
    description: str
    parameters: dict[str, tuple[Any, ...]]
    whole: tuple[str, ...]
    short: tuple[str, ...]

    @property
    def json_schema(self) -> dict[str, Any]:
        """The tool as it is described to a model."""
        properties = {key: {"enum": list(values)} for key, values in self.parameters.items()}
        required = list(self.parameters)[:-1]
        parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return {"name": self.name, "description": self.description, "parameters": parameters}


TOOLS = (
    Tool(
        "weather",
        "Forecast the weather of a city.",
        {
            "city": ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Delhi"),
            "day": ("Monday", "Tuesday", "Thursday", "Friday", "Saturday", "Sunday"),
        },
        ("weather in {city} on {day}", "tell {day} weather for {city}"),
        ("weather in {city}", "tell weather for {city}"),
    ),
    Tool(
        "alarm",
        "Ring at an hour.",
        {"hour": (5, 6, 7, 8, 9, 10), "sound": ("bell", "birds", "horn", "rain", "radio", "waves")},
        ("wake me at {hour} by {sound}", "ring {sound} at {hour}"),
        ("wake me at {hour}", "ring at {hour}"),
    ),
    Tool(
        "light",
        "Set the light of a room.",
        {"room": ("kitchen", "hall", "attic", "cellar", "garage", "studio"), "level": (0, 20, 40, 60, 80, 100)},
        ("light the {room} to {level}", "give {level} light in the {room}"),
        ("light the {room}", "give light in the {room}"),
    ),
    Tool(
        "music",
        "Play music.",
        {"style": ("jazz", "rock", "folk", "blues", "opera", "tango"), "repeat": (True, False)},
        ("play {style} {repeat}", "put on {style} {repeat}"),
        ("play {style}", "put on {style}"),
    ),
)
SPOKEN = {True: "on and on", False: "once"}


@register("task", "tool_calls")
class ToolCalls(GeneratedTask):
    """Ask for one of four tools, in one of several wordings, with one or two arguments.

    The answer is a thought that names the tools, and the calls as JSON: what the rewards ``tool_calls`` and
    ``tool_format`` read. Arguments are texts, numbers and truth values. The metadata holds the ``tools`` as they would
    be described to a model, and the ``calls``. The task's own scorer gives 1 for exactly the reference's calls, and 0
    otherwise.
    """

    name = "tool_calls"

    def __init__(
        self,
        *,
        calls: Annotated[int, Field(ge=1, le=3)] = 1,
        split: Literal["calls", "requests"] = "calls",
        seed: int = 0,
        eval_fraction: float = 0.25,
    ) -> None:
        """Choose what is asked for.

        Args:
            calls: most calls that a request asks for; requests for 1, 2, ... are equally frequent.
            split: what is held out: ``calls``, in whatever wording, or single ``requests``, whose calls training may
                ask for in other words.
            seed: which of them are held out.
            eval_fraction: share that is held out.

        Raises:
            RecipeError: when the share leaves nothing on one side.
        """
        super().__init__(seed, eval_fraction)
        self._calls, self._split = calls, split
        self._schemas = [tool.json_schema for tool in TOOLS]
        self.scorer = exact_calls

    def draw(self, generator: np.random.Generator) -> tuple[Problem, str]:
        """Draw a request; what it asks for is its calls, or, where requests are held out, itself."""
        asked = [_request(generator) for _ in range(1 + int(generator.integers(self._calls)))]
        prompt = pick(generator, POLITE) + " and ".join(words for words, _ in asked)
        calls = [call for _, call in asked]
        known = {"tools": self._schemas, "calls": [call._asdict() for call in calls]}
        problem = Problem(derive(0, prompt), prompt, answer=written(calls), metadata=known)
        return problem, json.dumps(calls) if self._split == "calls" else prompt


def exact_calls(text: str, answer: Any) -> Score:
    """Give 1 for exactly the calls of the reference, in any order, and 0 otherwise."""
    score = correct_tool_calls(text, answer, granularity="coarse", scale=1.0)
    return score._replace(value=float(score.value > 0))


def written(calls: Sequence[Call]) -> str:
    """The text of an answer: a thought that names the tools, and the calls."""
    lines = "\n".join(json.dumps(call._asdict()) for call in calls)
    return f"<think>{' and '.join(call.name for call in calls)}</think>\n<tool_call>\n{lines}\n</tool_call>"


def _request(generator: np.random.Generator) -> tuple[str, Call]:
    """A request's words, and the call that it wants."""
    tool = pick(generator, TOOLS)
    arguments = {name: pick(generator, values) for name, values in tool.parameters.items()}
    short = bool(generator.integers(2))
    if short:
        arguments.popitem()
    words = pick(generator, tool.short if short else tool.whole)
    spoken = {name: SPOKEN[value] if isinstance(value, bool) else value for name, value in arguments.items()}
    return words.format(**spoken), Call(tool.name, arguments)
