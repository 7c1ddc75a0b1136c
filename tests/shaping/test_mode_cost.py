import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.registry import get
from guerdon.shaping.mode_cost import (
    FORCED,
    MODES,
    cost_of_pass,
    easiness,
    mode_cost_reward,
    mode_factor,
    mode_of,
)

quick = settings(derandomize=True, deadline=None, max_examples=25)
INSTANT = {FORCED: "instant"}


def test_golden_factors():
    easy = torch.tensor([0.9, 0.0, 1.0])
    assert mode_factor(easy, torch.zeros(3).bool()).tolist() == pytest.approx([0.19, 1.0, 0.0])
    assert mode_factor(easy, torch.ones(3).bool()).tolist() == [1.0, 1.0, 1.0]
    assert mode_factor(easy, torch.zeros(3).bool(), floor=0.3).tolist() == pytest.approx([0.3, 1.0, 0.3])
    assert mode_factor(easy, torch.zeros(3).bool(), least=0.95).tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert mode_factor(easy, torch.zeros(3).bool(), exponent=1.0).tolist() == pytest.approx([0.1, 1.0, 0.0])


def test_easiness_by_hand():
    right = torch.tensor([True, True, False, True, True])
    forced = torch.tensor([True, False, True, False, True])
    group = torch.tensor([9, 9, 9, 4, 2])
    assert easiness(right, forced, group).tolist() == [0.5, 0.5, 0.5, 0.0, 1.0]
    smooth = easiness(right, forced, group, prior=0.5, prior_count=2.0)
    assert smooth.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 2 / 3])


answers = st.lists(
    st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from([None, *MODES]), st.booleans()), min_size=1, max_size=12
)


@quick
@given(answers, st.integers(0, 99))
def test_the_product_against_a_brute_force(rows, seed):
    reward = torch.tensor([float(r) for _, r, _, _ in rows])
    group = torch.tensor([g for g, *_ in rows])
    text = ["words" if forced or mode is None else MODES[mode] + "words" for _, _, mode, forced in rows]
    about = [{FORCED: mode} if forced and mode else {"level": 1} for _, _, mode, forced in rows]
    out, stats = mode_cost_reward(reward, group, text, about)
    for i, (g, r, mode, _) in enumerate(rows):
        known = [q for h, q, m, f in rows if h == g and f and m == "instant"]
        p = sum(known) / len(known) if known else 0.0
        wanted = float(r) * (mode is not None) * (1.0 if mode == "instant" else 1 - p**2)
        assert out[i].item() == pytest.approx(wanted)
    assert stats["misfit"] == pytest.approx(sum(mode is None for _, _, mode, _ in rows) / len(rows))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    again, _ = mode_cost_reward(reward[order], group[order], [text[i] for i in order], [about[i] for i in order])
    assert torch.allclose(again, out[order])


def test_free_answers_in_the_cheap_mode_say_nothing_of_how_easy_a_problem_is():
    text = ["x", "<instant>x", "<instant>x", "<reasoning>x"]
    out, _ = mode_cost_reward(torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.zeros(4).long(), text, [INSTANT, {}, {}, {}])
    assert out.tolist() == [0.0, 1.0, 1.0, 1.0]


def test_templates_hold_after_the_tag_and_for_forced_answers_too():
    options = {"templates": {"reasoning": r".*<answer>.*</answer>$"}}
    text = ["<reasoning>\nso\n<answer>3</answer>", "<reasoning>so 3", "<answer>3</answer>", "3"]
    about = [{}, {}, {FORCED: "reasoning"}, {FORCED: "reasoning"}]
    out, stats = mode_cost_reward(torch.ones(4), torch.zeros(4).long(), text, about, **options)
    assert out.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert stats == {"misfit": 0.5, "easiness": 0.0, "costly": 1.0}
    with pytest.raises(ValueError, match="no mode 'slow'"):
        mode_cost_reward(torch.ones(1), torch.zeros(1).long(), ["x"], [{}], templates={"slow": "x"})
    with pytest.raises(Exception, match="not a regular expression"):
        get("shaping", "mode_cost_reward").bind({"templates": {"reasoning": "("}})


def test_the_sum_and_the_floor():
    about = [INSTANT, {}, {}]
    text = ["x", "<agentic>x", "<agentic>x"]
    reward, group = torch.tensor([1.0, 1.0, 0.0]), torch.zeros(3).long()
    assert mode_cost_reward(reward, group, text, about)[0].tolist() == [1.0, 0.0, 0.0]
    assert mode_cost_reward(reward, group, text, about, floor=0.2)[0].tolist() == pytest.approx([1.0, 0.2, 0.0])
    total, _ = mode_cost_reward(reward, group, text, about, form="sum", weights=(1.0, 0.5, 0.25))
    assert total.tolist() == pytest.approx([1.75, 1.5, 0.5])


def test_reading_a_mode():
    assert mode_of(" \n<instant>4", MODES) == ("instant", "4")
    assert mode_of("so <instant>4", MODES) == (None, "so <instant>4")
    assert mode_of("<deep>er", {"a": "<deep>", "b": "<deep>er"}) == ("b", "")


def test_cost_of_pass():
    assert cost_of_pass(torch.tensor([1, 20]), torch.tensor([True, False])) == 21.0
    assert cost_of_pass(torch.tensor([2.0, 4.0]), torch.tensor([0.5, 1.0])) == pytest.approx(4.0)
    assert cost_of_pass(torch.tensor([1.0]), torch.tensor([0.0])) == math.inf
    assert cost_of_pass(torch.zeros(0), torch.zeros(0)) == math.inf


def test_no_rows():
    out, stats = mode_cost_reward(torch.zeros(0), torch.zeros(0).long(), [], [])
    assert len(out) == 0
    assert stats == {}
