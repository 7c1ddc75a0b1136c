import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import registry
from guerdon.objectives.gflownet import (
    fl_db,
    fl_subtb,
    front_preserving,
    learned_log_reward,
    order_preserving,
    step_logp,
    subtb_terminating,
    terminal_energy,
    var_tb,
)

NAN = float("nan")


def fields(seed=0, n=5, t=4, empty=True):
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(0 if empty else 1, t + 1, (n,), generator=g)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return {
        "log_flow": draw(n, t + 1),
        "logp": draw(n, t),
        "log_pb": draw(n, t),
        "energy": draw(n, t),
        "mask": torch.arange(t) < length.unsqueeze(1),
        "done": torch.rand(n, generator=g) < 0.5,
    }


def residual(f, i, m, n):
    """Of the stretch from state m to state n of trajectory i."""
    length = int(f["mask"][i].sum())
    flow = lambda k: 0.0 if k == length and f["done"][i] else f["log_flow"][i, k]  # noqa: E731
    return flow(m) - flow(n) + sum(f["logp"][i, k] - f["log_pb"][i, k] + f["energy"][i, k] for k in range(m, n))


def garbage(f):
    """The same with nan off the transitions and at terminals, and padded."""
    out = {k: x.clone() for k, x in f.items()}
    for key in ("logp", "log_pb", "energy"):
        out[key][~f["mask"]] = NAN
        out[key] = torch.cat([out[key], out[key].new_full((len(f["mask"]), 2), NAN)], dim=1)
    for i, row in enumerate(f["mask"]):
        out["log_flow"][i, int(row.sum()) + int(not f["done"][i] and bool(row.any())) :] = NAN
    out["log_flow"] = torch.cat([out["log_flow"], out["log_flow"].new_full((len(f["mask"]), 2), NAN)], dim=1)
    out["mask"] = torch.cat([f["mask"], torch.zeros(len(f["mask"]), 2).bool()], dim=1)
    return out


@given(st.integers(0, 10_000))
def test_detailed_balance_is_the_mean_over_transitions(seed):
    f = fields(seed)
    squares = [residual(f, i, k, k + 1) ** 2 for i, row in enumerate(f["mask"]) for k in range(int(row.sum()))]
    wanted = sum(squares) / len(squares) if squares else 0.0
    assert fl_db(**f).item() == pytest.approx(float(wanted))
    assert fl_db(**garbage(f)).item() == pytest.approx(float(wanted))


@given(st.integers(0, 10_000), st.floats(0.0, 2.0))
def test_all_stretches_are_weighted_by_their_length(seed, lam):
    f = fields(seed)
    each = []
    for i, row in enumerate(f["mask"]):
        pairs = [(m, n) for n in range(int(row.sum()) + 1) for m in range(n)]
        if pairs:
            weights = [lam ** (n - m - 1) for m, n in pairs]
            each.append(sum(w * residual(f, i, *p) ** 2 for w, p in zip(weights, pairs, strict=True)) / sum(weights))
    wanted = float(sum(each) / len(each)) if each else 0.0
    assert fl_subtb(**f, lam=lam).item() == pytest.approx(wanted)
    assert fl_subtb(**garbage(f), lam=lam).item() == pytest.approx(wanted)


@pytest.mark.parametrize("loss", [fl_db, fl_subtb])
def test_gradients_are_finite_and_blind_to_order_and_stop_at_terminals(loss):
    f = garbage(fields(3))
    f["done"][:] = True
    f["log_flow"].requires_grad_()
    f["logp"].requires_grad_()
    value = loss(**f)
    for gradient in torch.autograd.grad(value, [f["log_flow"], f["logp"]]):
        assert gradient.isfinite().all()
    for i, row in enumerate(f["mask"]):
        (gradient,) = torch.autograd.grad(loss(**f), f["log_flow"])
        assert gradient[i, int(row.sum()) :].abs().sum() == 0
    order = torch.tensor([4, 2, 0, 3, 1])
    assert loss(**{k: x[order] for k, x in f.items()}).item() == pytest.approx(value.item())


def test_a_cut_trajectory_teaches_its_transitions_and_its_last_flow():
    f = fields(1, n=1, empty=False)
    f["mask"][:] = True
    f["done"][:] = False
    f["log_flow"].requires_grad_()
    (gradient,) = torch.autograd.grad(fl_db(**f), f["log_flow"])
    assert (gradient != 0).all()
    moved = terminal_energy(f["energy"], f["mask"], f["done"])
    assert moved.abs().sum() == 0


