import math
from collections import defaultdict
from itertools import combinations_with_replacement, product
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import registry
from guerdon.credit import dgpo, gdpo, grpo, mrn, ngrpo
from guerdon.errors import RecipeError

quick = settings(derandomize=True, deadline=None, max_examples=40)
OUTCOMES = st.sampled_from([0.0, 0.1, 0.25, 1.0, -2.0])
REWARDS = st.lists(OUTCOMES, min_size=1, max_size=14)
ROWS = st.lists(st.tuples(OUTCOMES, st.sampled_from([0.0, 1.0, float("nan")]), OUTCOMES), min_size=1, max_size=14)
SEEDS = st.integers(0, 10**6)
WEIGHTS = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)

# Called with (N,3) components; the outcome of a method that reads one is the first column.
CREDITS = {
    "gdpo": lambda c, g, m: gdpo(c, g, m, WEIGHTS),
    "gdpo token": lambda c, g, m: gdpo(c, g, m, WEIGHTS, batch_norm="token"),
    "mrn": lambda c, g, m: mrn(c, g, m, WEIGHTS),
    "ngrpo": lambda c, g, m: ngrpo(c[:, 0], g, m, virtual=2),
    "dgpo": lambda c, g, m: dgpo(c[:, 0], g, m),
    "dgpo by another reward": lambda c, g, m: dgpo(c[:, 0], g, m, c, accuracy=1, token_mean="all"),
}


def ragged_batch(rows, seed):
    random = torch.Generator().manual_seed(seed)
    components = torch.tensor(rows, dtype=torch.float64)
    group = torch.randint(0, 4, (len(rows),), generator=random) * 1000 - 7
    mask = torch.rand(len(rows), 6, generator=random) > 0.4
    return components, group, mask


def one_action(*rewards):
    reward = torch.tensor(rewards, dtype=torch.float64)
    return reward, torch.ones(len(reward), 1, dtype=torch.bool)


def by_group(group):
    members = defaultdict(list)
    for i, key in enumerate(group.tolist()):
        members[key].append(i)
    return list(members.values())


def mrn_by_loop(components, group, weights, eps=1e-4):
    """(N,) list, in plain Python."""
    rows = [[0.0 if math.isnan(x) else x for x in row] for row in components.tolist()]
    out = [0.0] * len(rows)
    for members in by_group(group):
        for k, weight in enumerate(weights):
            own = [rows[i][k] for i in members]
            if len(own) > 1 and len(set(own)) > 1:
                for i in members:
                    out[i] += weight * (rows[i][k] - mean(own)) / (stdev(own) + eps)
    return out


def test_gdpo_tells_apart_what_summing_confuses():
    rewards, mask = one_action([0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0])
    group, root = torch.tensor([0, 0, 1, 1]), math.sqrt(0.5)
    summed = grpo(rewards.sum(dim=1), group, mask, eps=0.0)[:, 0]
    assert summed.tolist() == pytest.approx([-root, root, -root, root])
    apart = gdpo(rewards, group, mask, eps=0.0, batch_norm="none")[:, 0]
    assert apart.tolist() == pytest.approx([-root, root, -2 * root, 2 * root])
    # The batch step: mean 0, sample variance (1/2 + 1/2 + 2 + 2) / 3 = 5/3.
    whitened = gdpo(rewards, group, mask, eps=0.0)[:, 0]
    assert whitened.tolist() == pytest.approx([x / math.sqrt(5 / 3) for x in apart.tolist()])


@pytest.mark.parametrize(("size", "summed", "apart"), [(2, 2, 3), (4, 7, 14), (6, 16, 38)])
def test_distinct_advantages_of_two_binary_rewards(size, summed, apart):
    groups = list(combinations_with_replacement(product([0.0, 1.0], repeat=2), size))
    reward, mask = one_action(*[row for rows in groups for row in rows])
    group = torch.arange(len(groups)).repeat_interleave(size)
    of_sums, of_each = grpo(reward.sum(dim=1), group, mask, eps=0.0), mrn(reward, group, mask, eps=0.0)
    for advantage, wanted in ((of_sums, summed), (of_each, apart)):
        rows = advantage.reshape(-1, size).sort(dim=1).values.mul(1e6).round().long()
        assert len({tuple(row) for row in rows.tolist()}) == wanted


