"""Detection rewards against slow implementations of their definitions, and against whatever a policy may write."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import get
from guerdon.rewards.boxes import box_iou, pairwise_giou
from guerdon.rewards.detection import (
    box_criterion,
    box_detection,
    box_map,
    box_map_length,
    box_repetition,
    clamped,
    criterion,
)
from guerdon.rewards.objects import read_objects

ALL = [box_map, box_map_length, box_detection, box_criterion]
DETECTING = ALL[:3]
EARLY = {"precision": (0.5, 0.75), "hit": 0.5, "recall": (0.5, 0.75)}
LATE = {"precision": (0.75, 0.9), "hit": 0.75, "recall": (0.5, 0.75)}


def item(box, label="cat"):
    return {"bbox_2d": list(box), "label": label}


def said(items):
    return f"<think>hm</think><answer>\n```json\n{json.dumps(items)}\n```\n</answer>"


ONE = [item((0, 0, 10, 10))]
FAR = [item((100 + 20 * i, 100, 110 + 20 * i, 110)) for i in range(9)]
FOUR = [item((40 * i, 0, 40 * i + 10, 10)) for i in range(4)]


def boxes():
    return st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    )


def items(least=0, labels="abc"):
    return st.lists(st.builds(item, boxes(), st.sampled_from(labels)), min_size=least, max_size=5)


def cells(box):
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def iou(a, b):
    return len(cells(a) & cells(b)) / len(cells(a) | cells(b))


def giou(a, b):
    hull = cells((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    union = cells(a) | cells(b)
    return iou(a, b) - (len(hull) - len(union)) / len(hull)


def slow_map(predicted, reference, drop):
    """COCO's evaluation in loops, as pycocotools goes about it, for one image and equal confidence."""
    labels = {r["label"] for r in reference}
    scores = []
    for label in labels:
        wanted = [r["bbox_2d"] for r in reference if r["label"] == label]
        ranked = [p for p in predicted if p["label"] == label or (p["label"] not in labels and not drop)]
        for threshold in range(50, 100, 5):
            taken, points, right = set(), [], 0
            for rank, p in enumerate(ranked, 1):
                best, match = threshold / 100, None
                for i, box in enumerate(wanted):
                    if i in taken or p["label"] != label or iou(p["bbox_2d"], box) < best:
                        continue
                    best, match = iou(p["bbox_2d"], box), i
                if match is not None:
                    taken.add(match)
                    right += 1
                points.append((right / len(wanted), right / rank))
            at = [max([p for r, p in points if r >= k / 100], default=0.0) for k in range(101)]
            scores.append(sum(at) / 101)
    return sum(scores) / len(scores)


@given(items(least=1), items(least=1, labels="ab"))
def test_map_is_cocos(predicted, reference):
    for foreign in ("false_positive", "drop"):
        expected = slow_map(predicted, reference, drop=foreign == "drop")
        assert box_map(said(predicted), reference, foreign=foreign).value == pytest.approx(expected)
        length = box_map_length(said(predicted), reference, foreign=foreign)
        assert length.value == pytest.approx(min(1, len(reference) / len(predicted)) * expected)
        assert length.detail["map"] == pytest.approx(expected, abs=1e-4)


def test_boxes_after_the_right_one_are_free_in_map_alone():
    assert [f(said(ONE + FAR), ONE).value for f in DETECTING] == pytest.approx([1.0, 0.1, 0.7 + 0.3 * (1 - 0.9 / 2)])
    assert [f(said(FAR + ONE), ONE).value for f in DETECTING] == pytest.approx([0.1, 0.01, 0.865])


def test_of_references_that_are_covered_alike_the_last_is_taken():
    references = [item((0, 0, 10, 10)), item((4, 0, 14, 10))]
    predicted = [item((2, 0, 12, 10)), item((4, 0, 14, 10))]
    # The first prediction, at an IoU of 2/3 with both, takes the second's at four thresholds of ten; recall is 1/2.
    assert box_map(said(predicted), references).value == pytest.approx((4 * 1 + 6 * 0.5) / 10 * 51 / 101)


def test_predictions_of_a_label_that_is_not_there_are_not_free():
    dogs = [item((5, 5, 9, 9), "dog")] * 3
    assert box_map(said(dogs + ONE), ONE).value == pytest.approx(0.25)
    assert box_map(said(dogs + ONE), ONE, foreign="drop").value == 1.0
    assert box_map_length(said(ONE + dogs), ONE, foreign="drop").value == 0.25


