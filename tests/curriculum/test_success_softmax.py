import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.curriculum.success_softmax import SuccessSoftmax

quick = settings(derandomize=True, deadline=None, max_examples=30)


def test_by_hand():
    c = SuccessSoftmax(3, temperature=0.5, prior_count=1.0, decay=1.0)
    assert torch.allclose(c.probabilities, torch.full((3,), 1 / 3).double())
    c.update(torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    rates = [3.5 / 4, 0.5 / 2, 0.5]
    assert torch.allclose(c.rates, torch.tensor(rates).double())
    weights = [math.exp((0.5 - s) / 0.5) for s in rates]
    assert c.probabilities.tolist() == pytest.approx([w / sum(weights) for w in weights])


def test_old_outcomes_fade():
    c = SuccessSoftmax(1, prior_count=1.0, decay=0.5)
    c.update(torch.tensor([0, 0]), torch.tensor([1.0, 1.0]))
    c.update(torch.tensor([0]), torch.tensor([0.0]))
    assert c.rates.item() == pytest.approx((1.0 + 0.5) / (2.0 + 1.0))


@quick
@given(st.integers(0, 10**6), st.floats(0.05, 5.0))
def test_who_fails_more_is_drawn_more(seed, temperature):
    g = torch.Generator().manual_seed(seed)
    c = SuccessSoftmax(6, temperature=temperature)
    task = torch.randint(0, 6, (40,), generator=g)
    c.update(task, torch.randint(0, 2, (40,), generator=g).bool())
    p, s = c.probabilities, c.rates
    assert p.sum().item() == pytest.approx(1)
    assert ((s > 0) & (s < 1)).all()
    ratio = (p.unsqueeze(0) / p.unsqueeze(1)).log()
    assert torch.allclose(ratio, (s.unsqueeze(1) - s.unsqueeze(0)) / temperature)


def test_draws_follow_the_probabilities_and_the_seed():
    c = SuccessSoftmax(2, temperature=0.2, decay=1.0)
    c.update(torch.zeros(50, dtype=torch.int64), torch.ones(50))
    drawn = c.draw(5000, 3)
    assert torch.equal(drawn, c.draw(5000, 3))
    assert not torch.equal(drawn, c.draw(5000, 4))
    assert (drawn == 0).double().mean().item() == pytest.approx(c.probabilities[0].item(), abs=0.02)


def test_state_comes_back():
    c = SuccessSoftmax(3)
    c.update(torch.tensor([0, 2]), torch.tensor([True, False]))
    twin = SuccessSoftmax(3)
    twin.load_state_dict(json.loads(json.dumps(c.state_dict())))
    assert torch.equal(twin.probabilities, c.probabilities)
    c.update(torch.zeros(0, dtype=torch.int64), torch.zeros(0))


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"prior_count": 0.0}, {"decay": 0.0}, {"decay": 1.1}, {"prior": 2.0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="wanted"):
        SuccessSoftmax(2, **options)


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match="wanted 0 to 1"):
        SuccessSoftmax(2).update(torch.tensor([2]), torch.tensor([1.0]))