def test_gdpo_batch_step_by_token_counts_long_answers_more():
    reward = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    # sqrt 2 three times and -sqrt 2 once: mean sqrt 2 / 2, sample variance (3 * 1/2 + 9/2) / 3 = 2.
    out = gdpo(reward, torch.tensor([4, 4]), mask, eps=0.0, batch_norm="token")
    assert out.tolist() == [pytest.approx([0.5] * 3), pytest.approx([-1.5, 0, 0])]


def test_silent_groups_stay_silent_whatever_the_batch_mean():
    reward = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.3, 0.7], [0.3, 0.7], [5.0, 5.0]], dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1, 2])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]]).bool()
    out = gdpo(reward, group, mask, batch_norm="token")
    assert (out[2:] == 0).all()
    assert out[0, 0] != -out[1, 0], "the batch mean is not 0"
    raw = gdpo(reward, group, mask, batch_norm="token", singleton="raw")
    assert raw[4, 0] > 1
    assert (raw[2:4] == 0).all()
    assert mrn(reward, group, mask, singleton="raw")[4, 0] == 10


@quick
@given(rewards=REWARDS, seed=SEEDS)
def test_one_reward_gives_grpo(rewards, seed):
    reward, group, mask = ragged_batch(rewards, seed)
    for batch_norm in ("sequence", "token", "none"):
        out = gdpo(reward.unsqueeze(1), group, mask, torch.tensor([1.0]), batch_norm=batch_norm)
        assert torch.equal(out, grpo(reward, group, mask))


@quick
@given(rows=ROWS, seed=SEEDS)
def test_gdpo_and_mrn_follow_the_formula(rows, seed):
    components, group, mask = ragged_batch(rows, seed)
    plain = mrn_by_loop(components, group, WEIGHTS.tolist())
    torch.testing.assert_close(mrn(components, group, mask, WEIGHTS), torch.tensor(plain).double().unsqueeze(1) * mask)
    for unit in ("sequence", "token"):
        counts = [int(n) if unit == "token" else min(int(n), 1) for n in mask.sum(dim=1)]
        drawn = [a for a, n in zip(plain, counts, strict=True) for _ in range(n)]
        out = gdpo(components, group, mask, WEIGHTS, batch_norm=unit)
        for members in by_group(group):
            silent = max(plain[i] for i in members) - min(plain[i] for i in members) < 1e-9
            for i in members:
                moved = 0.0 if silent or len(drawn) < 2 else (plain[i] - mean(drawn)) / (stdev(drawn) + 1e-4)
                assert out[i].tolist() == pytest.approx([moved * m for m in mask[i].tolist()], abs=1e-7)


@quick
@given(rows=ROWS, seed=SEEDS, factor=st.sampled_from([0.01, 100.0]), column=st.integers(0, 2))
def test_scale_of_one_reward_does_not_matter(rows, seed, factor, column):
    components, group, mask = ragged_batch(rows, seed)
    scaled = components.clone()
    scaled[:, column] *= factor
    for batch_norm in ("sequence", "token", "none"):
        torch.testing.assert_close(
            gdpo(scaled, group, mask, WEIGHTS, eps=1e-12, batch_norm=batch_norm),
            gdpo(components, group, mask, WEIGHTS, eps=1e-12, batch_norm=batch_norm),
        )


def test_one_reward_a_hundred_times_larger_flips_the_sum_but_not_mrn():
    reward, mask = one_action([1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5])
    group, large = torch.zeros(3, dtype=torch.long), torch.tensor([1.0, 100.0, 1.0])
    torch.testing.assert_close(mrn(reward * large, group, mask), mrn(reward, group, mask), atol=1e-3, rtol=0)
    assert grpo(reward.sum(dim=1), group, mask).argmax() == 0
    assert grpo((reward * large).sum(dim=1), group, mask).argmax() == 1


def test_weights_multiply_advantages():
    reward, mask = one_action([0.0, 0.0], [1.0, 1.0], [0.0, 1.0])
    group = torch.zeros(3, dtype=torch.long)
    one, two = (mrn(reward[:, k : k + 1], group, mask) for k in (0, 1))
    assert torch.equal(mrn(reward, group, mask, torch.tensor([0.25, -3.0])), 0.25 * one - 3 * two)
    assert torch.equal(mrn(reward, group, mask), one + two)
    for credit in (gdpo, mrn):
        with pytest.raises(ValueError, match=r"component_weights has shape \(3,\).*one weight per column"):
            credit(reward, group, mask, torch.ones(3))


