"""Any Hugging Face image-text-to-text model as the engine sees it: a language model some of whose tokens are images."""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guerdon.engine.fused import ROOM, Transformer
from guerdon.errors import RecipeError
from guerdon.policies.gallery import Gallery, Sight
from guerdon.policies.hugging_face import TOLERANCE, HuggingFaceCache, HuggingFaceModel, evaluating
from guerdon.policies.llama import llama_transformer
from guerdon.tasks.pictures import Picture


class VisionLanguageModel(HuggingFaceModel):
    """Adapts a transformers image-text-to-text model to the engine.

    Most such models put the vectors that the vision tower makes of an image where its tokens stand, and let a language
    model read on (LLaVA, Idefics 3, SmolVLM). Then the language model is all that the engine runs, with its prefix
    sharing, and the vision tower sees each image of a batch once. Others do more with images: they give them
    positions in two dimensions (Qwen2-VL) or let their tokens see one another (Gemma 3). Those are run whole, on padded
    rows. Which of the two a model is, is tried once, on one small image; one that is neither is refused.
    """

    def __init__(self, model: Any, sight: Sight) -> None:
        self.gallery: Gallery | None = None
        self._features: Tensor | None = None
        self._seen = 0  # images of the gallery that are in the features
        self._merges = True
        super().__init__(model)
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        self._whole = [getattr(base, base.base_model_prefix)]
        self._embed = [base.get_input_embeddings()]
        self.sight, self.words = sight, int(self._embed[0].weight.shape[0])
        parameters = inspect.signature(self._whole[0].forward).parameters
        self._types = next((name for name in ("mm_token_type_ids", "token_type_ids") if name in parameters), None)
        self._merges = self._does_merge(base)

    @staticmethod
    def decoder_of(base: Any) -> Any:
        """The language model among its parts."""
        return base.get_decoder()

    @property
    def flat(self) -> bool:
        """Whether ``hidden`` works."""
        return self._merges and super().flat

    def seeing(self, gallery: Gallery) -> VisionLanguageModel:
        """The same model, the same weights, for rows with images of a gallery, which may still grow."""
        view = copy.copy(self)
        view.gallery, view._features, view._seen = gallery, None, 0
        return view

    def look(self) -> Tensor | None:
        """What the vision tower makes of the gallery's images, (L,D) one vector for each of their tokens."""
        gallery = self.gallery
        if gallery is None or not gallery.pictures or not self._merges:
            return None
        if self._seen < len(gallery.pictures):
            begin, self._seen = self._seen, len(gallery.pictures)
            made: dict[int, Tensor] = {}
            for places in gallery.alike(begin):
                wanted = gallery.counts[places[0]]
                vectors = _vectors(self._whole[0].get_image_features(**gallery.together(places)))
                if vectors.shape[0] != wanted * len(places):
                    raise RecipeError(
                        f"the vision tower makes {vectors.shape[0]} vectors of {len(places)} images that the processor "
                        f"gives {wanted} tokens each; use the processor that the model was trained with"
                    )
                made |= dict(zip(places, vectors.split(wanted), strict=True))
            new = [made[place] for place in sorted(made)]
            self._features = torch.cat(new if self._features is None else [self._features, *new])
        return self._features

    def embedded(self, ids: Tensor) -> dict[str, Tensor]:
        """Vectors of words and images."""
        features = self.look()
        if features is None:
            return {"input_ids": ids}
        image = ids >= self.words
        vectors = self._embed[0](torch.where(image, 0, ids))
        place = (ids - self.words).clamp(min=0)
        return {"inputs_embeds": torch.where(image.unsqueeze(-1), features.to(vectors.dtype)[place], vectors)}

    def transformer(self) -> Transformer | None:
        """The weights as they are now, with images for further words, if the engine knows the architecture."""
        if not self.flat or self._embed[0].weight.numel() > ROOM:
            return None
        known, features = llama_transformer(self._decoder[0], self.project), self.look()
        if known is None or features is None:
            return known
        return replace(known, embed=torch.cat([known.embed, features.to(known.embed.dtype)]).detach())

    def padded(
        self, ids: Tensor, attention: Tensor, cache: HuggingFaceCache | None = None, *, keep: bool = False
    ) -> tuple[Tensor, HuggingFaceCache | None]:
        """Last hidden states (N,T,D); ``attention`` (N,S) is false on padding."""
        if self._merges:
            return super().padded(ids, attention, cache, keep=keep)
        return self._read_whole(ids, attention, cache, keep=keep)

    def _read_whole(
        self, ids: Tensor, attention: Tensor, cache: HuggingFaceCache | None, *, keep: bool
    ) -> tuple[Tensor, HuggingFaceCache | None]:
        """The whole model on rows and the images in them."""
        present = attention[:, attention.shape[1] - ids.shape[1] :]
        image = (ids >= self.words) & present
        gallery = self.gallery
        places = [] if gallery is None else list(gallery.seen(ids[image].tolist()))
        inputs = {} if gallery is None else gallery.together(places)
        # A word of the policy's that is the token for images, and images that are not attended to, must not be taken
        # for images.
        words = torch.where((ids >= self.words) | (ids == self.sight.image_token), 0, ids)
        if self._types is not None and cache is None:
            inputs[self._types] = image.long()
        whole = self._whole[0]
        turned = hasattr(whole, "rope_deltas")  # positions in two dimensions are the model's own affair
        if not (turned and places):
            positions = (attention.cumsum(dim=1) - 1).clamp(min=0)[:, attention.shape[1] - ids.shape[1] :]
            if turned:
                moved = cache.deltas if isinstance(cache, _TurnedCache) else torch.zeros_like(positions[:, :1])
                positions = (positions + moved).expand(3, -1, -1)
            inputs["position_ids"] = positions
        out = whole(
            input_ids=torch.where(image, self.sight.image_token, words),
            attention_mask=attention.long(),
            use_cache=keep,
            **inputs,
            **({} if cache is None else {self._cache: cache.cache}),
        )
        if not keep:
            return out.last_hidden_state, None
        if not turned:
            return out.last_hidden_state, HuggingFaceCache(out[self._cache])
        if cache is None:
            deltas = whole.rope_deltas if places else torch.zeros_like(ids[:, :1])
        else:
            assert isinstance(cache, _TurnedCache)
            deltas = cache.deltas
        return out.last_hidden_state, _TurnedCache(out[self._cache], deltas)

    def _does_merge(self, base: Any) -> bool:
        """Read one small image in a text both ways; refuse a model that reads it differently when it reads on."""
        gallery = Gallery(self.sight, self.words)
        picture = Picture(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
        sound = self.sight.ids(self.sight.mark, [picture])
        before = [1, 2]
        row = torch.tensor([[*before, *sound, 3, 4, 5]])
        ids = gallery.hang(row, torch.ones_like(row, dtype=torch.bool), [[picture]])
        there = torch.ones_like(ids, dtype=torch.bool)
        view = self.seeing(gallery)
        with evaluating(base):
            view._merges = False
            whole, _ = view.padded(ids, there)
            begun, cache = view.padded(ids[:, :-1], there[:, :-1], keep=True)
            last, _ = view.padded(ids[:, -1:], there, cache, keep=True)
            after = len(before) + len(sound)  # what an image's own tokens say of one another may look ahead
            if not _close(torch.cat([begun, last], dim=1)[:, after:], whole[:, after:]):
                raise RecipeError(
                    f"model '{type(base).__name__}' reads a prompt differently once something is written behind it, so "
                    "the log-probabilities of what it samples could not be computed again; use a model with causal "
                    "attention to texts"
                )
            view._merges = True
            try:
                merged, _ = view.padded(ids, there)
            except (RecipeError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if _close(merged, whole):
                    return True
                why = "its hidden states come out different"
        warnings.warn(
            f"model '{type(base).__name__}' does more with images than to read them as tokens, so it is run whole on "
            f"padded rows, which is slower ({why.splitlines()[0]})",
            stacklevel=3,
        )
        return False


class _TurnedCache(HuggingFaceCache):
    """A cache of a model that counts positions differently for each row, depending on its images."""

    def __init__(self, cache: Any, deltas: Tensor) -> None:
        super().__init__(cache)
        self.deltas = deltas

    def select(self, rows: Tensor) -> _TurnedCache:
        """The cache of the given rows; rows may repeat. The old cache is consumed."""
        self.cache.batch_select_indices(rows)
        self.deltas = self.deltas[rows]
        return self


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def _vectors(features: Any) -> Tensor:
    """What ``get_image_features`` gave, in whichever form this model does, as (L,D)."""
    features = getattr(features, "pooler_output", features)
    parts = features if isinstance(features, list | tuple) else [features]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
