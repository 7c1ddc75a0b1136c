import pytest
import torch

from guerdon.objectives.divergence import kl
from guerdon.objectives.first_turn import first_turn_kl

NAN = float("nan")


def batch():
    generator = torch.Generator().manual_seed(0)
    logp = torch.rand(3, 4, generator=generator, dtype=torch.float64).neg().requires_grad_()
    ref = torch.rand(3, 4, generator=generator, dtype=torch.float64).neg()
    turn = torch.tensor([[0, 0, 1, 1], [0, 1, -1, -1], [-1, 1, 1, 1]])
    return logp, torch.where(turn >= 0, ref, NAN), turn >= 0, turn


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_it_is_the_penalty_of_the_first_turn_alone(estimator):
    logp, ref, mask, turn = batch()
    loss, stats = first_turn_kl(logp, ref, mask, turn, 9, beta=2.0, estimator=estimator)
    (gradient,) = torch.autograd.grad(loss, logp)
    expected, seen = kl(
        logp[turn == 0][None], ref[turn == 0][None], mask[turn == 0][None], beta=2.0, estimator=estimator
    )
    torch.testing.assert_close(loss, expected)
    assert stats == pytest.approx(seen)
    assert (gradient[turn != 0] == 0).all()
    assert (gradient[turn == 0] != 0).all()


def test_it_ends_with_the_stage_and_goes_on_being_measured():
    logp, ref, mask, turn = batch()
    during, seen = first_turn_kl(logp, ref, mask, turn, 4, first_stage=5)
    after, still = first_turn_kl(logp, ref, mask, turn, 5, first_stage=5)
    assert during > 0
    assert after == 0
    assert still == seen
    (gradient,) = torch.autograd.grad(after, logp)
    assert (gradient == 0).all()


def test_shapes_must_agree():
    logp, ref, mask, turn = batch()
    with pytest.raises(ValueError, match="turn has shape"):
        first_turn_kl(logp, ref, mask, turn[:, :2], 0)
