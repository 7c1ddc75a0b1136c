import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.optimize import dominates, non_dominated


def test_front_by_hand():
    points = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [2.0, 1.0], [1.0, 1.0]])
    assert non_dominated(points).tolist() == [True, True, True, False, False]
    assert dominates(points)[:, 4].tolist() == [True, True, True, True, False]
    assert dominates(points)[0].tolist() == [False, False, False, True, True]


def test_equal_candidates_stand_together():
    points = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    assert non_dominated(points).tolist() == [True, True, False]
    assert non_dominated(torch.zeros(4, 3)).all()


def test_nan_is_off_the_front_and_harms_nobody():
    points = torch.tensor([[1.0, float("nan")], [0.0, 0.0], [2.0, 2.0]])
    assert non_dominated(points).tolist() == [False, False, True]
    assert non_dominated(points[:2]).tolist() == [False, True]


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 12))
def test_against_a_loop(seed, k, n):
    g = torch.Generator().manual_seed(seed)
    points, group = torch.randint(0, 4, (n, k), generator=g).double(), torch.randint(0, 2, (n,), generator=g)

    def beaten(i, rivals):
        better = lambda p, q: all(a >= b for a, b in zip(p, q, strict=True)) and p != q  # noqa: E731
        return any(better(points[j].tolist(), points[i].tolist()) for j in rivals)

    assert non_dominated(points).tolist() == [not beaten(i, range(n)) for i in range(n)]
    own = [[j for j in range(n) if group[j] == group[i]] for i in range(n)]
    assert non_dominated(points, group).tolist() == [not beaten(i, own[i]) for i in range(n)]
    if k == 1:
        assert torch.equal(non_dominated(points), points[:, 0] == points.max())
    assert torch.equal(non_dominated(points.exp()), non_dominated(points))
    assert torch.equal(non_dominated(torch.stack([points, -points]))[1], non_dominated(-points))


def test_wrong_groups_are_named():
    with pytest.raises(ValueError, match=r"group has shape \(2,\), wanted \(3,\)"):
        non_dominated(torch.zeros(3, 2), torch.zeros(2))
