"""Where in a weight matrix an update went: its singular directions, its large entries, or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from guerdon.policies.tiny_lm import Block, TinyTransformer


class Overlap(NamedTuple):
    """Share of an update's entries that fall on a mask of weights, beside the share that chance would give."""

    share: float
    chance: float

    @property
    def ratio(self) -> float:
        """Share over chance: 1 for an update that does not care."""
        return self.share / self.chance if self.chance else float("nan")


@dataclass(frozen=True)
class Spectrum:
    """What an update did to one matrix W0 -> W+.

    Attributes:
        shift: normalised spectral shift |sigma(W+) - sigma(W0)| / |sigma(W0)|.
        left, right: (k,) principal angles between the leading k left (right) singular subspaces, in radians,
            ascending.
        vectors: (k,) rotation arccos |u_i' u_i+| of each leading left singular vector. Where neighbouring singular
            values are close a vector is not well defined; the angles of subspaces are then what counts.
        relative: |W+ - W0| / |W0|, Frobenius norms.
        update: singular values of W+ - W0, descending.
        rows, columns: norms of the rows and of the columns of W+ - W0, in which stripes show.
        principal, small: overlap of the changed entries with the principal mask, and with as many entries of smallest
            magnitude; nan where nothing changed.
    """

    shift: float
    left: Tensor
    right: Tensor
    vectors: Tensor
    relative: float
    update: Tensor
    rows: Tensor
    columns: Tensor
    principal: Overlap
    small: Overlap

    @property
    def angle(self) -> float:
        """Mean principal angle, left and right, in radians."""
        return float(torch.cat([self.left, self.right]).mean())


def spectral_report(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    *,
    k: int = 64,
    alpha: float = 0.1,
    relative: float = 1e-3,
) -> dict[str, Spectrum]:
    """Compare the spectra of every matrix before and after an update.

    An entry counts as changed if |w+ - w0| > relative max(|w0|, |w+|), which is what bfloat16 would tell apart. (A
    threshold relative to the largest change is at the mercy of one outlier.) Compare updates of equal ``relative``
    norm: small steps alone lower every number here.

    Args:
        before, after: weights by name; tensors that are not matrices are left out. Computed in float64.
        k: leading singular directions to look at; at most half of what a matrix has.
        alpha: share of entries in the principal mask and in that of small entries.
        relative: threshold of a change.

    Raises:
        ValueError: when a name or a shape differs.

    Source: Zhu et al. 2025, arXiv 2511.08567.
    """
    report = {}
    for name, old in before.items():
        if name not in after or after[name].shape != old.shape:
            raise ValueError(f"'{name}' is missing after the update or has another shape; give the same tensors twice")
        if old.ndim == 2:
            report[name] = _compare(old.detach().double(), after[name].detach().double(), k, alpha, relative)
    return report


def principal_mask(weight: Tensor, *, k: int = 64, alpha: float = 0.1) -> Tensor:
    """The share ``alpha`` of entries that are largest, by magnitude, in the best approximation of rank ``k``.

    Args:
        weight: (R,C).
        k: rank; at most half of what the matrix has, for at full rank the approximation is the matrix itself.
        alpha: share of entries, at least one.

    Returns:
        (R,C) bool.

    Source: Zhu et al. 2025, arXiv 2511.08567.
    """
    u, s, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    rank = leading(weight, k)
    return _largest((u[:, :rank] * s[:rank]) @ v[:rank], alpha)


def small_mask(weight: Tensor, *, alpha: float = 0.1) -> Tensor:
    """The share ``alpha`` of entries of smallest magnitude: (R,C) bool."""
    return _largest(-weight.detach().abs(), alpha, absolute=False)


def leading(weight: Tensor, k: int) -> int:
    """How many singular directions of a matrix to call leading: ``k``, at most half of what it has, at least one."""
    return max(1, min(k, min(weight.shape) // 2))


@torch.no_grad()
def rotate_heads(model: TinyTransformer, *, generator: torch.Generator | None = None) -> None:
    """Rotate the values of every attention head and undo it in the output, in place: the function stays the same.

    W_v <- O W_v and W_out <- W_out O', with O orthogonal, drawn for each head

    Attention mixes positions, not the components of a value, so O passes through it. The singular vectors of the two
    matrices and the places of their large entries move, and what depends on them must move along.

    Args:
        model: a tiny language model's transformer.
        generator: source of the rotations.

    Source: Zhu et al. 2025, arXiv 2511.08567.
    """
    for block in model.blocks:
        attention = cast(Block, block).attention
        qkv, out = attention.qkv.weight, attention.out.weight
        width = len(out)
        size = width // attention.heads
        for head in range(attention.heads):
            gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
            rotation = torch.linalg.qr(gaussian).Q.to(out.dtype)
            rows = slice(2 * width + head * size, 2 * width + (head + 1) * size)
            columns = slice(head * size, (head + 1) * size)
            qkv[rows] = rotation @ qkv[rows]
            out[:, columns] = out[:, columns] @ rotation.T


def _compare(old: Tensor, new: Tensor, k: int, alpha: float, relative: float) -> Spectrum:
    change, rank = new - old, leading(old, k)
    u, s, v = torch.linalg.svd(old, full_matrices=False)
    u_new, s_new, v_new = torch.linalg.svd(new, full_matrices=False)
    changed = change.abs() > relative * torch.maximum(old.abs(), new.abs())
    principal = _largest((u[:, :rank] * s[:rank]) @ v[:rank], alpha)
    return Spectrum(
        shift=float((s_new - s).norm() / s.norm()),
        left=_angles(u[:, :rank], u_new[:, :rank]),
        right=_angles(v[:rank].T, v_new[:rank].T),
        vectors=(u[:, :rank] * u_new[:, :rank]).sum(dim=0).abs().clamp(max=1.0).arccos(),
        relative=float(change.norm() / old.norm()),
        update=torch.linalg.svdvals(change),
        rows=change.norm(dim=1),
        columns=change.norm(dim=0),
        principal=_overlap(changed, principal),
        small=_overlap(changed, small_mask(old, alpha=alpha)),
    )


def _angles(old: Tensor, new: Tensor) -> Tensor:
    """Principal angles between the column spaces of two orthonormal bases, ascending.

    From the sine where the cosine is near 1: arccos would turn an error of 1e-16 into an angle of 1e-8.
    """
    cosine = torch.linalg.svdvals(old.T @ new).clamp(max=1.0)
    sine = torch.linalg.svdvals(new - old @ (old.T @ new)).flip(0).clamp(max=1.0)
    return torch.where(cosine**2 > 0.5, sine.arcsin(), cosine.arccos())


def _largest(x: Tensor, alpha: float, *, absolute: bool = True) -> Tensor:
    count = max(1, round(alpha * x.numel()))
    flat = (x.abs() if absolute else x).flatten()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(count).indices] = True
    return mask.view_as(x)


def _overlap(changed: Tensor, mask: Tensor) -> Overlap:
    n = int(changed.sum())
    share = int((changed & mask).sum()) / n if n else float("nan")
    return Overlap(share, float(mask.double().mean()))
