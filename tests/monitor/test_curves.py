import math

import pytest

from guerdon.monitor.curves import Curves, evaluations, setting, share_interval


def curves(columns, summary=None, recipe=None) -> Curves:
    n = max(map(len, columns.values()))
    return Curves({"step": list(range(n)), "time": [0.0] * n, **columns}, summary or {}, [], recipe)


def panel(found: Curves, title: str):
    return next(p for p in found.main if p.title == title)


def test_components_of_different_scale_do_not_drown_each_other():
    panels = curves({"reward/a/mean": [0.1, 1.0], "reward/b/mean": [50.0, 100.0], "reward/c/mean": [0.0, 0.5]}).main
    assert [[s.name for s in p.series] for p in panels] == [["a", "c"], ["b"]]


def test_a_component_that_is_the_reward_itself_is_drawn_once():
    same, other = [0.1, 0.2], [0.2, 0.4]
    assert [p.title for p in curves({"reward/mean": same, "reward/task/mean": same}).main] == ["Training reward"]
    shaped = curves({"reward/mean": same, "reward/task/mean": other})
    assert [p.title for p in shaped.main] == ["Training reward", "Reward components"]


def test_every_metric_is_shown_somewhere():
    names = (
        "reward/mean reward/std reward/x/mean reward/x/std groups/zero_variance groups/all_min "
        "length/mean length/max truncated entropy/mean advantage/abs_mean update/loss update/term/loss faults "
        "update/grad_norm update/obj/approx_kl actions_per_second seconds/sample eval/greedy credit/stat trajectories"
    ).split()
    columns = {name: [0.1 * k, 0.2, 0.3 + k] for k, name in enumerate(names)}
    found = curves(columns)
    drawn = [s.name for p in [*found.main, *found.further] for s in p.series]
    assert len(drawn) == len(columns)


def test_what_is_only_watched_shares_a_picture_with_the_reward():
    found = curves({"reward/mean": [0.1, 0.9], "reward/proxy/mean": [0.1, 0.9], "watch/gold/mean": [0.5, 0.3]})
    assert [p.title for p in found.main] == ["Training reward", "Optimised and watched"]
    both = panel(found, "Optimised and watched")
    assert [(s.name, list(s.y)) for s in both.series] == [("reward", [0.1, 0.9]), ("gold (watch only)", [0.5, 0.3])]


def test_the_band_of_the_reward_is_a_standard_error_of_its_mean():
    columns = {"reward/mean": [0.5, 1.0, 2.0], "reward/std": [0.4, None, math.nan], "trajectories": [16.0] * 3}
    shown = panel(curves(columns), "Training reward")
    band = shown.series[0].band
    assert band[0] == pytest.approx((0.4, 0.6))
    assert all(math.isnan(x) for ends in band[1:] for x in ends)  # unknown, and drawn as the line itself
    assert "one standard error" in shown.note
    unknown = panel(curves({"reward/mean": [0.5, 1.0]}), "Training reward")
    assert not unknown.series[0].band
    assert "band" not in unknown.note


def test_a_share_of_problems_has_an_interval_also_at_its_ends():
    low, high = share_interval(0.5, 100)
    assert (low, high) == pytest.approx((0.5 - 0.0498, 0.5 + 0.0498), abs=1e-4)  # near .5 ± sqrt(.25 / 100)
    assert share_interval(0.0, 9) == pytest.approx((0.0, 0.1))
    assert share_interval(1.0, 9) == pytest.approx((0.9, 1.0))


@pytest.mark.parametrize(
    ("ends", "recipe", "banded"),
    [
        ((0.0, 1.0), {}, True),
        ((0.0, 2.0), {}, False),  # not a share
        ((-1.0, 1.0), {}, False),
        ((0.0, 1.0), {"shaping": [{"name": "normalise"}]}, False),  # the raw outcome's range is not known
    ],
)
def test_held_out_means_have_a_band_where_they_are_known_to_be_shares(ends, recipe, banded):
    columns = {"reward/min": [ends[0]], "reward/max": [ends[1]], "eval/greedy": [0.5], "eval/faults": [1.0]}
    shown = panel(curves(columns, recipe={"evaluation": {"problems": 100}, **recipe}), "Held-out evaluation")
    of = {s.name: s.band for s in shown.series}
    assert (of["greedy"] is not None) == banded
    assert of["faults"] is None
    assert ("68\u00a0% interval of a share of 100 problems" in shown.note) == banded


def test_a_component_that_varies_more_than_a_share_can_has_no_band():
    recipe = {"evaluation": {"problems": 100}}
    columns = {"eval/greedy/a": [0.5], "eval/greedy/b": [0.5], "reward/a/mean": [0.5], "reward/b/mean": [0.5]}
    columns |= {"reward/a/std": [0.5], "reward/b/std": [0.8]}
    shown = panel(curves(columns, recipe=recipe), "Held-out evaluation")
    assert {s.name: s.band is not None for s in shown.series} == {"greedy/a": True, "greedy/b": False}


def test_evaluations_lie_where_training_stood():
    summary = {"steps": 3, "eval": {"before": {"greedy": 0.1}, "after": {"greedy": 0.9}}}
    (found,) = curves({"eval/greedy": [None, 0.5, None]}, summary).main
    (series,) = found.series
    assert (list(series.x), list(series.y)) == ([0, 2, 3], [0.1, 0.5, 0.9])
    columns = {"step": [0, 1, 2], "eval/greedy": [None, 0.5, None]}
    assert evaluations(columns, summary) == {"greedy": {0: 0.1, 2: 0.5, 3: 0.9}}


def test_useful_groups_are_those_that_differ():
    (found,) = curves({"groups/zero_variance": [1.0, None, 0.25]}).main
    assert list(found.series[0].y) == [0.0, None, 0.75]


def test_kinds_of_faults_share_a_picture_and_are_zero_where_there_were_none():
    columns = {"faults": [3.0, 0.0, 2.0], "faults/killed": [1.0, None, 2.0], "faults/timeout": [2.0, None, None]}
    drawn = [(s.name, list(s.y)) for p in curves(columns).main for s in p.series]
    assert drawn == [("all", [3.0, 0.0, 2.0]), ("killed", [1.0, 0.0, 2.0]), ("timeout", [2.0, 0.0, 0.0])]


def test_settings_are_found_by_their_path():
    recipe = {"evaluation": {"problems": 5}, "task": "countdown"}
    assert setting(recipe, "evaluation.problems") == 5
    assert setting(recipe, "task.name") is None
    assert setting({}, "a.b") is None
