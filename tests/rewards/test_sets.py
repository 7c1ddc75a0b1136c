import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import get
from guerdon.rewards.sets import evidence_score, evidence_set, triplet_set, tuple_set_score
from guerdon.rewards.structure import tags

WANTED = [["1", "color", "red"], ["2", "size", "large"]]
ALL = [
    (str(index), attribute, value)
    for index in range(10)
    for attribute, values in {
        "color": "red blue green",
        "size": "large small tiny",
        "shape": "a b c",
        "kind": "x y z",
    }.items()
    for value in values.split()
]


def listed(tuples):
    return "\n".join(f"({', '.join(one)})" for one in tuples)


@pytest.mark.parametrize(
    ("text", "value", "detail"),
    [
        ("(1, color, red) (2, size, large)", 10.0, ((0, 0, 2), 0, 0)),
        ("(2, size, large), (1, color, red)", 10.0, ((0, 0, 2), 0, 0)),
        ("(1, color, red) (2, size, small)", 5.5, ((0, 1, 1), 1, 0)),
        ("(1, color, red) (2, shape, a)", 4.5, ((1, 0, 1), 1, 0)),
        ("(1, color, red) (3, size, large)", 4.0, ((0, 0, 1), 1, 0)),
        ("(1, color, red)", 4.0, ((0, 0, 1), 0, 1)),
        ("", -2.0, ((0, 0, 0), 0, 2)),
        ("I see no change at all", -2.0, ((0, 0, 0), 0, 2)),
        ("(1, color, red) (1, color, red)", 4.0, ((0, 0, 1), 1, 0)),
        ("(1, color, red) (1, color, blue)", 4.0, ((0, 0, 1), 1, 0)),
        ("(1, color, red, again) (2, size)", -2.0, ((0, 0, 0), 2, 0)),
    ],
)
def test_scores_by_hand(text, value, detail):
    score = triplet_set(text, WANTED)
    assert score.value == pytest.approx(value)
    assert tuple(score.detail.values()) == detail


def test_a_tuple_right_in_part_is_charged_for_or_not():
    text = "(1, color, red) (2, size, small)"
    assert triplet_set(text, WANTED).value == pytest.approx(5 + 1.5 - 1)
    assert triplet_set(text, WANTED, wrong="no_match").value == pytest.approx(5 + 1.5)
    assert triplet_set("(1, color, red) (3, size, small)", WANTED, wrong="no_match").value == pytest.approx(5 - 1)


def test_naming_everything_pays_only_without_the_penalty():
    assert len(ALL) == 120
    seen = triplet_set(listed(ALL), WANTED)
    assert seen.value == pytest.approx(10 - 118)
    assert triplet_set(listed(ALL), WANTED, p_wrong=0).value == pytest.approx(10)
    assert triplet_set("", WANTED, p_missing=0).value == 0.0


def test_the_best_credit_is_given_first():
    # The first prediction agrees in part with what the second has right, and must not take its place.
    text = "(2, size, small) (2, size, large)"
    assert triplet_set(text, [["2", "size", "large"]]).value == pytest.approx(5 - 1)
    two = [["2", "size", "large"], ["2", "color", "red"]]
    assert triplet_set(text, two).value == pytest.approx(5 + 0.5 - 1), "what is left of the second: its object"


def test_nothing_wanted():
    assert triplet_set("none", []).value == 0.0
    assert triplet_set("(1, color, red) (2, size, large)", "none").value == -2.0
    assert triplet_set("(1, color, red)", [], normalise=True).value == pytest.approx(-1 / 5)


def test_normalised_and_generic():
    assert triplet_set("(1, color, red) (2, size, large)", WANTED, normalise=True).value == 1.0
    assert triplet_set("(1, color, red)", WANTED, normalise=True).value == pytest.approx(0.4)
    pairs = {"credits": (1.0, 2.0)}
    assert triplet_set("(a, x) (b, z)", [["a", "x"], ["b", "y"]], **pairs).value == pytest.approx(2 + 1 - 1)
    assert triplet_set("[a, b, c, d]", [["a", "b", "c", "d"]], credits=(0, 0, 0, 1)).value == 1.0


@pytest.mark.parametrize(
    "text",
    [
        '[["1", "color", "red"], ["2", "size", "large"]]',
        "[(1, 'Color', 'RED'), (2, size,\n  large)]",
        "(9, x, y) <answer>(1,color,red),(2,size,large)</answer> (8, x, y)",
        "(1, colour, crimson) (2, size, large)",
    ],
)
def test_ways_to_write_tuples(text):
    synonyms = {"Colour": "color", "crimson": "red"}
    assert triplet_set(text, WANTED, synonyms=synonyms).value == 10.0
    assert triplet_set(text, str(WANTED), synonyms=synonyms).value == 10.0


@pytest.mark.parametrize("answer", [None, 5, "somewhere else", [["1", "color"]], ["1", "color", "red"], [1, 2, 3]])
def test_a_reference_that_is_no_set_of_triplets_is_an_error(answer):
    with pytest.raises(RewardError, match="reward 'triplet_set': the reference answer is"):
        triplet_set("(1, color, red)", answer)


@pytest.mark.parametrize("options", [{"credits": []}, {"credits": [1.0, 0.5]}, {"credits": [-1.0]}, {"p_wrong": -1}])
def test_options_without_meaning_are_refused(options):
    with pytest.raises(RecipeError, match="reward 'triplet_set'"):
        get("reward", "triplet_set").validate(options)


def test_the_published_form_reward_is_the_tags():
    text = "<think>look</think><answer>(1, color, red) (2, size, large)</answer>"
    assert tags(text).value + triplet_set(text, WANTED).value == 11.0


