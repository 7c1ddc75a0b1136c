import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import get
from guerdon.rewards.tool_calls import (
    Call,
    correct_tool_calls,
    match_calls,
    ramp,
    read_calls,
    reference_calls,
    thought_words,
    tool_format,
)

WANTED = [{"name": "get", "parameters": {"city": "Paris", "unit": "C"}}]
OPTIONS = [
    {"granularity": g, "strict": s, "matching": m}
    for g, s, m in itertools.product(("fine", "intermediate", "coarse"), (False, True), ("greedy", "hungarian"))
]

VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, "1", "a", 2.5]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)
CALLS = st.builds(Call, st.sampled_from("fg"), st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3))


def written(*calls, thought="so"):
    lines = "\n".join(json.dumps(call) for call in calls)
    return f"<think>{thought}</think>\n<tool_call>\n{lines}\n</tool_call>"


def get_call(name="get", **parameters):
    return {"name": name, "parameters": parameters}


def value(text, answer=WANTED, **options):
    return correct_tool_calls(text, answer, **options).value


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (written(get_call(city="Paris", unit="C")), 3.0),
        (written(get_call(unit="C", city="Paris")), 3.0),
        (written(get_call(city="Paris")), 0.75),
        (written(get_call(city="Rome", unit="F")), 0.0),
        (written(get_call(city="Rome", unit="C")), 1.5),
        (written(get_call("put", city="Paris", unit="C")), -3.0),
        (written(get_call()), -1.5),
        (written(get_call(city="Paris", unit="C"), get_call("put")), 6 * (0.5 + 3) / 4 - 3),
        ("<tool_call>\n{'name': 'get'}\n</tool_call>", -3.0),
        (json.dumps(WANTED), -3.0),
        ("", -3.0),
    ],
)
def test_the_published_numbers_of_one_call(text, wanted):
    assert value(text) == pytest.approx(wanted)


def test_two_calls_in_any_order():
    two = [get_call(city="Paris"), get_call("put", key=1)]
    assert value(written(*two), two) == value(written(*reversed(two)), two) == 3.0
    # S = 1/2 + (1 + 1),  S_max = 1 + 2 + 2
    assert value(written(two[0]), two) == pytest.approx(6 * 2.5 / 5 - 3)


def test_a_call_without_arguments_matches_itself():
    bare = [get_call("now")]
    assert value(written(*bare), bare) == 3.0
    # S = 1 + J({}, {x}) = 1, S_max = 2
    assert value(written(get_call("now", x=1)), bare) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        (1, "1", False),
        (1, True, False),
        (0, False, False),
        (0, None, False),
        ("", None, False),
        ([1], [True], False),
        ({"x": 1}, {"x": True}, False),
        ([], {}, False),
        ([1, 2], [2, 1], False),
        (1, 1.0, True),
        ({"x": 1, "y": [None]}, {"y": [None], "x": 1.0}, True),
    ],
)
def test_values_are_compared_with_their_types(first, second, equal):
    for options in OPTIONS:
        assert (match_calls([Call("f", {"a": first})], [Call("f", {"a": second})], **options).share == 1) == equal


def test_what_the_granularities_and_strictness_give():
    text = written(get_call(city="Paris"))
    assert value(text, granularity="intermediate") == pytest.approx(6 * 1 / 2 - 3)
    assert value(text, granularity="coarse") == -3.0
    assert value(text, strict=True) == pytest.approx(6 * (1 + 0 + 1) / 4 - 3)
    more = written(*WANTED, get_call("put"))
    assert value(more, strict=True) == pytest.approx(6 * (0 + 1 + 2) / 4 - 3)
    assert value(more, granularity="intermediate") == pytest.approx(6 * (0.5 + 1) / 2 - 3)
    assert value(more, granularity="coarse") == -3.0
    for options in OPTIONS:
        assert value(written(*WANTED), **options) == 3.0


def test_hungarian_matching_finds_what_greedy_spoils():
    reference = [Call("f", {"a": 1, "b": 1}), Call("f", {"a": 1, "b": 2, "c": 3})]
    # The first takes (1, 2, 3) at 2/3 + 1 rather than nothing of (9, 9) at 1; the second is left with 2/3.
    predicted = [Call("f", {"a": 1, "b": 2, "c": 3}), Call("f", {"a": 9, "b": 9})]
    greedy, best = (match_calls(reference, predicted, matching=m) for m in ("greedy", "hungarian"))
    assert greedy.calls == pytest.approx([5 / 3, 2 / 3])
    assert best.calls == pytest.approx([1, 4])
    assert best.share == pytest.approx((1 + 1 + 4) / (1 + 3 + 4))