@pytest.mark.parametrize("reward", DETECTING)
def test_nothing_to_find(reward):
    for nothing in ("[]", "<answer>[]</answer>", "<answer> None. </answer>", "none", said([])):
        assert reward(nothing, []).value == 1.0
        assert reward(nothing, ONE).value == 0.0
    for reference in ([], None, "None", "[]", np.zeros((0, 4))):
        assert reward("[]", reference).value == 1.0
        assert reward(said(ONE), reference).value == 0.0
        assert reward("there is nothing", reference).value == 0.0
        assert reward("there is nothing", reference).detail["why"] == "no JSON in the text"


def test_matched_parts_by_hand():
    # Matched at IoU 1 with the wrong label, at 0.6 with the right one, and not at all (0.4); one prediction too many.
    predicted = [item((0, 0, 10, 10), "dog"), item((40, 0, 50, 6)), item((80, 0, 90, 4)), item((300, 0, 310, 10))]
    score = box_detection(said(predicted), FOUR)
    parts = {"position": 0.6 / 4, "label": 1 / 4, "completeness": 1 - (2 / 4 + 2 / 4) / 2}
    assert {key: score.detail[key] for key in parts} == pytest.approx(parts)
    assert score.value == pytest.approx(0.7 * 0.15 + 0.3 * 0.5)
    only_label = box_detection(said(predicted), FOUR, position=0.0, label=2.0, completeness=0.0)
    assert only_label.value == pytest.approx(0.25)
    assert box_detection(said(predicted), FOUR, threshold=0.3).detail["position"] == pytest.approx(0.25)
    with pytest.raises(RewardError, match="all weigh 0"):
        box_detection(said(predicted), FOUR, position=0.0, completeness=0.0)


def test_the_largest_overlap_is_matched_first():
    # Overlaps (.6, .5) and (1, .3): in the order of the text only .6 would be matched.
    references = [item((0, 0, 10, 10)), item((0, 1, 10, 4))]
    score = box_detection(said([item((0, 0, 10, 6)), item((0, 0, 10, 10))]), references)
    assert (score.detail["position"], score.detail["completeness"]) == (0.75, 1.0)
    # Overlaps (1, .6) and (.6, .2): the largest sum would be .6 + .6.
    references = [item((0, 0, 10, 10)), item((0, 0, 10, 6))]
    score = box_detection(said([item((0, 0, 10, 10)), item((0, 4, 10, 10))]), references)
    assert (score.detail["position"], score.detail["completeness"]) == (0.5, 0.5)


@given(st.lists(boxes(), min_size=1, max_size=3), st.lists(boxes(), min_size=1, max_size=3))
def test_giou_counts_cells(first, second):
    expected = [[giou(a, b) for b in second] for a in first]
    np.testing.assert_allclose(pairwise_giou(first, second), expected, atol=1e-12)


def test_giou_of_boxes_apart():
    assert pairwise_giou([(0, 0, 1, 1)], [(2, 0, 3, 1)])[0, 0] == pytest.approx(-1 / 3)


def test_thresholds():
    assert [clamped(x, 0.5, 0.75) for x in (-1, 0.49, 0.5, 0.7, 0.75, 0.76)] == [0, 0, 0.5, 0.7, 0.75, 1]


def parts(text, answer, **options):
    detail = box_criterion(text, answer, **options).detail
    return [detail[name] for name in ("format", "precision", "recall")]


@pytest.mark.parametrize("stage", [EARLY, LATE, {}])
def test_perfect_boxes_earn_everything_in_every_stage(stage):
    assert parts(said(FOUR), FOUR, **stage) == [1, 1, 1]
    assert box_criterion(said(FOUR), FOUR, **stage).value == 3.0
    for part in ("format", "precision", "recall"):
        assert box_criterion(said(FOUR), FOUR, part=part, **stage).value == 1.0


def test_a_middling_box_pays_before_the_switch_and_not_after():
    seven = said([item((0, 0, 10, 7))])
    assert parts(seven, ONE, **EARLY) == [1, 0.7, 1]
    assert parts(seven, ONE, **LATE) == [1, 0, 0]
    assert parts(seven, ONE) == [1, 0.7, 1]
    assert parts(said([item((0, 0, 10, 5))]), ONE, **EARLY) == [1, 0.5, 0.5]  # on the bounds