@pytest.mark.parametrize("name", ["gdpo", "mrn"])
def test_a_recipe_supplies_the_weights_of_its_rewards(name):
    reward, mask = one_action([0.0, 0.0], [1.0, 1.0], [0.0, 1.0])
    fields = {"components": reward, "group": torch.zeros(3, dtype=torch.long), "mask": mask}
    bound, weights = registry.get("credit", name).bind(), torch.tensor([0.25, -3.0])
    weighted = bound({**fields, "component_weights": weights}).fields["advantage"]
    assert torch.equal(weighted, registry.get("credit", name).target(**fields, component_weights=weights))
    assert not torch.equal(weighted, bound(fields).fields["advantage"])


@pytest.mark.parametrize(
    ("correct", "wrong_gets", "right_gets"),
    [(0, -1 / 3, None), (1, -0.504, 1.764), (4, -1.054, 0.843), (7, -2.667, 0.333)],
)
def test_ngrpo_of_eight(correct, wrong_gets, right_gets):
    reward, mask = one_action(*[1.0] * correct, *[0.0] * (8 - correct))
    out = ngrpo(reward, torch.full((8,), 3), mask)[:, 0]
    assert out[correct:].tolist() == pytest.approx([wrong_gets] * (8 - correct), abs=6e-4)
    assert out[:correct].tolist() == pytest.approx([right_gets] * correct, abs=6e-4)


def test_ngrpo_of_a_group_at_the_maximum_or_of_one_is_zero():
    reward, mask = one_action(1.5, 1.5, 0.0, 1.5, 0.25)
    group = torch.tensor([0, 0, 1, 1, 2])
    out = ngrpo(reward, group, mask, max_reward=1.5, eps=0.0)[:, 0]
    assert out[[0, 1, 4]].tolist() == [0, 0, 0]
    # 0, 1.5, 1.5: mean 1, sample standard deviation sqrt 3 / 2.
    assert out[2:4].tolist() == pytest.approx([-2 / math.sqrt(3), 1 / math.sqrt(3)])
    assert ngrpo(reward, group, mask, singleton="raw")[4, 0] == 0.25


@quick
@given(rewards=REWARDS, seed=SEEDS, virtual=st.integers(0, 3))
def test_ngrpo_follows_the_formula(rewards, seed, virtual):
    reward, group, mask = ragged_batch(rewards, seed)
    out = ngrpo(reward, group, mask, virtual=virtual)
    for members in by_group(group):
        own = [rewards[i] for i in members]
        imagined = own + [1.0] * virtual
        silent = len(own) == 1 or len(set(imagined)) == 1
        plain = [0.0 if silent else (r - mean(imagined)) / (stdev(imagined) + 1e-6) for r in own]
        for i, wanted in zip(members, plain, strict=True):
            assert out[i].tolist() == pytest.approx([wanted * m for m in mask[i].tolist()], rel=1e-6, abs=1e-9)
        if virtual and not silent:
            assert sum(plain) < 0
    if virtual == 0:
        assert torch.equal(out, grpo(reward, group, mask, eps=1e-6))


@pytest.mark.parametrize(
    ("correct", "grpo_total"), enumerate([4.95, 6.48, 7.24, 7.48, 7.24, 6.48, 4.95], start=1), ids=str
)
def test_dgpo_gives_every_group_the_same_total(correct, grpo_total):
    reward, mask = one_action(*[1.0] * correct, *[0.0] * (8 - correct))
    group = torch.full((8,), -4)
    assert grpo(reward, group, mask).abs().sum().item() == pytest.approx(grpo_total, abs=6e-3)
    assert dgpo(reward, group, mask).abs().sum().item() == pytest.approx(8, abs=1e-3)


def test_dgpo_by_hand():
    reward = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.5, 0.5], dtype=torch.float64)
    group = torch.tensor([7, 7, 7, 7, 2, 2, 2, 2, 9, 9])
    mask = torch.arange(3) < torch.tensor([1, 1, 1, 1, 2, 2, 2, 2, 3, 1]).unsqueeze(1)
    # Mean absolute deviation 3/8 in both useful groups; weights 2 exp(-1/8), 2 exp(-3/8) over their sum.
    hard = 2 / (1 + math.exp(-0.25))
    wanted = [2 * hard, *[-2 / 3 * hard] * 3, *[2 / 3 * (2 - hard)] * 3, -2 * (2 - hard), 0, 0]
    out = dgpo(reward, group, mask, token_mean="all", eps=0.0)
    torch.testing.assert_close(out, torch.tensor(wanted).double().unsqueeze(1) * mask)
    torch.testing.assert_close(dgpo(reward, group, mask, eps=0.0), out * 16 / 12)  # 12 of 16 actions are useful
    wrong = dgpo(reward, group, mask, torch.zeros(10, 1), token_mean="all", eps=0.0)
    # No accuracy anywhere: the weights are equal.
    torch.testing.assert_close(wrong[:4, 0], out[:4, 0] / hard)


