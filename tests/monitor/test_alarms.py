import json
import statistics
import time
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.monitor import alarms as module
from guerdon.monitor.alarms import Alarms, batch_metrics
from guerdon.rollouts import Rollouts, make_rollouts

HEALTHY = {
    "reward/mean": 0.5,
    "reward/min": 0.0,
    "reward/max": 1.0,
    "reward/task/mean": 0.5,
    "reward/task/std": 0.5,
    "groups/zero_variance": 0.3,
    "groups/all_min": 0.2,
    "groups/all_max": 0.1,
    "entropy/mean": 1.0,
    "truncated": 0.1,
    "faults": 0.0,
    "trajectories": 64.0,
    "update/loss": -0.01,
    "update/grad_norm": 1.0,
    "update/ppo_clip/approx_kl": 0.01,
    "update/kl/kl": 0.05,
    "eval/greedy": 0.5,
}


def run(alarms: Alarms, steps: int, first: int = 0, **changes) -> list:
    """Observe ``steps`` healthy steps with some metrics changed; names write '/' as '__'."""
    changes = {name.replace("__", "/"): value for name, value in changes.items()}
    raised = []
    for step in range(first, first + steps):
        metrics = {k: v for k, v in (HEALTHY | changes).items() if v is not None}
        raised += alarms.observe(step, metrics)
    return raised


def codes(raised) -> list[tuple[str, str, int]]:
    return [(a.code, a.severity, a.step) for a in raised]


# Metrics of a batch -------------------------------------------------------------------------------------------


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


# Alarms -------------------------------------------------------------------------------------------------------


def test_a_healthy_run_raises_nothing():
    assert run(Alarms(), 60) == []


def test_a_short_unlucky_stretch_raises_nothing():
    alarms = Alarms()
    run(alarms, 20)
    assert run(alarms, 4, first=20, groups__zero_variance=1.0, truncated=1.0, entropy__mean=0.01) == []


def test_no_signal_names_the_chance_that_is_left_and_the_remedies():
    (alarm,) = run(Alarms(), 30, reward__max=0.0, groups__zero_variance=1.0, groups__all_min=1.0)
    assert (alarm.code, alarm.severity, alarm.step) == ("no-signal", "critical", 4)
    assert "in the first 5 steps no trajectory of 320 earned a reward above the minimum 0 " in alarm.message
    assert "below 0.9%" in alarm.message
    for remedy in ("known to be right", "easier problems", "warm_start", "group_size", "partial credit"):
        assert remedy in alarm.message
    assert alarm.evidence == {"reward": 0.0, "trajectories": 320, "steps": 5}


def test_no_signal_waits_for_enough_trajectories():
    raised = run(Alarms(), 30, trajectories=8.0, reward__max=0.0, groups__zero_variance=None)
    assert codes(raised) == [("no-signal", "critical", 12)]


def test_no_signal_of_a_task_that_is_solved_from_the_start():
    (alarm,) = run(Alarms(), 8, reward__min=1.0)
    assert alarm.code == "no-signal"
    assert "the task is already solved" in alarm.message
    assert "easier" not in alarm.message


def test_no_signal_ends_with_the_first_success_and_then_zero_variance_speaks():
    alarms = Alarms()
    silent = {"groups__zero_variance": 1.0, "groups__all_min": 1.0}
    assert codes(run(alarms, 12, reward__max=0.0, **silent)) == [("no-signal", "critical", 4)]
    assert codes(run(alarms, 1, first=12, reward__max=1.0, **silent)) == [("zero-variance-groups", "warning", 12)]


