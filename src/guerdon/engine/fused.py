"""A transformer as it is when nobody asks for a gradient: matrices that meet the same input in one, and packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from guerdon.engine.attention import Attend
from guerdon.engine.reading import LanguageModel

# Weights of which a second copy may be made while rows are written: 64 MiB in float32.
ROOM = 2**24


@dataclass(frozen=True)
class Layer:
    """The weights of one block: pre-norm attention with rotary positions, and a gated feed-forward.

    Matrices are (out,in) as in ``nn.Linear``. In ``qkv`` stand the rows of all queries, then keys, then values, and of
    each head those that are rotated together are neighbours.
    """

    norm1: Tensor
    qkv: Tensor
    out: Tensor
    norm2: Tensor
    gate_up: Tensor
    down: Tensor
    qkv_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(frozen=True)
class Transformer:
    """A decoder of such blocks.

    Attributes:
        embed: (V,D) embedding of the tokens.
        layers: the blocks.
        norm: (D,) scale of the last norm.
        eps: of all norms.
        heads, kinds: query heads, and heads of keys and values.
        scale: multiplies the scores of attention.
        rotary: rotations (L,1,D/2) of a head's pairs at positions (L,), as complex numbers.
        project: logits of hidden states.
    """

    embed: Tensor
    layers: Sequence[Layer]
    norm: Tensor
    eps: float | None
    heads: int
    kinds: int
    scale: float
    rotary: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]


@runtime_checkable
class Fusable(Protocol):
    """A model that may be known as a ``Transformer``."""

    def transformer(self) -> Transformer | None:
        """Its weights as they are now; None if it is another architecture."""
        ...


@contextmanager
def fused(model: LanguageModel) -> Iterator[LanguageModel]:
    """The model as it is best run token by token while its weights stay as they are.

    It takes a second copy of the weights, which is only worth it, and only made, for models of up to ``ROOM`` of them
    in float32 on a CPU; others are given back as they are.
    """
    known = model.transformer() if isinstance(model, Fusable) and _PRODUCT is not None else None
    weights = [] if known is None else [known.embed, *(w for layer in known.layers for w in (layer.qkv, layer.gate_up))]
    small = sum(w.numel() for w in weights) <= ROOM
    plain = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
    yield FusedModel(known) if known is not None and small and plain else model


class FusedModel:
    """A transformer that reads flat tokens without gradient."""

    flat = True

    @torch.no_grad()
    def __init__(self, weights: Transformer) -> None:
        self.weights = weights
        self._matrices = [
            (
                _Product(layer.qkv, layer.qkv_bias),
                _Product(layer.out),
                _Product(layer.gate_up),
                _Product(layer.down),
            )
            for layer in weights.layers
        ]

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Last hidden states (L,D) of tokens (L,) at their depths."""
        of, width = self.weights, (self.weights.embed.shape[1],)
        rotary = of.rotary(positions)
        x = F.embedding(ids, of.embed)
        turned = of.heads + of.kinds
        for index, (layer, matrices) in enumerate(zip(of.layers, self._matrices, strict=True)):
            qkv, out, gate_up, down = matrices
            heads = qkv(F.rms_norm(x, width, layer.norm1, of.eps)).view(len(x), turned + of.kinds, -1)
            q, k = self._normed(layer, heads[:, : of.heads], heads[:, of.heads : turned])
            if layer.q_norm is None:
                qk = rotate(heads[:, :turned], rotary)
                q, k = qk[:, : of.heads], qk[:, of.heads :]
            else:
                q, k = rotate(q, rotary), rotate(k, rotary)
            x = out(attend(index, q, k, heads[:, turned:], of.scale).reshape(len(x), -1), x)
            gate, up = gate_up(F.rms_norm(x, width, layer.norm2, of.eps)).chunk(2, dim=-1)
            x = down(F.silu(gate).mul_(up), x)
        return F.rms_norm(x, width, of.norm, of.eps)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (...,V)."""
        return self.weights.project(hidden)

    def _normed(self, layer: Layer, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if layer.q_norm is None or layer.k_norm is None:
            return q, k
        size = (q.shape[-1],)
        return F.rms_norm(q, size, layer.q_norm, self.weights.eps), F.rms_norm(k, size, layer.k_norm, self.weights.eps)

    def padded(self, ids: Tensor, attention: Tensor, cache: Any = None, *, keep: bool = False) -> tuple[Tensor, Any]:
        """Never asked for: ``flat`` is true."""
        raise AssertionError("a flat model reads packs")


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn pairs of neighbours of heads x (L,...,D) by ``rotary`` (L,...,D/2), complex numbers of length 1."""
    pairs = torch.view_as_complex(x.to(rotary.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary).flatten(-2).to(x.dtype)


try:
    _PRODUCT: Any = torch.ops.mkldnn._linear_pointwise
    _REORDER: Any = torch.ops.mkldnn._reorder_linear_weight
except AttributeError:  # a build of torch without oneDNN
    _PRODUCT = None


class _Product:
    """x W^T + b, or that plus y, with W laid out for the product."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = _REORDER(weight.detach().contiguous(), 64), bias

    def __call__(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        if more is None:
            return _PRODUCT(x, self.weight, self.bias, "none", [], "")
        return _PRODUCT.binary(x, more, self.weight, self.bias, "add")
