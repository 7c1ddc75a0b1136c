"""Attention without padding and without repetition: over the tree of a pack, and over rows that grow from prefixes.

Attention to several sets of keys is put together from attention to each of them:

    out = sum_i exp(lse_i - lse) out_i,   lse = log sum_i exp(lse_i)

and its gradient is that of each set by itself, with ``out`` and ``lse`` those of all (Dao et al. 2022,
arXiv:2205.14135; Liu et al. 2023, arXiv:2310.01889).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from guerdon.engine.packing import Pack, Stretch

# Devices on which attention has a kernel that gives its denominators, and takes them back for the gradient.
_KERNELS = frozenset({"cpu"})
# Prefixes of at most so many tokens are copied into every row, for attending to them apart would cost more.
_COPIED = 32
# Rows whose lengths differ by more than this factor are not padded to one another.
_RAGGED = 1.5


class Attend(Protocol):
    """Attention as models call it, on flat tokens."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """What each token attends to.

        Args:
            layer: index of the layer.
            q: (L,H,D) queries.
            k, v: (L,K,D) keys and values; H is a multiple of K.
            scale: multiplies the scores.

        Returns:
            (L,H,D).
        """
        ...


@dataclass(frozen=True)
class _Block:
    """Pieces of like length, padded on the right: queries see the keys of their piece up to themselves."""

    index: Tensor  # (R,T) tokens
    real: Tensor  # (R,T) bool


class TreeAttention:
    """Every token of a pack attends to itself and its ancestors; differentiable."""

    def __init__(self, pack: Pack, *, record: bool = False) -> None:
        """Prepare the pieces.

        Args:
            pack: which tokens there are.
            record: keep keys and values of every layer in ``recorded``.
        """
        self.blocks = _blocks(pack.own, pack.ids.device)
        self.shared = pack.shared
        flat = torch.cat([block.index[block.real] for block in self.blocks])
        self.order = torch.empty_like(flat)
        self.order[flat] = torch.arange(len(flat), device=flat.device)
        self.recorded: list[tuple[Tensor, Tensor]] | None = [] if record else None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """What each token attends to."""
        if self.recorded is not None:
            self.recorded.append((k, v))
        times = q.shape[1] // k.shape[1]
        if times > 1:
            k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
        out: Any = _TreeFunction.apply(q, k, v, self, scale)
        return out

    def gathered(self, parts: list[Tensor]) -> Tensor:
        """Tokens of all blocks (R,T,...) in the order of the pack (L,...)."""
        kept = [part[block.real] for part, block in zip(parts, self.blocks, strict=True)]
        return torch.cat(kept).index_select(0, self.order)


def _blocks(own: Tensor, device: torch.device) -> list[_Block]:
    start, length = own[:, 0].numpy(), own[:, 1].numpy()
    order = np.argsort(-length, kind="stable")
    order = order[length[order] > 0]
    blocks, first = [], 0
    while first < len(order):
        longest = length[order[first]]
        end = first + int(np.searchsorted(-length[order[first:]] * _RAGGED, -longest, side="right"))
        chosen = order[first:end]
        column = np.arange(int(longest))
        real = column < length[chosen][:, None]
        index = start[chosen][:, None] + np.where(real, column, 0)
        blocks.append(_Block(torch.from_numpy(index).to(device), torch.from_numpy(real).to(device)))
        first = end
    return blocks


class _TreeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tree: TreeAttention, scale: float) -> Tensor:
        outs, sums = [], []
        for block in tree.blocks:
            out, lse = _attend(_padded(q, block), _padded(k, block), _padded(v, block), causal=True, scale=scale)
            outs.append(out.transpose(1, 2))
            sums.append(lse.transpose(1, 2))
        out, lse = tree.gathered(outs), tree.gathered(sums)
        for piece in tree.shared:
            queries = slice(piece.query, piece.query_end)
            more, more_lse = _attend(*_stretch(q, k, v, piece), causal=False, scale=scale)
            _merge_into(out[queries], lse[queries], more[0].transpose(0, 1), more_lse[0].transpose(0, 1))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.tree, ctx.scale = tree, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        tree, scale, grad = ctx.tree, ctx.scale, grads[0].contiguous()
        parts: list[list[Tensor]] = [[], [], []]
        for block in tree.blocks:
            outer = _padded(grad, block)
            if not bool(block.real.all()):
                outer = outer * block.real[:, None, :, None]
            q_, k_, v_, out_, lse_ = (_padded(x, block) for x in (q, k, v, out, lse.unsqueeze(-1)))
            inner = _Inner(q_, k_, v_, out_, lse_[..., 0])
            for part, x in zip(parts, _attend_backward(outer, inner, causal=True, scale=scale), strict=True):
                part.append(x.transpose(1, 2))
        dq, dk, dv = (tree.gathered(part) for part in parts)
        for piece in tree.shared:
            queries, keys = slice(piece.query, piece.query_end), slice(piece.key, piece.key_end)
            out_, lse_, outer = (x[queries].transpose(0, 1)[None] for x in (out, lse, grad))
            inner = _Inner(*_stretch(q, k, v, piece), out_, lse_)
            more = _attend_backward(outer, inner, causal=False, scale=scale)
            for target, rows, x in zip((dq, dk, dv), (queries, keys, keys), more, strict=True):
                target[rows] += x[0].transpose(0, 1)
        return dq, dk, dv, None, None


def _padded(x: Tensor, block: _Block) -> Tensor:
    """(R,H,T,D) tokens of a block, of x (L,H,D)."""
    rows, columns = block.index.shape
    return x.index_select(0, block.index.reshape(-1)).view(rows, columns, *x.shape[1:]).transpose(1, 2)


def _stretch(q: Tensor, k: Tensor, v: Tensor, piece: Stretch) -> tuple[Tensor, Tensor, Tensor]:
    keys = slice(piece.key, piece.key_end)
    parts = (q[piece.query : piece.query_end], k[keys], v[keys])
    q, k, v = (x.transpose(0, 1)[None] for x in parts)
    return q, k, v


def _merge_into(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    """Add attention to further keys, in place; out, more (L,H,D), lse, more_lse (L,H)."""
    share = torch.sigmoid(more_lse - lse).unsqueeze(-1)
    out.lerp_(more, share.to(out.dtype))
    torch.logaddexp(lse, more_lse, out=lse)


class _Inner(NamedTuple):
    """One piece of attention: queries, keys and values, and output and denominators over all pieces."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor


