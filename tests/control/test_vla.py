import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.control.vla import ActionBins, joint_ratio, turn_gae, turn_reward, vla_ppo
from guerdon.credit.step import gae

quick = settings(derandomize=True, deadline=None, max_examples=30)


def batch(seed, n=4, turns=5, k=3):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, turns + 1, (n,), generator=g)
    number = torch.arange(turns).repeat_interleave(k).expand(n, -1)
    mask = number < lengths.unsqueeze(1)
    old, shift, values, dense = (torch.randn(n, turns * k, generator=g, dtype=torch.float64) for _ in range(4))
    per_turn = torch.randn(n, turns, generator=g, dtype=torch.float64).repeat_interleave(k, dim=1)
    return {
        "lengths": lengths,
        "turn": torch.where(mask, number, -1),
        "mask": mask,
        "old": old,
        "logp": old + 0.2 * shift,
        "values": values.masked_fill(~mask, float("nan")),
        "dense": dense.masked_fill(~mask, float("nan")),
        "advantage": per_turn,
        "bootstrap": torch.randn(n, generator=g, dtype=torch.float64),
        "done": torch.rand(n, generator=g) < 0.5,
    }


@quick
@given(st.integers(0, 10**6))
def test_joint_ratio_is_the_product_of_token_ratios(seed):
    b = batch(seed)
    seen = joint_ratio(b["logp"].masked_fill(~b["mask"], float("nan")), b["old"], b["turn"], b["mask"])
    product = (b["logp"] - b["old"]).exp().masked_fill(~b["mask"], 1.0).view(4, 5, 3).prod(dim=2)
    assert torch.allclose(seen, product[:, : seen.shape[1]])


@quick
@given(st.integers(0, 10**6))
def test_loss_by_hand(seed):
    b = batch(seed)
    logp = b["logp"].clone().requires_grad_(True)
    loss, stats = vla_ppo(logp, b["old"], b["advantage"], b["turn"], b["mask"], 5)
    total = 0.0
    for i in range(4):
        for m in range(int(b["lengths"][i])):
            here = slice(3 * m, 3 * m + 3)
            rho, a = float((b["logp"] - b["old"])[i, here].sum().exp()), float(b["advantage"][i, 3 * m])
            total += min(rho * a, min(max(rho, 0.8), 1.2) * a)
    assert loss.item() == pytest.approx(-total / int(b["lengths"].sum()))
    loss.backward()
    assert torch.isfinite(logp.grad).all()
    assert (logp.grad[~b["mask"]] == 0).all()
    by_turn = logp.grad.view(4, 5, 3)
    assert torch.allclose(by_turn, by_turn[:, :, :1].expand(-1, -1, 3))  # tokens of an action move together
    assert 0 <= stats["clip_fraction"] <= 1


def test_an_action_is_clipped_though_each_token_is_within_bounds():
    turn, mask = torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool)
    old = torch.zeros(1, 3)
    logp = torch.full((1, 3), 1.1).log().requires_grad_(True)
    loss, stats = vla_ppo(logp, old, torch.ones(1, 3), turn, mask, 9)
    loss.backward()
    assert loss.item() == pytest.approx(-1.2)
    assert (logp.grad == 0).all()
    assert stats["clip_fraction"] == 1.0


@pytest.mark.parametrize(("step", "warmup", "moves"), [(0, 5, False), (4, 5, False), (5, 5, True), (0, 0, True)])
def test_the_policy_rests_while_the_critic_warms_up(step, warmup, moves):
    b = batch(0)
    logp = b["logp"].clone().requires_grad_(True)
    loss, _ = vla_ppo(logp, b["old"], b["advantage"], b["turn"], b["mask"], torch.tensor(step), warmup=warmup)
    loss.backward()
    assert bool((logp.grad != 0).any()) == moves
    assert (loss.item() != 0) == moves


