import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.credit.group import rloo
from guerdon.credit.grouping import whiten
from guerdon.errors import RecipeError
from guerdon.reward_models.implicit import (
    ImplicitPRM,
    above_other_answers,
    implicit_loss,
    implicit_rewards,
    mixed_groups,
    prime,
    to_largest_return,
)
from guerdon.rollouts import at_last_action


def batch(seed, n=7, t=5, groups=3):
    """Rewards of tokens, outcomes, ragged groups and a mask with holes."""
    g = torch.Generator().manual_seed(seed)
    rewards = torch.randn(n, t, generator=g, dtype=torch.float64)
    outcome = (torch.rand(n, generator=g) < 0.5).double()
    group = torch.randint(groups, (n,), generator=g)
    return rewards, outcome, group, torch.rand(n, t, generator=g) < 0.8


def credit(rewards, outcome, group, mask, **options):
    dense = rewards.masked_fill(~mask, 0.0) + at_last_action(outcome, mask)
    return prime(dense, group, mask, outcome.unsqueeze(1), ["right"], outcome="right", **options)[0]


def brute(rewards, outcome, group, mask, *, accuracy, form, gammas, weights, scale):
    """The same with loops over answers and actions."""
    n = len(rewards)
    own = [rewards[i][mask[i]].tolist() for i in range(n)]
    members = {i: [j for j in range(n) if group[j] == group[i] and own[j]] for i in range(n)}
    kept = []
    for i in range(n):
        share = outcome[group == group[i]].mean().item()
        kept.append(bool(own[i]) and len(members[i]) > 1 and accuracy[0] <= share <= accuracy[1])
    if scale:
        returns = [abs(sum(own[i][t:])) for i in range(n) if kept[i] for t in range(len(own[i]))]
        own = [[x / max(returns, default=1.0) for x in row] for row in own]
    means = [sum(row) / len(row) if row else 0.0 for row in own]
    total = {}
    for i in range(n):
        if not kept[i]:
            continue
        k, others = len(members[i]), [j for j in members[i] if j != i]
        if form == "mean":
            p = [x - sum(means[j] for j in others) / (k - 1) for x in own[i]]
        else:
            p = [x * k / (k - 1) - sum(means[j] for j in members[i]) / (k - 1) for x in own[i]]
        o = outcome[i].item() - sum(outcome[j].item() for j in others) / (k - 1)
        length = len(own[i])
        total[i] = [
            weights[0] * sum(gammas[0] ** (s - t) * p[s] for s in range(t, length))
            + weights[1] * gammas[1] ** (length - 1 - t) * o
            for t in range(length)
        ]
    flat = [x for row in total.values() for x in row]
    out = torch.zeros_like(rewards)
    if len(flat) > 1:
        mean = sum(flat) / len(flat)
        std = math.sqrt(sum((x - mean) ** 2 for x in flat) / (len(flat) - 1)) + 1e-8
        for i, row in total.items():
            out[i][mask[i]] = torch.tensor([(x - mean) / std for x in row], dtype=torch.float64)
    return out


@given(
    st.integers(0, 10_000),
    st.sampled_from([(0.0, 1.0), (0.2, 0.8)]),
    st.sampled_from(["mean", "released"]),
    st.sampled_from([(1.0, 1.0), (0.9, 0.7)]),
    st.sampled_from([(1.0, 1.0), (0.5, 2.0)]),
    st.booleans(),
)
def test_credit_is_the_formula(seed, accuracy, form, gammas, weights, scale):
    fields = batch(seed)
    seen = credit(
        *fields,
        accuracy=accuracy,
        form=form,
        process_gamma=gammas[0],
        outcome_gamma=gammas[1],
        process_weight=weights[0],
        outcome_weight=weights[1],
        scale=scale,
    )
    wanted = brute(*fields, accuracy=accuracy, form=form, gammas=gammas, weights=weights, scale=scale)
    assert torch.allclose(seen, wanted, atol=1e-6)