def _attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of q (B,H,T,D) to k, v (B,H,S,D), and the log of its denominators (B,H,T)."""
    if q.device.type in _KERNELS:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )
    scores = _scores(q, k, causal, scale, bias)
    lse = scores.logsumexp(dim=-1)
    return (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v, lse


def _attend_backward(grad: Tensor, piece: _Inner, *, causal: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in q, k and v through the keys of this piece."""
    q, k, v, out, lse = piece
    if q.device.type in _KERNELS:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, scale=scale
        )
    p = (_scores(q, k, causal, scale, None) - lse.unsqueeze(-1)).exp().to(q.dtype)
    slope = p * (grad @ v.transpose(-1, -2) - (grad * out).sum(dim=-1, keepdim=True)) * scale
    return slope @ k, slope.transpose(-1, -2) @ q, p.transpose(-1, -2) @ grad


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float, bias: Tensor | None) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    return scores if bias is None else scores + bias


class GrowingAttention:
    """Rows that grow by one token at a time from prefixes, which rows of the same prefix attend to in common.

    B rows, P prefixes of at most S tokens. Tokens after the prefix lie in buffers of the rows' own.
    """

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], lengths: Tensor, prefix: Tensor, *, capacity: int
    ) -> None:
        """Begin with prefixes.

        Args:
            keys, values: of every layer (P,K,S,D), right-padded.
            lengths: (P,) tokens of each prefix.
            prefix: (B,) prefix of each row.
            capacity: most tokens that a row will be given.
        """
        self.keys, self.values, self.lengths = keys, values, lengths
        self.capacity, self.grown = capacity, 0
        self.own: list[tuple[Tensor, Tensor]] = []
        self.missing: Tensor | None = None  # (B,1,1,S) what hides the places before a short prefix
        self.common = keys[0].shape[2] > _COPIED
        if self.common:
            self._group(prefix)
        else:
            self._copy(prefix)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """What the next token of each row (B,...) attends to."""
        rows, heads, size = q.shape
        kinds = k.shape[1]
        own_k, own_v = self._append(layer, k, v)
        asked = q.view(rows, kinds, heads // kinds, size)
        bias = None if self.missing is None else self.missing[:rows, :, :, : self.grown + 1].to(q.dtype)
        out, lse = _attend(asked, own_k, own_v, causal=False, scale=scale, bias=bias)
        if not self.common:
            return out.reshape(rows, heads, size)
        more, more_lse = self._prefix(layer, asked, scale)
        _merge_into(out, lse, more, more_lse)
        return out.reshape(rows, heads, size)

    def _copy(self, prefix: Tensor) -> None:
        """Let every row begin with a copy of its prefix, pushed to the right."""
        longest = self.keys[0].shape[2]
        empty = longest - self.lengths[prefix].unsqueeze(1)
        place = torch.arange(longest) - empty
        moved = place.clamp(min=0)[:, None, :, None]

        def begun(x: Tensor) -> Tensor:
            x = x[prefix]
            x = x.gather(2, moved.expand_as(x))
            return torch.cat([x, _room(x[:, :, 0], self.capacity + longest, longest)], dim=2)

        self.own = [(begun(key), begun(value)) for key, value in zip(self.keys, self.values, strict=True)]
        self.grown, self.capacity = longest, self.capacity + longest
        if bool((empty > 0).any()):
            self.missing = torch.zeros(len(prefix), 1, 1, self.capacity)
            self.missing[:, 0, 0, :longest].masked_fill_(place < 0, float("-inf"))
        self.keys, self.values = [], []

    def advance(self) -> None:
        """Go on to the next token, once every layer has seen this one."""
        self.grown += 1

    def keep(self, rows: Tensor) -> Tensor:
        """Forget all but the given rows (ascending); return the order in which they now stand.

        Only as many rows are moved as were forgotten: the last ones fill the holes.
        """
        count = len(rows)
        stay, move = rows[rows < count], rows[rows >= count]
        free = torch.ones(count, dtype=torch.bool)
        free[stay] = False
        holes = free.nonzero().flatten()
        order = torch.arange(count)
        order[holes] = move
        for key, value in self.own:
            key[holes, :, : self.grown] = key[move, :, : self.grown]
            value[holes, :, : self.grown] = value[move, :, : self.grown]
        self._reorder(order)
        return order

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows in their order; rows may repeat."""
        self.own = [(key[rows], value[rows]) for key, value in self.own]
        self._reorder(rows)

    def _reorder(self, rows: Tensor) -> None:
        if self.missing is not None:
            self.missing = self.missing[rows]
        if self.common:
            self._group(self.prefix[rows])

    def _group(self, prefix: Tensor) -> None:
        """Find for each prefix its rows; prefixes without any are forgotten once they are half of all."""
        used = torch.bincount(prefix, minlength=len(self.lengths)) > 0
        if int(used.sum()) * 2 <= len(used):
            self.keys, self.values = [x[used] for x in self.keys], [x[used] for x in self.values]
            self.lengths = self.lengths[used]
            prefix = (used.cumsum(dim=0) - 1)[prefix]
        self.prefix = prefix
        count = torch.bincount(prefix, minlength=len(self.lengths))
        self.most = int(count.max())
        order = prefix.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - (count.cumsum(dim=0) - count)[prefix[order]]
        self.slot = prefix * self.most + rank
        self.member = torch.zeros(len(count) * self.most, dtype=torch.int64)
        self.member[self.slot] = torch.arange(len(prefix))
        self.aligned = torch.equal(self.slot, torch.arange(len(count) * self.most))
        beyond = torch.arange(self.keys[0].shape[2]) >= self.lengths.unsqueeze(1)
        missing = torch.zeros(beyond.shape).masked_fill(beyond, float("-inf"))[:, None, None, :]
        self.bias = missing if bool(beyond.any()) else None

    def _append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(k)
        if layer == len(self.own):
            self.own.append((_room(k, self.capacity), _room(v, self.capacity)))
        key, value = self.own[layer]
        if self.grown == key.shape[2]:
            key, value = (
                torch.cat([x, _room(x[:, :, 0], self.capacity, x.shape[2])], dim=2) for x in (key[:rows], value[:rows])
            )
            self.own[layer] = key, value
        key[:rows, :, self.grown], value[:rows, :, self.grown] = k, v
        return key[:rows, :, : self.grown + 1], value[:rows, :, : self.grown + 1]

    def _prefix(self, layer: int, q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attention of q (B,K,R,D) to the rows' prefixes, and the log of its denominators (B,K,R)."""
        _, kinds, times, size = q.shape
        count = len(self.lengths)
        asked = q if self.aligned else q.index_select(0, self.member)
        asked = asked.view(count, self.most, kinds, times, size).transpose(1, 2).reshape(count, kinds, -1, size)
        bias = None if self.bias is None else self.bias.to(q.dtype)
        out, lse = _attend(asked, self.keys[layer], self.values[layer], causal=False, scale=scale, bias=bias)
        out = out.view(count, kinds, self.most, times, size).transpose(1, 2).reshape(-1, kinds, times, size)
        lse = lse.reshape(count, kinds, self.most, times).transpose(1, 2).reshape(-1, kinds, times)
        return (out, lse) if self.aligned else (out.index_select(0, self.slot), lse.index_select(0, self.slot))


def _room(x: Tensor, capacity: int, held: int = 0) -> Tensor:
    """Empty places (B,K,C,D) for further tokens of x (B,K,D): as many as are held, 32 at least."""
    rows, kinds, size = x.shape
    return x.new_empty(rows, kinds, min(max(held, 32), capacity - held), size)
