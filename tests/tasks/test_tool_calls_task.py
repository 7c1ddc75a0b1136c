import json
import re

import pytest

from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.rewards.tool_calls import correct_tool_calls, reference_calls, tool_format
from guerdon.tasks.tool_calls import TOOLS, ToolCalls, exact_calls


def problems(calls=1):
    task = ToolCalls(calls=calls)
    return [*task.train_batch(150, 1), *task.eval_problems(60)]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_the_answer_earns_everything(calls):
    for problem in problems(calls):
        assert correct_tool_calls(problem.answer, problem.answer).value == 3.0
        assert tool_format(problem.answer, problem.answer).value == 1.0
        assert exact_calls(problem.answer, problem.answer).value == 1.0
        assert [call._asdict() for call in reference_calls(problem.answer).calls] == problem.metadata["calls"]
        assert 1 <= len(problem.metadata["calls"]) <= calls
    assert {len(p.metadata["calls"]) for p in problems(calls)} == set(range(1, calls + 1))


def test_calls_obey_the_schemas_that_the_metadata_shows():
    jsonschema = pytest.importorskip("jsonschema")
    seen = set()
    for problem in problems(2):
        schemas = {tool["name"]: tool["parameters"] for tool in problem.metadata["tools"]}
        assert len(schemas) == len(TOOLS) == 4
        for call in problem.metadata["calls"]:
            jsonschema.validate(call["parameters"], schemas[call["name"]])
            seen.add((call["name"], len(call["parameters"])))
    assert seen == {(tool.name, n) for tool in TOOLS for n in (1, 2)}
    kinds = {type(v) for p in problems() for call in p.metadata["calls"] for v in call["parameters"].values()}
    assert kinds == {str, int, bool}


def test_the_words_tell_the_call():
    """Reading every argument's value back from the request, by hand for one tool and for all by their values."""
    for problem in problems():
        (call,) = problem.metadata["calls"]
        for value in call["parameters"].values():
            said = {True: "on and on", False: "once"}[value] if isinstance(value, bool) else str(value)
            assert re.search(rf"\b{said}\b", problem.prompt), problem.prompt
    by_prompt = {p.prompt: p.metadata["calls"] for p in ToolCalls().train_batch(300, 0)}
    assert all(
        by_prompt[f"wake me at {hour}"] == [{"name": "alarm", "parameters": {"hour": hour}}]
        for hour in (5, 6, 7, 8, 9, 10)
        if f"wake me at {hour}" in by_prompt
    )
    assert any(prompt.startswith("please wake me at") for prompt in by_prompt)


def test_equal_requests_want_equal_calls():
    wanted = {}
    for seed in range(20):
        for problem in ToolCalls(calls=2).train_batch(100, seed):
            assert wanted.setdefault(problem.prompt, problem.answer) == problem.answer


def test_held_out_calls_are_never_trained_on():
    task = ToolCalls()
    held_out = {json.dumps(p.metadata["calls"]) for p in task.eval_problems(100)}
    trained = {json.dumps(p.metadata["calls"]) for seed in range(20) for p in task.train_batch(100, seed)}
    assert not held_out & trained
    assert len(trained) > 2 * len(held_out)


def test_held_out_requests_are_never_trained_on_but_their_calls_are():
    task = ToolCalls(split="requests")
    held_out = task.eval_problems(150)
    trained = [p for seed in range(20) for p in task.train_batch(100, seed)]
    assert not {p.prompt for p in held_out} & {p.prompt for p in trained}
    known = {p.answer for p in trained}
    assert sum(p.answer in known for p in held_out) > 0.9 * len(held_out)


def test_the_tasks_own_scorer_wants_exactly_the_calls():
    task, answer = ToolCalls(), '<tool_call>\n{"name": "alarm", "parameters": {"hour": 5}}\n</tool_call>'
    assert task.scorer is exact_calls
    for text, value in (
        (answer, 1.0),
        (answer.replace("5", '"5"'), 0.0),
        (answer.replace("alarm", "light"), 0.0),
        (answer.replace("}\n<", '}\n{"name": "alarm", "parameters": {"hour": 5}}\n<'), 0.0),
        ("", 0.0),
    ):
        assert exact_calls(text, answer).value == value


def test_a_recipe_can_name_it_and_bad_options_are_refused():
    assert get("task", "tool_calls").target is ToolCalls
    for options in ({"calls": 0}, {"calls": 4}, {"split": "tools"}, {"eval_fraction": "most"}):
        with pytest.raises(RecipeError):
            get("task", "tool_calls").validate(options)
