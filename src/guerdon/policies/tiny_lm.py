"""A small decoder-only transformer, trained from scratch on the task's own characters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from guerdon.policies.language import LanguagePolicy
from guerdon.registry import register
from guerdon.tasks.base import Task

PAD, EOS, UNKNOWN, ANSWER = "<pad>", "<eos>", "<unk>", "<answer>"


def build_tokenizer(
    corpus: Iterable[str], kind: Literal["char", "bpe"] = "char", vocab_size: int = 512
) -> PreTrainedTokenizerFast:
    """Build a tokenizer from texts: one token per character, or byte-pair merges with single digits."""
    specials = [PAD, EOS, UNKNOWN, ANSWER]
    if kind == "char":
        alphabet = sorted(set("".join(corpus)) | set("0123456789"))
        vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[ANSWER],
        clean_up_tokenization_spaces=False,
    )


@dataclass
class KeyValueCache:
    """Keys and values of every layer, (N,H,S,D) each, in buffers that grow by doubling."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new columns of one layer and return all columns so far."""
        end = self.length + key.shape[2]
        if layer == len(self.keys):
            self.keys.append(_reserve(key, end))
            self.values.append(_reserve(value, end))
        elif end > self.keys[layer].shape[2]:
            self.keys[layer] = _reserve(self.keys[layer][:, :, : self.length], end)
            self.values[layer] = _reserve(self.values[layer][:, :, : self.length], end)
        self.keys[layer][:, :, self.length : end] = key
        self.values[layer][:, :, self.length : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> KeyValueCache:
        """The cache of the given rows; rows may repeat."""
        return KeyValueCache([k[rows] for k in self.keys], [v[rows] for v in self.values], self.length)


def _reserve(block: Tensor, columns: int) -> Tensor:
    n, heads, used, size = block.shape
    room = block.new_empty(n, heads, columns + max(columns // 2, 16), size)
    room[:, :, :used] = block
    return room


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor | None, cache: KeyValueCache | None, layer: int
    ) -> Tensor:
        """Attend from x (N,T,D); ``bias`` (N,1,T,S) is added to the scores, None means plainly causal."""
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, rotary), _rotate(k, rotary)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)
        return self.out(out.transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    """Pre-norm attention and SwiGLU feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = 8 * math.ceil(width / 3)  # 8/3 of the width, as three matrices cost what two of 4x would
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor | None, cache: KeyValueCache | None, layer: int
    ) -> Tensor:
        """Add what the layer has to say to the residual stream (N,T,D)."""
        x = x + self.attention(self.norm1(x), rotary, bias, cache, layer)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class TinyTransformer(nn.Module):
    """Decoder-only transformer: RMSNorm, rotary positions, SwiGLU, tied embeddings."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.head_size = width // heads
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)

    def hidden(
        self, ids: Tensor, attention: Tensor, cache: KeyValueCache | None = None, use_cache: bool = False
    ) -> tuple[Tensor, KeyValueCache | None]:
        """Last hidden states (N,T,D); ``attention`` (N,S) is false on left padding."""
        if use_cache and cache is None:
            cache = KeyValueCache([], [])
        t, s = ids.shape[1], attention.shape[1]
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)[:, s - t :]
        rotary = _rotary(positions, self.head_size)
        bias = _attention_bias(attention, t)
        x = self.embed(ids)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, bias, cache, layer)
        if cache is not None:
            cache.length = s
        return self.norm(x), cache

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (...,V) through the tied embedding."""
        return hidden @ self.embed.weight.T

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (N,T,V) of unpadded sequences."""
        return self.project(self.hidden(ids, torch.ones_like(ids, dtype=torch.bool))[0])


def _rotary(positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    frequency = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angle = positions.unsqueeze(-1).float() * frequency
    return angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _attention_bias(attention: Tensor, t: int) -> Tensor | None:
    """Additive mask (N,1,T,S) for left-padded rows; None where plain causal attention does."""
    s = attention.shape[1]
    padded = not bool(attention[:, 0].all())
    if not padded and t == s:
        return None
    if not padded and t == 1:
        return attention.new_zeros(1, 1, 1, s, dtype=torch.float32)
    allowed = attention[:, None, None, :]
    if t > 1:
        allowed = allowed & torch.ones(t, s, dtype=torch.bool).tril(diagonal=s - t)
    # A padding query sees nothing; letting it see column 0 keeps its softmax finite, and nobody reads it.
    blind = ~allowed.any(dim=-1, keepdim=True)
    allowed = allowed | (blind & (torch.arange(s) == 0))
    return torch.zeros((), dtype=torch.float32).masked_fill(~allowed, float("-inf"))


@register("policy", "tiny_lm")
class TinyLM(LanguagePolicy):
    """A transformer of a few hundred thousand parameters with a vocabulary built from the task's texts."""

    def __init__(
        self,
        task: Task,
        *,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        tokenizer: Literal["char", "bpe"] = "char",
        vocab_size: int = 512,
        value_head: bool | Literal["soft_min"] = False,
    ) -> None:
        """Build the vocabulary from ``task.corpus()`` and draw initial weights.

        Args:
            width: size of the residual stream, a multiple of ``2 * heads``.
            layers: number of blocks.
            heads: attention heads.
            tokenizer: one token per character, or byte-pair merges up to ``vocab_size``.
            value_head: add a critic on the last hidden state, linear or ``soft_min`` (``SoftMinCritic``).
        """
        from guerdon.errors import RecipeError

        if width % (2 * heads):
            raise RecipeError(
                f"policy 'tiny_lm': width {width} is not a multiple of 2 * heads = {2 * heads}; "
                f"use {2 * heads * max(1, width // (2 * heads))}"
            )
        encoder = build_tokenizer(task.corpus(), tokenizer, vocab_size)
        model = TinyTransformer(len(encoder), width, layers, heads)
        super().__init__(model, encoder, width, value_head=value_head)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of the prompt, closed by the token that asks for the answer."""
        ids: Any = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ask: Any = self.tokenizer.convert_tokens_to_ids(ANSWER)
        return [*ids, ask]