@given(st.lists(CALLS, min_size=1, max_size=3), st.lists(CALLS, max_size=3), st.sampled_from(OPTIONS))
def test_order_does_not_count(reference, predicted, options):
    wanted = match_calls(reference, predicted, **options).share
    assert 0 <= wanted <= 1
    for order in itertools.permutations(predicted):
        assert match_calls(reference, list(order), **options).share == pytest.approx(wanted)


@given(st.lists(CALLS, min_size=1, max_size=3), st.randoms())
def test_equal_calls_and_nothing_else_have_everything(reference, random):
    shuffled = random.sample(reference, len(reference))
    for options in OPTIONS:
        assert match_calls(reference, shuffled, **options).share == 1
        assert match_calls(reference, [*shuffled, Call("f", {})], **options).share < 1
        assert match_calls(reference, shuffled[1:], **options).share < 1


@given(st.lists(CALLS, min_size=1, max_size=3), st.lists(CALLS, max_size=3), st.booleans())
def test_hungarian_is_the_best_of_all_matchings(reference, predicted, strict):
    def alone(wanted, seen):
        return match_calls([wanted], [seen], strict=strict).calls[0]

    padded = [*predicted, *[None] * len(reference)]
    best = max(
        sum(alone(w, s) for w, s in zip(reference, some, strict=True) if s is not None)
        for some in itertools.permutations(padded, len(reference))
    )
    found = match_calls(reference, predicted, strict=strict, matching="hungarian")
    assert sum(found.calls) == pytest.approx(best)
    assert sum(match_calls(reference, predicted, strict=strict).calls) <= best + 1e-9


PIECES = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "\n", "<response>", "</response>", "{", "}", "[", '"', "1"),
    *(json.dumps(WANTED[0]), '{"name": "get", "parameters": []}', '{"name": 1, "parameters": {}}', "null", "x"),
    *('{"name": "get", "parameters": {"city": NaN}}', '{"name": "get", "name": "put", "parameters": {}}', "\ud800"),
]


@given(st.lists(st.sampled_from(PIECES)).map("".join) | st.text(), st.sampled_from(OPTIONS), st.integers(0, 300))
def test_any_text_earns_a_number_in_range(text, options, step):
    for scheduled in ({}, {"scale_from": 2.0}):
        correct = correct_tool_calls(text, WANTED, step, **options, **scheduled).value
        assert isinstance(correct, float)
        assert -3 <= correct <= 3
        form = tool_format(text, WANTED, step, **scheduled).value
        assert form in ((0.0, 1.0) if not scheduled else (ramp(step, 2, 1, 150), -ramp(step, 2, 1, 150)))
    assert 0 <= thought_words(text, step) <= 1


@pytest.mark.parametrize(
    "block",
    [
        '{"name": "get", "parameters": {"city": NaN}}',
        '{"name": "get", "parameters": {}, "parameters": {"city": "Paris"}}',
        '{"name": "get"}',
        '{"name": ["get"], "parameters": {}}',
        '{"name": "get", "parameters": "city"}',
        json.dumps(WANTED),
        json.dumps(WANTED[0]) + "\n\n" + json.dumps(WANTED[0]),
        json.dumps(WANTED[0]) + json.dumps(WANTED[0]),
        "",
    ],
)
def test_what_is_no_call_is_refused(block):
    text = f"<think>so</think>\n<tool_call>\n{block}\n</tool_call>"
    with pytest.raises(ValueError, match=r"\S"):
        read_calls(text)
    score = correct_tool_calls(text, WANTED)
    assert score.value == -3.0
    assert score.detail["why"]


def test_the_first_block_counts_and_needs_its_end():
    right, wrong = written(*WANTED), written(get_call("put"))
    assert value(right + wrong) == 3.0
    assert value(wrong + right) == -3.0
    assert value(right.replace("</tool_call>", "")) == -3.0
    assert value("</tool_call>" + right) == 3.0


def test_the_detail_tells_the_parts():
    score = correct_tool_calls(written(get_call(city="Paris"), get_call("put")), WANTED)
    assert score.detail == {"names": 0.5, "calls": [1.5], "exact": False}
    assert correct_tool_calls(written(*WANTED), WANTED).detail["exact"] is True


