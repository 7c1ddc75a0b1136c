import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon import registry
from guerdon.errors import RecipeError, RewardError
from guerdon.rewards.process import (
    cost_aware_f1,
    in_pairs,
    marked,
    read_retrievals,
    retrieval_bonus,
    retrieval_increments,
    retrieval_value,
    search_format,
    valid_retrievals,
    without_documents,
)

MARKS = {"query": ("[", "]"), "documents": ("(", ")")}


def searched(*queries, answer="Paris", found="something"):
    blocks = [
        f"<|begin_of_query|> {query} <|end_of_query|><|begin_of_documents|>{found}<|end_of_documents|>"
        for query in queries
    ]
    return f"<think>Let me see. {' Hm. '.join(blocks)} So.</think><answer>{answer}</answer>"


def queries(text):
    return [r.query for r in valid_retrievals(text, **MARKS)]


def test_each_retrieval_adds_less_and_all_of_them_stay_below_a_bound():
    assert retrieval_increments(4) == [0.5, 0.25, 0.125, 0.0625]
    assert retrieval_value(3) == pytest.approx(0.875)
    assert retrieval_value(0) == 0.0
    assert retrieval_value(2, value=2, decay=0.1) == pytest.approx(2.2)
    for count in range(12):
        assert retrieval_value(count, decay=0.7) == pytest.approx(sum(retrieval_increments(count, decay=0.7)))
    assert retrieval_value(500) <= 1.0


@given(st.integers(0, 30), st.floats(0.01, 10), st.floats(0.01, 0.95))
def test_increments_fall_strictly_and_their_sum_is_bounded(count, value, decay):
    increments = retrieval_increments(count, value=value, decay=decay)
    assert all(a > b > 0 for a, b in itertools.pairwise(increments))
    total = retrieval_value(count, value=value, decay=decay)
    assert total == pytest.approx(sum(increments))
    assert total < value / (1 - decay) or math.isclose(total, value / (1 - decay))


def test_the_bonus_counts_valid_retrievals():
    score = retrieval_bonus(searched("capital of France", "mayor of Paris"))
    assert score.value == pytest.approx(0.75)
    assert score.detail == {"calls": 2, "increments": [0.5, 0.25]}
    assert retrieval_bonus("no search").value == 0.0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[k](x) then [b](y)", ["k", "b"]),
        ("[](x)[ ](y)[?](z)[the](w)", []),
        ("[k](x)[K](y)[ k! ](z)[the k](w)", ["k"]),
        ("[b c](x)[c, b](y)[b b c](z)", ["b c", "b b c"]),
        ("[k](x)[b]()[c](  )", ["k"]),
        ("[k] then (x)", ["k"]),
        ("[k] and after a long time (x)", []),
        ("[k]", []),
        ("(x)(y)", []),
        ("k](x)", []),
        ("[k (x) b](y)", ["k (x) b"]),
        ("[[k](x)", ["k"]),
        ("[k](x [b](y) z", ["k"]),
        ("[k](cut", ["k"]),
        ("[k][b](x)", ["b"]),
        ("[][b](x)", ["b"]),
    ],
)
def test_only_new_queries_that_were_answered_count(text, wanted):
    assert queries(text) == wanted


def test_a_mark_inside_of_documents_is_part_of_them():
    (only,) = read_retrievals("[a](x [b] y)", **MARKS)
    assert (only.query, only.found) == ("a", "x [b] y")
    assert "[a](x [b] y)"[only.start : only.end] == "(x [b] y)"


def test_repeating_a_query_earns_nothing():
    once = retrieval_bonus(searched("capital of France")).value
    assert retrieval_bonus(searched(*["capital of France"] * 9)).value == once
    assert retrieval_bonus(searched("capital of France", "", "  ", "The capital of France?")).value == once


def test_cost_aware_f1_is_f1_less_the_cost_of_searching():
    assert cost_aware_f1(searched(), "Paris").value == pytest.approx(1.2)
    assert cost_aware_f1(searched("a b", "c"), "Paris").value == pytest.approx(1.2 * math.exp(-0.2))
    half = cost_aware_f1(searched("q", answer="Paris France"), "the city of Paris", scale=1.0, cost=0.5)
    assert half.value == pytest.approx(2 / 5 * math.exp(-0.5))
    assert half.detail == {"f1": 0.4, "calls": 1}
    assert cost_aware_f1("no answer", "Paris").value == 0.0
    assert cost_aware_f1(searched(answer=""), "Paris").value == 0.0


