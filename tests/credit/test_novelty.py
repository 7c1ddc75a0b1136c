import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.novelty import novelty_sharpen

quick = settings(derandomize=True, deadline=None, max_examples=60)


def pair(distance, credit=1.0, reward=1.0, **options):
    """Credit of a trajectory whose score lies ``distance`` from the mean of its group, which has one other."""
    old_logp = torch.tensor([[distance - 1], [-distance - 1]], dtype=torch.float64)
    advantage = torch.tensor([[credit], [0.0]], dtype=torch.float64)
    rewards, group = torch.tensor([reward, 0.0]), torch.tensor([4, 4])
    return novelty_sharpen(advantage, rewards, group, old_logp, torch.ones(2, 1).bool(), **options)[0][0, 0].item()


def test_by_hand():
    assert pair(-0.5) == pytest.approx(1.5), "2.5 (1 - exp(-0.5)) = 0.98 is capped"
    assert pair(-0.1) == pytest.approx(1 + 2.5 * (1 - math.exp(-0.1)))
    assert pair(0.2) == 1.0
    assert pair(-0.5, credit=0.2) == pytest.approx(0.3)
    assert pair(-0.5, cap=2.0, novelty=1.0) == pytest.approx(2 - math.exp(-0.5))


def test_only_right_answers_with_credit_gain():
    assert pair(-0.5, reward=0.0) == 1.0
    assert pair(-0.5, reward=0.3, threshold=0.5) == 1.0
    assert pair(-0.5, credit=-1.0) == -1.0


def test_scores_are_means_over_the_actions_of_each():
    # Scores -1 (of one action), -2 (of two): 0.5 from their mean. The third did nothing, and is no member.
    old_logp = torch.tensor([[-1.0, 9.0], [-3.0, -1.0], [0.0, 0.0]])
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    advantage = mask.float()
    out, stats = novelty_sharpen(advantage, torch.ones(3), torch.zeros(3).long(), old_logp, mask, novelty=0.5)
    gain = 0.5 * (1 - math.exp(-0.5))
    torch.testing.assert_close(out, torch.tensor([[1.0, 0.0], [1 + gain, 1 + gain], [0.0, 0.0]]))
    assert stats["sharpened"] == pytest.approx(1 / 3)


@quick
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0]), st.floats(-2, 2), st.integers(0, 2), st.floats(-9, 0)), max_size=10
    ),
    st.integers(0, 99),
)
def test_bounds_permutation_and_padding(rows, seed):
    reward, credit, group, logp = (
        torch.tensor([row[k] for row in rows], dtype=torch.int64 if k == 2 else torch.float64) for k in range(4)
    )
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(rows), 3, generator=random) > 0.4
    advantage = torch.where(mask, credit.unsqueeze(1), 0.0)
    old_logp = torch.where(mask, logp.unsqueeze(1), 123.0)
    out, _ = novelty_sharpen(advantage, reward, group, old_logp, mask)
    assert (out >= advantage).all()
    assert (out <= advantage + 0.5 * advantage.clamp(min=0) + 1e-9).all()
    assert (out[~mask] == 0).all()
    order = torch.randperm(len(rows), generator=random)
    other, _ = novelty_sharpen(advantage[order], reward[order], group[order], old_logp[order], mask[order])
    torch.testing.assert_close(out[order], other)