@pytest.mark.parametrize(
    ("low", "high", "cause", "severity", "word"),
    [
        (0.9, 0.05, "unsolvable", "warning", "all fail"),
        (0.1, 0.85, "saturated", "info", "harder problems"),
        (0.2, 0.2, "alike", "warning", "temperature"),
    ],
)
def test_zero_variance_tells_unsolvable_from_saturated(low, high, cause, severity, word):
    (alarm,) = run(Alarms(), 15, groups__zero_variance=0.95, groups__all_min=low, groups__all_max=high)
    assert (alarm.code, alarm.severity, alarm.step) == ("zero-variance-groups", severity, 9)
    assert alarm.evidence["cause"] == cause
    assert alarm.evidence["share"] == pytest.approx(0.95)
    assert word in alarm.message
    assert "95%" in alarm.message


def test_an_alarm_is_raised_again_only_after_it_was_over():
    alarms = Alarms()
    assert len(run(alarms, 30, groups__zero_variance=0.95, groups__all_min=0.9)) == 1
    assert run(alarms, 30, first=30, groups__zero_variance=0.8, groups__all_min=0.8) == []  # above the release
    assert run(alarms, 30, first=60, groups__zero_variance=0.95, groups__all_min=0.9) == []
    assert run(alarms, 30, first=90, groups__zero_variance=0.5) == []
    assert codes(run(alarms, 30, first=120, groups__zero_variance=0.95, groups__all_min=0.9)) == [
        ("zero-variance-groups", "warning", 128)
    ]


def test_an_alarm_is_raised_again_when_it_becomes_more_severe():
    alarms = Alarms()
    run(alarms, 20)
    assert codes(run(alarms, 1, first=20, faults=1.0)) == [("reward-faults", "info", 20)]
    assert codes(run(alarms, 9, first=21, faults=10.0)) == [("reward-faults", "warning", 24)]
    assert codes(run(alarms, 10, first=30, faults=64.0)) == [("reward-faults", "critical", 39)]
    assert run(alarms, 20, first=40) == []
    assert codes(run(alarms, 1, first=60, faults=1.0)) == [("reward-faults", "info", 60)]


def test_a_batch_of_which_nothing_is_left_counts_as_faults():
    alarms = Alarms()
    (alarm,) = alarms.observe(0, {"faults": 64.0})
    assert (alarm.code, alarm.severity, alarm.evidence) == ("reward-faults", "critical", {"faults": 64.0, "share": 1.0})
    assert "faults.jsonl" in alarm.message


def test_entropy_collapse_is_measured_from_the_start():
    alarms = Alarms()
    run(alarms, 20)
    raised = run(alarms, 20, first=20, entropy__mean=0.05)
    # (9 k-step means of 1.0 mixed with 0.05): below 0.1 once all ten are 0.05
    assert codes(raised) == [("entropy-collapse", "warning", 29)]
    assert raised[0].evidence == {"start": pytest.approx(1.0), "now": pytest.approx(0.05)}
    assert run(alarms, 20, first=40, entropy__mean=0.15) == []  # between release and threshold
    run(alarms, 20, first=60, entropy__mean=0.9)
    assert len(run(alarms, 20, first=80, entropy__mean=0.05)) == 1


def test_entropy_may_fall_where_the_reward_is_near_its_top():
    alarms = Alarms()
    run(alarms, 20)
    assert run(alarms, 20, first=20, entropy__mean=0.01, reward__mean=0.95) == []


@pytest.mark.parametrize("start", [0.001, -2.0])
def test_entropy_without_room_to_fall_is_not_judged(start):
    alarms = Alarms()
    run(alarms, 20, entropy__mean=start)
    assert run(alarms, 20, first=20, entropy__mean=start - 3) == []


def test_kl_blowup_of_an_update_and_of_the_reference():
    alarms = Alarms()
    run(alarms, 5)
    (update,) = run(alarms, 5, first=5, update__ppo_clip__approx_kl=0.5)
    assert (update.code, update.step) == ("kl-blowup", 5)  # (0.01 + 0.01 + 0.5) / 3 > 0.1
    assert update.evidence == {"metric": "update/ppo_clip/approx_kl", "kl": pytest.approx(0.52 / 3), "limit": 0.1}
    assert "training.epochs" in update.message
    (reference,) = run(alarms, 5, first=10, update__kl__kl=2.0)
    assert (reference.code, reference.step) == ("kl-blowup", 11)
    assert "reference" in reference.message
    assert run(alarms, 5, first=15, update__kl__kl=0.6) == []  # above the release of 0.5
    assert len(run(alarms, 5, first=20, update__kl__kl=3.0)) == 0


