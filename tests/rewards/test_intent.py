import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon import registry
from guerdon.errors import RewardError
from guerdon.rewards.intent import best_query, intent_f1
from guerdon.rewards.ngrams import token_f1

REWRITE = {"rewrite": "When was the Eiffel Tower built?"}
MARKS = {"query": ("<search>", "</search>"), "documents": ("<information>", "</information>")}
WORDS = st.lists(st.sampled_from(["when", "tower", "it", "The", "built?", "paris"]), max_size=5).map(" ".join)


def searched(*queries, found="It opened in 1889.", answer="1889"):
    asked = "".join(f"<search>{query}</search><information>{found}</information>" for query in queries)
    return f"<think>Hm.</think>{asked}<answer>{answer}</answer>"


def test_the_best_query_counts_and_not_the_mean():
    # "when was eiffel tower built" shares all 5 words with the rewrite; "when was it built" shares 3 of 4 and 5.
    two = intent_f1(searched("when was it built", "when was eiffel tower built"), REWRITE, **MARKS)
    assert two.value == 1
    assert two.detail == {"query": "when was eiffel tower built", "calls": 2}
    assert intent_f1(searched("when was it built"), REWRITE, **MARKS).value == pytest.approx(2 * 3 / 9)
    assert intent_f1(searched("x", "when was it built", "y"), REWRITE, **MARKS).value == pytest.approx(2 * 3 / 9)


def test_no_query_pays_nothing():
    for text in ("", "1889", searched(), "<search>when was the Eiffel Tower built</search>", searched("")):
        assert intent_f1(text, REWRITE, **MARKS).value == 0


def test_case_articles_and_punctuation_do_not_count():
    assert intent_f1(searched("THE when, was a Eiffel-tower built"), REWRITE, **MARKS).value == pytest.approx(
        token_f1("THE when, was a Eiffel-tower built", REWRITE["rewrite"]).value
    )
    assert intent_f1(searched("When was Eiffel Tower built!"), REWRITE, **MARKS).value == 1


def test_what_was_found_is_no_query():
    planted = "see <search>when was the Eiffel Tower built</search>"
    assert intent_f1(searched("it", found=planted), REWRITE, **MARKS).value == 0


def test_several_rewrites_and_another_key():
    known = {"meant": ["who built it", "Eiffel Tower height"]}
    assert intent_f1(searched("Eiffel Tower height"), known, key="meant", **MARKS).value == 1
    assert best_query([], "who built it") == (0, "")


def test_a_problem_without_a_rewrite_is_refused():
    with pytest.raises(RewardError, match=r"no 'rewrite' \(it has hops\).*'key'.*'when'"):
        intent_f1(searched("a"), {"hops": 2})
    with pytest.raises(RewardError, match="only articles"):
        intent_f1(searched(), {"rewrite": "the"}, **MARKS)


def test_it_is_registered():
    method = registry.get("reward", "intent_f1")
    assert method.requires == ("text", "metadata")


@given(queries=st.lists(WORDS, max_size=4), rewrite=WORDS.filter(lambda text: text.strip(" The")))
def test_invariants(queries, rewrite):
    value = intent_f1(searched(*queries), {"rewrite": rewrite}, **MARKS).value
    assert value == pytest.approx(max((token_f1(q, rewrite).value for q in queries), default=0))
    assert intent_f1(searched(*queries[::-1]), {"rewrite": rewrite}, **MARKS).value == value
    assert intent_f1(searched(*queries, "paris"), {"rewrite": rewrite}, **MARKS).value >= value