def test_terminal_energy_adds_up_on_the_last_transition():
    energy = torch.tensor([[1.0, 2.0, NAN], [1.0, 2.0, 4.0], [NAN, NAN, NAN]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool()
    out = terminal_energy(energy, mask, torch.tensor([True, True, True]))
    assert out.tolist() == [[0.0, 3.0, 0.0], [0.0, 0.0, 7.0], [0.0, 0.0, 0.0]]


def test_masks_with_holes_and_wrong_shapes_are_named():
    f = fields(0)
    with pytest.raises(ValueError, match="trajectory 1 has holes"):
        fl_db(**f | {"mask": torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])})
    with pytest.raises(ValueError, match="log_flow has shape"):
        fl_db(**f | {"log_flow": f["logp"]})


@given(st.integers(0, 10_000), st.sampled_from([None, 1, 2]))
def test_stretches_between_states_that_may_stop(seed, span):
    f = fields(seed)
    g = torch.Generator().manual_seed(seed + 1)
    reward, stop = (torch.randn(5, 5, generator=g, dtype=torch.float64) for _ in range(2))
    total, rows = 0.0, 0
    for i, row in enumerate(f["mask"]):
        length = int(row.sum())
        rows += length > 0
        for n in range(1, length + 1):
            for m in range(n):
                if span is None or n - m <= span:
                    path = sum(float(f["logp"][i, k]) for k in range(m, n))
                    total += float(reward[i, m] + path + stop[i, n] - reward[i, n] - stop[i, m]) ** 2
    assert subtb_terminating(reward, f["logp"], stop, f["mask"], span=span).item() == pytest.approx(
        total / max(rows, 1)
    )
    bad = f["logp"].masked_fill(~f["mask"], NAN).requires_grad_()
    states = torch.cat([f["mask"][:, :1], f["mask"]], dim=1)
    out = subtb_terminating(reward.masked_fill(~states, NAN), bad, stop.masked_fill(~states, NAN), f["mask"], span=span)
    assert out.item() == pytest.approx(total / max(rows, 1))
    assert torch.autograd.grad(out, bad)[0].isfinite().all()


def test_stopping_in_proportion_to_the_reward_is_in_balance():
    """One action per step, T steps; the chance of ending at a state is its share of the reward."""
    reward = torch.tensor([1.0, 3.0, 2.0, 4.0], dtype=torch.float64)
    left = reward.flip(0).cumsum(0).flip(0)
    stop = (reward / left).log()
    go = torch.log1p(-reward / left)[:-1]
    mask = torch.ones(1, 3).bool()
    assert subtb_terminating(reward.log().unsqueeze(0), go.unsqueeze(0), stop.unsqueeze(0), mask).item() < 1e-24
    assert subtb_terminating(reward.flip(0).log().unsqueeze(0), go.unsqueeze(0), stop.unsqueeze(0), mask) > 0.1


def test_learned_reward_sums_over_the_transitions():
    f = garbage(fields(2))
    wanted = [
        1.5 + sum(float(f["logp"][i, k] - f["log_pb"][i, k]) for k in range(int(r.sum())))
        for i, r in enumerate(f["mask"])
    ]
    assert learned_log_reward(f["logp"], f["log_pb"], f["mask"], 1.5).tolist() == pytest.approx(wanted)


def test_order_loss_by_hand():
    value = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    score, partner = torch.tensor([5.0, 2.0, 2.0]), torch.tensor([1, 2, 0])
    s = lambda x: math.log(1 / (1 + math.exp(-x)))  # noqa: E731
    wanted = -(s(1.0) + (0.5 * s(-3.0) + 0.5 * s(3.0)) + s(-2.0)) / 3
    assert order_preserving(value, score, partner).item() == pytest.approx(wanted)


@given(st.integers(0, 10_000))
def test_the_order_loss_depends_on_the_order_alone(seed):
    g = torch.Generator().manual_seed(seed)
    value = torch.randn(8, generator=g, dtype=torch.float64).requires_grad_()
    score, partner = torch.randint(-2, 3, (8,), generator=g).double(), torch.randperm(8, generator=g)
    gradients = [torch.autograd.grad(order_preserving(value, x, partner), value)[0] for x in (score, score.exp())]
    assert torch.equal(*gradients)
    shifted = order_preserving(value + 7.0, score, partner)
    assert shifted.item() == pytest.approx(order_preserving(value, score, partner).item())
    ties = order_preserving(torch.zeros(8), torch.ones(8), partner)
    assert ties.item() == pytest.approx(math.log(2))


