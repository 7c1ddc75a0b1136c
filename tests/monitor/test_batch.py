import statistics
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.monitor.alarms import Alarms
from guerdon.monitor.batch import Columns, answer_of, batch_metrics, step_metrics
from guerdon.rollouts import Rollouts, make_rollouts


def batch(reward, group, mask=None, **fields) -> Rollouts:
    reward = torch.tensor(reward)
    mask = torch.ones(len(reward), 2).bool() if mask is None else torch.tensor(mask).bool()
    rollouts = make_rollouts(
        torch.tensor(group),
        torch.tensor(group),
        mask,
        torch.zeros(mask.shape),
        done=torch.ones(len(reward)).bool(),
        truncated=torch.arange(len(reward)) == 0,
        payload={},
        **fields,
    )
    rollouts.reward = reward
    return rollouts


def test_metrics_of_a_batch_by_hand():
    rollouts = batch(
        [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 3.0],
        [5, 5, 2, 2, 9, 9, 9, 4],
        mask=[[1, 1, 1]] * 4 + [[1, 0, 0]] * 4,
        entropy=torch.full((8, 3), 7.0).masked_fill(torch.ones(8, 3).tril(10).bool(), 2.0),
    )
    rollouts.rewards["task"] = torch.tensor([1.0, 0, 1, 1, 0, 0, float("nan"), 3])
    rollouts.rewards["dense"] = torch.tensor([[1.0, 1, 1]] * 4 + [[2.0, 50, 50]] * 4)
    rollouts.watch["gold"] = torch.tensor([[0.5, 0.5]] * 8)
    rollouts.advantage = torch.tensor([[1.0, -1, 1]] * 4 + [[-2.0, 0, 0]] * 4)
    m = batch_metrics(rollouts)
    assert m["reward/mean"] == 0.75
    assert m["reward/std"] == pytest.approx(statistics.pstdev([1, 0, 1, 1, 0, 0, 0, 3]))
    assert (m["reward/min"], m["reward/max"]) == (0.0, 3.0)
    assert m["reward/task/mean"] == pytest.approx(6 / 7)
    assert m["reward/dense/mean"] == pytest.approx((3 * 4 + 2 * 4) / 8)
    assert m["watch/gold/mean"] == 1.0
    # groups 5 (differs), 2 (both 1, in a range up to 3: neither failed nor solved), 9 (all 0); 4 is alone
    assert m["groups/zero_variance"] == pytest.approx(2 / 3)
    assert m["groups/all_min"] == pytest.approx(1 / 3)
    assert m["groups/all_max"] == 0.0
    assert (m["length/mean"], m["length/max"], m["actions"], m["trajectories"]) == (2.0, 3.0, 16.0, 8.0)
    assert m["truncated"] == 0.125
    assert m["advantage/abs_mean"] == pytest.approx((12 + 8) / 16)
    assert m["advantage/off_mask"] == 0.0
    assert m["entropy/mean"] == 2.0
    assert all(type(value) is float for value in m.values())


def test_groups_that_all_fail_or_all_succeed():
    assert groups([0.0] * 4, [0, 0, 1, 1]) == (1.0, 1.0, 0.0)
    assert groups([1.0] * 4, [0, 0, 1, 1]) == (1.0, 0.0, 1.0)
    assert groups([0.01] * 4, [0, 0, 1, 1]) == (1.0, 1.0, 0.0)  # a scorer's token for the right format
    assert groups([-1.0, -1.0, 1.0, 1.0], [0, 0, 1, 1]) == (1.0, 0.5, 0.5)
    assert groups([-200.0] * 4, [0, 0, 1, 1]) == (1.0, 1.0, 0.0)
    assert groups([500.0] * 4, [0, 0, 1, 1]) == (1.0, 0.0, 1.0)
    assert groups([0.5] * 4, [0, 0, 1, 1]) == (1.0, 0.0, 0.0)
    assert groups([0.1, 0.1, 0.1, 0.1 + 1e-7], [0, 0, 1, 1]) == (0.5, 0.5, 0.0)


def groups(reward, group) -> tuple[float, float, float]:
    m = batch_metrics(batch(reward, group))
    return m["groups/zero_variance"], m["groups/all_min"], m["groups/all_max"]


def test_groups_of_one_have_no_group_metrics():
    m = batch_metrics(batch([0.0, 1.0], [0, 1]))
    assert not [name for name in m if name.startswith("groups/")]
    assert m["reward/mean"] == 0.5


