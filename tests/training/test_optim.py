import math

import pytest
import torch
from torch import nn

from guerdon.training.optim import Optimizer, scheduled


def parameters():
    return {"w": nn.Parameter(torch.tensor([1.0, -2.0])), "b": nn.Parameter(torch.tensor([0.5]))}


def quadratic_step(params, optimizer, lr=0.1):
    sum((p**2).sum() for p in params.values()).backward()
    return optimizer.step(lr)


def test_first_step_of_adam_is_the_sign_of_the_gradient():
    params = parameters()
    norm = quadratic_step(params, Optimizer(params, grad_clip=None))
    assert norm == pytest.approx(math.sqrt(4 + 16 + 1))
    assert params["w"].tolist() == pytest.approx([0.9, -1.9], abs=1e-6)
    assert params["w"].grad is None


@pytest.mark.parametrize("clip", [None, 0.5, 3.0])
def test_steps_are_those_of_torch_on_clipped_gradients(clip):
    params, theirs = parameters(), parameters()
    settings = {"betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}
    optimizer = Optimizer(params, grad_clip=clip, **settings)
    reference = torch.optim.AdamW(theirs.values(), lr=0.1, foreach=False, **settings)
    for _ in range(10):
        norm = quadratic_step(params, optimizer)
        sum((p**2).sum() for p in theirs.values()).backward()
        wanted = nn.utils.clip_grad_norm_(theirs.values(), clip or math.inf)
        reference.step()
        reference.zero_grad()
        assert norm == pytest.approx(wanted.item(), rel=1e-5)
        assert all(torch.allclose(p, theirs[name], rtol=1e-5) for name, p in params.items())


def test_a_parameter_without_gradient_stays_as_it_is():
    params = parameters()
    optimizer = Optimizer(params)
    quadratic_step(params, optimizer)
    before, moments = params["b"].detach().clone(), {k: v.clone() for k, v in optimizer.state_dict().items()}
    (params["w"] ** 2).sum().backward()
    optimizer.step(0.1)
    assert torch.equal(params["b"], before)
    after = optimizer.state_dict()
    assert all(torch.equal(after[key], value) for key, value in moments.items() if key.startswith("b/"))
    assert after["w/step"] == 2


def test_restored_state_continues_identically():
    params = parameters()
    optimizer = Optimizer(params, grad_clip=1.0)
    for _ in range(3):
        quadratic_step(params, optimizer)
    copy = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    again = Optimizer(copy, grad_clip=1.0)
    again.load_state_dict({key: value.clone() for key, value in optimizer.state_dict().items()})
    for _ in range(3):
        quadratic_step(params, optimizer)
        quadratic_step(copy, again)
    assert all(torch.equal(params[name], copy[name]) for name in params)


def test_forgetting_starts_the_moments_afresh():
    params = parameters()
    optimizer = Optimizer(params)
    quadratic_step(params, optimizer)
    optimizer.forget()
    assert optimizer.state_dict() == {}


def test_a_gradient_that_is_not_finite_changes_nothing():
    params = parameters()
    optimizer = Optimizer(params)
    before = params["w"].detach().clone()
    (params["w"].sum() * math.nan).backward()
    assert math.isnan(optimizer.step(0.1))
    assert torch.equal(params["w"], before)
    assert optimizer.state_dict() == {}
    quadratic_step(params, optimizer)
    assert torch.isfinite(params["w"]).all()


def test_schedules():
    assert [scheduled(1.0, s, 10, warmup=3, schedule="constant") for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert scheduled(1.0, 5, 10, warmup=0, schedule="linear") == pytest.approx(0.5)
    assert scheduled(1.0, 5, 10, warmup=0, schedule="cosine") == pytest.approx(0.5)
    assert scheduled(1.0, 10, 10, warmup=0, schedule="cosine", floor=0.1) == pytest.approx(0.1)