def test_truncation_is_for_language_only():
    assert codes(run(Alarms(), 20, truncated=0.6)) == [("truncation", "warning", 9)]
    assert run(Alarms("control"), 20, truncated=1.0) == []


def test_a_component_that_never_differs_is_named():
    changes = {"reward__style__mean": 0.0, "reward__style__std": 0.0}
    (alarm,) = run(Alarms(), 30, **changes)
    assert (alarm.code, alarm.severity, alarm.step) == ("constant-component", "warning", 19)
    assert alarm.evidence == {"component": "style", "value": 0.0}
    assert "never differed" in alarm.message


def test_a_component_that_was_learned_is_only_good_to_know():
    alarms = Alarms()
    run(alarms, 5, reward__style__mean=0.5, reward__style__std=0.5)
    raised = run(alarms, 30, first=5, reward__style__mean=1.0, reward__style__std=0.0)
    assert codes(raised) == [("constant-component", "info", 24)]


def test_a_single_constant_component_is_left_to_the_other_alarms():
    assert run(Alarms(), 30, reward__task__std=0.0) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_critical(bad):
    alarms = Alarms()
    run(alarms, 5)
    (alarm,) = run(alarms, 5, first=5, update__loss=bad)
    assert (alarm.code, alarm.severity, alarm.step) == ("not-finite", "critical", 5)
    assert alarm.evidence == {"update/loss": str(bad)}


def test_few_metrics_are_no_error():
    alarms = Alarms()
    assert [alarms.observe(step, {}) for step in range(30)] == [[]] * 30


def test_alarms_and_their_memory_are_json_and_survive_a_restart():
    def metrics(step):
        late = step >= 25
        return {
            "groups/zero_variance": 0.95 if late else 0.3,
            "groups/all_min": 0.9,
            "entropy/mean": 0.01 if late else 1.0,
            "reward/style/std": 0.5 if step < 2 else 0.0,
            "reward/style/mean": 0.5 if step < 2 else 1.0,
            "update/kl/kl": 5.0 if step > 30 else 0.0,
        }

    whole, raised = Alarms(), []
    for step in range(60):
        raised += whole.observe(step, HEALTHY | metrics(step))
    assert {a.code for a in raised} == {
        "zero-variance-groups",
        "entropy-collapse",
        "constant-component",
        "kl-blowup",
    }
    json.dumps([asdict(a) for a in raised], allow_nan=False)
    for stop in (0, 3, 19, 27, 33, 40, 59):
        first, again, pieces = Alarms(), Alarms(), []
        for step in range(stop):
            pieces += first.observe(step, HEALTHY | metrics(step))
        again.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        for step in range(stop, 60):
            pieces += again.observe(step, HEALTHY | metrics(step))
        assert pieces == raised
        assert again.state_dict() == whole.state_dict()


def test_thresholds_release_below_where_they_raise():
    assert module.ZERO_VARIANCE_RELEASE < module.ZERO_VARIANCE_SHARE
    assert module.TRUNCATED_RELEASE < module.TRUNCATED_SHARE
    assert module.ENTROPY_RELEASE > module.ENTROPY_SHARE
    assert module.KL_RELEASE < 1


def test_observing_costs_well_under_a_percent_of_a_step():
    alarms = Alarms()
    run(alarms, 30)
    began = time.perf_counter()
    run(alarms, 200, first=30)
    assert (time.perf_counter() - began) / 200 < 0.002  # a step takes 0.2 s and more
