import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.tasks.subgoals import cut_at_subgoals, parse_subgoals, relabel

quick = settings(derandomize=True, deadline=None, max_examples=40)


def test_lists_are_read():
    text = "Plan:\n 1. open the shop\n2) search (red) shoes \n- add to cart\n\nThat is all."
    assert parse_subgoals(text) == ["open the shop", "search (red) shoes", "add to cart"]
    assert parse_subgoals(text, most=2) == ["open the shop", "search (red) shoes"]
    assert parse_subgoals("") == []


def loop(reached, n):
    """Subgoal and reward of each turn, and what was met, turn by turn."""
    due, segment, reward = 0, [], []
    goals = len(reached[0]) if len(reached) else 0
    for m in range(n):
        segment.append(due if due < goals else -1)
        before = due
        while due < goals and reached[m][due]:
            due += 1
        reward.append(float(due > before))
    return segment, reward, [k < due for k in range(goals)]


@quick
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_against_a_loop(seed, goals):
    g = torch.Generator().manual_seed(seed)
    reached = torch.rand(4, 7, goals, generator=g) < 0.25
    lengths = torch.randint(0, 8, (4,), generator=g)
    exists = torch.arange(7) < lengths.unsqueeze(1)
    parts = cut_at_subgoals(reached, exists)
    rows = relabel(parts)
    for i, n in enumerate(lengths.tolist()):
        segment, reward, met = loop(reached[i].tolist(), n)
        assert parts.segment[i, :n].tolist() == segment
        assert parts.reward[i, :n].tolist() == reward
        assert parts.met[i].tolist() == met
        for k in range(goals):
            row = i * goals + k
            assert (rows.episode[row].item(), rows.subgoal[row].item()) == (i, k)
            assert rows.mask[row, :n].tolist() == [s == k for s in segment]
            assert rows.dense[row].sum().item() == sum(r for s, r in zip(segment, reward, strict=True) if s == k)
            assert rows.done[row].item() == bool(rows.dense[row].any())
    assert (parts.segment[~exists] == -1).all()
    assert (parts.reward[~exists] == 0).all()


def test_a_subgoal_counts_once_it_is_its_turn():
    reached = torch.tensor(
        [[[False, True], [True, False], [False, False]], [[False, True], [True, True], [True, True]]]
    )
    parts = cut_at_subgoals(reached, torch.ones(2, 3, dtype=torch.bool))
    assert parts.segment.tolist() == [[0, 0, 1], [0, 0, -1]]  # passed too early; two at once
    assert parts.met.tolist() == [[True, False], [True, True]]
    rows = relabel(parts)
    assert rows.done.tolist() == [True, False, True, False]
    assert not rows.mask[3].any()
