import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.grouping import (
    center,
    first_rows,
    group_mean,
    group_std,
    grouped,
    leave_one_out_mean,
    per_action,
    whiten,
)

quick = settings(derandomize=True, deadline=None, max_examples=60)
# Close together, far apart, negative, and at the ends of int64.
KEYS = st.sampled_from([0, 1, 2, -5, 10**12, 2**62, -(2**62)])
MEMBERS = st.lists(
    st.tuples(KEYS, st.floats(-100, 100, allow_nan=False, width=32), st.booleans()), min_size=1, max_size=24
)


def columns(members):
    keys, values, valid = zip(*members, strict=True)
    return torch.tensor(values, dtype=torch.float64), torch.tensor(keys), torch.tensor(valid)


def valid_groups(members):
    groups: dict[int, list[float]] = {}
    for key, value, valid in members:
        if valid:
            groups.setdefault(key, []).append(value)
    return groups


def assert_close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), **tolerance)


def test_statistics_of_unsorted_ragged_groups_by_hand():
    values = torch.tensor([1.0, 10.0, 2.0, 20.0, 6.0])
    key = torch.tensor([7, -3, 7, -3, 7])
    assert_close(group_mean(values, key), [3.0, 15.0, 3.0, 15.0, 3.0])
    assert_close(group_std(values, key), [math.sqrt(7), math.sqrt(50), math.sqrt(7), math.sqrt(50), math.sqrt(7)])
    assert_close(group_std(values, key, ddof=0)[:2], [math.sqrt(14 / 3), 5.0])
    assert_close(center(values, key), [-2.0, -5.0, -1.0, 5.0, 3.0])
    assert_close(leave_one_out_mean(values, key), [4.0, 20.0, 3.5, 10.0, 1.5])
    stats = grouped(values, key)
    assert stats.count().tolist() == [3, 2, 3, 2, 3]
    assert stats.extreme(True).tolist() == [6, 20, 6, 20, 6]
    assert stats.extreme(False).tolist() == [1, 10, 1, 10, 1]


@quick
@given(MEMBERS)
def test_statistics_agree_with_the_standard_library(members):
    values, key, valid = columns(members)
    groups = valid_groups(members)
    for ddof, reference in ((1, statistics.stdev), (0, statistics.pstdev)):
        std = group_std(values, key, valid, ddof=ddof)
        for i, (k, _, ok) in enumerate(members):
            expected = reference(groups[k]) if ok and len(groups[k]) > ddof else 0.0
            assert std[i].item() == pytest.approx(expected, abs=1e-6)
    mean, others = group_mean(values, key, valid), leave_one_out_mean(values, key, valid)
    for i, (k, value, ok) in enumerate(members):
        assert mean[i].item() == pytest.approx(statistics.fmean(groups[k]) if ok else 0.0, abs=1e-9)
        rest = list(groups[k]) if ok else [0.0]
        if ok and len(rest) > 1:
            rest.remove(value)
        assert others[i].item() == pytest.approx(statistics.fmean(rest), abs=1e-9)


@quick
@given(MEMBERS, st.randoms(use_true_random=False))
def test_whiten_follows_a_permutation(members, random):
    values, key, valid = columns(members)
    order = list(range(len(members)))
    random.shuffle(order)
    assert_close(whiten(values[order], key[order], valid[order]), whiten(values, key, valid)[order])


@quick
@given(MEMBERS)
def test_invalid_entries_neither_give_nor_receive(members):
    values, key, valid = columns(members)
    spoiled = values.masked_fill(~valid, float("nan"))
    kept = valid.nonzero().squeeze(1)
    for function in (group_mean, group_std, center, whiten, leave_one_out_mean):
        out = function(spoiled, key, valid)
        assert (out[~valid] == 0).all()
        assert_close(out[kept], function(values[kept], key[kept]))


def test_any_shape_and_the_whole_batch():
    values = torch.tensor([[1.0, 2.0, 9.0], [3.0, 6.0, 9.0]])
    valid = torch.tensor([[True, True, False], [True, True, False]])
    by_column = torch.tensor([[0, 1, 2], [0, 1, 2]])
    assert_close(group_mean(values, by_column), [[2.0, 4.0, 9.0], [2.0, 4.0, 9.0]])
    assert_close(group_mean(values, None, valid), [[3.0, 3.0, 0.0], [3.0, 3.0, 0.0]])
    for function in (group_mean, group_std, center, whiten, leave_one_out_mean):
        constant = torch.full_like(by_column, 4)
        assert_close(function(values, None, valid), function(values, constant, valid))
    assert grouped(values, None, valid).extreme(True).tolist() == [[6, 6, 0], [6, 6, 0]]


