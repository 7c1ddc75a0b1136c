import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.options import fold_options

quick = settings(derandomize=True, deadline=None, max_examples=40)
NAN = float("nan")


def test_by_hand():
    dense = torch.tensor([[1.0, 2.0, 4.0, 8.0, NAN]])
    fires = torch.tensor([[False, False, True, False, True]])
    mask = torch.tensor([[True, True, True, True, False]])
    folded = fold_options(dense, fires, mask, gamma=0.5)
    assert folded.reward.tolist() == [[2.0, 0.0, 8.0, 0.0, 0.0]]
    assert folded.mask.int().tolist() == [[1, 0, 1, 0, 0]]
    assert folded.option.tolist() == [[0, 0, 1, 1, -1]]
    assert folded.duration.tolist() == [[2, 0, 2, 0, 0]]


@quick
@given(st.integers(0, 10**6), st.floats(0.1, 1.0))
def test_against_a_loop_with_holes(seed, gamma):
    g = torch.Generator().manual_seed(seed)
    dense = torch.randn(4, 9, generator=g, dtype=torch.float64)
    fires, mask = torch.rand(4, 9, generator=g) < 0.3, torch.rand(4, 9, generator=g) < 0.8
    folded = fold_options(dense.masked_fill(~mask, NAN), fires, mask, gamma=gamma)
    for i in range(4):
        reward, begun, age = [0.0] * 9, None, 0
        lasted = [0] * 9
        for t in range(9):
            if not mask[i, t]:
                continue
            if begun is None or fires[i, t]:
                begun, age = t, 0
            reward[begun] += gamma**age * float(dense[i, t])
            lasted[begun] += 1
            age += 1
        assert folded.reward[i].tolist() == pytest.approx(reward)
        assert folded.duration[i].tolist() == lasted
    assert (folded.option[~mask] == -1).all()
    assert not folded.mask[~mask].any()


def test_undiscounted_rewards_add_up_to_the_outcome():
    g = torch.Generator().manual_seed(1)
    dense, fires = torch.randn(3, 7, generator=g), torch.rand(3, 7, generator=g) < 0.5
    folded = fold_options(dense, fires, torch.ones(3, 7, dtype=torch.bool))
    assert torch.allclose(folded.reward.sum(dim=1), dense.sum(dim=1))
    always = fold_options(dense, torch.ones(3, 7, dtype=torch.bool), torch.ones(3, 7, dtype=torch.bool), gamma=0.3)
    assert torch.allclose(always.reward, dense)


def test_no_action_no_decision():
    folded = fold_options(torch.ones(2, 3), torch.ones(2, 3).bool(), torch.zeros(2, 3).bool())
    assert not folded.mask.any()
    assert (folded.reward == 0).all()
