import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.telescoped import telescoped, telescoped_process

quick = settings(derandomize=True, deadline=None, max_examples=25)


def credit(*scores, **options):
    dense = torch.tensor(scores, dtype=torch.float64)
    return telescoped_process(dense, torch.ones_like(dense).bool(), **options)


def test_by_hand():
    out, stats = credit([0, 2, 4, 0, 3])
    # s = 1/4, 3/4, 2/4; the last is 2/4.
    assert out[0].tolist() == pytest.approx([-0.25, -0.25, 0.5, -0.25, -0.25])
    assert stats == pytest.approx({"score": 0.5, "worse": 0.5})
    out, _ = credit([0, 2, 4, 0, 3], first="score")
    assert out[0].tolist() == pytest.approx([0.25, 0.25, 0.5, -0.25, -0.25])


def test_a_constant_series_gives_nothing():
    assert (credit([3, 3, 3, 3])[0] == 0).all()
    assert (credit([5])[0] == 0).all()
    assert (credit([0, 0, 0])[0] == 0).all()


def test_rising_then_falling():
    signs = credit([1, 3, 5, 2])[0][0].sign().tolist()
    assert signs == [-1, 1, 1, -1]


def test_a_right_first_step_cancels():
    # What the first segment adds, it adds to all scores that follow.
    torch.testing.assert_close(credit([1, 2, 3])[0][0, 0], credit([2, 3, 4])[0][0, 0])


def test_an_empty_scale():
    with pytest.raises(ValueError, match=r"highest is 1.0, wanted above lowest"):
        credit([1], highest=1.0)


@quick
@given(st.integers(0, 5), st.integers(0, 7), st.integers(0, 99))
def test_gains_add_up(n, width, seed):
    random = torch.Generator().manual_seed(seed)
    score = torch.rand(n, width, generator=random, dtype=torch.float64)
    ends = torch.rand(n, width, generator=random) > 0.5
    dirty = score.masked_fill(~ends, math.nan)
    centred, plain = telescoped(dirty, ends), telescoped(dirty, ends, first="score")
    assert centred.sum(dim=1).tolist() == pytest.approx([0.0] * n)
    for row in range(n):
        mine = score[row][ends[row]].tolist()
        wanted = [y - x for x, y in zip([0.0, *mine], mine, strict=False)]
        assert plain[row][ends[row]].tolist() == pytest.approx(wanted)
    assert (centred[~ends] == 0).all()


@quick
@given(st.integers(1, 5), st.integers(0, 99))
def test_rows_commute_and_nothing_off_the_mask_is_read(n, seed):
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, 6, generator=random) > 0.3
    dense = torch.randint(0, 6, (n, 6), generator=random).double() * mask
    out, _ = telescoped_process(dense, mask)
    again, _ = telescoped_process(dense.masked_fill(~mask, math.nan), mask)
    order = torch.randperm(n, generator=random)
    torch.testing.assert_close(again, out)
    torch.testing.assert_close(telescoped_process(dense[order], mask[order])[0], out[order])
    assert (out[~mask] == 0).all()
