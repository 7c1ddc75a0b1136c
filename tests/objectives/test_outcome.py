import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.objectives.outcome import oreal


def test_each_branch_is_averaged_over_all_tokens_of_its_sign():
    logp = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -1.5, -2.5], [-3.0, -3.0, -3.0]], dtype=torch.float64)
    logp.requires_grad_()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1]]).bool()
    outcome = torch.tensor([[0.5], [-0.25], [0.0]], dtype=torch.float64).expand(3, 3)
    weight = torch.tensor([[0.0, 0.8, 1.0], [0.0, 0.5, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    loss, stats = oreal(logp, outcome * weight, mask, outcome)
    # Two tokens are right, though one of them has weight 0, and three are wrong.
    positive, negative = 0.5 * 0.8 * 2.0 / 2, 0.25 * (0.5 + 1.0) / 3
    assert loss.item() == pytest.approx(positive + 0.5 * negative)
    assert stats == {"positive": pytest.approx(positive), "negative": pytest.approx(negative)}
    (gradient,) = torch.autograd.grad(loss, logp)
    expected = [[0, -0.4 / 2, 0], [0, 0.5 * 0.125 / 3, 0.5 * 0.25 / 3], [0, 0, 0]]
    assert gradient.tolist() == [pytest.approx(row) for row in expected]


def test_without_the_unweighted_credit_the_sign_of_the_credit_counts():
    logp, mask = torch.full((2, 2), -1.0, requires_grad=True), torch.ones(2, 2).bool()
    advantage = torch.tensor([[1.0, 0.0], [-1.0, -1.0]])
    loss, _ = oreal(logp, advantage, mask)
    assert loss.item() == pytest.approx(1.0 + 0.5 * 1.0)
    (gradient,) = torch.autograd.grad(oreal(logp, advantage, mask, positive=0.25, negative=2.0)[0], logp)
    assert gradient.tolist() == [[-0.25, 0.0], [1.0, 1.0]]


@given(st.integers(0, 10_000))
def test_nothing_off_the_mask_is_read_and_rows_may_be_permuted(seed):
    g = torch.Generator().manual_seed(seed)
    logp = -torch.rand(6, 5, generator=g, dtype=torch.float64)
    mask = torch.rand(6, 5, generator=g) < 0.7
    outcome = torch.randn(6, 1, generator=g, dtype=torch.float64).expand(6, 5)
    advantage = outcome * torch.rand(6, 5, generator=g, dtype=torch.float64)
    plain, _ = oreal(logp, advantage, mask, outcome)
    dirty = logp.masked_fill(~mask, float("nan")).requires_grad_()
    nan = float("nan")
    other, _ = oreal(dirty, advantage.masked_fill(~mask, nan), mask, outcome.masked_fill(~mask, nan))
    order = torch.randperm(6, generator=g)
    shuffled, _ = oreal(logp[order], advantage[order], mask[order], outcome[order])
    assert other.item() == pytest.approx(plain.item())
    assert shuffled.item() == pytest.approx(plain.item())
    assert torch.autograd.grad(other, dirty)[0].isfinite().all()


def test_no_credit_gives_no_gradient():
    logp = torch.zeros(2, 2, requires_grad=True)
    loss, _ = oreal(logp, torch.zeros(2, 2), torch.ones(2, 2).bool())
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logp)[0].abs().sum() == 0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="outcome_advantage has shape"):
        oreal(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2).bool(), torch.zeros(2, 1))