@given(st.integers(0, 10_000))
def test_without_rewards_of_tokens_it_is_rloo_whitened(seed):
    _, outcome, group, mask = batch(seed)
    mask[:, 0] = True  # every answer has a token, or rloo would count others
    size = (group.unsqueeze(0) == group.unsqueeze(1)).sum(dim=1)
    plain = rloo(outcome, group, mask)
    counted = mask & (size > 1).unsqueeze(1)
    seen = credit(torch.zeros(mask.shape, dtype=torch.float64), outcome, group, mask, accuracy=None)
    assert torch.allclose(seen, whiten(plain, None, counted, eps=1e-8), atol=1e-9)


@given(st.integers(0, 10_000))
def test_rows_may_be_permuted_padded_and_hold_garbage(seed):
    rewards, outcome, group, mask = batch(seed)
    seen = credit(rewards, outcome, group, mask)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(credit(rewards[order], outcome[order], group[order], mask[order]), seen[order], atol=1e-9)
    wide, wide_mask = (torch.nn.functional.pad(x, (0, 2)) for x in (rewards, mask))
    assert torch.allclose(credit(wide, outcome, group, wide_mask)[:, :5], seen, atol=1e-9)
    assert torch.equal(credit(rewards, outcome, 10 * group - 7, mask), seen)
    dense = (rewards.masked_fill(~mask, 0.0) + at_last_action(outcome, mask)).masked_fill(~mask, float("nan"))
    assert torch.equal(prime(dense, group, mask, outcome.unsqueeze(1), ["right"], outcome="right")[0], seen)
    assert (seen[~mask] == 0).all()


def test_credit_by_hand():
    rewards = torch.tensor([[1.0, 3.0], [0.0, 2.0]], dtype=torch.float64)
    outcome, group, mask = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([5, 5]), torch.ones(2, 2).bool()
    # Above the other: 0, 2 and -2, 0; to come 2, 2 and -2, 0; with outcomes 1 and -1: 3, 3, -3, -1.
    total = torch.tensor([[3.0, 3.0], [-3.0, -1.0]], dtype=torch.float64)
    assert torch.allclose(credit(rewards, outcome, group, mask), (total - 0.5) / 3.0, atol=1e-6)
    assert above_other_answers(rewards, group, mask).tolist() == [[0.0, 2.0], [-2.0, 0.0]]
    # 2 r - 3: the same means, twice the spread within an answer.
    assert above_other_answers(rewards, group, mask, form="released").tolist() == [[-1.0, 3.0], [-3.0, 1.0]]


def test_groups_outside_the_bounds_get_nothing_and_change_nothing():
    rewards, outcome, _, mask = batch(1, n=8)
    mask[:, 0] = True
    group = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    outcome[:] = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    assert mixed_groups(outcome, group).tolist() == [True] * 4 + [False] * 4
    assert mixed_groups(torch.tensor([1.0, 0, 0, 0, 0]), torch.zeros(5).long()).all()  # one of five is enough
    seen = credit(rewards, outcome, group, mask)
    assert (seen[4:] == 0).all()
    assert torch.allclose(seen[:4], credit(rewards[:4], outcome[:4], group[:4], mask[:4]), atol=1e-12)
    assert (credit(rewards, outcome, group, mask, accuracy=None)[4:6] != 0).any()


def test_a_group_of_one_an_empty_batch_and_equal_answers():
    one = torch.ones(1, 3, dtype=torch.float64)
    assert (credit(one, torch.ones(1).double(), torch.tensor([0]), one.bool(), accuracy=None) == 0).all()
    none = torch.zeros(0, 3, dtype=torch.float64)
    assert credit(none, none[:, 0], torch.zeros(0).long(), none.bool()).shape == (0, 3)
    same = torch.ones(4, 3, dtype=torch.float64)
    assert (credit(same, same[:, 0], torch.zeros(4).long(), same.bool(), accuracy=None) == 0).all()


