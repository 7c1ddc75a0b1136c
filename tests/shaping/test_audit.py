import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.shaping.audit import audit_constant_policies


def hiring(penalty, accept_right=1.0):
    """Three of ten are good; accepting a bad one costs ``penalty``. The start decides right on 80 % of each class."""
    label = torch.tensor([1] * 3 + [0] * 7)
    positive = torch.stack([(label == 0).double(), accept_right * (label == 1).double()], dim=1)
    cost = torch.stack([torch.zeros(10), -penalty * (label == 0)], dim=1).double()
    right = torch.nn.functional.one_hot(label, 2).double()
    return positive, cost, label, 0.8 * right + 0.2 * (1 - right)


def test_values_of_every_policy_are_known():
    audit = audit_constant_policies(*hiring(3.0), names=["reject", "accept"])
    assert audit.constant["reject"] == pytest.approx({"data": 0.7, "balanced": 0.5})
    assert audit.constant["accept"] == pytest.approx({"data": 0.3 - 0.7 * 3, "balanced": 0.5 - 0.5 * 3})
    assert audit.start == pytest.approx({"data": 0.8 - 0.7 * 0.2 * 3, "balanced": 0.8 - 0.5 * 0.2 * 3})
    assert audit.oracle == pytest.approx({"data": 1.0, "balanced": 1.0})
    assert audit.penalty_share == pytest.approx(3.0)
    assert not audit.passes
    assert "'reject' earns 0.7, the start 0.38" in audit.messages[0]


def test_the_largest_penalty_is_where_the_start_ties():
    # Data prior: 0.8 - 0.14 x 3 f > 0.7 for f < 0.1 / 0.42. The balanced prior allows more.
    audit = audit_constant_policies(*hiring(3.0))
    assert audit.largest_penalty == pytest.approx(0.1 / 0.42, rel=1e-3)
    assert not audit_constant_policies(*hiring(3.0 * audit.largest_penalty * 1.01)).passes
    just = audit_constant_policies(*hiring(3.0 * audit.largest_penalty * 0.99))
    assert just.passes
    assert "0.71 of what can be earned" in just.messages[0]
    assert audit_constant_policies(*hiring(0.1)).messages == ()


def test_a_start_that_never_errs_passes_whatever_the_penalty_and_a_bad_one_never():
    positive, cost, label, _start = hiring(3.0)
    perfect = torch.nn.functional.one_hot(label, 2).double()
    assert audit_constant_policies(positive, cost, label, perfect).largest_penalty == math.inf
    assert math.isnan(audit_constant_policies(positive, cost, label, 1 - perfect).largest_penalty)


def test_without_penalties_no_factor_helps_a_bad_start():
    positive, cost, label, start = hiring(0.0)
    assert audit_constant_policies(positive, cost, label, start).largest_penalty == math.inf
    bad = audit_constant_policies(positive, cost, label, 1 - start)
    assert math.isnan(bad.largest_penalty)
    assert math.isnan(bad.smallest_penalty)


def test_penalties_can_be_too_small_as_well():
    # 70 % are good and the start decides right on 65 %: without penalties, accepting everything earns more.
    # Data: 0.65 - 0.105 f > 0.7 - 0.3 f for f > 0.05 / 0.195. Balanced: 0.65 - 0.175 f > 0.5 for f < 0.15 / 0.175.
    label = torch.tensor([1] * 7 + [0] * 3)
    positive = torch.nn.functional.one_hot(label, 2).double()
    cost = torch.stack([torch.zeros(10), -1.0 * (label == 0)], dim=1).double()
    start = 0.65 * positive + 0.35 * (1 - positive)
    audit = audit_constant_policies(positive, 0.1 * cost, label, start)
    assert not audit.passes
    assert audit.smallest_penalty == pytest.approx(10 * 0.05 / 0.195)
    assert audit.largest_penalty == pytest.approx(10 * 0.15 / 0.175)
    assert audit.messages[0].endswith("multiply the penalties by more than 2.56 and less than 8.57")
    for factor, passes in ((0.99, False), (1.01, True)):
        scaled = audit_constant_policies(positive, factor * 0.05 / 0.195 * cost, label, start)
        assert scaled.passes is passes


@given(st.integers(0, 10**6))
def test_the_interval_is_where_the_audit_passes(seed):
    rng = torch.Generator().manual_seed(seed)
    positive = torch.rand(8, 3, generator=rng, dtype=torch.float64)
    cost = -torch.rand(8, 3, generator=rng, dtype=torch.float64)
    label = torch.arange(8) % 3
    start = torch.softmax(3 * positive + torch.rand(8, 3, generator=rng), dim=1)
    audit = audit_constant_policies(positive, cost, label, start)
    for factor in (0.01, 0.1, 0.5, 1.0, 2.0, 10.0):
        passes = audit_constant_policies(positive, factor * cost, label, start).passes
        assert passes == (audit.smallest_penalty < factor < audit.largest_penalty)


def test_the_balanced_prior_can_fail_alone():
    # Nine of ten are good; the start accepts 90 % of them, and half of the bad one.
    label = torch.tensor([0] + [1] * 9)
    positive = torch.nn.functional.one_hot(label, 2).double()
    cost = torch.stack([torch.zeros(10), -1.0 * (label == 0)], dim=1).double()
    start = torch.tensor([[0.5, 0.5]] + [[0.1, 0.9]] * 9).double()
    audit = audit_constant_policies(positive, cost, label, start)
    assert audit.start == pytest.approx({"data": 0.9 * 0.9 + 0.1 * 0.0, "balanced": 0.5 * 0.9 + 0.5 * 0.0})
    assert max(earned["data"] for earned in audit.constant.values()) == pytest.approx(0.8)
    assert max(earned["balanced"] for earned in audit.constant.values()) == pytest.approx(0.5)
    assert not audit.passes
    assert [("data" in message, "balanced" in message) for message in audit.messages] == [(False, True)]
    # Data: 0.86 - 0.05 f > 0.9 - 0.1 f for f > 0.8. Balanced: 0.7 - 0.25 f > 0.5 for f < 0.8.
    assert math.isnan(audit.largest_penalty)
    assert "no factor on the penalties changes that" in audit.messages[0]


def test_wrong_input_is_refused():
    positive, cost, label, start = hiring(1.0)
    with pytest.raises(ValueError, match=r"penalty has shape \(10, 1\)"):
        audit_constant_policies(positive, cost[:, :1], label, start)
    with pytest.raises(ValueError, match="one class per item"):
        audit_constant_policies(positive, cost, label[:3], start)
    with pytest.raises(ValueError, match="split the reward by sign"):
        audit_constant_policies(positive, -cost, label, start)
    with pytest.raises(ValueError, match="add up to 1"):
        audit_constant_policies(positive, cost, label, 2 * start)
