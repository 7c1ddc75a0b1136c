import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.control.offline import sgc_elbo, step_filter, success_loss, vsc_rl

quick = settings(derandomize=True, deadline=None, max_examples=30)
NAN = float("nan")


def test_bound_by_hand():
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    segment = torch.tensor([[0, 0, 1, -1], [0, 0, -1, -1]])
    logp = torch.tensor([[-1.0, -0.5, -0.2, NAN], [-1.0, -1.0, NAN, NAN]])
    ref = torch.tensor([[-1.0, -1.0, -1.0, NAN], [-0.5, -1.0, NAN, NAN]])
    returns = torch.tensor([[1.0, 2.0], [0.5, 7.0]])
    bound = sgc_elbo(returns, logp, ref, segment, mask, alpha=0.5)
    assert torch.allclose(bound.segments, torch.tensor([[2.0 - 0.5, 4.0 - 0.8], [1.0 + 0.5, 0.0]]))
    assert torch.allclose(bound.total, bound.segments.sum(dim=1))
    with pytest.raises(ValueError, match="alpha is 0"):
        sgc_elbo(returns, logp, ref, segment, mask, alpha=0.0)


def batch(seed, n=5, turns=6, per=2):
    g = torch.Generator().manual_seed(seed)
    exists = torch.rand(n, turns, generator=g) < 0.7
    mask = exists.repeat_interleave(per, dim=1)
    turn = torch.where(mask, torch.arange(turns).repeat_interleave(per), -1)
    dense = (torch.rand(n, turns * per, generator=g, dtype=torch.float64) < 0.1).double()
    values = torch.rand(n, turns * per, generator=g, dtype=torch.float64)
    last, done = torch.rand(n, generator=g, dtype=torch.float64), torch.rand(n, generator=g) < 0.5
    return dense.masked_fill(~mask, NAN), values.masked_fill(~mask, NAN), turn, mask, last, done


@quick
@given(st.integers(0, 10**6))
def test_filter_against_a_loop(seed):
    dense, values, turn, mask, last, done = batch(seed)
    (seen, target), stats = step_filter(dense, values, turn, mask, last, done, gamma=0.8, margin=0.1)
    for i in range(len(dense)):
        here = [m for m in range(6) if mask[i, 2 * m]]
        reward = [float(dense[i, 2 * m : 2 * m + 2].sum()) for m in here]
        v = [float(values[i, 2 * m]) for m in here] + [0.0 if done[i] else float(last[i])]
        for j, m in enumerate(here):
            g = sum(0.8 ** (u - j) * reward[u] for u in range(j, len(here)))
            wanted = min(max(v[j + 1] - v[j] - 0.1 + reward[j] + g, 0.0), 1.0)
            assert seen[i, 2 * m].item() == pytest.approx(wanted)
            assert seen[i, 2 * m + 1].item() == pytest.approx(wanted)
            assert target[i, 2 * m : 2 * m + 2].tolist() == [float(g > 0)] * 2
    assert (seen[~mask] == 0).all()
    assert stats["kept"] == pytest.approx(float((seen > 0).sum() / max(int(mask.sum()), 1)))


@quick
@given(st.integers(0, 10**6))
def test_filter_does_not_see_order_of_rows_or_padding(seed):
    fields = batch(seed)
    whole = step_filter(*fields)[0].advantage
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(step_filter(*(x[order] for x in fields))[0].advantage, whole[order])
    fill = [NAN, NAN, -1, False]
    wide = [torch.nn.functional.pad(x, (0, 3), value=v) for x, v in zip(fields[:4], fill, strict=True)]
    assert torch.equal(step_filter(*wide, *fields[4:])[0].advantage[:, :-3], whole)


def test_only_the_sign_of_the_filter_counts():
    logp = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True]])
    small, _ = vsc_rl(logp, torch.tensor([[0.01, 0.0, 0.5]]), mask)
    large, stats = vsc_rl(logp, torch.tensor([[1.0, 0.0, 1.0]]), mask)
    assert small.item() == large.item() == pytest.approx(4 / 3)
    assert stats == {"filtered": pytest.approx(4 / 3), "imitation": 0.0}
    large.backward()
    assert logp.grad[0].tolist() == pytest.approx([-1 / 3, 0.0, -1 / 3])


def test_reference_actions_are_cloned_whatever_their_credit():
    logp = torch.tensor([[-1.0, -2.0, NAN], [-3.0, -5.0, -7.0]])
    logp.requires_grad_(True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    external = torch.tensor([[False, False, True], [True, True, True]])
    advantage = torch.tensor([[0.2, 0.0, NAN], [0.0, 9.0, 0.0]])
    loss, stats = vsc_rl(logp, advantage, mask, external, imitation=0.5)
    assert loss.item() == pytest.approx(0.5 + 0.5 * 5.0)
    assert stats["imitation"] == pytest.approx(5.0)
    loss.backward()
    assert torch.isfinite(logp.grad).all()
    assert logp.grad[0, 2] == 0


def test_nothing_to_learn_from():
    logp = torch.zeros(2, 3, requires_grad=True)
    loss, _ = vsc_rl(logp, torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0


def test_critic_learns_the_chance_of_success():
    logits = torch.zeros(4, 2, requires_grad=True)
    returns = torch.tensor([[0.5, NAN], [0.0, NAN], [0.9, NAN], [0.1, NAN]])
    mask = torch.tensor([[True, False]] * 4)
    loss = success_loss(logits, returns, mask)
    assert loss.item() == pytest.approx(0.6931, abs=1e-4)
    loss.backward()
    assert logits.grad[:, 0].tolist() == pytest.approx([-0.125, 0.125, -0.125, -0.125])
    assert (logits.grad[:, 1] == 0).all()
