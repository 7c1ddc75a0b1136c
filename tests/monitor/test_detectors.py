"""Conditions that diagnosis of whole logs does not reach: their release, their severity, and what they say."""

import pytest

from guerdon.monitor.alarms import Alarms
from guerdon.monitor.history import History

BASE = {"reward/mean": 0.5, "reward/min": 0.0, "reward/max": 1.0, "trajectories": 64.0}


def observe(alarms: Alarms, steps: int, **changes) -> list[tuple[str, str]]:
    """Codes and severities of what ``steps`` steps raise; names write '/' as '__' and '~' as 'AND'."""
    changes = {name.replace("__", "/").replace("AND", "~"): value for name, value in changes.items()}
    first = alarms.history.steps
    raised = [a for step in range(first, first + steps) for a in alarms.observe(step, BASE | changes)]
    return [(alarm.code, alarm.severity) for alarm in raised]


@pytest.mark.parametrize(
    ("code", "bad", "between", "good"),
    [
        ("duplicate-rollouts", {"groups__duplicates": 0.4}, {"groups__duplicates": 0.3}, {"groups__duplicates": 0.1}),
        (
            "clip-saturation",
            {"update__x__clip_fraction": 0.4},
            {"update__x__clip_fraction": 0.25},
            {"update__x__clip_fraction": 0.1},
        ),
        ("ratio-bias", {"update__x__ratio": 1.2}, {"update__x__ratio": 1.07}, {"update__x__ratio": 1.01}),
        ("stale-policy", {"staleness": 5.0}, {"staleness": 3.5}, {"staleness": 1.0}),
        (
            "conflicting-components",
            {"components__aANDb__correlation": -0.7},
            {"components__aANDb__correlation": -0.45},
            {"components__aANDb__correlation": 0.1},
        ),
        (
            "answer-concentration",
            {"text__commonest": 0.9, "text__commonest_reward": 0.2},
            {"text__commonest": 0.75, "text__commonest_reward": 0.2},
            {"text__commonest": 0.2, "text__commonest_reward": 0.2},
        ),
    ],
)
def test_a_condition_is_raised_once_until_it_is_over_for_good(code, bad, between, good):
    alarms = Alarms()
    assert observe(alarms, 20, **good) == []
    assert observe(alarms, 15, **bad) == [(code, "warning")]
    assert observe(alarms, 30, **between) == []
    assert observe(alarms, 15, **bad) == []
    assert observe(alarms, 30, **good) == []
    assert observe(alarms, 15, **bad) == [(code, "warning")]
    fresh = Alarms()
    assert observe(fresh, 30, **between) == []


def test_a_reward_that_never_differs_cannot_say_which_copies_fail():
    never = {"reward__mean": 0.0, "reward__max": 0.0, "groups__duplicates": 0.9, "groups__zero_variance": 1.0}
    assert observe(Alarms(), 20, **never) == [("unsolvable-tasks", "critical")]


def shares(a: float, contested: float) -> dict[str, float]:
    return {
        **{"reward__a__mean": 0.5, "reward__a__std": 0.5, "reward__b__mean": 0.5, "reward__b__std": 0.5},
        **{"components__a__share": a, "components__b__share": 1 - a},
        **{"components__a__contested": contested, "components__b__contested": 1.0},
    }


def test_a_component_drowns_where_others_differ_too_and_not_by_its_weight_alone():
    assert observe(Alarms(), 20, **shares(0.01, 0.9)) == [("drowned-component", "warning")]
    assert observe(Alarms(), 20, **shares(0.01, 0.1)) == []  # it is mostly alone, and then all credit is its own
    assert observe(Alarms(), 20, **shares(0.12, 0.9)) == []
    assert observe(Alarms(), 19, **shares(0.01, 0.9)) == []  # it may rise yet
    rising = Alarms()
    observe(rising, 5, **shares(0.01, 0.9))
    assert observe(rising, 20, **shares(0.01, 0.9) | {"reward__a__mean": 0.7}) == [("drowned-component", "info")]
    alarms = Alarms()
    observe(alarms, 20, **shares(0.01, 0.9))
    finding = alarms.found["drowned-component:a"]
    assert "where component 'a' and another differ" in finding.message
    assert "0.01 times as much as one in 'b'" in finding.message
    assert finding.evidence["by"] == "b"


@pytest.mark.parametrize(("noise", "severity"), [(0.05, "info"), (0.2, "warning"), (0.4, "critical")])
def test_noise_is_as_bad_as_its_share_of_the_variance(noise, severity):
    changes = {"reward__a__mean": 0.5, "reward__a__std": 0.5, "components__a__noise": noise, "groups__repeats": 5.0}
    alarms = Alarms()
    assert observe(alarms, 3, **changes) == []  # fifteen texts that came again are too few
    assert observe(alarms, 1, **changes) == [("noisy-reward", severity)]


