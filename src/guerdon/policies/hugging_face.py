"""Any Hugging Face causal LM as the engine sees it: flat tokens and attention from outside, or padded rows."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from guerdon.engine.attention import Attend, TreeAttention
from guerdon.engine.fused import Transformer
from guerdon.engine.packing import pack_rows
from guerdon.errors import RecipeError
from guerdon.policies.llama import llama_transformer

_NAME = "guerdon_flat"  # of our attention among those of transformers
TOLERANCE = 1e-3


class _Unsupported(Exception):
    """The model wants more of its attention than ours does."""


def _flat_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    attend: Attend | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one flat row: (1,H,L,D) queries, (1,K,L,D) keys and values in, (1,L,H,D) out."""
    wanted = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if attend is None or dropout or wanted or query.shape[2] != key.shape[2]:
        raise _Unsupported(", ".join(wanted) or "attention that does not come from the caller")
    scale = 1.0 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(module.layer_idx, q, k, v, scale).unsqueeze(0), None


AttentionInterface.register(_NAME, _flat_attention)


class HuggingFaceCache:
    """A transformers cache with the engine's row selection."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def select(self, rows: Tensor) -> HuggingFaceCache:
        """The cache of the given rows; rows may repeat. The old cache is consumed."""
        self.cache.batch_select_indices(rows)
        return self


class HuggingFaceModel(nn.Module):
    """Adapts a transformers causal LM to the engine: hidden states and the projection apart.

    Whether its attention can be replaced is tried once, on a few tokens; a model of which it can't is run on padded
    rows instead, and a warning says so.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        self._decoder = [self.decoder_of(base)]  # in a list, so that it is not registered twice
        self._head = [base.get_output_embeddings()]
        # The name that this version of transformers gives to keys and values of the past.
        parameters = inspect.signature(self._decoder[0].forward).parameters
        self._cache = "cache" if "cache" in parameters else "past_key_values"
        self._check_head(base)
        self._flat = self._can_be_flat(base)

    @staticmethod
    def decoder_of(base: Any) -> Any:
        """The part that turns tokens into hidden states."""
        return getattr(base, base.base_model_prefix)

    def embedded(self, ids: Tensor) -> dict[str, Tensor]:
        """How the decoder is given tokens."""
        return {"input_ids": ids}

    @property
    def flat(self) -> bool:
        """Whether ``hidden`` works; not while attention weights are dropped at random."""
        return self._flat and not (self.inner.training and self._drops)

    @property
    def _drops(self) -> bool:
        config = self._decoder[0].config
        return any(getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop"))

    def _check_head(self, base: Any) -> None:
        """Refuse models whose logits are not a plain projection of the last hidden state (soft-capped, scaled)."""
        ids = torch.zeros(1, 2, dtype=torch.int64)
        with evaluating(base):
            whole = base(input_ids=ids).logits
            parts = self.project(self._decoder[0](input_ids=ids).last_hidden_state)
        if not torch.allclose(whole, parts, atol=TOLERANCE, rtol=TOLERANCE):
            raise RecipeError(
                f"model '{type(base).__name__}' transforms its logits after the output embedding; "
                "only models whose logits are a projection of the last hidden state are supported"
            )

    def _can_be_flat(self, base: Any) -> bool:
        """Compare two rows that share a beginning, read as a tree, with the same rows read one by one."""
        vocabulary = self._decoder[0].config.get_text_config().vocab_size
        rows = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 6, 7]]) % vocabulary
        (pack,) = pack_rows(rows, torch.tensor([5, 5]), min_shared=1)
        with evaluating(base):
            apart, _ = self.padded(rows, torch.ones_like(rows, dtype=torch.bool))
            try:
                states = self.hidden(pack.ids, pack.positions, TreeAttention(pack))
            except (_Unsupported, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if torch.allclose(states[pack.place], apart[pack.rows], atol=TOLERANCE, rtol=TOLERANCE):
                    return True
                why = "its hidden states come out different"
        warnings.warn(
            f"model '{type(base).__name__}' can't share prefixes or be packed, so its rows are padded, which is slower "
            f"({why.splitlines()[0]})",
            stacklevel=4,
        )
        return False

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Last hidden states (L,D) of tokens (L,) at their depths."""
        decoder = self._decoder[0]
        with _attention(decoder.config, _NAME):
            out = decoder(**self.embedded(ids[None]), position_ids=positions[None], use_cache=False, attend=attend)
        return out.last_hidden_state[0]

    def transformer(self) -> Transformer | None:
        """The weights as they are now, if the engine knows the architecture."""
        return llama_transformer(self._decoder[0], self.project) if self.flat else None

    def padded(
        self, ids: Tensor, attention: Tensor, cache: HuggingFaceCache | None = None, *, keep: bool = False
    ) -> tuple[Tensor, HuggingFaceCache | None]:
        """Last hidden states (N,T,D); ``attention`` (N,S) is false on padding."""
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)[:, attention.shape[1] - ids.shape[1] :]
        out = self._decoder[0](
            **self.embedded(ids),
            attention_mask=attention.long(),
            position_ids=positions,
            use_cache=keep,
            **({} if cache is None else {self._cache: cache.cache}),
        )
        return out.last_hidden_state, HuggingFaceCache(out[self._cache]) if keep else None

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (...,V)."""
        return self._head[0](hidden)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout inside the block, and as before behind it."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def _attention(config: Any, name: str) -> Iterator[None]:
    """Let the model use an attention of this name inside the block."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