def test_recall_by_the_share_that_is_hit():
    found = [parts(said(FOUR[:n]), FOUR, **EARLY)[2] for n in (1, 2, 3, 4)]
    assert found == [0, 0.5, 0.75, 1]
    assert parts(said(FOUR[:1]), FOUR)[2] == 0.25


def test_a_stage_that_is_met_gives_a_group_no_signal():
    heights = np.linspace(7.6, 9.5, 8)
    texts = [said([item((0, 0, 10, h))]) for h in heights]
    early, late = ([box_criterion(text, ONE, **stage).value for text in texts] for stage in (EARLY, LATE))
    assert np.std(early) == 0
    assert np.std(late) > 0.01


def test_other_boxes_cost_only_if_all_are_counted():
    text = said(ONE + FAR)
    assert parts(text, ONE)[1] == 1.0
    assert parts(text, ONE, denominator="predicted")[1] == pytest.approx(0.1)


def test_the_unit_decides_how_much_distance_weighs_in_matching():
    references = [item((0, 0, 100, 100), "a"), item((10, 0, 110, 100), "b")]
    swapped = said([item((10, 0, 110, 100), "a"), item((0, 0, 100, 100), "b")])
    # By label each pair has IoU 90 / 110 and distance 20; by place 1 and 0.
    assert parts(swapped, references)[1] == pytest.approx(90 / 110, abs=1e-4)
    assert parts(swapped, references, unit=1.0)[1] == 1.0


@given(items(least=1), items(least=1))
def test_criterion_is_that_of_a_cheapest_assignment(predicted, reference):
    unit = max(max(r["bbox_2d"]) for r in reference)

    def cost(p, r):
        distance = sum(abs(x - y) for x, y in zip(p["bbox_2d"], r["bbox_2d"], strict=True))
        return distance / unit - (p["label"] == r["label"]) - giou(p["bbox_2d"], r["bbox_2d"])

    few, many, turned = (
        (predicted, reference, False) if len(predicted) <= len(reference) else (reference, predicted, True)
    )
    options = []
    for chosen in itertools.permutations(many, len(few)):
        pairs = [(b, a) if turned else (a, b) for a, b in zip(few, chosen, strict=True)]
        q = [giou(p["bbox_2d"], r["bbox_2d"]) for p, r in pairs]
        precision = sum(0 if x < 0.5 else 1 if x > 0.75 else x for x in q) / len(q)
        share = sum(0 if x < 0.5 else 1 if x > 0.5 else x for x in q) / len(reference)
        recall = 0 if share < 0.5 else 1 if share > 0.75 else share
        options.append((sum(cost(*pair) for pair in pairs), precision, recall))
    least = min(options)[0]
    best = [found[1:] for found in options if found[0] < least + 1e-9]
    seen = criterion(read_objects(said(predicted)), read_objects(said(reference)), **EARLY)
    assert any(seen[1:] == pytest.approx(found) for found in best)


def test_form_wants_a_list_of_boxes_with_labels_or_none_where_there_are_none():
    whole = [said(ONE), '[{"bbox": [1, 2, 3, 4.5], "label": 3}]']
    broken = [
        *("nothing", "[]", said(ONE[0]), "[1, 2, 3, 4]", "[[1, 2, 3, 4]]", '[{"bbox_2d": [1, 2, 3], "label": "a"}]'),
        *('[{"bbox_2d": [1, 2, 3, 4]}]', '[{"label": "a"}]', '[{"bbox_2d": [1, 2, 3, "4"], "label": "a"}]'),
    ]
    for text in whole:
        assert box_criterion(text, ONE, part="format").value == 1.0
        assert box_criterion(text, [], part="format").value == 0.0
    for text in broken:
        assert box_criterion(text, ONE, part="format").value == 0.0, text
        assert box_criterion(text, [], part="format").value == 1.0, text
    assert parts("nothing there", []) == [1, 1, 1]
    assert parts("nothing there", ONE) == [0, 0, 0]
    assert parts(said(ONE), []) == [0, 0, 0]


@pytest.mark.parametrize("box", [(10, 10, 0, 0), (0, 0, 10, 0), (0, 0, 0, 10), (10, 0, 0, 10), (0, 0, 1e300, 1e300)])
def test_a_box_without_an_area_counts_and_covers_nothing(box):
    assert box_map(said([item(box)]), ONE).value == 0.0
    assert box_map(said([item(box), *ONE]), ONE).value == pytest.approx(0.5)
    assert box_map_length(said([*ONE, item(box)]), ONE).value == 0.5
    assert parts(said([item(box)]), ONE, precision=(-1, 1)) == [1, -1, 0]


