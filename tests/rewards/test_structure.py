import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import get
from guerdon.rewards.structure import JsonSchema, tags

GOOD = "<think>a</think>\n<answer>b</answer>"
PERSON = {
    "type": "object",
    "required": ["name", "age"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "additionalProperties": False,
}


@pytest.mark.parametrize("text", [GOOD, f"  {GOOD}\n", "<think><b>a</b> 1 < 2</think><answer>\nb\n</answer>"])
def test_tags_once_and_in_order_have_everything(text):
    for award in ("all", "share"):
        score = tags(text, award=award)
        assert (score.value, score.detail) == (1.0, None)


@pytest.mark.parametrize(
    ("text", "share", "why"),
    [
        ("", 0, {"think": "<think> stands 0 times", "answer": "<answer> stands 0 times"}),
        ("<think>a</think>", 1 / 3, {"answer": "<answer> stands 0 times"}),
        ("<think>a<answer>b</answer>", 1 / 3, {"think": "</think> stands 0 times"}),
        (GOOD + "<answer>c</answer>", 1 / 3, {"answer": "<answer> stands 2 times"}),
        (GOOD + "</answer>", 1 / 3, {"answer": "</answer> stands 2 times"}),
        ("<answer>b</answer><think>a</think>", 1 / 3, {"answer": "begins before the tag in front of it ends"}),
        ("<think><answer>b</answer></think>", 1 / 3, {"answer": "begins before the tag in front of it ends"}),
        ("<think>a<answer></think>b</answer>", 1 / 3, {"answer": "begins before the tag in front of it ends"}),
        ("</think>a<think><answer>b</answer>", 1 / 3, {"think": "ends before it begins"}),
        ("<think> \n</think><answer>b</answer>", 1 / 3, {"think": "is empty"}),
        ("<Think>a</Think><answer>b</answer>", 1 / 3, {"think": "is written '<Think>'"}),
        ("<think>a</think><answer>b< /answer>", 1 / 3, {"answer": "is written '< /answer>'"}),
        (GOOD + "<answer/>", 1 / 3, {"answer": "is written '<answer/>'"}),
        ("<think>a</think><answer id='1'>b</answer>", 1 / 3, {"answer": "is written \"<answer id='1'>\""}),
    ],
)
def test_tags_say_what_is_wrong(text, share, why):
    assert tags(text).value == 0.0
    score = tags(text, award="share")
    assert score.value == pytest.approx(share)
    assert score.detail == {"why": why | {"outside": "not looked at"}}
    assert tags(text, outside="allow").detail == {"why": why}
    assert tags(text, award="share", outside="allow").value == pytest.approx((3 * share) / 2)


@pytest.mark.parametrize("text", ["x" + GOOD, GOOD + "x", "<think>a</think> so <answer>b</answer>"])
def test_text_outside_of_the_tags(text):
    score = tags(text)
    assert (score.value, score.detail) == (0.0, {"why": {"outside": "text outside of the tags"}})
    assert tags(text, award="share").value == pytest.approx(2 / 3)
    assert tags(text, outside="allow").value == 1.0


def test_the_prompt_may_have_opened_the_first_tag():
    assert tags("a</think><answer>b</answer>", opened=True).value == 1.0
    assert tags(GOOD, opened=True).value == 0.0
    assert tags("</think><answer>b</answer>", opened=True).detail["why"]["think"] == "is empty"


def test_names_are_whole_names():
    names = ("think", "think-more")
    assert tags("<think>a</think><think-more>b</think-more>", names=names).value == 1.0
    assert tags("<think>a</think><thinker>b</thinker>", names=("think",), outside="allow").value == 1.0
    assert tags("<A>x</A><a>y</a>", names=("a", "A"), outside="allow").value == 0.0


@pytest.mark.parametrize("piece", ["<think>", "<think ", "<", "< ", "</", "<think>a</think>"])
def test_no_text_takes_tags_long(piece):
    start = time.perf_counter()
    assert tags(piece * (500_000 // len(piece))).value == 0.0
    assert time.perf_counter() - start < 5


@given(st.text(), st.text())
def test_what_stands_inside_does_not_matter(thought, answer):
    if "<" not in thought + answer and thought.strip() and answer.strip():
        assert tags(f"<think>{thought}</think><answer>{answer}</answer>").value == 1.0


@pytest.mark.parametrize(
    "options", [{"names": []}, {"names": ["a", "a"]}, {"names": ["<a>"]}, {"names": ["a b"]}, {"outside": "keep"}]
)
def test_tags_without_meaning_are_refused(options):
    with pytest.raises(RecipeError, match="reward 'tags'"):
        get("reward", "tags").validate(options)


@pytest.mark.parametrize(
    ("text", "share", "error"),
    [
        ('{"name": "Ann", "age": 3}', 1, None),
        ('```json\n{"name": "Ann", "age": 3}\n```', 1, None),
        ('{"name": "Ann"}', 1 / 3, "$: 'age' is a required property"),
        ('{"name": "Ann", "age": "3"}', 1 / 3, "$.age: '3' is not of type 'integer'"),
        ('{"name": "Ann", "age": -1}', 1 / 3, "$.age: -1 is less than the minimum of 0"),
        ('{"name": "Ann", "age": 3, "x": 1}', 2 / 3, "$: Additional properties are not allowed ('x' was unexpected)"),
        ("{}", 0, "$: 'name' is a required property"),
        ("[]", 0, "$: [] is not of type 'object'"),
        ('"name age"', 0, "$: 'name age' is not of type 'object'"),
        ("", 0, "no JSON in the text"),
        ("Ann is 3", 0, "no JSON in the text"),
        ('{"name": "Ann", "age": 3, "age": 3}', 0, "key 'age' stands twice in one object"),
        ('{"name": "Ann", "age": NaN}', 0, "NaN is no JSON"),
        ("[" * 3000, 0, "nested too deeply"),
    ],
)
def test_json_by_a_schema(text, share, error):
    score = JsonSchema(json_schema=PERSON, award="share")(text)
    assert score.value == pytest.approx(share)
    assert (score.detail["errors"][0] if score.detail else None) == error
    assert JsonSchema(json_schema=PERSON)(text).value == float(share == 1)


def test_nested_errors_belong_to_their_property():
    schema = {
        "required": ["a", "b"],
        "properties": {"a": {"items": {"type": "integer"}}, "b": {"items": {"minimum": 0}}},
    }
    score = JsonSchema(json_schema=schema, award="share")
    wrong = score('{"a": [1, "x", "y", "z", "u", "v", "w"], "b": [1, 2, -1]}')
    assert wrong.value == 0.0
    assert len(wrong.detail["errors"]) == 5
    assert score('{"a": [1, "x"], "b": [1, 2]}').value == pytest.approx(1 / 3)


def test_where_the_schema_comes_from():
    schema = JsonSchema()
    text = '{"name": "Ann", "age": 3}'
    assert schema(text, PERSON).value == 1.0
    assert schema(text, '{"type": "array"}').value == 0.0
    assert schema(text, {"type": "array"}, {"schema": PERSON}).value == 1.0
    assert JsonSchema(json_schema=PERSON)(text, None, {"schema": {"type": "array"}}).value == 1.0


@pytest.mark.parametrize(
    "given_schema", [None, "", "no schema", 5, [], {"type": "person"}, {"required": "name"}, "[1]"]
)
def test_a_schema_that_is_none_is_an_error(given_schema):
    with pytest.raises(RewardError, match="reward 'json_schema': .* is no JSON schema"):
        JsonSchema()("{}", given_schema)


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "http://127.0.0.1:9/schema.json"}, {"$ref": "#/$defs/none"}, {"$ref": "#"}, {"pattern": "("}],
)
def test_a_schema_that_cannot_be_applied_is_an_error(schema):
    with pytest.raises(RewardError, match="reward 'json_schema'"):
        JsonSchema()('"x"', schema)


