import math
from itertools import product

import pytest
import torch
from small_recipes import LANGUAGE
from torch import nn

import guerdon
from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.training import checkpoint, loop
from guerdon.training.folder import RunFolder
from guerdon.training.optim import Optimizer
from guerdon.training.plan import make_plan
from guerdon.training.stochastic import HARPG, NPGIGT, hessian_vector

F64 = torch.float64


def pair():
    return {"w": nn.Parameter(torch.tensor([1.0, -2.0], dtype=F64)), "b": nn.Parameter(torch.tensor([0.5], dtype=F64))}


def flat(tensors):
    return torch.cat([x.detach().reshape(-1) for x in tensors])


# NPGIGT ---------------------------------------------------------------------------------------------------


def test_igt_follows_its_formula():
    """Against the recursion written out on a flat vector, with a gradient that depends on the point."""
    params = pair()
    optimizer = NPGIGT(params)
    theta = before = flat(params.values())
    d = torch.zeros(3, dtype=F64)
    for t in range(6):
        eta = (2 / (t + 2)) ** 0.8
        point = theta + (1 - eta) / eta * (theta - before)
        torch.testing.assert_close(flat(params.values()), point)
        gradient = 2 * point + t
        sum((p**2 + t * p).sum() for p in params.values()).backward()
        assert optimizer.step(0.7) == pytest.approx(gradient.norm().item())
        d = (1 - eta) * d + eta * gradient
        before, theta = theta, theta - 0.7 / (t + 2) * d / d.norm()
        with optimizer.settled():
            torch.testing.assert_close(flat(params.values()), theta)
        assert params["w"].grad is None


def test_momentum_is_the_gradient_at_the_iterate_where_gradients_are_linear():
    """What transport is for: d_t = sum of weights times g(point) equals g(theta_t), though each was taken elsewhere."""
    params = pair()
    optimizer = NPGIGT(params)
    for _ in range(20):
        sum((p**2).sum() for p in params.values()).backward()
        with optimizer.settled():
            here = 2 * flat(params.values())
        optimizer.step(0.3)
        torch.testing.assert_close(flat(optimizer.direction.values()), here)


def test_igt_restores_and_starts_over():
    params = pair()
    optimizer = NPGIGT(params)
    assert optimizer.state_dict() == {}
    copies = pair()
    for step in range(6):
        if step == 3:
            again = NPGIGT(copies)
            again.load_state_dict({key: value.clone() for key, value in optimizer.state_dict().items()})
        for these, updates in ((params, optimizer), *(((copies, again),) if step >= 3 else ())):
            sum((p**2).sum() for p in these.values()).backward()
            updates.step(0.3)
    assert all(torch.equal(params[name], copies[name]) for name in params)
    again.load_state_dict({})
    assert again.state_dict() == {}
    assert isinstance(again.warm(), Optimizer)
    assert again.warm().parameters["w"] is copies["w"]


def test_igt_survives_gradients_that_are_missing_zero_or_not_finite():
    params = pair()
    optimizer = NPGIGT(params)
    start = flat(params.values())
    (params["w"].sum() * math.nan).backward()
    assert math.isnan(optimizer.step(0.1))
    assert optimizer.steps == 0
    (params["w"].sum() * 0.0).backward()
    assert optimizer.step(0.1) == 0
    assert torch.equal(flat(params.values()), start)
    params["b"].sum().backward()
    optimizer.step(0.1)
    assert torch.equal(params["w"], start[:2])
    assert params["b"].item() < 0.5


RECIPE = LANGUAGE | {
    "name": "igt",
    "optimizer": {"name": "npgigt", "lr": 0.5},
    "training": {"steps": 4},
    "terms": [{"name": "kl_pid", "target": 1e-4}, "entropy_gated_kl", "asymmetric_kl"],
    "rewards": [{"name": "regex", "pattern": "[a-m]"}],
    "checkpoint": {"every": 1, "keep": 4},
}


def test_a_run_resumes_bit_for_bit_at_any_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = guerdon.train(RECIPE, progress=Progress(quiet=True))
    metrics = RunFolder.open(whole.run).metrics()
    assert metrics["update/kl_pid/beta"][1] != metrics["update/kl_pid/beta"][2]
    folders = checkpoint.list_checkpoints(RunFolder.open(whole.run).checkpoints_path)
    saved = checkpoint.load_checkpoint(folders[0].parent)
    weights = {name: saved.policy[name] for name in saved.policy if not name.startswith(("snapshot/", "buffer/"))}
    assert checkpoint.weights_sha256(weights) == whole.weights_sha256
    assert all(torch.equal(saved.optimizer[f"{name}/theta"], x) for name, x in weights.items())
    assert not all(torch.equal(saved.optimizer[f"{name}/point"], x) for name, x in weights.items())
    for folder in folders[2:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    again = loop.resume(whole.run, progress=Progress(quiet=True))
    assert again.weights_sha256 == whole.weights_sha256
    assert again.eval == whole.eval
    resumed = RunFolder.open(whole.run).metrics()
    assert resumed["update/kl_pid/beta"] == metrics["update/kl_pid/beta"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"name": "npgigt", "weight_decay": 0.1}}, "npgigt' has no 'weight_decay'"),
        ({"optimizer": {"name": "npgigt", "grad_clip": None}}, "npgigt' has no 'grad_clip'"),
        ({"training": {"epochs": 2}}, "training.epochs: 1 and training.minibatches: 1"),
        ({"training": {"max_step_kl": 0.5}}, "training.max_step_kl shortens steps"),
    ],
)
def test_what_igt_cannot_do_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        make_plan(load_recipe(RECIPE | changes))