def test_a_gold_score_that_wavers_is_not_hacked():
    alarms = Alarms()
    for k in range(60):
        assert observe(alarms, 1, watch__gold__mean=0.5 + 0.2 * (k % 2), reward__mean=0.2 + 0.01 * k) == []


def test_a_gold_score_that_falls_with_the_reward_is_no_hacking():
    alarms = Alarms()
    for k in range(60):
        assert observe(alarms, 1, watch__gold__mean=0.8 - 0.01 * k, reward__mean=0.8 - 0.01 * k) == []


def test_gold_is_measured_from_where_it_was_best():
    alarms, raised = Alarms(), []
    for k in range(60):
        gold = 0.2 + 0.02 * k if k < 30 else 0.8 - 0.02 * (k - 30)
        raised += [(k, *a) for a in observe(alarms, 1, watch__gold__mean=gold, reward__mean=0.2 + 0.01 * k)]
    ((step, code, severity),) = raised
    assert (code, severity) == ("proxy-gold-divergence", "warning")
    assert 40 < step < 55
    assert alarms.found["proxy-gold-divergence:watch/gold/mean"].evidence["gold_best"] > 0.65


def test_length_is_of_language_only():
    grown = {"length__mean": 5.0}, {"length__mean": 200.0, "advantage__length": 0.9}
    for kind, expected in (("language", [("length-explosion", "warning")]), ("control", [])):
        alarms = Alarms(kind)
        observe(alarms, 5, **grown[0])
        assert observe(alarms, 20, **grown[1]) == expected


def test_empty_answers_are_worse_than_short_ones():
    for length, reward, expected in ((1.5, 0.3, ["info", "warning"]), (5.0, 0.3, ["info"]), (1.5, 0.95, ["info"])):
        alarms = Alarms()
        observe(alarms, 5, length__mean=50.0, reward__mean=reward)
        raised = observe(alarms, 20, length__mean=length, reward__mean=reward)
        assert raised == [("length-collapse", severity) for severity in expected]


def test_form_without_content_waits_for_forty_steps():
    start = {
        "reward__format__mean": 0.1,
        "reward__format__std": 0.3,
        "reward__task__mean": 0.1,
        "reward__task__std": 0.3,
    }
    learned = start | {"reward__format__mean": 0.9}
    alarms = Alarms()
    observe(alarms, 5, **start)
    assert observe(alarms, 34, **learned) == []
    assert observe(alarms, 1, **learned) == [("format-only-learning", "warning")]
    named = Alarms(history=History(formats=["task"]))
    observe(named, 5, **start)
    assert observe(named, 60, **learned) == []  # the user says that 'task' is the form, and it was not learned


def test_credit_off_the_mask_is_told_at_once_and_rounding_is_not():
    assert observe(Alarms(), 1, advantage__off_mask=0.1, advantage__abs_mean=1.0) == [("advantage-leak", "critical")]
    assert observe(Alarms(), 1, advantage__off_mask=1e-9, advantage__abs_mean=1.0) == []


def test_one_answer_to_everything_is_told_however_much_it_earns():
    for share, earned, expected in ((0.9, 0.95, []), (0.97, 1.0, [("answer-concentration", "warning")])):
        assert observe(Alarms(), 20, text__commonest=share, text__commonest_reward=earned) == expected


def test_a_component_that_was_lost_is_worse_than_one_that_was_learned():
    for end, severity in ((0.0, "warning"), (1.0, "info"), (0.5, "info")):
        alarms = Alarms()
        other = {"reward__b__mean": 0.5, "reward__b__std": 0.5}
        observe(alarms, 5, reward__a__mean=0.5, reward__a__std=0.5, **other)
        assert observe(alarms, 25, reward__a__mean=end, reward__a__std=0.0, **other) == [
            ("constant-component", severity)
        ]


def test_a_judge_is_held_against_what_was_meant():
    assert observe(Alarms(), 20, judge__j__length=0.5) == []
    assert observe(Alarms(), 20, judge__j__length=0.7) == [("judge-bias", "warning")]
    assert observe(Alarms(), 20, judge__j__length=0.7, judge__gold__gold_length=0.6) == []
    assert observe(Alarms(), 20, judge__j__length=0.5, judge__gold__gold_length=0.1) == [("judge-bias", "warning")]


def test_a_history_of_few_steps_has_short_windows():
    history = History(4)
    assert (history.window, history.long, history.start_steps) == (4, 4, 1)
    assert (History(1).window, History(1).start_steps) == (1, 1)
    assert (History().window, History().long, History().start_steps) == (10, 20, 5)
