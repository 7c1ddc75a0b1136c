import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.engine.logits import token_logp

quick = settings(derandomize=True, deadline=None, max_examples=40)


def by_definition(weight, states, tokens, temperature):
    log_p = torch.log_softmax(states @ weight.T / temperature.unsqueeze(1), dim=1)
    return log_p.gather(1, tokens.unsqueeze(1)).squeeze(1), -(log_p.exp() * log_p).sum(dim=1)


@quick
@given(st.integers(1, 9), st.sampled_from([10**6, 12, 1]), st.integers(0, 1000))
def test_values_and_gradients_are_those_of_the_definition(rows, room, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, states = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (5, rows))
    tokens = torch.randint(5, (rows,), generator=generator)
    temperature = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5
    weight.requires_grad_()
    states.requires_grad_()
    ours = token_logp(lambda x: x @ weight.T, states, tokens, temperature, room=room)
    theirs = by_definition(weight, states, tokens, temperature)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    for picked in ([1.0, 0.0], [0.0, 1.0], [0.7, -0.3]):
        totals = [picked[0] * (logp * logp).sum() + picked[1] * entropy.exp().sum() for logp, entropy in (ours, theirs)]
        mine, wanted = (torch.autograd.grad(total, (weight, states), retain_graph=True) for total in totals)
        for a, b in zip(mine, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("index", [0, 1])
def test_either_result_may_go_unused(index):
    states = torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(5, 3)
    ours = token_logp(lambda x: x @ weight.T, states, torch.tensor([0, 1, 2, 4]), torch.ones(4))[index]
    theirs = by_definition(weight, states, torch.tensor([0, 1, 2, 4]), torch.ones(4))[index]
    (a,), (b,) = torch.autograd.grad(ours.sum(), states), torch.autograd.grad(theirs.sum(), states)
    assert torch.allclose(a, b, atol=1e-6)


def test_impossible_tokens_have_no_part_in_the_entropy():
    states = torch.tensor([[0.0, 0.0, float("-inf")]], requires_grad=True)
    logp, entropy = token_logp(lambda x: x, states, torch.tensor([0]), torch.ones(1))
    assert logp.item() == pytest.approx(-0.6931472)
    assert entropy.item() == pytest.approx(0.6931472)
    (slope,) = torch.autograd.grad(logp.sum() + entropy.sum(), states)
    assert torch.allclose(slope, torch.tensor([[0.5, -0.5, 0.0]]))


def test_only_one_chunk_of_logits_lives_at_a_time():
    most = [0]

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x @ weight.T

        @staticmethod
        def backward(ctx, grad):
            most[0] = max(most[0], len(grad))
            return grad @ weight

    weight = torch.randn(7, 3)
    states = torch.randn(10, 3, requires_grad=True)
    logp, _ = token_logp(Counted.apply, states, torch.zeros(10, dtype=torch.int64), torch.ones(10), room=14)
    logp.sum().backward()
    assert most == [2]


def test_no_states():
    logp, entropy = token_logp(lambda x: x, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert logp.shape == entropy.shape == (0,)
