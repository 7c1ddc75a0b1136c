import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import get
from guerdon.rewards.boxes import box_iou

LEFT, RIGHT = [0, 0, 2, 2], [4, 0, 6, 2]


@pytest.mark.parametrize(
    "text",
    [
        "[0, 0, 2, 2]",
        "[0.0,0.,2e0,+2]",
        "the box is (0, 0, 2, 2).",
        "<box>(0,0),(2,2)</box>",
        "<box>(0,0)(2,2)</box>",
        '```json\n[{"bbox_2d": [0, 0, 2, 2], "label": "cat"}]\n```',
        "[[0, 0, 2, 2]]",
        "I see [9,9,10,10] <answer>[0,0,2,2]</answer> [8,8,9,9]",
    ],
)
def test_a_box_is_read_however_it_is_written(text):
    score = box_iou(text, LEFT)
    assert score.value == 1.0
    assert score.detail == {"boxes": 1, "invalid": 0, "references": 1, "ious": [1.0]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "no box",
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "[a, b, c, d]",
        "[０, ０, ２, ２]",
        "[٠, ٠, ٢, ٢]",
        "0 0 2 2",
        "[²,²,³,³]",
    ],
)
def test_no_box_is_0_and_says_so(text):
    score = box_iou(text, LEFT, format_weight=0.5)
    assert (score.value, score.detail) == (0.0, {"why": "no box in the text"})


def test_mean_iou_by_hand():
    # [0,0,2,2] and [1,0,3,2] share 2 of 6.
    assert box_iou("[1, 0, 3, 2]", LEFT).value == pytest.approx(1 / 3)
    both = [LEFT, RIGHT]
    assert box_iou("[4,0,6,2] [0,0,2,2]", both).value == 1.0
    assert box_iou("[0,0,2,2]", both).value == 0.5
    assert box_iou("[0,0,2,2] [0,0,2,2]", both).value == 0.5
    assert box_iou("[0,0,2,2] [4,0,6,2] [7,7,8,8]", both).value == pytest.approx(2 / 3)
    assert box_iou("[0,0,2,2] [0,0,2,2] [0,0,2,2]", LEFT).value == pytest.approx(1 / 3)


def test_f1_by_hand():
    both = [LEFT, RIGHT]
    assert box_iou("[0,0,2,2] [4,0,6,1]", both, award="f1").value == 1.0  # an IoU of exactly 0.5 counts
    assert box_iou("[0,0,2,2] [4,0,6,1]", both, award="f1", threshold=0.6).value == 0.5
    assert box_iou("[0,0,2,2]", both, award="f1").value == pytest.approx(2 / 3)
    assert box_iou("[0,0,2,2] [4,0,6,2] [7,7,8,8]", both, award="f1").value == pytest.approx(4 / 5)


def test_f1_matches_for_the_most_pairs_found():
    # Box by box the IoU is 1 and .38, crosswise .55 and .55: the larger sum finds one box, the smaller one two.
    boxes, references = "[0,0,10,10] [0,0,10,5.5]", [[0, 0, 10, 10], [0, 0, 5.5, 10]]
    assert box_iou(boxes, references, award="f1").value == 1.0
    assert box_iou(boxes, references).value == pytest.approx((1 + 30.25 / 79.75) / 2)


@pytest.mark.parametrize(
    "box",
    [
        "[nan, 0, 2, 2]",
        "[NaN,NaN,NaN,NaN]",
        "[0,0,inf,2]",
        "[0,0,1e999,2]",
        "[2,2,0,0]",
        "[0,0,0,2]",
        "[0,0,2,0]",
        "[0,0,1.2.3,2]",
        "[null,0,2,2]",
        "[0,0,1e13,2]",
    ],
)
def test_an_invalid_box_covers_nothing_and_spoils_the_form(box):
    alone = box_iou(box, LEFT, format_weight=0.5)
    assert alone.value == 0.0
    assert (alone.detail["boxes"], alone.detail["invalid"], alone.detail["ious"]) == (1, 1, [])
    assert box_iou(f"{box} [0,0,2,2]", LEFT).value == 0.5
    assert box_iou(f"{box} [0,0,2,2]", LEFT, award="f1", format_weight=0.25).value == pytest.approx(0.75 * 2 / 3)


