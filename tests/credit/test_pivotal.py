import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.pivotal import pivotal, pivotal_mask, positive_amplification

ONE = torch.ones(4, 1, dtype=torch.bool)


def test_the_example_of_the_source():
    credit = positive_amplification(torch.tensor([1.0, 0.4, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64), ONE)
    assert credit[:, 0].tolist() == pytest.approx([1.0, 0.15, -0.35, -0.35], abs=1e-6)


def test_success_counts_alone_and_among_its_like_and_equal_failures_do_not():
    reward, group = torch.tensor([1.0, 1.0, 1.0, 0.2, 0.2, 0.3]), torch.tensor([0, 0, 1, 2, 2, 3])
    credit = positive_amplification(reward, group, torch.ones(6, 1, dtype=torch.bool))
    assert credit[:, 0].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_options_move_the_factor_and_the_bound():
    reward, group = torch.tensor([0.5, 0.1]), torch.zeros(2, dtype=torch.int64)
    credit = positive_amplification(reward, group, ONE[:2], amplification=2.0, success=0.5)
    assert credit[:, 0].tolist() == pytest.approx([1.0, -0.2])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 0.9, 1.0, 2.0, float("nan")]), st.integers(0, 3)), min_size=1, max_size=9
    ),
    st.randoms(use_true_random=False),
)
def test_amplification_against_a_loop(rows, random):
    reward = torch.tensor([r for r, _ in rows], dtype=torch.float64)
    group = torch.tensor([g for _, g in rows])
    lengths = torch.tensor([random.randrange(4) for _ in rows])
    mask = torch.arange(4) < lengths.unsqueeze(1)
    got = positive_amplification(reward, group, mask)
    for i, (r, g) in enumerate(rows):
        own = [x for x, k in rows if k == g and not math.isnan(x)]
        s = r - sum(own) / len(own) if not math.isnan(r) else 0.0
        wanted = 0.0 if math.isnan(r) else 1.0 if r >= 1 else 3 * s if s >= 0 else s
        assert torch.allclose(got[i], torch.where(mask[i], wanted, 0.0).double(), atol=1e-9)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(random.randrange(99)))
    assert torch.allclose(positive_amplification(reward[order], group[order], mask[order]), got[order])


def test_the_mask_leaves_out_exactly_the_first_turns_of_the_policy():
    turn = torch.tensor([[0, 0, -1, 1, -1, 2, 2, -1], [0, -1, -1, 1, 1, -1, -1, -1]])
    mask = turn >= 0
    assert pivotal_mask(mask, turn, torch.tensor([2, 0])).int().tolist() == [[0, 0, 0, 0, 0, 1, 1, 0], mask[1].tolist()]
    assert pivotal_mask(mask, turn, torch.tensor([1, 1])).sum(dim=1).tolist() == [3, 2]
    assert not pivotal_mask(mask, turn, torch.tensor([3, 2])).any()


def test_shared_turns_lose_their_credit_in_attempt_and_retry():
    turn = torch.tensor([[0, 1, 2, -1], [0, 1, 1, 2], [0, 1, -1, -1]])
    mask, advantage = turn >= 0, torch.full((3, 4), 2.0)
    advantage[~mask] = float("nan")
    credit, stats = pivotal(advantage, mask, turn, [{"pivot": 1}, {"pivot": 1, "other": 0}, {}])
    assert credit.tolist() == [[0.0, 2.0, 2.0, 0.0], [0.0, 2.0, 2.0, 2.0], [2.0, 2.0, 0.0, 0.0]]
    assert stats["shared"] == pytest.approx(2 / 9)