def test_an_answer_inside_of_documents_is_not_the_policys():
    found = "<answer>Paris</answer>"
    assert cost_aware_f1(searched("q", answer="Rome", found=found), "Paris").value == 0.0
    unanswered = searched("q", found=found).partition("<answer>Paris</answer><|end")[0] + "<answer>Paris</answer>"
    assert cost_aware_f1(unanswered, "Paris").value == 0.0


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("cost", [0.01, 0.1, 1.0])
def test_the_best_number_of_searches_is_the_one_that_is_needed(hops, cost):
    texts = [searched(*(f"q{i}" for i in range(n)), answer="Paris" if n >= hops else "Rome") for n in range(7)]
    values = [cost_aware_f1(text, "Paris", cost=cost).value for text in texts]
    assert values.index(max(values)) == hops
    flat = [cost_aware_f1(text, "Paris", cost=0).value for text in texts]
    assert flat[hops:] == [pytest.approx(1.2)] * (7 - hops)


def test_a_reference_without_words_is_a_fault():
    with pytest.raises(RewardError):
        cost_aware_f1(searched(), "!")


@pytest.mark.parametrize(
    ("text", "value", "why"),
    [
        (searched("q", "r"), 1.0, None),
        (searched(), 1.0, None),
        (f"\n{searched('q')}\n", 1.0, None),
        ("<think>x</think>", 0.0, "<answer> stands 0 times"),
        (searched() + "x", 0.0, "follows"),
        ("<answer>a</answer><think>x</think>", 0.0, "order"),
        ("<think> </think><answer>a</answer>", 0.0, "thought is empty"),
        ("<think>x</think><answer> </answer>", 0.0, "answer is empty"),
        (searched("q").replace("<|end_of_query|>", ""), 0.0, "not in pairs"),
        (searched("q").replace("<think>", "<think><|end_of_query|>"), 0.0, "not in pairs"),
        ("<think>x</think><|begin_of_query|>q<|end_of_query|><answer>a</answer>", 0.0, "outside of the thought"),
        ("<think>x <|end_of_documents|></think><answer>a</answer>", 0.5, "documents are not in pairs"),
        (searched(answer="<|begin_of_query|>q<|end_of_query|>"), 0.5, "in the answer"),
        (searched(answer="a <|begin_of_documents|>"), 0.5, "in the answer"),
        (searched("q", found="<answer>b</answer> </think>"), 1.0, None),
    ],
)
def test_form(text, value, why):
    score = search_format(text)
    assert score.value == value
    assert (score.detail is None) if why is None else (why in score.detail["why"])


def test_without_a_thought_all_before_the_answer_is_one():
    options = {"think": None, "answer_in": ("=", "."), **MARKS}
    assert search_format("[a](x)=b.", **options).value == 1.0
    assert search_format("=b.", **options).value == 1.0
    assert search_format("=b.[a](x)", **options).value == 0.0
    assert search_format("[a=b.", **options).value == 0.0


def test_helpers():
    assert marked("=a.=b.", ("=", ".")) == "b"
    assert marked("a.=b", ("=", ".")) is None
    assert without_documents("x[a](y)z[b](w", **MARKS) == "x[a]z[b]"
    assert [in_pairs(t, ("(", ")")) for t in ("", "()()", "(", ")", ")(", "(()", "())", "(())")] == [True] * 2 + [
        False
    ] * 6


@given(st.text(alphabet="[]()=.ab ", max_size=60))
def test_any_text_gets_a_number(text):
    for r in read_retrievals(text, **MARKS):
        assert text[r.start : r.end].startswith("(")
    assert 0 <= retrieval_bonus(text, **MARKS).value <= 1
    assert 0 <= cost_aware_f1(text, "ab", answer_in=("=", "."), **MARKS).value <= 1.2
    assert search_format(text, think=None, answer_in=("=", "."), **MARKS).value in (0.0, 0.5, 1.0)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": 0.0}, {"value": 0}, {"query": ["", "]"]}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(RecipeError):
        registry.get("reward", "retrieval_bonus").validate(options)


def test_recipes_give_marks_as_lists():
    bound = registry.get("reward", "retrieval_bonus").bind({"query": ["[", "]"], "documents": ["(", ")"]})
    assert bound({"text": "[b](x)"}).fields["value"] == 0.5
