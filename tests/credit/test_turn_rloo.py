import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.group import rloo
from guerdon.credit.turn_rloo import turn_rloo

quick = settings(derandomize=True, deadline=None, max_examples=25)


def test_turns_are_compared_with_the_same_turn_of_the_others():
    dense = torch.tensor([[0.0, 1.0, 2.0], [4.0, 0.0, 0.0], [1.0, 0.0, 5.0]])
    turn = torch.tensor([[0, 0, 1], [0, 1, -1], [0, -1, 1]])
    mask = turn >= 0
    # Returns to go: (3, 2), (4, 0), (6, 5).
    credit = turn_rloo(dense, torch.tensor([7, 7, 7]), turn, mask)
    first, second = [3 - 5.0, 4 - 4.5, 6 - 3.5], [2 - 2.5, 0 - 3.5, 5 - 1.0]
    assert credit.tolist() == [[first[0], first[0], second[0]], [first[1], second[1], 0], [first[2], 0, second[2]]]


def test_what_stands_alone_has_no_credit():
    turn = torch.tensor([[0, 1], [0, -1], [0, 1]])
    dense = torch.tensor([[1.0, 1.0], [3.0, float("nan")], [9.0, 9.0]])
    credit = turn_rloo(dense, torch.tensor([0, 0, 1]), turn, turn >= 0)
    assert credit.tolist() == [[-1, 0], [1, 0], [0, 0]]


def test_discounting_counts_turns():
    turn = torch.tensor([[0, 1, 1], [0, 1, 1]])
    dense = torch.tensor([[0.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    credit = turn_rloo(dense, torch.tensor([0, 0]), turn, turn >= 0, gamma=0.5)
    assert credit[0].tolist() == [2, 4, 4]


@quick
@given(st.integers(2, 8), st.integers(0, 2**16))
def test_one_turn_is_rloo_and_rows_may_stand_in_any_order(n, seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(n, 3, generator=generator) < 0.8
    mask[:, 0] = True
    group = torch.randint(3, (n,), generator=generator)
    turn = torch.where(mask, 0, -1)
    garbage = torch.where(mask, dense, float("nan"))
    credit = turn_rloo(garbage, group, turn, mask)
    torch.testing.assert_close(credit, rloo(dense.masked_fill(~mask, 0).sum(1), group, mask))
    order = torch.randperm(n, generator=generator)
    again = turn_rloo(garbage[order], group[order], turn[order], mask[order])
    torch.testing.assert_close(again, credit[order])
