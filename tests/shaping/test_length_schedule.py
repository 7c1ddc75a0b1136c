import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.shaping.length_schedule import grpo_lambda, leading_groups

quick = settings(derandomize=True, deadline=None, max_examples=25)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_by_hand():
    reward, length, group = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([10, 20, 1]), torch.zeros(3).long()
    paid, stats = grpo_lambda(reward, length, group, 0)
    assert paid.tolist() == pytest.approx([1 - 0.2 * sigmoid(-1), 1 - 0.2 * sigmoid(1), 0.0])
    assert paid.tolist() == pytest.approx([0.946, 0.854, 0.0], abs=1e-3)
    assert stats == {"accuracy": pytest.approx(2 / 3), "leading": 1.0}


def test_equal_lengths_and_a_lone_right_answer_pay_half():
    group = torch.tensor([0, 0, 1, 1])
    reward, length = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([7, 7, 3, 1])
    paid, _ = grpo_lambda(reward, length, group, 0, share=1.0, alpha=0.6)
    assert paid.tolist() == pytest.approx([0.7, 0.7, 0.7, 0.0])


def test_a_short_wrong_answer_earns_nothing_and_moves_nothing():
    # A third-party version rewards the brevity of wrong answers, and counts their lengths.
    group = torch.zeros(4).long()
    for wrong in (1, 1000):
        paid, _ = grpo_lambda(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([10, 20, wrong, 2]), group, 0)
        assert paid.tolist() == pytest.approx([0.946212, 0.853788, 0.0, 0.0])


def brute(reward, length, group, chosen, alpha):
    out = []
    for r, n, g in zip(reward, length, group, strict=True):
        right = [m for q, m, h in zip(reward, length, group, strict=True) if h == g and q >= 0.5]
        if r < 0.5 or g not in chosen:
            out.append(float(r >= 0.5))
            continue
        mean = sum(right) / len(right)
        std = math.sqrt(sum((m - mean) ** 2 for m in right) / len(right))
        out.append(1 - alpha * sigmoid((n - mean) / std if std else 0.0))
    return out


batches = st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(1, 50)), min_size=1, max_size=24)


@quick
@given(batches, st.floats(0, 1), st.floats(0.05, 1), st.integers(0, 99))
def test_it_is_the_formula_in_the_leading_groups(rows, share, alpha, seed):
    group, right, length = (torch.tensor(column) for column in zip(*rows, strict=True))
    reward = right.double()
    paid, stats = grpo_lambda(reward, length, group, seed, share=share, alpha=alpha)
    lead = leading_groups(right, group, seed, share=share)
    chosen = set(group[lead.rows].tolist())
    keys = group.unique().tolist()
    assert len(chosen) == (max(1, math.floor(share * len(keys) + 1e-9)) if share else 0)
    accuracy = {g: right[group == g].double().mean().item() for g in keys}
    assert all(accuracy[a] >= accuracy[b] for a in chosen for b in set(keys) - chosen)
    wanted = brute(reward.tolist(), length.tolist(), group.tolist(), chosen, alpha)
    assert paid.tolist() == pytest.approx(wanted)
    assert stats["leading"] == pytest.approx(lead.rows.double().mean().item())
    # Groups are told by their key alone, so a permutation of the rows permutes the rewards.
    order = torch.randperm(len(group), generator=torch.Generator().manual_seed(seed))
    again, _ = grpo_lambda(reward[order], length[order], group[order], seed, share=share, alpha=alpha)
    assert torch.allclose(again, paid[order])


def test_ties_are_broken_by_the_seed_alone():
    right, group = torch.ones(10).bool(), torch.arange(10)
    chosen = [leading_groups(right, group, seed, share=0.2).rows for seed in range(40)]
    assert torch.stack(chosen).double().sum(dim=1).tolist() == [2.0] * 40
    assert (torch.stack(chosen).double().sum(dim=0) > 0).all()
    assert torch.equal(chosen[3], leading_groups(right, group, 3, share=0.2).rows)


def test_nothing_right_and_nothing_at_all():
    paid, stats = grpo_lambda(torch.zeros(4), torch.tensor([1, 2, 3, 4]), torch.tensor([0, 0, 1, 1]), 0)
    assert paid.tolist() == [0.0] * 4
    assert stats["accuracy"] == 0.0
    empty, stats = grpo_lambda(torch.zeros(0), torch.zeros(0).long(), torch.zeros(0).long(), 0)
    assert len(empty) == 0
    assert math.isnan(stats["accuracy"])
    none, _ = grpo_lambda(torch.ones(2), torch.tensor([1, 9]), torch.zeros(2).long(), 0, share=0.0)
    assert none.tolist() == [1.0, 1.0]
