import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.belief import igpo, information_gain
from guerdon.registry import get


def batch(turns, actions=2):
    """Turn (N,T) and mask of trajectories with so many turns of some actions each, and a masked place between turns."""
    rows = [[x for turn in range(n) for x in [*[turn] * actions, -1]] for n in turns]
    turn = torch.full((len(rows), max(map(len, rows))), -1)
    for row, values in enumerate(rows):
        turn[row, : len(values)] = torch.tensor(values)
    return turn, turn >= 0


def by_turn(credit, turn):
    """The number of each turn, all of whose actions must have it."""
    out = []
    for values, turns in zip(credit, turn, strict=True):
        rows = [set(values[turns == t].tolist()) for t in range(int(turns.max()) + 1)]
        assert all(len(row) == 1 for row in rows)
        out.append([row.pop() for row in rows])
    return out


BELIEF = torch.tensor([[0.1, 0.4, 0.4], [0.1, 0.1, 0.3]]).log()


def test_the_turn_that_told_something_gets_the_gain():
    gain = information_gain(BELIEF, torch.ones(2, 3, dtype=torch.bool))
    assert torch.allclose(gain, torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.2, 0.0]]), atol=1e-6)
    gain = information_gain(BELIEF, torch.ones(2, 3, dtype=torch.bool), gain="logprob")
    assert torch.allclose(gain, torch.tensor([[math.log(4), 0, 0], [0, math.log(3), 0]]), atol=1e-6)


def reference(reward, belief, turns, group, normalise, gamma, eps=1e-6):
    """Trajectory by trajectory, as the formula stands."""
    gains = [[math.exp(belief[i][m + 1]) - math.exp(belief[i][m]) for m in range(n - 1)] for i, n in enumerate(turns)]

    def standard(values, pool):
        mean = sum(pool) / len(pool)
        std = math.sqrt(sum((x - mean) ** 2 for x in pool) / (len(pool) - 1)) if len(pool) > 1 else 0.0
        return [(x - mean) / (std + eps) if len(pool) > 1 else 0.0 for x in values]

    out = []
    for i, g in enumerate(group):
        members = [j for j, other in enumerate(group) if other == g]
        told, paid = [x for j in members for x in gains[j]], [reward[j] for j in members]
        if normalise == "joint":
            z = standard([*gains[i], reward[i]], [*told, *paid])
        else:
            z = [*(standard(gains[i], told) if told else []), *standard([reward[i]], paid)]
        total, credit = 0.0, []
        for x in reversed(z):
            total = x + gamma * total
            credit.append(total)
        out.append(credit[::-1])
    return out


@pytest.mark.parametrize("normalise", ["separate", "joint"])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_credit_is_what_is_still_to_come(normalise, gamma):
    generator = torch.Generator().manual_seed(3)
    turns, group = [3, 1, 2, 4, 2, 2, 1], [0, 0, 0, 5, 5, 2, 7]
    belief, reward = torch.rand(7, 5, generator=generator).log(), torch.rand(7, generator=generator)
    turn, mask = batch(turns)
    belief[torch.arange(5) >= torch.tensor(turns).unsqueeze(1)] = math.nan
    credit, _ = igpo(reward, belief, torch.tensor(group), turn, mask, normalise=normalise, gamma=gamma)
    assert (credit[~mask] == 0).all()
    wanted = reference(reward.tolist(), belief.tolist(), turns, group, normalise, gamma)
    for mine, theirs in zip(by_turn(credit, turn), wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_groups_that_all_fail_still_teach():
    turn, mask = batch([3, 3])
    credit, stats = igpo(torch.zeros(2), BELIEF, torch.zeros(2, dtype=torch.int64), turn, mask)
    assert credit[mask].abs().max() > 0.5
    assert (credit[turn == 2] == 0).all()  # the answers were equally wrong
    assert stats["gain"] == pytest.approx(0.125)
    flat, _ = igpo(torch.zeros(2), BELIEF[[0, 0]][:, [0, 0, 0]], torch.zeros(2, dtype=torch.int64), turn, mask)
    assert (flat == 0).all()


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_order_padding_and_masked_numbers_do_not_matter(data):
    n = data.draw(st.integers(1, 6))
    turns = data.draw(st.lists(st.integers(1, 4), min_size=n, max_size=n))
    group = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    reward, belief = torch.randn(n, generator=generator), torch.rand(n, 4, generator=generator).log()
    turn, mask = batch(turns)
    credit, _ = igpo(reward, belief, group, turn, mask)
    assert torch.isfinite(credit).all()
    order = torch.randperm(n, generator=generator)
    again, _ = igpo(reward[order], belief[order], group[order], turn[order], mask[order])
    assert torch.allclose(again, credit[order], atol=1e-5)
    wide = [torch.nn.functional.pad(x, (0, 3), value=v) for x, v in ((turn, 9), (mask, False))]
    padded, _ = igpo(reward, torch.nn.functional.pad(belief, (0, 2), value=math.nan), group, *wide)
    assert torch.allclose(padded[:, : turn.shape[1]], credit, atol=1e-5)
    assert (padded[:, turn.shape[1] :] == 0).all()


def test_it_is_known_by_its_name():
    assert get("credit", "igpo").requires == ("reward", "answer_logp", "group", "turn", "mask")
