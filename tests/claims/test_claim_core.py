import numpy as np
import pytest
import torch

from guerdon.claims.core import above, below, bootstrap, check, equal, every_seed, paired


def test_equal_wants_shape_and_distance():
    assert equal("x", torch.tensor([1.0, 2.0]), [1.0, 2.0 + 5e-7]).holds
    assert not equal("x", [1.0, 2.0], [1.0, 2.0 + 5e-6]).holds
    assert not equal("x", [1.0, 2.0], [1.0, 2.0, 3.0]).holds
    assert not equal("x", [[1.0, 2.0]], [1.0, 2.0]).holds
    assert not equal("x", float("nan"), 1.0).holds
    assert not equal("x", float("nan"), float("nan")).holds
    shown = equal("x", range(20), range(20))
    assert shown.seen == "[0, 1, 2, 3, 4, 5, 6, 7, ...]"


def test_bounds_are_strict_and_refuse_nan():
    assert above("x", 2.0, 1.0).holds
    assert not above("x", 1.0, 1.0).holds
    assert not above("x", float("nan"), 1.0).holds
    assert below("x", torch.tensor(0.5), 1.0).holds
    assert not below("x", 1.0, 1.0).holds
    assert check("x", torch.tensor(True), expected="yes", seen="yes").holds
    assert not check("x", False, expected="yes", seen="no").holds


def test_paired_needs_the_interval_and_the_seeds():
    base = torch.zeros(5)
    assert paired("x", [1.0, 1.1, 0.9, 1.0, 1.2], base).holds
    four = paired("x", [1.0, 1.1, 0.9, 1.0, -0.1], base)
    assert four.holds
    assert four.seen.endswith("4 of 5 seeds")
    assert not paired("x", [1.0, 1.1, 0.9, 1.0, -0.1], base, share=1.0).holds
    assert not paired("x", [1.0, 1.1, 0.9, -0.1, -0.1], base).holds
    assert not paired("x", [0.1, 0.1, 0.1, 0.1, -9.0], base).holds  # four seeds of five win, the mean does not
    assert not paired("x", [0.0] * 5, base).holds  # a tie is no gain
    assert not paired("x", [float("nan")] * 5, base).holds


def test_paired_the_other_way_round_and_with_a_margin():
    assert paired("steps", [10.0, 11.0, 9.0], [20.0, 22.0, 19.0], better="lower").holds
    assert not paired("steps", [10.0, 11.0, 9.0], [20.0, 22.0, 19.0]).holds
    assert paired("accuracy", [0.89, 0.91, 0.90], [0.90, 0.90, 0.90], margin=-0.02).holds
    assert not paired("accuracy", [0.89, 0.91, 0.87], [0.90, 0.90, 0.90], margin=-0.02, share=1.0).holds


def test_paired_keeps_every_seed_and_thins_curves():
    curve = torch.arange(300.0).expand(4, 300) + torch.arange(4.0).unsqueeze(1)
    seen = paired("x", [1.0, 2.0, 3.0, 4.0], [0.0] * 4, curves={"ours": curve}, axis="height")
    assert seen.method == [1.0, 2.0, 3.0, 4.0]
    assert seen.baseline == [0.0] * 4
    assert seen.curves is not None
    assert seen.curves.axis == "height"
    assert len(seen.curves.steps) == 60
    assert (seen.curves.steps[0], seen.curves.steps[-1]) == (0, 299)
    assert seen.curves.lines["ours"][-1] == (300.5, 299.0, 302.0)


def test_every_seed_counts_those_inside_the_bounds():
    assert every_seed("x", [0.9, 0.95, 0.99], above=0.8).holds
    assert not every_seed("x", [0.9, 0.95, 0.7], above=0.8).holds
    assert every_seed("x", [0.9, 0.95, 0.7, 0.9, 0.9], above=0.8, share=0.8).holds
    assert not every_seed("x", [0.5, 1.5], above=0.0, below=1.0).holds


@pytest.mark.parametrize("n", [5, 12])
def test_bootstrap_interval_of_normal_values_is_the_known_one(n):
    values = np.random.default_rng(3).normal(size=n)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(n)  # of resampled means, up to their skewness
    assert low == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.25 * half)
    assert bootstrap(np.array([2.0])) == (2.0, 2.0)
    assert bootstrap(np.array([2.0, 2.0, 2.0])) == (2.0, 2.0)