def test_an_outcome_that_does_not_exist():
    x = torch.ones(2, 2)
    with pytest.raises(RecipeError, match="right"):
        prime(x, torch.zeros(2).long(), x.bool(), x[:, :1], ["right"], outcome="rihgt")


def test_scaling_keeps_ratios():
    rewards, mask = torch.tensor([[1.0, -4.0, 99.0], [2.0, 2.0, 0.5]]), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    assert torch.allclose(to_largest_return(rewards, mask), torch.tensor([[1.0, -4.0, 0.0], [2.0, 2.0, 0.5]]) / 4.5)
    assert torch.equal(to_largest_return(torch.zeros(2, 3), mask), torch.zeros(2, 3))


@given(st.integers(0, 10_000))
def test_rewards_add_up_to_the_logit_and_read_nothing_off_the_mask(seed):
    prm, outcome, _, mask = batch(seed)
    ref = batch(seed + 1)[0]
    rewards = implicit_rewards(prm, ref, mask)
    noisy = [torch.where(mask, x, float("nan")) for x in (prm, ref)]
    assert torch.equal(implicit_rewards(*noisy, mask), rewards)
    logit = 0.05 * ((prm - ref) * mask).sum(dim=1)
    assert torch.allclose(rewards.sum(dim=1), logit)
    acted = mask.any(dim=1)
    wanted = -(outcome * logit.sigmoid().log() + (1 - outcome) * (1 - logit.sigmoid()).log())[acted].mean()
    leaf = noisy[0].clone().requires_grad_()
    loss = implicit_loss(leaf, noisy[1], mask, outcome)
    assert loss.item() == pytest.approx(wanted.item())
    loss.backward()
    assert leaf.grad.isfinite().all()
    assert (implicit_rewards(ref, ref, mask) == 0).all()


def test_what_is_not_kept_does_not_teach():
    prm, outcome, _, mask = batch(3)
    keep = torch.tensor([True, True, False, True, False, False, True])
    leaf = prm.clone().requires_grad_()
    loss = implicit_loss(leaf, prm - 1, mask, outcome, keep=keep)
    loss.backward()
    assert loss.item() == pytest.approx(implicit_loss(prm[keep], prm[keep] - 1, mask[keep], outcome[keep]).item())
    assert (leaf.grad[~keep] == 0).all()
    assert implicit_loss(prm, prm, mask, outcome, keep=torch.zeros(7).bool()).item() == 0.0


@pytest.mark.parametrize("order", ["update_first", "score_first"])
@pytest.mark.parametrize("frozen", [False, True])
def test_order_and_freezing(order, frozen):
    table = torch.zeros(3, requires_grad=True)
    model = ImplicitPRM(lambda rows: table.log_softmax(0)[rows], [table], lr=0.1, order=order, frozen=frozen)
    rows, mask = torch.tensor([[0, 1], [2, 1]]), torch.ones(2, 2).bool()
    ref = torch.full((2, 2), -math.log(3))
    rewards, stats = model(rows, ref, mask, torch.tensor([True, False]))
    assert not rewards.requires_grad
    assert (table.abs().max() > 0) != frozen
    assert (rewards.abs().max() > 1e-4) == (order == "update_first" and not frozen)
    assert math.isnan(stats["loss"]) == frozen
    for _ in range(50):
        rewards, _ = model(rows, ref, mask, torch.tensor([True, False]))
    assert frozen or rewards[0, 0] > 0 > rewards[1, 0]


def test_gradients_are_clipped():
    table = torch.zeros(2, requires_grad=True)
    model = ImplicitPRM(lambda rows: 1e6 * table.log_softmax(0)[rows], [table], beta=1.0, max_grad_norm=1e-3)
    model(torch.tensor([[0]]), torch.zeros(1, 1), torch.ones(1, 1).bool(), torch.tensor([True]))
    assert table.grad.norm() == pytest.approx(1e-3, rel=1e-3)
