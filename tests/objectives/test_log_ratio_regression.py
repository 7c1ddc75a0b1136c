import pytest
import torch

from guerdon import registry
from guerdon.objectives.log_ratio_regression import log_ratio_regression

TURN = torch.tensor([[0, 0, 1, -1], [0, -1, -1, -1]])
MASK = TURN >= 0


def tensors():
    logp = torch.tensor([[-1.0, -2.0, -0.5, 9.0], [-3.0, 9.0, 9.0, 9.0]])
    ref = torch.tensor([[-1.5, -2.0, -1.0, 9.0], [-2.0, 9.0, 9.0, 9.0]])
    advantage = torch.tensor([[7.0, 0.5, 1.0, 9.0], [-1.0, 9.0, 9.0, 9.0]])
    return logp, ref, advantage


def test_turns_by_hand():
    loss, stats = log_ratio_regression(*tensors(), MASK, TURN, beta=2.0)
    # Log-ratios of the turns: 0.5, 0.5 and -1; what is wanted of them: 0.5, 1 and -1.
    assert loss.item() == pytest.approx(((1 - 0.5) ** 2 + (1 - 1) ** 2 + (-2 + 1) ** 2) / 3)
    assert stats["log_ratio"] == pytest.approx(2 / 3)


def test_tokens_by_hand():
    loss, _ = log_ratio_regression(*tensors(), MASK, TURN, granularity="token")
    assert loss.item() == pytest.approx(((0.5 - 7) ** 2 + 0.5**2 + (0.5 - 1) ** 2 + 0) / 4)


def test_masked_entries_never_matter_and_gradients_are_finite():
    logp, ref, advantage = (x.masked_fill(~MASK, float("nan")) for x in tensors())
    logp = logp.requires_grad_()
    loss, _ = log_ratio_regression(logp, ref, advantage, MASK, TURN, beta=2.0)
    clean, _ = log_ratio_regression(*tensors(), MASK, TURN, beta=2.0)
    assert torch.equal(loss, clean)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[~MASK] == 0).all())
    # d/dl = 2 beta (beta l - A) / 3, the same for all tokens of a turn.
    assert gradient[0, 0] == gradient[0, 1] == pytest.approx(2 * 2 * 0.5 / 3)


def test_rows_may_be_permuted_and_an_empty_batch_is_nothing():
    order = torch.tensor([1, 0])
    moved, _ = log_ratio_regression(*(x[order] for x in tensors()), MASK[order], TURN[order])
    torch.testing.assert_close(moved, log_ratio_regression(*tensors(), MASK, TURN)[0])
    nothing, stats = log_ratio_regression(*tensors(), torch.zeros_like(MASK), TURN)
    assert (nothing.item(), stats["log_ratio"]) == (0, 0)


def test_its_optimum_is_the_tilted_reference():
    ref = torch.tensor([0.5, 0.3, 0.2]).log()
    target = torch.tensor([0.2, 0.5, 0.3]).log()
    beta = 0.7
    logits = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.05)
    rows = (ref.view(3, 1), beta * (target - ref).view(3, 1), torch.ones(3, 1).bool(), torch.zeros(3, 1).long())
    for _ in range(500):
        loss, _ = log_ratio_regression(logits.log_softmax(0).view(3, 1), *rows, beta=beta)
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(logits.detach().softmax(0), target.exp(), atol=1e-3, rtol=0)


def test_it_sees_external_rows():
    method = registry.get("objective", log_ratio_regression)
    assert method.optional == ("external",)
