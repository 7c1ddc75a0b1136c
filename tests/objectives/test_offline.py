import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.objectives.divergence import k3
from guerdon.objectives.offline import oreo, soft_bellman


def fields(seed=0, n=5, t=6, holes=True):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, t, generator=g) < (0.75 if holes else 1.1)
    mask[0] = not holes
    step = (torch.rand(n, t, generator=g) < 0.4).cumsum(dim=1)
    return {
        "logp": -torch.rand(n, t, generator=g, dtype=torch.float64),
        "ref_logp": -torch.rand(n, t, generator=g, dtype=torch.float64),
        "value_prediction": torch.randn(n, t, generator=g, dtype=torch.float64),
        "reward": (torch.rand(n, generator=g) < 0.5).double(),
        "mask": mask,
        "turn": torch.where(mask, step, -1),
    }


def by_hand(f, beta, granularity):
    """Both losses, one state at a time."""
    critic, policy = [], []
    for i in range(len(f["mask"])):
        where = f["mask"][i].nonzero().flatten().tolist()
        if not where:
            continue
        ratio = [f["logp"][i, k] - f["ref_logp"][i, k] for k in where]
        turn = [int(f["turn"][i, k]) for k in where]
        mine_c, mine_p = [], []
        for j, k in enumerate(where):
            if granularity == "step" and j > 0 and turn[j] == turn[j - 1]:
                continue
            own = [m for m in range(j, len(where)) if (turn[m] == turn[j] if granularity == "step" else m == j)]
            later = sum(ratio[m].detach() for m in range(j, len(where)) if m not in own)
            here = sum(ratio[m] for m in own)
            value = f["value_prediction"][i, k]
            mine_c.append((value + beta * (here + later if j < len(where) else 0).detach() - f["reward"][i]) ** 2)
            mine_p.append((value.detach() + beta * (here + later) - f["reward"][i]) ** 2)
        critic.append(sum(mine_c) / len(mine_c))
        policy.append(sum(mine_p) / len(mine_p))
    return sum(critic) / len(critic), sum(policy) / len(policy)


@given(st.integers(0, 10_000), st.sampled_from(["token", "step"]))
def test_losses_and_gradients_agree_with_one_state_at_a_time(seed, granularity):
    f = fields(seed)
    if not f["mask"].any():
        return
    f["logp"].requires_grad_()
    f["value_prediction"].requires_grad_()
    loss, stats = oreo(**f, beta=0.3, kl_weight=0.0, granularity=granularity)
    critic, policy = by_hand(f, 0.3, granularity)
    assert stats["critic"] == pytest.approx(critic.item())
    assert stats["policy"] == pytest.approx(policy.item())
    leaves = [f["logp"], f["value_prediction"]]
    mine, theirs = torch.autograd.grad(loss, leaves), torch.autograd.grad(critic + policy, leaves)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b)


def test_the_gradient_of_an_action_comes_from_its_own_state_only():
    f = fields(holes=False)
    f["logp"].requires_grad_()
    residual = soft_bellman(**f, beta=0.5).policy
    for t in range(6):
        (gradient,) = torch.autograd.grad(residual[:, t].sum(), f["logp"], retain_graph=True)
        assert (gradient[:, t] == 0.5).all()
        assert gradient.count_nonzero() == 5


def test_the_residual_of_the_optimum_is_0():
    """One state, two actions: pi = pi_ref exp(r / beta) / Z and V = beta log Z."""
    beta, reward, ref = 0.5, torch.tensor([1.0, 0.0]).double(), torch.tensor([0.3, 0.7]).double()
    z = (ref * (reward / beta).exp()).sum()
    pi = ref * (reward / beta).exp() / z
    column = {"logp": pi.log(), "ref_logp": ref.log(), "value_prediction": (beta * z.log()).expand(2)}
    column = {key: x.unsqueeze(1) for key, x in column.items()}
    turn = torch.zeros(2, 1, dtype=torch.int64)
    out = soft_bellman(**column, reward=reward, mask=torch.ones(2, 1), turn=turn, beta=beta)
    assert out.critic.abs().max() < 1e-12
    assert out.policy.abs().max() < 1e-12


@given(st.integers(0, 10_000), st.sampled_from(["token", "step"]))
def test_nothing_off_the_mask_is_read_and_padding_does_not_matter(seed, granularity):
    f = fields(seed)
    plain, _ = oreo(**f, granularity=granularity)
    nan = {k: x.masked_fill(~f["mask"], float("nan")) for k, x in f.items() if k.endswith(("logp", "prediction"))}
    padded = {k: torch.cat([x, x[:, :2]], dim=1) if x.ndim == 2 else x for k, x in (f | nan).items()}
    padded["mask"][:, 6:] = False
    padded["turn"][:, 6:] = -1
    padded["logp"].requires_grad_()
    other, _ = oreo(**padded, granularity=granularity)
    assert other.item() == pytest.approx(plain.item())
    if f["mask"].any():
        assert torch.autograd.grad(other, padded["logp"])[0].isfinite().all()


def test_exact_and_sampled_divergence():
    f = fields(3)
    exact = torch.rand(5, 6, dtype=torch.float64)
    none, _ = oreo(**f, kl_weight=0.0)
    row = lambda x, m: ((x * m).sum(1) / m.sum(1).clamp(min=1)).sum() / (m.sum(1) > 0).sum()  # noqa: E731
    loss, stats = oreo(**f, ref_kl=exact, kl_weight=0.1)
    assert (loss - none).item() == pytest.approx(0.1 * row(exact, f["mask"]).item())
    assert stats["kl"] == pytest.approx(row(exact, f["mask"]).item())
    sampled, _ = oreo(**f, kl_weight=0.1)
    assert (sampled - none).item() == pytest.approx(0.1 * row(k3(f["logp"], f["ref_logp"]), f["mask"]).item())
    external = torch.zeros(5, 6).bool()
    external[1] = True
    own = f["mask"] & ~external
    mixed, _ = oreo(**f, external=external, kl_weight=0.1)
    assert (mixed - none).item() == pytest.approx(0.1 * row(k3(f["logp"], f["ref_logp"]), own).item())


def test_start_value_is_that_of_first_states():
    f = fields(4)
    firsts = [f["value_prediction"][i, int(m.nonzero()[0])] for i, m in enumerate(f["mask"]) if m.any()]
    assert oreo(**f)[1]["start_value"] == pytest.approx((sum(firsts) / len(firsts)).item())


def test_one_turn_makes_one_state_per_answer():
    f = fields(2, holes=False)
    f["turn"] = torch.zeros_like(f["turn"])
    states = soft_bellman(**f, granularity="step").states
    assert states.sum(dim=1).tolist() == [1] * 5
    assert states[:, 0].all()