FIELD = st.sampled_from("abc")
TUPLES = st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=5)


@given(TUPLES, TUPLES, st.sampled_from(["not_exact", "no_match"]), st.randoms())
def test_the_order_of_tuples_does_not_matter(predicted, reference, wrong, random):
    value = tuple_set_score(predicted, reference, wrong=wrong).value
    assert tuple_set_score(random.sample(predicted, len(predicted)), reference, wrong=wrong).value == value
    assert tuple_set_score(predicted, random.sample(reference, len(reference)), wrong=wrong).value == value


@given(TUPLES, TUPLES)
def test_no_matching_one_to_one_earns_more(predicted, reference):
    credits = (0.0, 0.5, 1.5, 5.0)
    gain = np.zeros((len(predicted), len(reference)))
    for (i, a), (j, b) in itertools.product(enumerate(predicted), enumerate(reference)):
        gain[i, j] = credits[common(a, b)]
    best = gain[linear_sum_assignment(gain, maximize=True)].sum()
    score = tuple_set_score(predicted, reference, p_wrong=0, p_missing=0)
    assert score.value == pytest.approx(best)
    assert sum(score.matched) <= min(len(predicted), len(reference))


def common(first, second):
    """Leading fields that two tuples share."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), len(first))


@given(st.text(alphabet="()[],ab1 \n<>/answer", max_size=60))
def test_any_text_has_a_score(text):
    assert triplet_set(text, WANTED).value <= 10
    assert -1 <= evidence_set(text, ["1"], {"candidates": ["1", "2"]}).value <= 1


POOL = {"candidates": [f"p{i}" for i in range(20)]}
GOLD = ["p3", "p7"]


@pytest.mark.parametrize(
    ("chosen", "wide", "tight"),
    [
        (["p3", "p7"], 1.0, 1.0),
        (["p7"], 0.5, 0.5),
        ([], 0.0, 0.0),
        (["p7", "p3", "p1"], 1.0, 1 - 0.5 * 1 / 2),
        (["p7", "p3", "p0", "p1", "p2", "p4"], 1.0, 1 - 0.5 * 4 / 2),
        (["p7", "p3", "p0", "p1", "p2", "p4", "p5"], 1 - 0.1 * 1 / 2, 1 - 0.5 * 5 / 2),
        (POOL["candidates"], 1 - 0.1 * 14 / 2, -1.0),
    ],
)
def test_evidence_by_hand_in_both_stages(chosen, wide, tight):
    text = f"It stands in [3]. <answer>{json.dumps(chosen)}</answer>"
    assert evidence_set(text, GOLD, POOL).value == pytest.approx(wide)
    assert evidence_set(text, GOLD, POOL, margin=0, penalty=0.5).value == pytest.approx(tight)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("p3 and p7", "no JSON"),
        ('{"ids": ["p3"]}', "want a list of ids, got dict"),
        ('["p3", "p3"]', "an id stands twice"),
        ('["p3", "p99"]', "no candidate has the id 'p99'"),
        ('["p3", null]', "None is no id"),
        ('["p3", true]', "True is no id"),
        ('[["p3"]]', "is no id"),
        ('["p3"', "no JSON"),
    ],
)
def test_what_is_no_choice_is_worse_than_choosing_nothing(text, why):
    score = evidence_set(text, GOLD, POOL)
    assert score.value == -1.0
    assert why in score.detail["why"]
    assert evidence_set("[]", GOLD, POOL).value == 0.0


def test_the_best_of_several_sufficient_sets_counts():
    several = [["p3", "p7"], ["p5"]]
    assert evidence_set('["p5"]', several, POOL).value == 1.0
    assert evidence_set('["p5"]', several, POOL).detail == {"covered": 1, "of": 1, "chosen": 1}
    assert evidence_set('["p3"]', several, POOL).value == 0.5
    assert evidence_set('["p5"]', several[0], POOL).value == 0.0


def test_candidates_may_be_numbers_or_texts_by_id_or_unknown():
    assert evidence_set("[3, 7]", [3, 7], {"candidates": list(range(9))}).value == 1.0
    assert evidence_set('["3", 7]', ["3", "7"], {"candidates": {"3": "so", 7: "too"}}).value == 1.0
    assert evidence_set("[3]", [3, 7], {"ids": [3, 7]}, candidates="ids").value == 0.5
    assert evidence_set("[3, 99]", [3, 7], None, candidates=None).value == 0.5


@pytest.mark.parametrize("answer", [None, [], "p3", [[]], [["p3"], []], [1.5]])
def test_problems_without_evidence_are_errors(answer):
    with pytest.raises(RewardError, match="reward 'evidence_set': the reference answer"):
        evidence_set('["p3"]', answer, POOL)


@pytest.mark.parametrize("metadata", [None, {}, {"candidates": 5}])
def test_problems_without_candidates_are_errors(metadata):
    with pytest.raises(RewardError, match="metadata's 'candidates'"):
        evidence_set('["p3"]', GOLD, metadata)


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9), min_size=1), st.integers(0, 4), st.floats(0, 2))
def test_a_passage_that_is_needed_never_costs_and_one_that_is_not_never_pays(chosen, gold, margin, penalty):
    value = evidence_score(chosen, gold, margin=margin, penalty=min(penalty, 1.0))
    for one in set(range(10)) - chosen:
        more = evidence_score(chosen | {one}, gold, margin=margin, penalty=min(penalty, 1.0))
        assert more >= value - 1e-9 if one in gold else more <= value + 1e-9