def test_a_schema_of_another_place_is_not_fetched(tmp_path):
    file = tmp_path / "text.json"
    file.write_text('{"type": "string"}')
    with pytest.raises(RewardError, match="cannot be applied"):
        JsonSchema()('"x"', {"$ref": file.as_uri()})


def test_a_recursive_schema_holds_on_the_deepest_json_that_is_read():
    tree = {"$ref": "#/$defs/t", "$defs": {"t": {"anyOf": [{"type": "integer"}, {"items": {"$ref": "#/$defs/t"}}]}}}
    assert JsonSchema()("[" * 64 + "]" * 64, tree).value == 1.0
    assert JsonSchema()("[" * 64 + "1.5" + "]" * 64, {"items": {"type": "array"}}).value == 1.0


def test_numbers_that_cannot_be_checked_are_the_policys_mistake():
    score = JsonSchema(json_schema={"multipleOf": 0.1})("9" * 400)
    assert score.value == 0.0
    assert score.detail["errors"][0].startswith("a number that cannot be checked")


def test_a_long_text_is_not_read():
    score = JsonSchema(json_schema={}, longest=10)("[1, 2, 3, 4]")
    assert (score.value, score.detail) == (0.0, {"errors": ["the text has 12 characters, more than 10"]})


def test_a_schema_in_the_recipe_is_refused_before_anything_is_scored():
    method = get("reward", "json_schema")
    assert (method.requires, method.optional) == (("text",), ("answer", "metadata"))
    with pytest.raises(RewardError, match="is no JSON schema"):
        method.bind({"json_schema": {"type": "person"}})
