import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.registry import get
from guerdon.shaping.normalise import (
    PercentileLogistic,
    Percentiles,
    RunningRescale,
    cells_of,
    percentile_logistic,
    percentiles,
)

quick = settings(derandomize=True, deadline=None, max_examples=40)
CELL = Percentiles(0.1, 0.3, 0.5, 0.6, 0.9)


def scores(n=100, low=0.82, high=0.87, seed=0):
    return low + (high - low) * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_percentiles_of_a_hundred_and_one_numbers():
    x = torch.arange(101.0)[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
    assert percentiles(torch.cat([x, torch.tensor([math.nan, math.inf])])) == (10.0, 25.0, 50.0, 75.0, 90.0)
    with pytest.raises(ValueError, match="none of 2 scores is finite"):
        percentiles(torch.tensor([math.nan, math.inf]))


def test_the_median_earns_a_half_with_the_stated_slope():
    x = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = percentile_logistic(x, CELL)
    y.backward()
    assert y.item() == 0.5
    assert x.grad.item() == pytest.approx(3.0 / (4 * 0.3))
    by_hand = 1 / (1 + math.exp(-2.0 * (0.8 - 0.5) / 0.3))
    assert percentile_logistic(torch.tensor(0.8), CELL, steepness=2.0).item() == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("cell", "spread"), [((0, 1, 1, 1, 1), 1.0), ((0.2, 0.2, 0.2, 0.2, 0.2), 1e-3), ((0, 0, 0, 1e-9, 0.5), 0.5)]
)
def test_without_an_interquartile_range_the_outer_percentiles_give_the_scale(cell, spread):
    x = torch.tensor(cell[2] + 0.0004, dtype=torch.float64)
    assert percentile_logistic(x, Percentiles(*cell)).item() == pytest.approx(1 / (1 + math.exp(-3 * 0.0004 / spread)))


@quick
@given(st.floats(-3, 3), st.floats(0.01, 10), st.lists(st.floats(-2, 3), min_size=2, max_size=9, unique=True))
def test_an_affine_change_of_the_source_changes_nothing_and_order_is_kept(shift, scale, values):
    x = torch.tensor(sorted(values), dtype=torch.float64)
    seen = percentile_logistic(x, CELL)
    moved = percentile_logistic(shift + scale * x, Percentiles(*(shift + scale * p for p in CELL)))
    torch.testing.assert_close(moved, seen, atol=1e-6, rtol=1e-6)
    apart = x.diff() > 1e-6
    assert (seen.diff()[apart] > 0).all()


def test_each_cell_is_mapped_by_its_own_percentiles_and_weighted():
    shaping = PercentileLogistic(
        cells={"iou/a": CELL, "iou/b": tuple(0.2 * p for p in CELL)}, source="from", columns=["iou"]
    )
    components = torch.tensor([[0.5, 2.0], [0.1, 3.0], [math.nan, 4.0], [0.16, math.nan]], dtype=torch.float64)
    metadata = [{"from": "a"}, {"from": "b"}, {"from": "a"}, {"from": "b"}]
    reward, stats = shaping(components, ("iou", "form"), torch.tensor([2.0, 0.5]), metadata)
    high = 1 / (1 + math.exp(-3 * 0.06 / 0.06))
    assert reward.tolist() == pytest.approx([2 * 0.5 + 1.0, 2 * 0.5 + 1.5, 2.0, 2 * high])
    assert stats["iou/b/p50"] == pytest.approx(0.1)
    assert "form/p50" not in stats
    assert components[0].tolist() == [0.5, 2.0], "the raw rewards stay what they are"


def test_percentiles_come_from_the_first_scores_and_then_stay():
    shaping, names, weight = PercentileLogistic(calibration=150), ("task",), torch.ones(1)
    first, later = scores(100), scores(100, seed=1)
    seen, _ = shaping(first.unsqueeze(1), names, weight)
    torch.testing.assert_close(seen, percentile_logistic(first, percentiles(first)))
    shaping(later.unsqueeze(1), names, weight)
    of = percentiles(torch.cat([first, later[:50]]))
    probe = scores(7, low=0.0, high=1.0).unsqueeze(1)
    torch.testing.assert_close(shaping(probe, names, weight)[0], percentile_logistic(probe[:, 0], of))
    assert shaping(probe, names, weight)[1]["task/p50"] == pytest.approx(of.p50), "frozen"


def test_percentiles_can_follow_the_policy():
    shaping = PercentileLogistic(cells={"task": CELL}, refresh=0.25)
    batch = scores(50)
    shaping(batch.unsqueeze(1), ("task",), torch.ones(1))
    _, stats = shaping(batch.unsqueeze(1), ("task",), torch.ones(1))
    assert stats["task/p75"] == pytest.approx(0.75 * 0.6 + 0.25 * percentiles(batch).p75)


