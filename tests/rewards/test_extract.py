import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError, RewardError
from guerdon.rewards.extract import fenced_blocks, marked_answer, needed, read_json, reference_texts


def test_fenced_blocks_come_in_order_with_their_language():
    text = "a\n```SQL\nselect 1\n```\nb\n~~~\nx\n~~~\n```json\n{"
    assert fenced_blocks(text) == [("sql", "select 1\n"), ("", "x\n"), ("json", "{")]
    assert fenced_blocks("none") == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>a</answer>", "a"),
        ("<answer>a</answer> or <answer>\nb\n</answer> c", "\nb\n"),
        ("<answer>a", None),
        ("a</answer>", None),
        ("</answer><answer>", None),
        ("<answer><answer>a</answer></answer>", "a"),
        ("", None),
    ],
)
def test_the_last_marked_answer(text, answer):
    assert marked_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        (" 5 ", 5),
        ("null", None),
        ('sure: {"a": 1}', {"a": 1}),
        ('{"a": 1} and {"b": 2}.', {"b": 2}),
        ('in {braces} and [brackets] there is [{"a": []}] now', [{"a": []}]),
        ('```json\n{"a": 1}\n```\nnot {"b": 2}', {"a": 1}),
        ('x\n```\n{"a": 1}\n```\n```json\n{"a": 2}\n```', {"a": 2}),
        ('<answer>{"a": 1}</answer> {"b": 2}', {"a": 1}),
        ('{"a": "``` } ] \\" {"}', {"a": '``` } ] " {'}),
        ('{"text": "\\n```\\n1\\n```"}', {"text": "\n```\n1\n```"}),
    ],
)
def test_json_is_found_where_it_stands(text, value):
    assert read_json(text) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("no", "no JSON"),
        ("{'a': 1}", "no JSON"),
        ('{"a": 1', "no JSON"),
        ('```json\n{"a": 1,}\n```', "Expecting property name|Illegal trailing comma"),
        ('{"a": 1, "a": 2}', "key 'a' stands twice"),
        ('x {"b": {"a": 1, "a": 2}} [1]', "key 'a' stands twice"),
        ("[NaN]", "NaN is no JSON"),
        ("[-Infinity]", "-Infinity is no JSON"),
        ("[1e999]", "1e999 is out of range"),
        ("[" + "9" * 1001 + "]", "more than 1000 digits"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply|nested deeper"),
        ("[" * 100_000, "nested too deeply"),
        ("[[]," * 30_000, "nested too deeply"),
        ("{" * 100_000, "more than 64 brackets"),
        ("[1 " * 100 + '{"a": 1}', "more than 64 brackets"),
        ("[" + "1," * 50_000, "no JSON"),
    ],
)
def test_what_is_no_json_is_refused_at_once_and_says_why(text, why):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=why):
        read_json(text)
    assert time.perf_counter() - start < 5  # the quadratic way takes minutes


def test_where_whole_allows_nothing_else():
    assert read_json(' {"a": 1}\n', where="whole") == {"a": 1}
    with pytest.raises(ValueError, match="what follows the JSON is ' x'"):
        read_json("[1] x", where="whole")
    with pytest.raises(ValueError, match="Expecting value"):
        read_json("x [1]", where="whole")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_whatever_json_writes_is_read_back(value):
    assert read_json(json.dumps(value), where="whole") == value


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_objects_are_read_back_out_of_prose(value):
    assert read_json(f"I say: {json.dumps(value)} and that is it") == value


def test_references_are_texts():
    assert reference_texts("bleu", " a ") == ["a"]
    assert reference_texts("bleu", 5) == ["5"]
    assert reference_texts("bleu", ["a", 0.5]) == ["a", "0.5"]
    for unusable in ("", " ", None, [], ["a", ""], {"a": 1}, [None]):
        with pytest.raises(RewardError, match="reward 'bleu': the reference answer is"):
            reference_texts("bleu", unusable)


def test_a_missing_package_is_named_with_its_extra():
    assert needed("json", "bleu", "text") is json
    with pytest.raises(RecipeError, match=r"reward 'bleu' needs .*no_such_package.*guerdon\[text\]"):
        needed("no_such_package", "bleu", "text")