def test_form_earns_its_share():
    assert box_iou("[8,8,9,9]", LEFT, format_weight=0.25).value == 0.25
    assert box_iou("[0,0,2,2]", LEFT, format_weight=0.25).value == 1.0


def test_layouts():
    assert box_iou("[0,0,2,2]", [0, 0, 2, 2], layout="xywh").value == 1.0
    assert box_iou("[1,1,2,2]", [1, 1, 2, 2], layout="cxcywh").value == 1.0
    # (1,1) with 2 by 2 reaches from 1 to 3; beside (0,0) to 2 that is 1 of 7.
    assert box_iou("[1,1,2,2]", [0, 0, 2, 2], layout="xywh").value == pytest.approx(1 / 7)
    # Centred at (1,1) and at (0,0), 2 by 2 both.
    assert box_iou("[1,1,2,2]", [0, 0, 2, 2], layout="cxcywh").value == pytest.approx(1 / 7)
    assert box_iou("[0,0,-2,-2]", [0, 0, 2, 2], layout="xywh").detail["invalid"] == 1


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "",
        "none",
        [],
        [1, 2, 3],
        [[0, 0, 2, 2], [1, 2, 3]],
        [math.nan, 0, 1, 1],
        [2, 2, 0, 0],
        [[0, 0, 2, 2], [2, 2, 0, 0]],
        {"a": 1},
        5,
        "[nan,0,1,1]",
    ],
)
def test_a_reference_without_usable_boxes_is_an_error(answer):
    with pytest.raises(RewardError, match="reward 'box_iou': the reference answer is"):
        box_iou("[0,0,2,2]", answer)


def test_references_in_every_form():
    for answer in ("[0,0,2,2]", (0, 0, 2, 2), [[0.0, 0.0, 2.0, 2.0]], np.array([LEFT]), '[{"bbox": [0, 0, 2, 2]}]'):
        assert box_iou("[0,0,2,2]", answer).value == 1.0


def test_a_flood_of_boxes_is_refused():
    score = box_iou("[0,0,2,2]" * 101, LEFT, format_weight=0.5)
    assert (score.value, score.detail) == (0.0, {"why": "more than 100 boxes"})
    assert box_iou("[0,0,2,2]" * 100, LEFT).value == pytest.approx(0.01)


@pytest.mark.parametrize("piece", ["(", "[1", "1", "[1,", "[1.1,1", "[1 ", "[1e", "[0,0,2,2]", "[nan,"])
def test_no_text_takes_long(piece):
    start = time.perf_counter()
    box_iou(piece * (1_000_000 // len(piece)), LEFT)
    box_iou("[" + piece * (1_000_000 // len(piece)), LEFT)
    assert time.perf_counter() - start < 5


BOXES = st.lists(
    st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(1, 5)] * 2).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])),
    min_size=1,
    max_size=4,
)


def cells(box):
    return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))


@given(BOXES, BOXES)
def test_both_awards_are_the_best_of_all_matchings(seen, wanted):
    def iou(a, b):
        return len(cells(a) & cells(b)) / len(cells(a) | cells(b))

    short, long = sorted((seen, wanted), key=len)
    matchings = [[iou(a, b) for a, b in zip(short, p, strict=True)] for p in itertools.permutations(long, len(short))]
    text = " ".join(str(list(box)) for box in seen)
    answer = [list(box) for box in wanted]
    assert box_iou(text, answer).value == pytest.approx(max(map(sum, matchings)) / len(long))
    most = max(sum(x >= 0.5 for x in m) for m in matchings)
    assert box_iou(text, answer, award="f1").value == pytest.approx(2 * most / (len(seen) + len(wanted)))


@pytest.mark.parametrize(
    "options", [{"threshold": 0}, {"threshold": 2}, {"format_weight": 2}, {"layout": "yxyx"}, {"most": 0}]
)
def test_options_without_meaning_are_refused(options):
    with pytest.raises(RecipeError, match="reward 'box_iou'"):
        get("reward", "box_iou").validate(options)