def test_labels_are_the_same_whatever_their_case():
    assert (
        box_map(said([item((0, 0, 10, 10), " Traffic  LIGHT ")]), [item((0, 0, 10, 10), "traffic light")]).value == 1.0
    )
    assert box_map(said([item((0, 0, 10, 10), "")]), ONE).value == 0.0
    assert box_map("[[0, 0, 10, 10]]", [[0, 0, 10, 10]]).value == 1.0  # none on either side


def test_too_many_objects_earn_nothing():
    for reward in ALL:
        assert reward(said(ONE * 101), ONE).value == 0.0
        assert reward(said(ONE * 101), ONE).detail == {"why": "more than 100 objects"}
        assert reward(said(ONE * 101), []).value == 0.0
        assert reward(said(ONE * 3), ONE, most=3).value > 0.0


@pytest.mark.parametrize("answer", ["a cat", 7, [[0, 0, 1]], [item((0, 0, 0, 1))], {"label": "cat"}, ["cat"]])
def test_a_reference_that_cannot_be_used_is_a_fault(answer):
    for reward in ALL:
        with pytest.raises(RewardError, match=f"reward '{reward.__name__}'.*fix the task's answers"):
            reward(said(ONE), answer)


@pytest.mark.parametrize(
    "answer", [ONE, ONE[0], json.dumps(ONE), said(ONE), tuple(ONE), [{"box": (0, 0, 10, 10), "label": "cat"}]]
)
def test_references_come_as_tasks_have_them(answer):
    assert [reward(said(ONE), answer).value for reward in ALL] == [1, 1, 1, 3]
    assert box_map("[0, 0, 10, 10]", np.array([0.0, 0.0, 10.0, 10.0])).value == 1.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.builds(item, boxes()),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["bbox_2d", "box", "label"]), inner),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.text(max_size=60) | JSON.map(json.dumps) | JSON.map(said))
def test_whatever_is_written_has_a_value(text):
    for reference in (ONE, []):
        for reward, most in zip(ALL, (1, 1, 1, 3), strict=True):
            assert 0 <= reward(text, reference).value <= most
    assert -1 < box_repetition(text).value <= 0


def test_repetition_of_objects():
    assert box_repetition(said(ONE + ONE + FAR)).value == pytest.approx(-1 / 11)
    assert box_repetition(said(ONE + FAR)).value == 0.0
    assert box_repetition(said([*ONE, item((0, 0, 10, 10), "dog")])).value == 0.0
    assert box_repetition(said(ONE * 200)).value == pytest.approx(-199 / 200)


def test_repetition_of_words():
    assert box_repetition("a b c d e f g A b c d e f g").value == pytest.approx(-2 / 9)
    assert box_repetition("a a a a a").value == 0.0
    assert box_repetition("a a a a a", words=2).value == pytest.approx(-3 / 4)
    assert box_repetition("").value == 0.0


def test_the_first_box_alone_for_referring_expressions():
    answer = [0, 0, 10, 10]
    assert box_iou("[0, 0, 10, 7] [0, 0, 10, 10]", answer, award="first").value == pytest.approx(0.7)
    assert box_iou("[0, 0, 10, 7] [3, 3, 3, 3]", answer, award="first", format_weight=0.5).value == pytest.approx(0.85)
    assert box_iou("[0, 0, 0, 7] [0, 0, 10, 10]", answer, award="first").value == 0.0
    assert box_iou("none", answer, award="first").value == 0.0
    assert box_iou("[0, 0, 10, 7]", ONE, award="first").value == box_iou("[0, 0, 10, 7]", ONE[0]).value == 0.7
    with pytest.raises(RewardError, match="reward 'box_iou'"):
        box_iou("[0, 0, 10, 7]", [{"label": "cat"}])


def test_options_are_checked():
    with pytest.raises(RecipeError, match="the lower bound comes first"):
        get("reward", "box_criterion").bind({"precision": [0.9, 0.5]})
    bound = get("reward", "box_criterion").bind({"precision": [0.75, 0.9], "hit": 0.75, "part": "precision"})
    assert bound.call(said([item((0, 0, 10, 7))]), ONE).value == 0.0