@pytest.mark.parametrize("key", [None, torch.zeros(0, dtype=torch.int64)])
def test_an_empty_batch_gives_an_empty_result(key):
    assert whiten(torch.zeros(0), key).shape == (0,)
    assert leave_one_out_mean(torch.zeros(0), key).shape == (0,)


def test_totals_count_valid_members_and_come_back_by_entry():
    values, key = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([5, 5, 8])
    stats = grouped(values, key, torch.tensor([True, False, True]))
    weighted = stats.total(torch.tensor([10.0, float("nan"), 20.0]))
    assert stats.spread(weighted).tolist() == [10, 0, 20]


def test_std_of_a_group_no_larger_than_ddof_is_zero():
    values, key = torch.tensor([1.0, 3.0, 1.0, 3.0, 5.0]), torch.tensor([0, 0, 1, 1, 1])
    assert_close(group_std(values, key, ddof=2), [0.0, 0.0, *[math.sqrt(8)] * 3])


def test_a_group_without_valid_members_gives_zero():
    values, key = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1])
    valid = torch.tensor([False, False, True])
    for function in (group_mean, group_std, center, whiten, leave_one_out_mean):
        assert function(values, key, valid)[:2].tolist() == [0, 0]
        assert function(values, None, torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0]


def test_singletons():
    values, key = torch.tensor([3.0, 0.0, 2.0]), torch.tensor([0, 1, 1])
    assert center(values, key).tolist() == [0, -1, 1]
    assert center(values, key, singleton="raw").tolist() == [3, -1, 1]
    assert whiten(values, key)[0] == 0
    assert whiten(values, key, singleton="raw")[0] == 3
    assert leave_one_out_mean(values, key).tolist() == [3, 2, 0]
    assert grouped(values, key).tied().tolist() == [True, False, False]


@pytest.mark.parametrize("value", [0.1, -0.7, 1 / 3, 1e8 + 0.1, 1e-30])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_values_give_exactly_zero(value, size):
    values = torch.full((size,), value)
    for key in (None, torch.zeros(size, dtype=torch.int64)):
        assert (group_mean(values, key) == values).all()
        assert (leave_one_out_mean(values, key) == values).all()
        assert (group_std(values, key) == 0).all()
        assert (center(values, key) == 0).all()
        assert (whiten(values, key, eps=0.0) == 0).all()
        assert grouped(values, key).tied().all()


def test_a_large_offset_costs_no_precision():
    values, key = torch.tensor([0.0, 0.25, 1.0, 0.5]), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(whiten(values + 2**20, key), whiten(values, key))


def test_whiten_by_hand():
    out = whiten(torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 0]), eps=0.5, ddof=0)
    assert_close(out, [-0.5, 0.5, 0.5, -0.5])


@pytest.mark.parametrize("function", [group_mean, group_std, center, whiten, leave_one_out_mean])
@pytest.mark.parametrize("key", [None, torch.tensor([4, 9, 4, 9, 4, 2])])
def test_gradients_are_those_of_the_formula(function, key):
    values = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.9, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: function(x, key), values)


def test_gradient_of_a_tied_group_is_finite_and_still_centred():
    values = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda x: center(x, None), values)
    assert_close(jacobian, torch.eye(4) - 0.25)
    for function in (group_std, whiten):
        (gradient,) = torch.autograd.grad(function(values, None).sum(), values)
        assert gradient.isfinite().all()


def test_gradient_ignores_invalid_entries():
    values = torch.tensor([1.0, 2.0, float("nan"), 4.0], requires_grad=True)
    valid = torch.tensor([True, True, False, True])
    (gradient,) = torch.autograd.grad((whiten(values, None, valid) ** 3).sum(), values)
    assert gradient.isfinite().all()
    assert gradient[2] == 0
    assert gradient[0] != 0


def test_per_action():
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert per_action(torch.tensor([2.0, float("inf")]), mask).tolist() == [[2, 0, 2], [0, 0, 0]]


def test_bad_input_is_refused():
    values, key = torch.zeros(3), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"key has shape \(2,\), values \(3,\)"):
        group_mean(values, key[:2])
    with pytest.raises(ValueError, match=r"valid has shape \(2,\), values \(3,\)"):
        group_mean(values, key, torch.ones(2))
    with pytest.raises(TypeError, match=r"int64.*float\(\)"):
        group_mean(key, key)
    with pytest.raises(TypeError, match="wanted an integer"):
        group_mean(values, values)


def test_first_rows():
    keys, rows = first_rows(torch.tensor([7, -3, 7, 2**62, -3]))
    assert keys.tolist() == [-3, 7, 2**62]
    assert rows.tolist() == [1, 0, 3]
    assert first_rows(torch.tensor([], dtype=torch.int64))[1].tolist() == []
