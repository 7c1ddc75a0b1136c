import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import registry
from guerdon.credit.group import rloo
from guerdon.credit.token import OREAL, one_of_each, prefix_weights


def batch(seed=0, groups=6, size=5, actions=4, width=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    n = groups * size
    reward = (torch.rand(n, generator=g) < 0.5).to(dtype)
    length = torch.randint(1, actions + 1, (n, 1), generator=g)
    return {
        "reward": reward,
        "group": torch.arange(groups).repeat_interleave(size),
        "mask": torch.arange(actions) < length,
        "features": torch.randn(n, actions, width, generator=g, dtype=dtype) + reward[:, None, None],
    }


def trained(steps=60, **options):
    method = OREAL(**{"warmup": 0, "lr": 0.01, **options})
    for step in range(steps):
        method(**batch(step), seed=step)
    return method


def test_weights_by_hand():
    p = torch.tensor([[0.9, 0.5, 0.2, 0.7]], dtype=torch.float64)
    mean = p.logit()
    logits = mean * torch.arange(1, 5) - torch.cat([torch.zeros(1, 1), (mean * torch.arange(1, 5))[:, :-1]], dim=1)
    weights = prefix_weights(logits, torch.ones(1, 4).bool())
    assert weights.right.tolist()[0] == pytest.approx([0.8, 0.0, 0.0, 0.4])
    assert weights.wrong.tolist()[0] == pytest.approx([0.0, 0.0, 0.6, 0.0])


@given(st.integers(0, 10_000))
def test_weights_stay_in_range_and_off_the_mask_at_0(seed):
    g = torch.Generator().manual_seed(seed)
    logits, mask = 5 * torch.randn(4, 6, generator=g), torch.rand(4, 6, generator=g) < 0.7
    weights = prefix_weights(logits.masked_fill(~mask, float("nan")), mask)
    for w in weights:
        assert ((w >= 0) & (w <= 1)).all()
        assert (w[~mask] == 0).all()
    assert (weights.right * weights.wrong == 0).all()


@given(st.integers(0, 10_000))
def test_one_of_each_of_every_mixed_group(seed):
    g = torch.Generator().manual_seed(seed)
    n = 30
    group, right = torch.randint(0, 8, (n,), generator=g) - 3, torch.rand(n, generator=g) < 0.4
    draw = torch.rand(n, generator=g, dtype=torch.float64)
    chosen = one_of_each(right, group, draw)
    for key in group.unique():
        mine = group == key
        mixed = right[mine].any() and (~right[mine]).any()
        assert (chosen & mine & right).sum() == int(mixed)
        assert (chosen & mine & ~right).sum() == int(mixed)


def test_the_choice_is_fair():
    right = torch.tensor([True, True, True, False]).repeat(4000)
    group = torch.arange(4000).repeat_interleave(4)
    draw = torch.rand(16000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = one_of_each(right, group, draw).reshape(4000, 4).sum(dim=0)
    assert counts[3] == 4000
    assert ((counts[:3] - 4000 / 3).abs() < 150).all()


def test_credit_is_rloo_times_the_weight_of_the_outcome():
    method = trained(keep="all")
    fields = batch(99)
    with torch.no_grad():
        weights = prefix_weights(method.model(fields["features"]), fields["mask"])
    credit, stats = method(**fields, seed=99)
    outcome = rloo(fields["reward"], fields["group"], fields["mask"])
    weight = torch.where(fields["reward"].bool().unsqueeze(1), weights.right, weights.wrong)
    assert torch.allclose(credit.outcome_advantage, outcome)
    assert torch.allclose(credit.advantage, outcome * weight)
    assert weight.max() > 0.2
    assert stats["weight"] == pytest.approx((weight[outcome != 0]).mean().item(), rel=1e-4)
    assert (credit.advantage[~fields["mask"]] == 0).all()


def test_one_right_and_one_wrong_answer_of_each_mixed_group_have_credit():
    credit, _ = trained()(**batch(99), seed=99)
    rows = (credit.outcome_advantage != 0).any(dim=1).reshape(6, 5)
    right = batch(99)["reward"].bool().reshape(6, 5)
    mixed = right.any(dim=1) & (~right).any(dim=1)
    assert mixed.any()
    assert (rows & right).sum(dim=1).tolist() == mixed.int().tolist()
    assert (rows & ~right).sum(dim=1).tolist() == mixed.int().tolist()


def test_during_the_warm_up_only_the_token_model_learns():
    method = OREAL(warmup=3, lr=0.01)
    for step in range(5):
        before = None if method.model is None else method.model.last.weight.clone()
        credit, stats = method(**batch(step), seed=step)
        assert (credit.advantage.abs().sum() == 0) == (step < 3)
        assert credit.outcome_advantage.abs().sum() > 0
        if before is not None:
            assert not torch.equal(before, method.model.last.weight)
    assert stats["loss"] > 0


def test_at_the_start_all_weights_are_0_even_without_a_warm_up():
    credit, stats = OREAL(warmup=0)(**batch(), seed=0)
    assert credit.advantage.abs().sum() == 0
    assert stats["weight"] == 0


def test_it_tells_right_from_wrong_after_a_while():
    method = trained()
    _, stats = method(**batch(1000, groups=40), seed=0)
    assert stats["accuracy"] > 0.8


def test_without_mixed_groups_nothing_is_learned():
    method = trained(3)
    before = method.model.last.weight.clone()
    credit, stats = method(**{**batch(), "reward": torch.ones(30)}, seed=0)
    assert credit.advantage.abs().sum() == 0
    assert torch.equal(before, method.model.last.weight)
    assert stats["loss"] != stats["loss"]


def test_permuted_trajectories_get_the_same_unweighted_credit():
    fields, method = batch(5), trained(keep="all")
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    plain, _ = method(**fields, seed=1)
    again = trained(keep="all")
    shuffled, _ = again(**{key: x[order] for key, x in fields.items()}, seed=1)
    assert torch.allclose(plain.advantage[order], shuffled.advantage, atol=1e-6)


def test_memory_is_complete():
    whole, halves = trained(12), trained(7)
    resumed = OREAL(warmup=0, lr=0.01)
    resumed.load_state_dict(halves.state_dict())
    for step in range(7, 12):
        resumed(**batch(step), seed=step)
    assert resumed.steps == 12
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    empty = OREAL()
    empty.load_state_dict(OREAL().state_dict())
    assert empty.steps == 0


def test_it_is_registered_with_its_fields():
    method = registry.get("credit", "oreal")
    assert method.produces == ("advantage", "outcome_advantage")
    assert set(method.requires) == {"reward", "group", "mask", "features", "seed"}