@quick
@given(st.integers(0, 10**6), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_credit_counts_turns_not_tokens(seed, gamma, lam):
    b = batch(seed)
    seen = turn_gae(b["dense"], b["values"], b["turn"], b["mask"], b["bootstrap"], b["done"], gamma=gamma, lam=lam)
    for i in range(4):
        n = int(b["lengths"][i])
        reward = b["dense"][i, : 3 * n].view(n, 3).sum(dim=1)
        value = b["values"][i, : 3 * n].view(n, 3)[:, 0]
        following = torch.cat([value[1:], torch.where(b["done"][i], 0.0, b["bootstrap"][i]).view(1)])
        delta = reward + gamma * following - value
        wanted = [sum((gamma * lam) ** (u - m) * delta[u] for u in range(m, n)) for m in range(n)]
        got = seen.advantage[i, : 3 * n].view(n, 3)
        assert torch.allclose(got, torch.stack(wanted).unsqueeze(1).expand(-1, 3))
        assert torch.allclose(seen.returns[i, : 3 * n].view(n, 3), got + value.unsqueeze(1))
    assert (seen.advantage[~b["mask"]] == 0).all()
    assert (seen.returns[~b["mask"]] == 0).all()


def test_with_one_token_per_turn_it_is_gae():
    b = batch(3, k=1)
    fields = b["dense"], b["values"]
    ours = turn_gae(*fields, b["turn"], b["mask"], b["bootstrap"], b["done"], whiten=True)
    theirs = gae(*fields, b["mask"], b["bootstrap"], b["done"])
    assert torch.allclose(ours.advantage, theirs.advantage)
    assert torch.allclose(ours.returns, theirs.returns)


@quick
@given(st.integers(0, 10**6))
def test_rows_and_padding_do_not_matter(seed):
    b = batch(seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    fields = ("dense", "values", "turn", "mask", "bootstrap", "done")
    whole = turn_gae(*(b[name] for name in fields)).advantage
    assert torch.allclose(turn_gae(*(b[name][order] for name in fields)).advantage, whole[order])
    fill = {"dense": float("nan"), "values": float("nan"), "turn": -1, "mask": False}
    wide = [torch.nn.functional.pad(b[name], (0, 2), value=fill[name]) if name in fill else b[name] for name in fields]
    assert torch.allclose(turn_gae(*wide).advantage[:, :-2], whole)


def test_nothing_at_all():
    empty, mask = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    turn = torch.full((2, 3), -1)
    assert (turn_gae(empty, empty, turn, mask, torch.ones(2), torch.zeros(2).bool()).advantage == 0).all()
    loss, _ = vla_ppo(empty.clone().requires_grad_(True), empty, empty, turn, mask, 7)
    assert loss.item() == 0


BINS = ActionBins(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0]), 4)


def test_bins_by_hand():
    assert BINS.encode(torch.tensor([[-1.0, 0.5], [0.1, 9.0], [1.0, -3.0]])).tolist() == [[0, 0], [2, 3], [3, 0]]
    decoded = BINS.decode(torch.tensor([[0, 3], [2, 4], [-1, 1]]))
    assert torch.allclose(decoded.action, torch.tensor([[-0.75, 3.5], [0.0, 0.0], [0.0, 0.0]]))
    assert decoded.valid.tolist() == [True, False, False]
    resting = ActionBins(BINS.low, BINS.high, 4, no_op=torch.tensor([0.5, 1.0]))
    assert resting.decode(torch.tensor([9, 0])).action.tolist() == [0.5, 1.0]


@quick
@given(st.integers(0, 10**6))
def test_decoding_is_within_half_a_bin(seed):
    share = torch.rand(20, 2, generator=torch.Generator().manual_seed(seed))
    action = BINS.low + share * (BINS.high - BINS.low)
    token = BINS.encode(action)
    assert ((BINS.decode(token).action - action).abs() <= (BINS.high - BINS.low) / 8 + 1e-6).all()
    assert (BINS.encode(BINS.decode(token).action) == token).all()


def test_bad_bins_are_refused():
    with pytest.raises(ValueError, match="bins is 0"):
        ActionBins(BINS.low, BINS.high, 0)
    with pytest.raises(ValueError, match="each low below its high"):
        ActionBins(BINS.high, BINS.low, 3)


def test_undecodable_actions_cost_nothing_by_default():
    success, valid = torch.tensor([[False, True]]), torch.tensor([[False, True]])
    assert turn_reward(success, valid).tolist() == [[0.0, 1.0]]
    assert turn_reward(success, valid, undecodable=-1.0).tolist() == [[-1.0, 1.0]]