def test_a_component_that_applies_to_no_sample_is_left_out():
    rollouts = batch([0.0, 1.0], [0, 0])
    rollouts.rewards["never"] = torch.full((2,), float("nan"))
    m = batch_metrics(rollouts)
    assert "reward/never/mean" not in m
    assert m["reward/mean"] == 0.5


def test_before_shaping_the_reward_is_the_sum_of_components():
    rollouts = batch([9.0, 9.0], [0, 0])
    rollouts.reward = None
    rollouts.rewards["a"] = torch.tensor([1.0, 2.0])
    rollouts.rewards["b"] = torch.tensor([[1.0, 1.0], [0.0, 4.0]])
    assert batch_metrics(rollouts)["reward/mean"] == 4.5


def test_credit_where_the_policy_did_not_act_is_seen():
    rollouts = batch([0.0, 1.0], [0, 0], mask=[[1, 0], [1, 1]])
    rollouts.advantage = torch.tensor([[1.0, -0.5], [1.0, 1.0]])
    assert batch_metrics(rollouts)["advantage/off_mask"] == 0.5


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_metrics_ignore_order_padding_and_what_is_masked(data):
    n = data.draw(st.integers(1, 7))
    reward = data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=n, max_size=n))
    group = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    mask = [[1] * k + [0] * (4 - k) for k in data.draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))]
    order = data.draw(st.permutations(range(n)))
    plain = batch(reward, group, mask)
    plain.rewards["dense"] = torch.arange(4.0).repeat(n, 1) * plain.mask
    plain.truncated = torch.zeros(n).bool()
    other = batch([reward[i] for i in order], [10 - group[i] for i in order], [mask[i] for i in order])
    other.rewards["dense"] = torch.where(other.mask, torch.arange(4.0).repeat(n, 1), 1e6)
    other.truncated = torch.zeros(n).bool()
    assert batch_metrics(plain) == pytest.approx(batch_metrics(other), rel=1e-6)


# What goes wrong, in numbers ----------------------------------------------------------------------------------


def columns(reward, group, **fields) -> Columns:
    arrays = {name: np.array(x) for name, x in fields.items() if name != "components"}
    return Columns(
        group=np.array(group),
        length=np.array(arrays.pop("length", [np.nan] * len(reward)), float),
        components={name: np.array(x, float) for name, x in fields.get("components", {}).items()},
        reward=np.array(reward, float),
        **arrays,
    )


def test_copies_count_where_they_fail_and_repeats_wherever():
    m = step_metrics(columns([0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 2], text=[7, 7, 7, 8, 8, 7, 9, 7]))
    assert m["groups/duplicates"] == 2 / 8  # two of the three 7s of group 0
    assert m["groups/repeats"] == 3.0
    m = step_metrics(columns([0.2, 0.2, 0.4, 0.4, 0.5, 0.5], [0, 0, 0, 0, 1, 1], text=[1, 1, 2, 2, 3, 3]))
    assert m["groups/duplicates"] == 2 / 6  # the second 1, below its group's mean, and the second 3, which beats nobody


def test_noise_is_the_deviation_between_equal_texts_of_a_group():
    m = step_metrics(
        columns(
            [0] * 5, [0, 0, 0, 0, 1], text=[7, 7, 8, 8, 7], components={"a": [1, 3, 5, 5, 99], "b": [1, 1, 2, 2, 0]}
        )
    )
    assert m["components/a/noise"] == pytest.approx(1.0)  # squares 2 of two degrees of freedom
    assert m["components/b/noise"] == 0.0


def test_commonest_answer_needs_eight_problems():
    answers = [1, 1, 1, 2, 3, 4, 5, 6]
    m = step_metrics(columns([1, 0, 0, 0, 0, 0, 0, 0], range(8), answer=answers, task=list(range(8))))
    assert (m["text/commonest"], m["text/commonest_reward"]) == (3 / 8, pytest.approx(1 / 3))
    assert "text/commonest" not in step_metrics(columns([0] * 8, range(8), answer=answers, task=[0, *range(7)]))


def test_shares_are_those_of_the_credit_where_components_meet():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(50), 8)
    a, b = rng.random(400), rng.random(400)
    m = step_metrics(columns(a + 9 * b, group, components={"a": a, "b": b}))
    assert m["components/a/share"] == pytest.approx(0.1, abs=0.02)
    assert m["components/b/share"] == pytest.approx(0.9, abs=0.02)
    assert abs(m["components/a~b/correlation"]) < 0.15
    assert m["components/a/contested"] == 1.0
    m = step_metrics(columns(a + 9 * b, group, components={"a": a, "b": b}, credit=a + b))
    assert m["components/a/share"] == pytest.approx(0.5, abs=0.05)
    alone = np.where(group < 40, 0.0, b)
    m = step_metrics(columns(a + alone, group, components={"a": a, "b": alone}))
    assert m["components/a/contested"] == pytest.approx(0.2)
    assert m["components/b/contested"] == 1.0


