"""Hugging Face models of the Llama family as the engine's own transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from guerdon.engine.fused import Layer, Transformer

# Architectures whose blocks are those of ``engine.fused``; Qwen3's has norms of queries and keys beside them.
FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# Kinds of rotary positions that are not a function of the position alone.
_MOVING = frozenset({"dynamic", "longrope"})


def llama_transformer(decoder: Any, project: Any) -> Transformer | None:
    """The weights of a Hugging Face decoder as they are now; None if it is something else.

    Args:
        decoder: the model without its head.
        project: logits of hidden states.
    """
    config = decoder.config
    if config.model_type not in FAMILY or config.hidden_act not in {"silu", "swish"}:
        return None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", "default") in _MOVING or any(not _plain(block) for block in decoder.layers):
        return None
    heads, kinds = config.num_attention_heads, config.num_key_value_heads
    size = decoder.layers[0].self_attn.head_dim

    def rotary(positions: Tensor) -> Tensor:
        cos, sin = decoder.rotary_emb(torch.zeros(1), positions[None])
        half = size // 2
        return torch.complex(cos[0, :, :half], sin[0, :, :half])[:, None]

    return Transformer(
        embed=decoder.embed_tokens.weight,
        layers=[_layer(block, size) for block in decoder.layers],
        norm=decoder.norm.weight,
        eps=config.rms_norm_eps,
        heads=heads,
        kinds=kinds,
        scale=decoder.layers[0].self_attn.scaling,
        rotary=rotary,
        project=project,
    )


def _plain(block: Any) -> bool:
    """Whether all that a block multiplies by are plain matrices: no adapters, no quantisation."""
    attention, mlp = block.self_attn, block.mlp
    names = [(attention, f"{kind}_proj") for kind in "qkvo"] + [
        (mlp, f"{kind}_proj") for kind in ("gate", "up", "down")
    ]
    layers: list[Any] = [getattr(of, name, None) for of, name in names]
    if any(type(layer) is not nn.Linear for layer in layers):
        return False
    return all(layer.bias is None for layer in layers[3:]) and not attention.training


@torch.no_grad()
def _layer(block: Any, size: int) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    norms = [getattr(getattr(attention, name, None), "weight", None) for name in ("q_norm", "k_norm")]
    return Layer(
        norm1=block.input_layernorm.weight,
        qkv=torch.cat([_paired(q.weight, size), _paired(k.weight, size), v.weight]),
        out=attention.o_proj.weight,
        norm2=block.post_attention_layernorm.weight,
        gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=mlp.down_proj.weight,
        qkv_bias=None if q.bias is None else torch.cat([_paired(q.bias, size), _paired(k.bias, size), v.bias]),
        q_norm=None if norms[0] is None else _paired(norms[0], size),
        k_norm=None if norms[1] is None else _paired(norms[1], size),
    )


def _paired(rows: Tensor, size: int) -> Tensor:
    """Rows of heads, in which rotation takes number i with i + size/2, so that the two are neighbours."""
    return rows.unflatten(0, (-1, 2, size // 2)).transpose(1, 2).flatten(0, 2)
