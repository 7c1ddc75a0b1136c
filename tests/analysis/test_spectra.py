import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.analysis.spectra import leading, principal_mask, rotate_heads, small_mask, spectral_report
from guerdon.policies.tiny_lm import TinyTransformer

quick = settings(derandomize=True, deadline=None, max_examples=25)
F64 = torch.float64


def matrix(rows=12, columns=8, seed=0):
    """A matrix with known singular vectors and well separated singular values."""
    generator = torch.Generator().manual_seed(seed)
    n = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, n, generator=generator, dtype=F64)).Q
    v = torch.linalg.qr(torch.randn(columns, n, generator=generator, dtype=F64)).Q
    return u, torch.arange(n, 0, -1, dtype=F64), v


def report(before, after, **options):
    return spectral_report({"w": before}, {"w": after}, **options)["w"]


def test_along_its_own_singular_vectors_the_spectrum_shifts_and_nothing_rotates():
    u, s, v = matrix()
    before = u @ torch.diag(s) @ v.T
    seen = report(before, before + 0.5 * torch.outer(u[:, 0], v[:, 0]), k=3)
    assert seen.shift == pytest.approx(0.5 / s.norm().item())
    assert seen.relative == pytest.approx(seen.shift)
    assert seen.angle < 1e-12
    assert seen.vectors.max() < 1e-6
    torch.testing.assert_close(seen.update, torch.tensor([0.5] + 7 * [0.0], dtype=F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(seen.rows, 0.5 * u[:, 0].abs())
    torch.testing.assert_close(seen.columns, 0.5 * v[:, 0].abs())


def test_in_the_trailing_subspace_the_leading_ones_do_not_rotate():
    u, s, v = matrix()
    before = u @ torch.diag(s) @ v.T
    generator = torch.Generator().manual_seed(1)
    trailing = u[:, 4:] @ torch.randn(4, 4, generator=generator, dtype=F64) @ v[:, 4:].T
    seen = report(before, before + 0.2 * trailing, k=4)
    assert seen.angle < 1e-12
    assert seen.shift > 0


@pytest.mark.parametrize("theta", [1e-9, 0.1, 1.0, 1.5])
def test_a_rotation_is_measured_at_any_size(theta):
    """The second leading direction turns into the trailing ones; the first stays."""
    u, s, v = matrix()
    before = u @ torch.diag(s) @ v.T
    turned = u.clone()
    turned[:, 1] = math.cos(theta) * u[:, 1] + math.sin(theta) * u[:, 7]
    turned[:, 7] = math.cos(theta) * u[:, 7] - math.sin(theta) * u[:, 1]
    seen = report(before, turned @ torch.diag(s) @ v.T, k=3)
    torch.testing.assert_close(seen.left, torch.tensor([0, 0, theta], dtype=F64), atol=1e-12, rtol=1e-6)
    assert seen.right.max() < 1e-12
    assert seen.shift < 1e-12
    assert seen.vectors[1].item() == pytest.approx(theta, abs=2e-8)


@quick
@given(st.integers(0, 10_000), st.floats(0.05, 0.4))
def test_random_changes_fall_on_the_masks_by_chance(seed, alpha):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(60, 50, generator=generator, dtype=F64)
    hit = torch.rand(60, 50, generator=generator) < 0.3
    seen = report(before, torch.where(hit, 1.01 * before, before), alpha=alpha)
    for overlap in (seen.principal, seen.small):
        assert overlap.chance == pytest.approx(alpha, abs=1e-3)
        error = math.sqrt(alpha * (1 - alpha) / int(hit.sum()))
        assert abs(overlap.share - overlap.chance) < 4 * error


def test_masks_by_hand():
    weight = torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.5]))
    assert principal_mask(weight, k=1, alpha=1 / 16).nonzero().tolist() == [[0, 0]]
    assert principal_mask(weight, k=2, alpha=2 / 16).nonzero().tolist() == [[0, 0], [1, 1]]
    flat = torch.tensor([[4.0, -1.0], [0.1, -3.0]])
    assert small_mask(flat, alpha=0.5).tolist() == [[False, True], [True, False]]
    assert leading(torch.zeros(3, 9), 64) == 1
    assert leading(torch.zeros(40, 9), 3) == 3
    # The reconstruction of rank 1, not the matrix, decides.
    mixed = 2 * torch.ones(4, 4) + torch.diag(torch.tensor([0.0, 0.0, 0.0, -1.9]))
    assert not principal_mask(mixed, k=1, alpha=0.5)[3].all()


def test_changes_are_told_relative_to_the_entry():
    before = torch.tensor([[1.0, 1e-4], [2.0, 0.0]])
    after = torch.tensor([[1.0009, 1.01e-4], [2.0, 1e-9]])
    seen = report(before, after, alpha=0.5)
    assert seen.small.share == 1.0  # the two small entries changed, the large one by less than a thousandth
    assert seen.small.ratio == 2.0
    nothing = report(before, before)
    assert math.isnan(nothing.principal.share)
    assert math.isnan(nothing.small.ratio)
    assert nothing.shift == nothing.relative == 0


def test_only_matrices_are_compared_and_names_must_match():
    seen = spectral_report({"w": torch.eye(3), "b": torch.ones(3)}, {"w": torch.eye(3), "b": torch.ones(3)})
    assert set(seen) == {"w"}
    with pytest.raises(ValueError, match="'w' is missing"):
        spectral_report({"w": torch.eye(3)}, {})
    with pytest.raises(ValueError, match="another shape"):
        spectral_report({"w": torch.eye(3)}, {"w": torch.eye(2)})


def test_rotating_heads_moves_weights_and_not_logits():
    torch.manual_seed(0)
    model = TinyTransformer(vocabulary=11, width=16, layers=2, heads=4)
    ids = torch.randint(0, 11, (3, 7))
    logits = model(ids)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    rotate_heads(model, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(ids), logits, atol=1e-5, rtol=0)
    for name, p in model.named_parameters():
        if name.endswith("qkv.weight"):
            assert torch.equal(p[:32], old[name][:32])
            assert (p[32:] - old[name][32:]).norm() > 0.5 * old[name][32:].norm()
        elif name.endswith("attention.out.weight"):
            assert (p - old[name]).norm() > 0.5 * old[name].norm()
        else:
            assert torch.equal(p, old[name])
