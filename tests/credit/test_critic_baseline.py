import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.critic_baseline import CriticBaseline, RunningMoments
from guerdon.credit.step import gae

quick = settings(derandomize=True, deadline=None, max_examples=40)
NAN = float("nan")
MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
VALUES = torch.tensor([[0.5, 0.1, NAN], [-0.2, math.inf, NAN], [0.0, 0.3, -0.4]])


@quick
@given(st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=6), min_size=1, max_size=5))
def test_moments_are_those_of_everything_seen(batches):
    moments = RunningMoments()
    for batch in batches:
        moments.add(torch.tensor(batch, dtype=torch.float64))
    everything = torch.tensor([x for batch in batches for x in batch], dtype=torch.float64)
    assert moments.mean == pytest.approx(everything.mean().item(), abs=2e-3)
    # The prior is a ten-thousandth of a number at 0.
    assert moments.variance == pytest.approx(everything.var(correction=0).item(), abs=2e-2)


def test_credit_by_hand():
    reward = torch.tensor([1.0, 3.0, 5.0])
    (advantage, returns), stats = CriticBaseline()(reward, VALUES, MASK)
    assert stats["mean"] == pytest.approx(3.0, abs=1e-3)
    assert stats["std"] == pytest.approx(math.sqrt(8 / 3), abs=1e-3)
    scaled = (reward - 3) / math.sqrt(8 / 3)
    torch.testing.assert_close(returns, torch.where(MASK, scaled.unsqueeze(1), 0.0), atol=2e-4, rtol=0)
    surprise = (returns - VALUES)[MASK]
    torch.testing.assert_close(advantage[MASK], (surprise - surprise.mean()) / surprise.std(), atol=1e-5, rtol=0)
    assert not advantage[~MASK].any()
    assert not returns[~MASK].any()


def test_it_is_undiscounted_gae_on_the_normalised_outcome():
    reward = torch.tensor([1.0, 3.0, 5.0])
    (advantage, returns), _ = CriticBaseline()(reward, VALUES, MASK)
    last = torch.tensor([[False, True, False], [True, False, False], [False, False, True]])
    outcome = returns.masked_fill(~last, 0.0)
    clean = VALUES.masked_fill(~MASK, 0.0)
    done = torch.ones(3, dtype=torch.bool)
    wanted = gae(outcome, clean, MASK, torch.zeros(3), done, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, wanted.returns)
    torch.testing.assert_close(advantage, wanted.advantage)


def test_it_remembers_over_batches_and_restarts():
    first, second, whole = CriticBaseline(), CriticBaseline(), CriticBaseline()
    batches = [torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 1.0, 0.5])]
    (_, alone), _ = CriticBaseline()(batches[1], VALUES, MASK)
    first(batches[0], VALUES, MASK)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    whole(batches[0], VALUES, MASK)
    (a, b), stats = second(batches[1], VALUES, MASK)
    (c, d), expected = whole(batches[1], VALUES, MASK)
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert stats == expected
    assert not torch.allclose(b, alone)


def test_degenerate_batches_stay_finite():
    for reward, mask in ((torch.ones(3), MASK), (torch.ones(3), torch.zeros_like(MASK)), (torch.ones(1), MASK[:1])):
        (advantage, returns), _ = CriticBaseline()(reward, VALUES[: len(reward)].nan_to_num(0.0, 0.0), mask)
        assert advantage.isfinite().all()
        assert returns.isfinite().all()
    term = CriticBaseline()
    term(torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool))
    assert term.state_dict() == CriticBaseline().state_dict()
