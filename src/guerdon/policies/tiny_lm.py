"""A small decoder-only transformer, trained from scratch on the task's own characters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from guerdon.engine.attention import Attend
from guerdon.engine.fused import Layer, Transformer, rotate
from guerdon.engine.reading import read
from guerdon.policies.language import LanguagePolicy
from guerdon.registry import register
from guerdon.tasks.base import Task

PAD, EOS, UNKNOWN, ANSWER = "<pad>", "<eos>", "<unk>", "<answer>"

Kind = Literal["char", "word", "bpe"]


def build_tokenizer(corpus: Iterable[str], kind: Kind = "char", vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Build a tokenizer from texts: a token per character or word, or byte-pair merges with single digits."""
    specials = [PAD, EOS, UNKNOWN, ANSWER]
    if kind == "word":
        words = dict.fromkeys(word for text in corpus for word in text.split())
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*specials, *words])}, unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "char":
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


class Attention(nn.Module):
    """Self-attention with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, attend: Attend, layer: int) -> Tensor:
        """Attend from tokens x (L,D)."""
        qkv = self.qkv(x).view(len(x), 3, self.heads, -1)
        q, k = rotate(qkv[:, :2], rotary).unbind(dim=1)
        return self.out(attend(layer, q, k, qkv[:, 2], self.scale).flatten(1))


class Block(nn.Module):
    """Pre-norm attention and SwiGLU feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = 8 * math.ceil(width / 3)  # 8/3 of the width, as three matrices cost what two of 4x would
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, attend: Attend, layer: int) -> Tensor:
        """Add what the layer has to say to the residual stream (L,D)."""
        x = x + self.attention(self.norm1(x), rotary, attend, layer)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def layer(self) -> Layer:
        """The weights as they are now."""
        return Layer(
            norm1=self.norm1.weight,
            qkv=self.attention.qkv.weight,
            out=self.attention.out.weight,
            norm2=self.norm2.weight,
            gate_up=self.gate_up.weight,
            down=self.down.weight,
        )


class TinyTransformer(nn.Module):
    """Decoder-only transformer: RMSNorm, rotary positions, SwiGLU, tied embeddings."""

    flat = True

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

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Last hidden states (L,D) of tokens (L,) at their depths."""
        precise = torch.float64 if self.embed.weight.dtype == torch.float64 else torch.float32
        rotary = _rotary(positions, self.head_size, precise)
        x = self.embed(ids)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, attend, layer)
        return self.norm(x)

    def transformer(self) -> Transformer:
        """The weights as they are now."""
        size = self.head_size
        heads, precise = self.embed.weight.shape[1] // size, torch.float32
        return Transformer(
            embed=self.embed.weight,
            layers=[cast(Block, block).layer() for block in self.blocks],
            norm=self.norm.weight,
            eps=None,
            heads=heads,
            kinds=heads,
            scale=size**-0.5,
            rotary=lambda positions: _rotary(positions, size, precise)[:, 0],
            project=self.project,
        )

    def padded(self, ids: Tensor, attention: Tensor, cache: Any = None, *, keep: bool = False) -> tuple[Tensor, Any]:
        """Never asked for: ``flat`` is true."""
        raise AssertionError("a flat model reads packs")

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (...,V) through the tied embedding."""
        return hidden @ self.embed.weight.T

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (N,T,V) of unpadded sequences."""
        attention = torch.ones_like(ids, dtype=torch.bool)
        return self.project(read(self, ids, attention, attention)).view(*ids.shape, -1)


def _rotary(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Rotations (L,1,1,D/2) of the pairs of a head, as complex numbers."""
    frequency = 10000.0 ** (-torch.arange(0, size, 2, dtype=dtype, device=positions.device) / size)
    angle = positions.to(dtype).unsqueeze(-1) * frequency
    return torch.polar(torch.ones_like(angle), angle)[:, None, None]


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
        tokenizer: Kind = "char",
        vocab_size: int = 512,
        value_head: bool | Literal["soft_min"] = False,
    ) -> None:
        """Build the vocabulary from ``task.corpus()`` and draw initial weights.

        Args:
            width: size of the residual stream, a multiple of ``2 * heads``.
            layers: number of blocks.
            heads: attention heads.
            tokenizer: one token per character (``char``), per word between spaces (``word``; words that the task's
                corpus lacks are unknown), or byte-pair merges (``bpe``) up to ``vocab_size``.
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
        ask: Any = self.tokenizer.convert_tokens_to_ids(ANSWER)
        return [*self.encode(prompt), ask]

    def encode_observation(self, text: str, ended: bool) -> list[int]:
        """An observation is put like a prompt."""
        return self.encode_prompt(text)
