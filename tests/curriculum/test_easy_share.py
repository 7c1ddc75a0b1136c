import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.curriculum.easy_share import EasyShare

quick = settings(derandomize=True, deadline=None, max_examples=25)


def test_kappa_follows_the_change_of_what_is_needed():
    share = EasyShare()
    assert [share.update(nu) for nu in (0.5, 0.75, 0.5, 0.9)] == pytest.approx([0.0, 0.05, 0.0, 0.08])
    assert share.update(math.nan) == pytest.approx(0.08)
    assert share.needed == 0.9


@quick
@given(st.lists(st.floats(0, 1), max_size=20), st.floats(0, 50))
def test_kappa_stays_within_its_bounds(needed, gain):
    share = EasyShare(gain=gain)
    assert all(0 <= share.update(nu) <= 0.9 for nu in needed)
    other = EasyShare(gain=gain)
    other.load_state_dict(share.state_dict())
    assert (other.kappa, other.needed) == (share.kappa, share.needed)


def test_so_many_solved_problems_are_admitted():
    assert [EasyShare(kappa=kappa).admitted(6) for kappa in (0.0, 0.1, 0.25, 0.5, 0.9)] == [0, 0, 2, 6, 54]
    group = torch.arange(8).repeat_interleave(2)
    right = torch.tensor([1, 1] * 4 + [1, 0] * 3 + [0, 0]).bool()
    for seed in range(5):
        chosen = EasyShare(kappa=0.4).choose(right, group, seed)
        assert chosen.view(8, 2).all(dim=1).tolist()[4:] == [True, True, True, False]
        assert int(chosen[:8].sum()) == 4  # two of the four solved problems
    drawn = torch.stack([EasyShare(kappa=0.4).choose(right, group, seed) for seed in range(30)])
    assert drawn[:, :8].any(dim=0).all()
    assert EasyShare(kappa=0.9).choose(right, group, 0)[:8].all()
    assert len(EasyShare().choose(right[:0], group[:0], 0)) == 0


def test_bounds_that_mean_nothing():
    with pytest.raises(ValueError, match="most < 1"):
        EasyShare(most=1.0)
