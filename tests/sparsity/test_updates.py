import math

import pytest
import torch

from guerdon.sparsity import MaskSet, mask_overlap, update_rank, update_sparsity


def test_sparsity_by_hand():
    before = {
        "m.blocks.0.a": torch.ones(2, 2),
        "m.blocks.0.b": torch.zeros(4),
        "m.blocks.1.a": torch.ones(2),
        "n": torch.ones(2),
    }
    after = {name: x.clone() for name, x in before.items()}
    after["m.blocks.0.a"][0] = torch.tensor([1.001, 1.1])  # the first is lost in bfloat16
    after["m.blocks.0.b"][0] = 5e-6  # below the tolerance
    after["m.blocks.1.a"][0] = 2.0
    seen = update_sparsity(before, after)
    assert seen.overall == pytest.approx(1 - 2 / 12)
    assert seen.by_matrix == {"m.blocks.0.a": 0.75, "m.blocks.0.b": 1.0, "m.blocks.1.a": 0.5, "n": 1.0}
    assert seen.by_layer == {"m.blocks.0": 0.875, "m.blocks.1": 0.5, "n": 1.0}
    assert (seen.tol, seen.dtype) == (1e-5, torch.bfloat16)
    assert update_sparsity(before, after, dtype=torch.float32).overall == pytest.approx(1 - 3 / 12)
    assert update_sparsity(before, after, tol=0.0, dtype=torch.float32).overall == pytest.approx(1 - 4 / 12)


def test_tied_weights_count_once():
    shared, moved = torch.ones(4), torch.zeros(4)
    before = {"embed": shared, "head": shared, "rest": torch.ones(4)}
    after = {"embed": moved, "head": moved, "rest": torch.ones(4)}
    seen = update_sparsity(before, after)
    assert seen.overall == 0.5
    assert set(seen.by_matrix) == {"embed", "rest"}


def test_overlap_by_hand():
    first = MaskSet({"a": torch.tensor([1, 1, 0, 0]).bool(), "b": torch.tensor([[1, 0]]).bool()})
    second = MaskSet({"a": torch.tensor([1, 0, 0, 0]).bool(), "b": torch.tensor([[1, 0]]).bool()})
    assert mask_overlap(first, second) == pytest.approx((2 / 3, 1.0, 2 / 6, 3 / 6))
    empty = MaskSet({"a": torch.zeros(4).bool(), "b": torch.zeros(1, 2).bool()})
    seen = mask_overlap(first, empty)
    assert math.isnan(seen.of_second)
    assert (seen.of_first, seen.chance_first) == (0, 0)


def test_independent_masks_overlap_by_chance():
    generator = torch.Generator().manual_seed(0)
    first, second = (MaskSet({"a": torch.rand(200_000, generator=generator) < p}) for p in (0.3, 0.1))
    seen = mask_overlap(first, second)
    assert seen.of_first == pytest.approx(seen.chance_first, rel=0.05)
    assert seen.of_second == pytest.approx(seen.chance_second, rel=0.05)


def test_rank_by_hand():
    generator = torch.Generator().manual_seed(0)
    before = {"low": torch.randn(6, 4, generator=generator), "full": torch.randn(3, 5, generator=generator)}
    before |= {"same": torch.ones(3, 3), "bias": torch.ones(3)}
    after = {name: x.clone().double() for name, x in before.items()}
    after["low"] += torch.outer(torch.arange(6.0), torch.arange(4.0))
    after["full"] += torch.randn(3, 5, generator=generator)
    assert update_rank(before, after) == {"low": 0.25, "full": 1.0, "same": 0.0}


@pytest.mark.parametrize(
    ("after", "message"),
    [({"a": torch.ones(3)}, r"'a' has shape \(2,\) before and \(3,\) after"), ({"b": torch.ones(2)}, r"\['a', 'b'\]")],
)
def test_what_cannot_be_compared_is_refused(after, message):
    for function in (update_sparsity, update_rank):
        with pytest.raises(ValueError, match=message):
            function({"a": torch.ones(2)}, after)