@pytest.mark.parametrize("matching", ["greedy", "hungarian"])
def test_no_text_takes_long(matching):
    start = time.perf_counter()
    value(written(*[get_call(city=str(i)) for i in range(5000)]), matching=matching)
    for piece in ("<think>", "<tool_call>\n", "</think>\n", "{", "[", '{"name":'):
        value(piece * (200_000 // len(piece)))
        tool_format(piece * (200_000 // len(piece)), WANTED)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (WANTED, "<think>a</think>\n<tool_call>\nx\n</tool_call>"),
        ("<think>b</think>\n<response>hi</response>", "<think>a\nb</think>\n<response>c\nd</response>"),
        (written(*WANTED) + "\n<response>hi</response>", written(*WANTED) + "\n<response></response>"),
        ("hi", "  <think></think>\n"),
        ([], "<think>a</think>"),
    ],
)
def test_the_form_is_the_references(answer, right):
    assert tool_format(right, answer) == (1.0, True, None)
    for wrong in (
        right + "x",
        "x" + right,
        right.replace("</think>", ""),
        right + right,
        right.replace("<think>", "<think><think>"),
        right.replace("\n<", "<") if "\n<" in right else "",
        right + "\n<response>x</response>",
    ):
        score = tool_format(wrong, answer)
        assert score.value == 0.0, wrong
        assert score.detail["why"]


def test_the_form_needs_line_ends_inside_of_the_calls():
    assert tool_format("<think>a</think>\n<tool_call>x</tool_call>", WANTED).value == 0.0
    assert tool_format("<tool_call>\nx\n</tool_call>\n<think>a</think>", WANTED).value == 0.0


def test_a_reference_without_calls_is_a_matter_of_form():
    score = correct_tool_calls(written(*WANTED), "<think>b</think>\n<response>hi</response>")
    assert score == (0.0, True, {"why": "the reference makes no call"})


def test_references_in_all_forms():
    for answer in (WANTED, WANTED[0], json.dumps(WANTED), json.dumps(WANTED[0]), written(*WANTED)):
        assert reference_calls(answer) == ([Call("get", {"city": "Paris", "unit": "C"})], False)
    assert reference_calls(written(*WANTED) + "<response>x</response>").response
    openai = [{"name": "get", "arguments": {"city": "Paris", "unit": "C"}}]
    assert value(written(*openai), openai, arguments="arguments") == 3.0


@pytest.mark.parametrize(
    "answer",
    [
        *(None, 3, [1], [{"name": "get"}], '{"name": 1}', "[", "<tool_call>\n</tool_call>", "<tool_call>x"),
        *([{"name": "get", "parameters": {"x": float("nan")}}], [{"name": "get", "parameters": {"x": {1}}}]),
    ],
)
def test_a_reference_that_cannot_be_read_is_a_fault(answer):
    for reward in (correct_tool_calls, tool_format):
        with pytest.raises(RewardError, match="fix the task's answers"):
            reward(written(*WANTED), answer)


def test_scales_move_in_a_straight_line_and_stay():
    right, wrong = written(*WANTED), written(get_call("put"))
    moving = {"scale": 3.0, "scale_from": 2.0}
    for step, bound in ((0, 2.0), (75, 2.5), (150, 3.0), (400, 3.0)):
        assert value(right, step=step, **moving) == pytest.approx(bound)
        assert value(wrong, step=step, **moving) == pytest.approx(-bound)
        assert value(right, step=step) == 3.0
    for step, bound in ((0, 2.0), (75, 1.5), (150, 1.0), (400, 1.0)):
        assert tool_format(right, WANTED, step, scale_from=2.0).value == pytest.approx(bound)
        assert tool_format("", WANTED, step, scale_from=2.0).value == pytest.approx(-bound)
    assert value(right, scale=1.0) == 1.0
    assert value(right, step=10, scale=3.0, scale_from=1.0, over=20) == pytest.approx(2.0)


def test_words_of_the_thought():
    assert thought_words("<think>one two\nthree</think> four", target=6) == pytest.approx(0.5)
    assert thought_words("<think>" + "w " * 600 + "</think>") == 1.0
    assert thought_words("<think>" + "w " * 256) == 0.0
    assert thought_words("w</think><think>a</think>", target=2) == 0.5
    text = "<think>" + "w " * 320 + "</think>"
    for step, target in ((0, 384), (105, 640), (300, 640)):
        assert thought_words(text, step, target=640, target_from=384) == pytest.approx(320 / target)
    assert thought_words(text, 21, target=640, target_from=384) == pytest.approx(320 / (384 + 256 / 5))


def test_recipes_name_them_and_bad_options_are_refused():
    assert get("reward", "tool_calls").target is correct_tool_calls
    bound = get("reward", "tool_calls").bind({"granularity": "coarse", "scale": 1})
    assert bound({"text": written(*WANTED), "answer": WANTED, "step": 7}).fields["value"] == 1.0
    for options in ({"scale": 0}, {"granularity": "finer"}, {"matching": "best"}, {"over": 0}, {"scale_from": -1}):
        with pytest.raises(RecipeError):
            get("reward", "tool_calls").bind(options)
