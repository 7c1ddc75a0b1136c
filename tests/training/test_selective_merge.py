import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.training.selective_merge import largest_changes, selective_merge

quick = settings(derandomize=True, deadline=None, max_examples=25)


def states(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    base = {f"w{i}": torch.randn(n, generator=generator) for i, n in enumerate(sizes)}
    return base, {name: x + torch.randn(x.shape, generator=generator) for name, x in base.items()}


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 99))
def test_exactly_so_many_entries_and_the_largest(sizes, keep, seed):
    base, tuned = states(sizes, seed)
    merged = selective_merge(base, tuned, keep=keep, scale=0.7)
    change = torch.cat([tuned[name] - base[name] for name in base])
    out = torch.cat([merged[name] - base[name] for name in base])
    kept = torch.cat([m.flatten() for m in largest_changes(base, tuned, keep=keep).masks.values()])
    assert int(kept.sum()) == math.ceil(keep * sum(sizes) - 1e-9)
    if kept.any() and not kept.all():
        assert change[kept].abs().min() >= change[~kept].abs().max()
    assert torch.allclose(out, torch.where(kept, 0.7 * change, 0.0), atol=1e-5)
    apart = largest_changes(base, tuned, keep=keep, scope="tensor").masks
    assert [int(m.sum()) for m in apart.values()] == [math.ceil(keep * n - 1e-9) for n in sizes]


def test_equal_changes_keep_the_count():
    base, tuned = {"w": torch.zeros(3, 4)}, {"w": torch.ones(3, 4)}
    merged = selective_merge(base, tuned)["w"]
    assert sorted(merged.flatten().tolist()) == pytest.approx([0.0] * 9 + [0.7] * 3)


def test_all_and_nothing():
    base, tuned = states([5, 3], 0)
    for name, x in selective_merge(base, tuned, keep=1.0, scale=1.0).items():
        assert torch.allclose(x, tuned[name])
    for name, x in selective_merge(base, tuned, keep=0.0).items():
        assert torch.equal(x, base[name])
        assert x is not base[name]


def test_types_stay_and_whole_numbers_are_the_bases():
    base = {"w": torch.zeros(4, dtype=torch.bfloat16), "count": torch.tensor([3])}
    tuned = {"w": torch.tensor([0.0, 0.0, 0.0, 2.0], dtype=torch.bfloat16), "count": torch.tensor([9])}
    merged = selective_merge(base, tuned)
    assert merged["w"].dtype == torch.bfloat16
    assert merged["w"].tolist() == pytest.approx([0, 0, 0, 1.4], abs=0.01)
    assert merged["count"].tolist() == [3]
    assert selective_merge({"n": torch.tensor([1])}, {"n": torch.tensor([2])})["n"].tolist() == [1]


def test_what_cannot_be_merged():
    base, tuned = states([3], 0)
    with pytest.raises(ValueError, match=r"keep is 1\.5"):
        selective_merge(base, tuned, keep=1.5)
    with pytest.raises(ValueError, match="only one of base and tuned"):
        selective_merge(base, {})
    with pytest.raises(ValueError, match="shape"):
        selective_merge(base, {"w0": torch.zeros(4)})
    with pytest.raises(ValueError, match="not finite"):
        selective_merge(base, {"w0": torch.tensor([1.0, float("nan"), 0.0])})