def test_dgpo_takes_a_group_that_is_useful_but_never_right_for_an_easy_one():
    reward, mask = one_action(1.0, 0.0, 1.0, 0.0, 1.0, 0.0)
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    accuracy = torch.tensor([[float("nan"), 0.0, 1.0, 0.0, 1.0, 1.0]], dtype=torch.float64).T
    out = dgpo(reward, group, mask, torch.cat([reward.unsqueeze(1), accuracy], dim=1), accuracy=1, eps=0.0)[:, 0]
    solved, half = math.exp(-0.5), math.exp(-0.25)
    weights = [3 * x / (2 * solved + half) for x in (solved, half, solved)]
    assert out[::2].tolist() == pytest.approx(weights)
    # Rewards that cancel are no failure: their mean is 0, halfway between -1 and 1.
    mixed = dgpo(*one_action(1.0, -1.0, 1.0, 0.0)[:1], torch.tensor([0, 0, 1, 1]), mask[:4], eps=0.0)[:, 0]
    assert mixed[0] > mixed[2]


@quick
@given(rewards=REWARDS, seed=SEEDS)
def test_dgpo_totals(rewards, seed):
    reward, group, _ = ragged_batch(rewards, seed)
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    out = dgpo(reward, group, mask, temperature=1e9, token_mean="all", eps=0.0)[:, 0]
    for members in by_group(group):
        silent = len({rewards[i] for i in members}) == 1
        assert out[members].abs().sum().item() == pytest.approx(0 if silent else len(members), rel=1e-6)
        assert out[members].sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", CREDITS)
@quick
@given(rows=ROWS, seed=SEEDS)
def test_invariants(name, rows, seed):
    credit = CREDITS[name]
    components, group, mask = ragged_batch(rows, seed)
    out = credit(components, group, mask)
    assert out.shape == mask.shape
    assert out.isfinite().all()
    assert (out[~mask] == 0).all()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    permuted = credit(components[order], group[order], mask[order])
    torch.testing.assert_close(permuted, out[order], atol=1e-6, rtol=1e-6)
    padded = torch.cat([mask, torch.zeros(len(rows), 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(credit(components, group, padded)[:, :6], out)
    renamed = credit(components, -group // 3, mask)
    torch.testing.assert_close(renamed, out, atol=1e-6, rtol=1e-6)
    assert torch.equal(credit(components.nan_to_num(nan=0.0), group, mask), out), "NaN counts as 0"
    for members in by_group(group):
        if len(members) == 1:
            assert (out[members] == 0).all()


@pytest.mark.parametrize("name", CREDITS)
@quick
@given(rows=ROWS, seed=SEEDS)
def test_equal_rewards_of_a_group_give_exactly_zero(name, rows, seed):
    components, group, mask = ragged_batch(rows, seed)
    equal = (group == group[0]).unsqueeze(1)
    level = torch.ones_like(components[0]) if name == "ngrpo" else components[0]
    components = torch.where(equal, level, components).float()
    assert (CREDITS[name](components, group, mask)[equal[:, 0]] == 0).all()


@pytest.mark.parametrize("name", CREDITS)
def test_gradient_with_respect_to_the_rewards_is_finite(name):
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    column = [0.0, 1.0, 0.25, 0.3, 0.3, 0.3, -2.0]
    components = torch.tensor([[x, float("nan"), 2 * x] for x in column], requires_grad=True)
    mask = torch.ones(7, 2, dtype=torch.bool)
    (gradient,) = torch.autograd.grad((CREDITS[name](components, group, mask) ** 2).sum(), components)
    assert gradient.isfinite().all()
    assert (gradient[:, 0] != 0).any()


def test_recipes_refuse_what_makes_no_sense():
    for name, options in (("ngrpo", {"virtual": -1}), ("dgpo", {"temperature": 0.0}), ("gdpo", {"batch_norm": "row"})):
        with pytest.raises(RecipeError, match=next(iter(options))):
            registry.get("credit", name).bind(options)
    assert all(registry.get("credit", name).needs_group for name in ("gdpo", "mrn", "ngrpo", "dgpo"))
