import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.rewards.label_free import vote
from guerdon.rewards.novelty_vote import evol_reward, evol_rl, has_digit, novelty

quick = settings(derandomize=True, deadline=None, max_examples=30)


def brute_force(answer, vectors, group, priority):
    won = vote(answer, group, priority=priority).won.tolist()
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    close = (unit @ unit.T).clamp(0, 1)
    n, out, u = len(answer), [], [0.0] * len(answer)
    peers = [[j for j in range(n) if group[j] == group[i] and answer[j] >= 0 and j != i] for i in range(n)]
    for i in range(n):
        if answer[i] < 0 or not peers[i]:
            continue
        same = [j for j in peers[i] if won[j] == won[i]] or peers[i]
        average = sum(close[i, j].item() for j in same) / len(same)
        u[i] = 1 - 0.5 * average - 0.5 * max(close[i, j].item() for j in peers[i])
    for i in range(n):
        if answer[i] < 0 or not peers[i]:
            out.append(-1.0)
            continue
        mates = [u[j] for j in peers[i] if won[j] == won[i]] + [u[i]]
        low, high = min(mates), max(mates)
        scaled = 1.0 if len(mates) == 1 else 0.5 if high - low <= 1e-9 else (u[i] - low) / (high - low)
        out.append((0.5 if won[i] else -1.0) + 0.5 * scaled)
    return out


@quick
@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 1)), max_size=12), st.integers(0, 99))
def test_against_loops(members, seed):
    random = torch.Generator().manual_seed(seed)
    answer, group = (torch.tensor([m[k] for m in members], dtype=torch.int64) for k in (0, 1))
    vectors = torch.randint(-1, 2, (len(members), 3), generator=random).float()
    priority = torch.rand(3, generator=random)[answer.clamp(min=0)]
    seen = evol_reward(answer, vectors, group, priority=priority)
    assert seen.tolist() == pytest.approx(brute_force(answer, vectors, group, priority), abs=1e-6)
    order = torch.randperm(len(members), generator=random)
    moved = evol_reward(answer[order], vectors[order], group[order], priority=priority[order])
    torch.testing.assert_close(moved, seen[order])
    garbage = torch.where((answer < 0).unsqueeze(1), math.nan, vectors)
    torch.testing.assert_close(evol_reward(answer, garbage, group, priority=priority), seen)
    won = vote(answer, group, priority=priority).won & (seen > -1)
    if won.any() and (~won).any():
        assert seen[won].min() - seen[~won].max() >= 1 - 1e-9


def test_novelty_by_hand():
    vectors = torch.tensor([[1.0, 0], [3.0, 0], [0, 1.0], [-1.0, 0]])
    won, group, valid = torch.tensor([1, 1, 1, 0]).bool(), torch.zeros(4).long(), torch.ones(4).bool()
    seen = novelty(vectors, won, group, valid)
    assert seen.tolist() == pytest.approx([0.25, 0.25, 1.0, 1.0])
    assert novelty(vectors, won, group, valid, mix=1.0).tolist() == pytest.approx([0, 0, 1, 1])
    alone = torch.tensor([1, 0, 0, 0]).bool()
    assert novelty(vectors, won, group, alone).tolist() == [1, 0, 0, 0]


def test_a_tie_goes_to_the_other_side_without_lots():
    seen = evol_reward(torch.tensor([0, 1]), torch.eye(2), torch.zeros(2).long())
    assert seen.tolist() == [-0.75, -0.75]


def test_on_texts():
    text = ["<think>q</think> one: 1", "<think>another way, r</think> one: 1", "another way: 1", "one: 2", "one: x"]
    reward, stats = evol_rl(text, torch.zeros(5).long(), pattern=r": (\w+)", valid=has_digit)
    assert reward.tolist() == pytest.approx([0.5, 0.5, 1.0, -0.5, -1.0], abs=1e-6)
    assert stats["invalid"] == pytest.approx(0.2)
    assert stats["agreement"] == pytest.approx(0.75)
    whole, _ = evol_rl(text, torch.zeros(5).long(), pattern=r": (\w+)", valid=has_digit, after=None)
    assert not torch.equal(whole[:2], reward[:2])
    end, _ = evol_rl(["aaa1", "bbb1", "ccc1"], torch.zeros(3).long(), pattern=r"\d", longest=1)
    assert end.tolist() == [0.75] * 3


def test_ties_are_decided_by_lot_and_not_by_order():
    text, group = ["a", "b"], torch.zeros(2).long()
    first = [evol_rl(text, group, step)[0] for step in range(30)]
    turned = [evol_rl(text[::-1], group, step)[0].flip(0) for step in range(30)]
    assert all(torch.equal(a, b) for a, b in zip(first, turned, strict=True))
    assert 5 < sum(bool(r[0] > 0) for r in first) < 25


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"embed gave shape \(1, 2\) for 2 texts"):
        evol_rl(["a", "b"], torch.zeros(2).long(), embed=lambda texts: torch.zeros(1, 2))
    with pytest.raises(RecipeError, match="mix"):
        get("reward", "evol_rl").bind({"mix": 2})
    bound = get("reward", "evol_rl").bind({"valid": "guerdon.rewards.novelty_vote:has_digit"})
    assert bound({"text": ["a", "1"], "group": torch.zeros(2).long()}).fields["value"].tolist() == [-1, -1]