def test_until_warm_scores_stay_and_then_they_fill_the_unit_interval():
    rescale = RunningRescale(window=100)
    first, second = scores(63), scores(40, seed=1)
    assert rescale(first)[0].tolist() == first.tolist()
    assert rescale(first[:1])[1] == {}
    seen, stats = rescale(second)
    known = torch.cat([first, first[:1]])
    low, high = torch.quantile(known, 0.05).item(), torch.quantile(known, 0.95).item()
    assert stats == pytest.approx({"low": low, "high": high})
    torch.testing.assert_close(seen, ((second - low) / (high - low + 1e-6)).clamp(0, 1))
    assert rescale.seen.tolist() == torch.cat([known, second])[-100:].tolist()


def test_the_logistic_variant():
    rescale = RunningRescale(variant="logistic")
    known, batch = scores(64), scores(9, seed=2)
    rescale(known)
    seen, _ = rescale(batch)
    torch.testing.assert_close(seen, torch.sigmoid((batch - known.mean()) / (known.std() + 1e-6)))


def test_what_is_not_finite_is_not_remembered():
    rescale = RunningRescale(warmup=2)
    rescale(torch.tensor([0.0, math.nan, 1.0, math.inf]))
    assert rescale.seen.tolist() == [0.0, 1.0]
    assert rescale(torch.tensor([math.nan, 0.5]))[0].isnan().tolist() == [True, False]


@quick
@given(st.floats(-5, 5), st.floats(0.1, 10), st.sampled_from(["quantile", "logistic"]))
def test_an_affine_change_of_all_scores_changes_nothing(shift, scale, variant):
    here, there = RunningRescale(variant=variant), RunningRescale(variant=variant)
    for seed in range(2):
        batch = scores(64, 0.0, 1.0, seed=seed)
        seen, moved = here(batch)[0], there(shift + scale * batch)[0]
    torch.testing.assert_close(moved, seen, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["percentile_logistic", "running_rescale"])
def test_memory_survives_a_checkpoint(name):
    options = {"calibration": 90} if name == "percentile_logistic" else {"warmup": 50}
    whole, cut = get("shaping", name).bind(options), get("shaping", name).bind(options)

    def fields(seed):
        metadata = [{"kind": "ab"[i % 2]} for i in range(40)]
        columns = torch.stack([scores(40, seed=seed), scores(40, seed=seed + 9)], dim=1)
        weights = torch.ones(2, dtype=torch.float64)
        return {
            "components": columns,
            "component_names": ("x", "y"),
            "component_weights": weights,
            "metadata": metadata,
        }

    for seed in range(2):
        whole(fields(seed)), cut(fields(seed))
    fresh = get("shaping", name).bind(options)
    fresh.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    for seed in (2, 3):
        assert fresh(fields(seed)).fields["reward"].tolist() == whole(fields(seed)).fields["reward"].tolist()


def test_windows_are_kept_apart_by_source():
    shaping = get("shaping", "running_rescale").bind({"source": "kind", "warmup": 4})
    columns = torch.tensor([[0.0], [10.0], [1.0], [11.0], [0.5], [10.5], [0.2], [10.2]])
    fields = {
        "components": columns,
        "component_names": ("x",),
        "component_weights": torch.ones(1),
        "metadata": [{"kind": "ab"[i % 2]} for i in range(8)],
    }
    shaping(fields)
    outcome = shaping(fields)
    torch.testing.assert_close(outcome.fields["reward"][::2], outcome.fields["reward"][1::2], atol=1e-4, rtol=0)
    assert outcome.stats["x/b/low"] == pytest.approx(10 + outcome.stats["x/a/low"], abs=1e-5)


def test_errors_name_what_is_known():
    shaping = PercentileLogistic(columns=["tsk"])
    with pytest.raises(ValueError, match="no reward 'tsk' to normalise; known: task"):
        shaping(torch.zeros(2, 1), ("task",), torch.ones(1))
    with pytest.raises(ValueError, match="sample 1 have no 'kind'; known: b"):
        cells_of(2, "kind", [{"kind": 1}, {"b": 2}])
    with pytest.raises(ValueError, match="have no 'kind'; known: nothing"):
        cells_of(2, "kind", None)
    with pytest.raises(ValueError, match="2 <= warmup <= window"):
        RunningRescale(window=10)
    with pytest.raises(ValueError, match="low < high"):
        RunningRescale(low=0.9, high=0.1)
