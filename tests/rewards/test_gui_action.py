import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RewardError
from guerdon.registry import get
from guerdon.rewards.gui_action import gui_action, inside, read_action, score_action, word_f1

BOX = {"action": "click", "box": [2, 3, 6, 5]}
MILK = {"action": "type", "text": "Oat milk"}
DOWN = {"action": "scroll", "direction": "down"}
SEVEN = {"action": "answer", "text": "seven items"}


def said(**action):
    return f"I think so. {json.dumps(action)}"


def parts(text, wanted, **options):
    return score_action(read_action(text), wanted, **options)


@pytest.mark.parametrize("point", [[2, 3], [6, 5], [2, 5], [6, 3], [4, 3], [2, 4], [4.5, 4.5], [6.0, 5.0]])
def test_a_click_on_the_border_is_inside(point):
    assert parts(said(action="click", point=point), BOX)[:3] == (1, 1, 1)
    assert inside(point, BOX["box"])


@pytest.mark.parametrize("point", [[1.999, 4], [6.001, 4], [4, 2.999], [4, 5.001], [-4, -4]])
def test_a_click_beside_the_box_is_outside(point):
    assert parts(said(action="click", point=point), BOX)[:3] == (1, 1, 0)


@pytest.mark.parametrize(
    ("action", "wanted"),
    [
        ({"action": "long_press", "point": [4, 4]}, BOX),
        ({"action": "type", "text": "Oat milk"}, BOX),
        ({"action": "answer", "text": "Oat milk"}, MILK),
        ({"action": "back"}, DOWN),
        ({"action": "back"}, {"action": "home"}),
    ],
)
def test_the_wrong_kind_earns_nothing_for_its_argument(action, wanted):
    scores = parts(said(**action), wanted)
    assert scores[:3] == (1, 0, 0)
    assert math.isnan(scores.judge)


@pytest.mark.parametrize(
    ("text", "score"),
    [("Oat milk", 1.0), ("milk, oat!", 1.0), ("milk", 2 / 3), ("an oat drink", 0.5), ("bread", 0.0), ("", 0.0)],
)
def test_texts_are_compared_by_their_words(text, score):
    assert parts(said(action="type", text=text), MILK).argument == pytest.approx(score)


def test_texts_without_words_have_to_be_equal():
    assert word_f1("?!", "?!") == 1
    assert word_f1("?", "?!") == 0
    assert word_f1("the", "?") == 0


@pytest.mark.parametrize(("direction", "score"), [("down", (1, 1, 1)), ("up", (1, 1, 0)), ("downwards", (0, 1, 0))])
def test_directions_are_right_or_wrong(direction, score):
    assert parts(said(action="scroll", direction=direction), DOWN)[:3] == score


def test_what_has_no_argument_is_right_by_its_kind():
    assert parts(said(action="back"), {"action": "back"})[:3] == (1, 1, 1)


@pytest.mark.parametrize(
    "text",
    [
        "click at 4, 4",
        "",
        "[4, 4]",
        '{"point": [4, 4]}',
        '{"action": 3}',
        '{"action": "click", "point": [4, 4]',
        '{"action": "click", "point": [NaN, 4]}',
    ],
)
def test_without_an_action_there_is_nothing(text):
    assert parts(text, BOX)[:3] == (0, 0, 0)


@pytest.mark.parametrize("point", [None, 4, [4], [4, 4, 4], ["4", "4"], [True, 4], {"x": 4}])
def test_a_malformed_argument_costs_form_and_argument(point):
    assert parts(said(action="click", point=point), BOX)[:3] == (0, 1, 0)


def test_the_total_is_the_weighted_sum_and_parts_stand_apart():
    text = [said(action="click", point=[2, 3]), said(action="type", text="milk"), "no", said(action="back")]
    wanted = [BOX, MILK, DOWN, DOWN]
    value, stats = gui_action(text, wanted)
    assert value.tolist() == pytest.approx([1.0, 0.1 + 0.3 + 0.6 * 2 / 3, 0.0, 0.1])
    assert stats == pytest.approx({"format": 0.75, "type": 0.5, "argument": (1 + 2 / 3) / 4})
    weighed, _ = gui_action(text, wanted, format_weight=1, type_weight=2, argument_weight=3)
    assert weighed.tolist() == pytest.approx([6.0, 5.0, 0.0, 1.0])
    assert gui_action(text, wanted, part="format")[0].tolist() == [1, 1, 0, 1]
    assert gui_action(text, wanted, part="type")[0].tolist() == [1, 1, 0, 0]
    assert gui_action(text, wanted, part="judge")[0].isnan().all()


def test_a_judge_reads_answers_of_the_right_kind_only():
    seen = []

    def judge(said, wanted):
        seen.append((list(said), list(wanted)))
        return torch.tensor([0.5, 7.0])

    text = [
        said(action="answer", text="7"),
        said(action="back"),
        said(action="answer", text="six"),
        said(action="click", point=[3, 4]),
    ]
    value, stats = gui_action(text, [SEVEN, SEVEN, SEVEN, BOX], judge=judge)
    assert seen == [(["7", "six"], ["seven items"] * 2)]
    assert value.tolist() == pytest.approx([0.1 + 0.3 + 0.3, 0.1, 1.0, 1.0])
    assert stats["judge"] == pytest.approx(0.5)
    assert gui_action(text, [SEVEN, SEVEN, SEVEN, BOX], judge=judge, part="argument")[0][:3].isnan().all()
    assert gui_action([text[1]], [SEVEN], judge=judge)[0].tolist() == pytest.approx([0.1])
    with pytest.raises(ValueError, match="shape"):
        gui_action(text, [SEVEN, SEVEN, SEVEN, BOX], judge=lambda said, wanted: [0.5])
    assert gui_action(text[:1], [SEVEN])[0].tolist() == pytest.approx([0.4])


@pytest.mark.parametrize(
    "wanted",
    [None, "click", {}, {"action": "click"}, {"action": "click", "box": [6, 3, 2, 5]}, {"action": "type", "text": " "},
     {"action": "scroll", "direction": "in"}, {"action": "click", "box": [1, 2, 3, math.nan]}],
)  # fmt: skip
def test_an_unusable_reference_is_an_error(wanted):
    with pytest.raises(RewardError, match="gui_action"):
        gui_action([said(action="back")], [wanted])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.randoms())
def test_order_does_not_matter_and_scores_stay_in_range(numbers, random):
    texts = [
        said(action="click", point=[4, 4]),
        said(action="type", text="oat"),
        "",
        said(action="back"),
        "{",
        said(action="answer", text="7"),
    ]
    wanted = [BOX, MILK, DOWN, SEVEN, BOX, SEVEN]
    order = numbers[:]
    random.shuffle(order)
    value = dict(
        zip(numbers, gui_action([texts[i] for i in numbers], [wanted[i] for i in numbers])[0].tolist(), strict=True)
    )
    again, _ = gui_action([texts[i] for i in order], [wanted[i] for i in order])
    assert again.tolist() == [value[i] for i in order]
    assert all(0 <= v <= 1 for v in value.values())


def test_it_is_registered_and_its_options_are_checked():
    method = get("reward", "gui_action")
    assert method.requires == ("text", "answer")
    assert method.bind({"part": "type"})({"text": ["{}"], "answer": [DOWN]}).stats["type"] == 0
    path = method.validate({"judge": "guerdon.rewards.text:trigram_cosine"})["judge"]
    assert path(["a"], ["a"]).tolist() == pytest.approx([1.0])