@given(st.integers(0, 10_000))
def test_the_front_loss_is_a_cross_entropy_in_each_group(seed):
    g = torch.Generator().manual_seed(seed)
    value = (50 * torch.randn(9, generator=g, dtype=torch.float64)).requires_grad_()
    front, group = torch.rand(9, generator=g) < 0.4, torch.randint(0, 3, (9,), generator=g)
    each = []
    for key in set(group.tolist()):
        mine = group == key
        if front[mine].any():
            each.append(-value[mine].log_softmax(0)[front[mine]].mean())
    loss = front_preserving(value, front, group)
    assert loss.item() == pytest.approx(float(sum(each).detach() / len(each)) if each else 0.0)
    assert torch.autograd.grad(loss, value)[0].isfinite().all()
    whole = front_preserving(value, front)
    if front.any():
        assert whole.item() == pytest.approx(float(-value.detach().log_softmax(0)[front].mean()))


def test_thoughts_count_less():
    logp = torch.tensor([[-1.0, -2.0, -3.0]])
    assert step_logp(logp, torch.tensor([[1, 0, 1]]), lam=0.5).tolist() == [[-0.5, -2.0, -1.5]]


def rows(seed=0, n=7, t=4):
    g = torch.Generator().manual_seed(seed)
    return {
        "logp": -torch.rand(n, t, generator=g, dtype=torch.float64),
        "mask": torch.rand(n, t, generator=g) < 0.7,
        "group": torch.randint(0, 3, (n,), generator=g),
        "reward": torch.rand(n, generator=g, dtype=torch.float64),
    }


@given(st.integers(0, 10_000))
def test_var_tb_is_the_variance_within_groups(seed):
    f = rows(seed)
    keep = f["mask"].any(dim=1)
    z = (f["reward"] + 0.1).log() / 0.5 - (f["logp"] * f["mask"]).sum(dim=1)
    squares = [
        (z[i] - torch.stack([z[j] for j in range(7) if keep[j] and f["group"][j] == f["group"][i]]).mean()) ** 2
        for i in range(7)
        if keep[i]
    ]
    wanted = float(sum(squares) / max(len(squares), 1))
    loss, stats = var_tb(**f, eps=0.1, temperature=0.5)
    assert loss.item() == pytest.approx(wanted)
    assert stats["log_z"] == pytest.approx(float(z[keep].mean()) if keep.any() else 0.0)
    bad = f | {"logp": f["logp"].masked_fill(~f["mask"], NAN).requires_grad_()}
    again, _ = var_tb(**bad, eps=0.1, temperature=0.5)
    assert again.item() == pytest.approx(wanted)
    assert torch.autograd.grad(again, bad["logp"])[0].isfinite().all()
    order = torch.randperm(7)
    assert var_tb(**{k: x[order] for k, x in f.items()}, eps=0.1, temperature=0.5)[0].item() == pytest.approx(wanted)


def test_var_tb_is_0_where_likelihood_follows_reward_and_only_there():
    reward = torch.tensor([0.1, 0.4, 0.0, 1.0], dtype=torch.float64)
    follows = ((reward + 0.001) / 3).log()
    logp = torch.stack([follows * 0.3, follows * 0.7], dim=1)
    f = {"mask": torch.ones(4, 2).bool(), "group": torch.zeros(4).long(), "reward": reward}
    loss, stats = var_tb(logp, **f)
    assert loss.item() < 1e-24
    assert stats["log_z"] == pytest.approx(math.log(3))
    assert var_tb(logp * 1.1, **f)[0] > 1e-3


def test_var_tb_of_single_answers_and_of_no_reward_is_finite():
    f = rows(1)
    f["group"] = torch.arange(7)
    assert var_tb(**f)[0].item() == 0.0
    f = rows(1)
    f["reward"][:] = -1.0
    assert var_tb(**f)[0].isfinite()
    external = torch.ones(7, 4).bool()
    assert var_tb(**f, external=external)[0].item() == var_tb(**f)[0].item()


def test_var_tb_is_registered_with_the_fields_it_reads():
    method = registry.get("objective", "var_tb")
    assert method.requires == ("logp", "mask", "group", "reward")
    assert method.needs_group
