import math
from typing import Literal

import pytest

from guerdon.errors import RecipeError
from guerdon.tasks.base import Problem
from guerdon.tasks.tools import Call, Toolbox, ToolEnvironment


def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> str:
    """How warm it gets."""
    if city == "Atlantis":
        raise LookupError("it sank")
    return f"{city} {days} {unit}"


def time() -> str:
    """What time it is."""
    return "noon" * 10


BOX = Toolbox([weather, time], limit=20)


def test_schemas_come_from_type_hints():
    weather_schema, time_schema = BOX.schemas
    assert weather_schema["type"] == "function"
    assert weather_schema["function"] == {
        "name": "weather",
        "description": "How warm it gets.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "default": 1},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
            },
            "required": ["city"],
        },
    }
    assert time_schema["function"]["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"city": "Rome"}, "Rome 1 C"),
        ({"city": "Rome", "days": "3"}, "Rome 3 C"),
        ({"days": 3}, "error: weather: city"),
        ({"city": "Rome", "days": "many"}, "error: weather: days"),
        ({"city": "Rome", "unit": "K"}, "error: weather: unit"),
        ({"city": "Rome", "moon": 1}, "error: weather: moon"),
        ({"city": "Atlantis"}, "error: weather: LookupError: it sank"),
    ],
)
def test_a_call_gives_its_result_or_says_what_is_wrong(arguments, said):
    assert Toolbox([weather]).call(Call("weather", arguments)).startswith(said)


def test_results_are_cut():
    assert BOX.call(Call("time", {})) == "noon" * 5
    assert BOX.call(Call("tide", {})) == "error: no tool 'tide'; there are weather, time"


@pytest.mark.parametrize(
    ("text", "form", "call"),
    [
        ("weather Rome now", "line", Call("weather", {"city": "Rome now"})),
        (" time ", "line", Call("time", {})),
        ("the weather", "line", None),
        ("answer 3", "line", None),
        (
            'So: <tool_call>{"name": "time", "arguments": {}}</tool_call> and <tool_call>{"name": "x"}</tool_call>',
            "json",
            Call("time", {}),
        ),
        ('<tool_call>{"name": "weather", "arguments": {"days": 2}}</tool_call>', "json", Call("weather", {"days": 2})),
        ('<tool_call>{"name": oops}</tool_call>', "json", Call("", {})),
        ('<tool_call>{"name": "time", "arguments": [1]}</tool_call>', "json", Call("time", {})),
        ("noon", "json", None),
    ],
)
def test_calls_are_read(text, form, call):
    assert BOX.read(text, form) == call


def test_a_tool_needs_hints_and_a_name_of_its_own():
    def bare(x):
        return x

    with pytest.raises(RecipeError, match="'x' has no type hint"):
        Toolbox([bare])
    with pytest.raises(RecipeError, match="two tools have one name"):
        Toolbox([time, time])


def agent(form, **options):
    environment = ToolEnvironment(lambda: [weather], lambda text, wanted: float(text == wanted), form=form, **options)
    assert environment.reset(Problem(0, prompt="How warm?", answer="12"), 0) == "How warm?"
    return environment


def test_an_answer_ends_the_episode_and_is_scored():
    environment = agent("line", cost=0.25)
    heard = environment.step("weather Rome")
    assert (heard.observation, heard.reward, heard.terminated) == ("Rome 1 C", -0.25, False)
    assert environment.step("12").observation == "error: neither a tool nor an answer"
    assert environment.step("answer 12")[:3] == ("", 1.0, True)
    assert agent("line").step("answer 13")[:3] == ("", 0.0, True)
    assert agent("json").step("12")[:3] == ("", 1.0, True)
    assert not agent("json").step('<tool_call>{"name": "weather"}</tool_call>').terminated
    assert math.isfinite(agent("json").step("").reward)