# HARPG ----------------------------------------------------------------------------------------------------

REWARDS = torch.tensor([[[1.0, 0.2], [0.0, 0.7]], [[-0.5, 0.4], [0.9, 0.1]]], dtype=F64)  # time, state, action
NEXT = torch.tensor([[0, 1], [1, 0]])
GAMMA = 0.8


def trajectories():
    """Every trajectory of a two-step, two-state decision process, from either state: states and actions (8,2)."""
    rows = []
    for start, first, second in product((0, 1), (0, 1), (0, 1)):
        rows.append(([start, int(NEXT[start, first])], [first, second]))
    return torch.tensor([s for s, _ in rows]), torch.tensor([a for _, a in rows])


STATES, ACTIONS = trajectories()


def phi_and_logp(logits, rows):
    logp = logits.log_softmax(-1)[STATES[rows], ACTIONS[rows]]
    reward = REWARDS[torch.arange(2), STATES[rows], ACTIONS[rows]]
    to_go = torch.stack([reward[:, 0] + GAMMA * reward[:, 1], GAMMA * reward[:, 1]], dim=1)
    return (to_go * logp).sum(1), logp.sum(1)


def probability(logits):
    return 0.5 * logits.log_softmax(-1)[STATES, ACTIONS].sum(1).exp()


def expected_return(logits):
    reward = REWARDS[torch.arange(2), STATES, ACTIONS]
    return (probability(logits) * (reward[:, 0] + GAMMA * reward[:, 1])).sum()


def logits_at(seed):
    return torch.randn(2, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def expected_product(logits, vector):
    logits = logits.clone().requires_grad_()
    total = torch.zeros_like(logits)
    for row, weight in enumerate(probability(logits).detach()):
        phi, logp = phi_and_logp(logits, [row])
        total += weight * hessian_vector([logits], phi, logp, [vector])[0]
    return total.detach()


def test_the_expected_product_is_the_hessian_times_the_vector():
    logits, vector = logits_at(0), logits_at(1)
    hessian = torch.autograd.functional.hessian(expected_return, logits).view(4, 4)
    torch.testing.assert_close(expected_product(logits, vector).view(4), hessian @ vector.view(4), atol=1e-12, rtol=0)


def test_a_batch_is_the_mean_of_its_trajectories():
    logits, vector = logits_at(0).requires_grad_(), logits_at(1)
    rows = [0, 3, 3, 6]
    each = [hessian_vector([logits], *phi_and_logp(logits, [row]), [vector])[0] for row in rows]
    whole = hessian_vector([logits], *phi_and_logp(logits, rows), [vector])[0]
    torch.testing.assert_close(whole, torch.stack(each).mean(0))


def test_over_the_way_it_is_the_difference_of_gradients():
    """The mean over u, by Gauss-Legendre quadrature."""
    import numpy as np

    old, new = logits_at(0), logits_at(2)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    mean = sum(
        w / 2 * expected_product((1 + x) / 2 * new + (1 - x) / 2 * old, new - old)
        for x, w in zip(nodes, weights, strict=True)
    )
    gradients = [torch.autograd.functional.jacobian(expected_return, x) for x in (old, new)]
    torch.testing.assert_close(mean, gradients[1] - gradients[0], atol=1e-8, rtol=0)


@pytest.mark.parametrize("normalise", [False, True])
def test_harpg_follows_its_formula(normalise):
    """Two updates, with every draw known."""
    logits = nn.Parameter(logits_at(0))
    seen = []
    rows = iter([[1, 2], [5], [0, 7]])

    def draw():
        seen.append(logits.detach().clone())
        return phi_and_logp(logits, next(rows))

    learner = HARPG([logits], draw, normalise=normalise, decay=0.5, generator=torch.Generator().manual_seed(3))
    u = float(torch.rand((), generator=torch.Generator().manual_seed(3)))

    def gradient(at, rows):
        at = at.clone().requires_grad_()
        return torch.autograd.grad(phi_and_logp(at, rows)[0].mean(), at)[0]

    start = logits.detach().clone()
    first = gradient(start, [1, 2])
    assert learner.step(0.4) == pytest.approx(first.norm().item())
    rate = 0.4 / math.sqrt(2)
    second = start + rate * first / (first.norm() if normalise else 1)
    torch.testing.assert_close(logits.detach(), second)
    learner.step(0.4)
    between = u * second + (1 - u) * start
    torch.testing.assert_close(seen[1], between)
    torch.testing.assert_close(seen[2], second)
    hat = between.clone().requires_grad_()
    carried = first + hessian_vector([hat], *phi_and_logp(hat, [5]), [second - start])[0]
    eta = 2 / 3
    d = (1 - eta) * carried + eta * gradient(second, [0, 7])
    torch.testing.assert_close(learner.direction[0], d)
    rate = 0.4 / math.sqrt(3)
    torch.testing.assert_close(logits.detach(), second + rate * d / (d.norm() if normalise else 1))
