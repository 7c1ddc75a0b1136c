import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.curriculum.difficulty import difficulty_softmax

quick = settings(derandomize=True, deadline=None, max_examples=60)
PROBLEMS = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=12)


def test_by_hand():
    # exp(-0/2) : exp(-1/2) = 1 : 0.60653, times two problems.
    out = difficulty_softmax(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert out.tolist() == pytest.approx([1.2449186624, 0.7550813376], abs=1e-9)


def test_problems_without_a_signal_weigh_one_and_do_not_count():
    accuracy = torch.tensor([0.0, float("nan"), 1.0, 0.3])
    out = difficulty_softmax(accuracy, torch.tensor([True, False, True, False]))
    assert torch.equal(out[[0, 2]], difficulty_softmax(accuracy[[0, 2]]))
    assert out[[1, 3]].tolist() == [1, 1]


def test_no_useful_problem():
    assert difficulty_softmax(torch.tensor([0.0, 1.0]), torch.tensor([False, False])).tolist() == [1, 1]
    assert difficulty_softmax(torch.zeros(0)).shape == (0,)


@quick
@given(problems=PROBLEMS, temperature=st.sampled_from([0.05, 0.5, 2.0, 100.0]))
def test_invariants(problems, temperature):
    accuracy = torch.tensor([a for a, _ in problems], dtype=torch.float64)
    useful = torch.tensor([u for _, u in problems])
    out = difficulty_softmax(accuracy, useful, temperature=temperature)
    raw = [math.exp(-a / temperature) if u else 0.0 for a, u in problems]
    expected = [
        sum(u for _, u in problems) * x / sum(raw) if u else 1.0 for x, (_, u) in zip(raw, problems, strict=True)
    ]
    assert out.tolist() == pytest.approx(expected, rel=1e-9)
    assert out.mean().item() == pytest.approx(1)
    if useful.any():
        spread = (out[useful].max() / out[useful].min()).item()
        assert spread <= math.exp(1 / temperature) * (1 + 1e-9)
    # Only differences of accuracy matter, and the order of the problems doesn't.
    torch.testing.assert_close(difficulty_softmax(accuracy + 3, useful, temperature=temperature), out)
    order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(difficulty_softmax(accuracy[order], useful[order], temperature=temperature), out[order])


@pytest.mark.parametrize("useful", [[True, True, False], [False, False, False]])
def test_gradient_is_finite(useful):
    accuracy = torch.tensor([0.1, 0.9, 0.5], requires_grad=True)
    (gradient,) = torch.autograd.grad((difficulty_softmax(accuracy, torch.tensor(useful)) * accuracy).sum(), accuracy)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature is .*, wanted greater than 0"):
        difficulty_softmax(torch.tensor([0.5]), temperature=temperature)