def test_components_that_always_agree_share_evenly():
    a = np.tile([0.0, 1.0, 1.0, 0.0], 10)
    m = step_metrics(columns(2 * a, np.repeat(np.arange(20), 2), components={"a": a, "b": a}))
    assert (m["components/a/share"], m["components/b/share"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert m["components/a~b/correlation"] == pytest.approx(1.0)


def test_credit_and_length_move_together_within_groups_only():
    m = step_metrics(columns([1, 2, 10, 20], [0, 0, 1, 1], length=[4, 3, 40, 30]))
    assert m["advantage/length"] == pytest.approx(-1.0)
    assert "advantage/length" not in step_metrics(columns([1, 2, 10, 20], [0, 0, 1, 1], length=[4, 4, 40, 40]))


def test_outliers_are_far_from_all_others_and_alone():
    usual = list(np.linspace(0, 1, 99))
    assert step_metrics(columns([*usual, 50.0], range(100)))["reward/outlier"] == 50.0
    assert step_metrics(columns([*usual, 50.0], range(100)))["reward/outliers"] == 0.01
    assert step_metrics(columns([*usual, 9.0], range(100)))["reward/outliers"] == 0.0
    assert step_metrics(columns([*usual, 50.0, 50.0, 50.0], range(102)))["reward/outliers"] == 0.0
    assert step_metrics(columns([*[0.0, 0.001] * 20, 1.0], range(41)))["reward/outliers"] == 0.0
    assert "reward/outliers" not in step_metrics(columns([0.0] * 9 + [99.0], range(10)))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("plain", "plain"),
        (r"first \boxed{1} then \boxed{ 2 }", "2"),
        ("<answer>\nyes </answer> and more", "yes"),
        (r"\boxed{\frac{1}{2}}", r"\boxed{\frac{1}{2}}"),  # braces inside: the whole text, rather than a part
        (r"\boxed{1}" + "x" * 500, r"\boxed{1}" + "x" * 500),
    ],
)
def test_answer_of_a_text(text, answer):
    assert answer_of(text) == answer


def test_no_rows_and_one_row_have_few_numbers_and_no_error():
    assert step_metrics(columns([], np.array([], int), text=np.array([], int))) == {"trajectories": 0.0}
    m = step_metrics(columns([0.5], [3], text=[1], answer=[1], task=[1], components={"a": [1.0], "b": [2.0]}))
    assert (m["reward/mean"], m["trajectories"]) == (0.5, 1.0)


def test_alarms_cost_at_most_a_percent_of_a_quickstart_step():
    """Of 64 groups of 8 with two components; such a step takes 0.2 s where these numbers take 2 ms."""
    rng = np.random.default_rng(0)
    n, words = 512, 8
    rollouts = make_rollouts(
        torch.arange(64).repeat_interleave(8),
        torch.arange(64).repeat_interleave(8),
        torch.ones(n, words).bool(),
        torch.zeros(n, words),
        done=torch.ones(n).bool(),
        truncated=torch.zeros(n).bool(),
        payload={},
        text=[f"text {k}" for k in rng.integers(0, 400, n)],
        entropy=torch.ones(n, words),
    )
    for name in ("a", "b"):
        rollouts.rewards[name] = torch.rand(n)
    rollouts.reward, rollouts.advantage = torch.rand(n), torch.randn(n, words)
    alarms, times = Alarms(), []
    for k in range(15):
        began = time.process_time()
        alarms.observe(k, batch_metrics(rollouts))
        times.append(time.process_time() - began)
    assert sorted(times)[2] < 0.004


def test_short_trajectories_are_compared_by_their_tokens_and_long_ones_by_their_texts():
    tokens = torch.tensor([[5, 6, 9], [5, 6, 8], [5, 6, 0], [6, 5, 0]])
    mask = [[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0]]
    short = batch([0.0] * 4, [0] * 4, mask, tokens=tokens, text=["a", "b", "c", "d"])
    assert batch_metrics(short)["groups/repeats"] == 1.0  # the first two, for what follows the mask is none
    long = batch([0.0] * 4, [0] * 4, [[1] * 20] * 4, tokens=torch.zeros(4, 20).long(), text=["a", "b", "b", "b"])
    assert batch_metrics(long)["groups/repeats"] == 2.0
