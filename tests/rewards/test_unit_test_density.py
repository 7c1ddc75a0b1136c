import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.rewards.unit_test_density import density_calibrated_tests, unit_test_scores, unit_test_weights

quick = settings(derandomize=True, deadline=None, max_examples=40)
ABS = [{"function": "f", "args": [x], "expected": abs(x)} for x in (1, 2, 3, -3)]


def by_hand(passed, alpha, sigma, delta):
    """Weights of the tests of one group, from lists."""
    rho = [statistics.fmean(column) for column in zip(*passed, strict=True)]
    out = []
    for mine in rho:
        alike = sum(math.exp(-((mine - other) ** 2) / (2 * sigma**2)) for other in rho)
        out.append(math.exp(-alpha * mine) / (alike + delta))
    return out


def easy_and_rare():
    passed = torch.zeros(10, 5, dtype=torch.float64)
    passed[:9, :4], passed[9, 4] = 1, 1
    return passed


def test_the_published_numbers():
    passed = easy_and_rare()
    weights, rho = unit_test_weights(passed), passed.mean(dim=0)
    assert weights[0].tolist() == pytest.approx([0.0413] * 4 + [0.8187], abs=1e-4)
    for weight, share in ((torch.ones(5), 0.973), (torch.exp(-2 * rho), 0.879), (weights[0], 0.645)):
        assert float((weight * rho)[:4].sum() / (weight * rho).sum()) == pytest.approx(share, abs=1e-3)


@quick
@given(
    st.integers(1, 5).flatmap(
        lambda tests: st.lists(
            st.tuples(st.integers(0, 2), st.lists(st.sampled_from([0.0, 1.0]), min_size=tests, max_size=tests)),
            min_size=1,
            max_size=8,
        )
    ),
    st.integers(0, 99),
)
def test_groups_have_weights_of_their_own(attempts, seed):
    group = torch.tensor([5 - g for g, _ in attempts])
    passed = torch.tensor([row for _, row in attempts], dtype=torch.float64)
    weights = unit_test_weights(passed, group, alpha=1.5, sigma=0.2, delta=1e-3)
    for i, (g, _) in enumerate(attempts):
        wanted = by_hand([row for other, row in attempts if other == g], 1.5, 0.2, 1e-3)
        assert weights[i].tolist() == pytest.approx(wanted)
    order = torch.randperm(len(attempts), generator=torch.Generator().manual_seed(seed))
    scores = unit_test_scores(passed, group)
    assert torch.allclose(unit_test_scores(passed[order], group[order]), scores[order])
    assert torch.allclose(unit_test_weights(passed, group, normalise=True).sum(dim=1), torch.ones(1).double())


def test_a_copy_of_a_test_gains_nothing():
    passed = easy_and_rare()
    copied = torch.cat([passed] + [passed[:, 4:]] * 3, dim=1)
    assert float(unit_test_weights(copied)[0, 4:].sum()) == pytest.approx(float(unit_test_weights(passed)[0, 4]), 1e-4)


def test_an_attempt_that_crashed_passes_nothing_and_counts():
    passed = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert unit_test_weights(passed)[0].tolist() == pytest.approx(by_hand(passed.tolist(), 2.0, 0.1, 1e-6))
    assert unit_test_scores(passed)[1] == 0.0
    assert unit_test_scores(passed)[0] > unit_test_scores(passed[:1])[0]


def test_programs_are_run_and_weighed_by_the_group():
    texts = ["def f(x):\n    return x", "def f(x):\n    return -x", "def f(x):\n    return abs(x)", "def f(x) return"]
    scores = density_calibrated_tests(texts, [ABS] * 4, reuse=False)
    passed = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.float64)
    assert [score.value for score in scores] == pytest.approx(unit_test_scores(passed).tolist())
    assert [score.detail["passed"] for score in scores] == [3, 1, 4, 0]
    assert len(scores[0].detail["weights"]) == 4


def test_tests_may_stand_in_the_metadata():
    facts = [{"tests": ABS}] * 2
    texts = ["def f(x):\n    return x", "def f(x):\n    return abs(x)"]
    scores = density_calibrated_tests(texts, ["a solution"] * 2, facts, tests_in="metadata")
    assert [score.detail["passed"] for score in scores] == [3, 4]


def test_members_with_different_tests_are_refused():
    texts = ["def f(x):\n    return x"] * 2
    with pytest.raises(ValueError, match=r"\[2, 4\] tests"):
        density_calibrated_tests(texts, [ABS, ABS[:2]])
