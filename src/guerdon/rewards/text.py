"""Rewards that compare what was written with a reference text: by shared words, or by a similarity that is given."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from guerdon.registry import import_object
from guerdon.rewards.base import batched, reward
from guerdon.rewards.verifiable import exact
from guerdon.shaping.normalise import RunningRescale, cells_of

# Given n texts and n references: n numbers, in [0,1] where a text that means the same has 1.
Similarity = Callable[[Sequence[str], Sequence[str]], Any]

TRIGRAMS = "guerdon.rewards.text:trigram_cosine"
_WORD = re.compile(r"\w+|[^\w\s]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def words(text: str) -> list[str]:
    """Words and punctuation marks of a text, without case."""
    return _WORD.findall(text.casefold())


def sentences(text: str) -> list[str]:
    """Sentences of a text, split at full stops, exclamation and question marks followed by space, and at line ends."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def bleu(text: str, reference: str, *, order: int = 4) -> float:
    """Precision of word n-grams, with a penalty for being shorter than the reference.

    min(1, exp(1 - |reference| / |text|)) exp(mean_n log p_n),  p_n = clipped matches / n-grams, for n > 1 both plus 1

    Args:
        text: what was written.
        reference: what it is compared with.
        order: the longest n-gram.

    Returns:
        In [0,1]: 1 for equal words, 0 without a common word.

    Source: Papineni et al. 2002; the smoothing is Lin and Och 2004.
    """
    candidate, wanted = words(text), words(reference)
    logs = 0.0
    for n in range(1, order + 1):
        ours, theirs = _ngrams(candidate, n), _ngrams(wanted, n)
        smoothing = n > 1
        matches = (ours & theirs).total() + smoothing
        if not matches:
            return 0.0
        logs += math.log(matches / (ours.total() + smoothing)) / order
    return math.exp(logs + min(0.0, 1 - len(wanted) / len(candidate)))


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


@reward(paper="Zhuang et al. 2025, arXiv 2512.07478")
def length_aware_bleu(text: str, answer: Any, *, order: Annotated[int, Field(ge=1)] = 4) -> float:
    """BLEU that a short answer can reach, and that a long-winded one can't.

    bleu(text, answer, order = min(4, |answer|)) min(1, exp(1 - |text| / |answer|))

    Plain BLEU-4 wants four words in a row, so it says little about an answer of one word.

    Args:
        text: what the policy wrote.
        answer: text or a number.
        order: the longest n-gram, unless the answer is shorter.

    Returns:
        In [0,1]: 1 for the words of the answer, 0 without a common word.

    Raises:
        ValueError: when the answer has no words.

    Source: Zhuang et al. 2025, arXiv 2512.07478. (The smoothing, and the penalty on long answers, are ours.)
    """
    wanted = len(words(str(answer)))
    if not wanted:
        raise ValueError(f"the reference answer {answer!r:.60} has no words; fix the task's answers")
    return bleu(text, str(answer), order=min(order, wanted)) * math.exp(min(0.0, 1 - len(words(text)) / wanted))


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words.

    2 L / (|text| + |reference|)

    Args:
        text: what was written.
        reference: what it is compared with.

    Returns:
        In [0,1]: 1 for equal words, 0 without a common word.

    Source: Lin 2004, ROUGE.
    """
    ours, theirs = words(text), words(reference)
    if not ours or not theirs:
        return 0.0
    return 2 * _common_subsequence(ours, theirs) / (len(ours) + len(theirs))


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, by the bit-parallel method of Hyyrö 2004."""
    where: dict[str, int] = {}
    for i, word in enumerate(first):
        where[word] = where.get(word, 0) | 1 << i
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        match = row & where.get(word, 0)
        row = ((row + match) | (row - match)) & everything
    return len(first) - row.bit_count()


@reward(paper="Liu et al. 2025, arXiv 2508.12957")
def text_overlap(
    text: str,
    answer: Any,
    *,
    exact_weight: Annotated[float, Field(ge=0)] = 1.0,
    bleu_weight: Annotated[float, Field(ge=0)] = 1.0,
    rouge_weight: Annotated[float, Field(ge=0)] = 1.0,
) -> float:
    """How many words a text shares with the reference answer: a mean of exact match, BLEU-4 and ROUGE-L.

    Args:
        text: what the policy wrote.
        answer: text or a number.
        exact_weight, bleu_weight, rouge_weight: weights of the mean; equal by default, for the source gives none.

    Returns:
        In [0,1]; 1 for the reference answer itself.

    Raises:
        ValueError: when the reference is empty, or all weights are 0.

    Source: Liu et al. 2025, arXiv 2508.12957.
    """
    total = exact_weight + bleu_weight + rouge_weight
    if not total > 0:
        raise ValueError("text_overlap: all weights are 0; give at least one of them a weight")
    equal, reference = exact(text, answer), str(answer)
    parts = exact_weight * equal + bleu_weight * bleu(text, reference) + rouge_weight * rouge_l(text, reference)
    return parts / total


def trigram_cosine(text: Sequence[str], reference: Sequence[str]) -> Tensor:
    """Cosine between the character-trigram counts of texts and references, which needs no model.

    It sees spelling, not meaning: a stand-in for an embedding model.

    Args:
        text, reference: n texts each.

    Returns:
        (n,) in [0,1].
    """
    return torch.tensor([_cosine(_trigrams(a), _trigrams(b)) for a, b in zip(text, reference, strict=True)])


def trigram_embedding(texts: Sequence[str], *, size: int = 512) -> Tensor:
    """Character-trigram counts as vectors, each trigram at a place and with a sign given by its hash.

    Their cosine comes close to ``trigram_cosine``, and a text has to be read only once.

    Args:
        texts: n texts.
        size: D, length of the vectors.

    Returns:
        (n,D).
    """
    out = torch.zeros(len(texts), size)
    for row, text in enumerate(texts):
        grams = _trigrams(text)
        hashes = [zlib.crc32(gram.encode()) for gram in grams]
        signs = torch.tensor([1.0 if h >> 31 else -1.0 for h in hashes])
        out[row].index_add_(0, torch.tensor([h % size for h in hashes]), signs * torch.tensor(list(grams.values())))
    return out


def _trigrams(text: str) -> Counter[str]:
    padded = f"  {' '.join(words(text))} "
    return Counter(padded[i : i + 3] for i in range(len(padded) - 2))


def _cosine(first: Counter[str], second: Counter[str]) -> float:
    product = sum(count * second[gram] for gram, count in first.items())
    squares = sum(c * c for c in first.values()) * sum(c * c for c in second.values())
    return product / math.sqrt(squares) if squares else 0.0


def _resolve(function: Any) -> Any:
    return import_object(function) if isinstance(function, str) else function


SimilarityOption = Annotated[Similarity, BeforeValidator(_resolve)]


def _numbers(similarity: Similarity, text: Sequence[str], reference: Sequence[str]) -> Tensor:
    """Call a similarity, and make sure that it gave one number per pair."""
    scores = torch.as_tensor(similarity(text, reference), dtype=torch.get_default_dtype())
    if scores.shape != (len(text),):
        raise ValueError(f"the similarity gave shape {tuple(scores.shape)} for {len(text)} pairs, want ({len(text)},)")
    return scores


@reward()
@batched
def semantic_similarity(
    text: Sequence[str],
    answer: Sequence[Any],
    *,
    similarity: SimilarityOption = TRIGRAMS,  # type: ignore[assignment]  # resolved below
) -> Tensor:
    """Similarity of a text to the reference answer, as it comes.

    Args:
        text: N texts that the policy wrote.
        answer: N reference answers.
        similarity: given n texts and n references, returns n numbers in [0,1]: a function, or an import path to one;
            character trigrams by default, for want of an embedding model.

    Returns:
        (N,) in the range of the similarity.

    Raises:
        ValueError: when the similarity does not give N numbers.
    """
    return _numbers(_resolve(similarity), list(text), [str(a) for a in answer])


@reward("adaptive_semantic", paper="Liu et al. 2025, arXiv 2508.12957")
@batched
class AdaptiveSemantic:
    """Similarity to the reference answer, stretched over the range in which it has moved lately.

    s = similarity(text, answer);  the reward is ``RunningRescale`` of s, with a window for every kind of task

    Embedding models put very different answers into a narrow band. Alone in a z-score the stretch cancels; it shows
    where the similarity is mixed with other rewards. Since it moves with the policy, watch ``semantic_similarity``
    beside it. Shaping ``running_rescale`` is the same for any reward, and writes the range to the metrics.

    Args:
        similarity: given n texts and n references, returns n numbers in [0,1]: a function, or an import path to one;
            character trigrams by default, for want of an embedding model.
        variant, window, warmup: see ``RunningRescale``.
        kind: key in the problems' metadata that names the kind of task, for which windows are kept apart; one window
            by default.

    Source: Liu et al. 2025, arXiv 2508.12957. (The form of the stretch is ours.)
    """

    def __init__(
        self,
        *,
        similarity: SimilarityOption = TRIGRAMS,  # type: ignore[assignment]  # resolved below
        variant: Literal["quantile", "logistic"] = "quantile",
        window: Annotated[int, Field(ge=2)] = 1024,
        warmup: Annotated[int, Field(ge=2)] = 64,
        kind: str | None = None,
    ) -> None:
        self.similarity: Similarity = _resolve(similarity)
        self.kind = kind
        self.settings: dict[str, Any] = {"variant": variant, "window": window, "warmup": warmup}
        self.windows: dict[str, RunningRescale] = {}

    def __call__(
        self, text: Sequence[str], answer: Sequence[Any], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Score a batch.

        Args:
            text: N texts that the policy wrote.
            answer: N reference answers.
            metadata: what the task knows of the N problems.

        Returns:
            (N,) rewards, and the ends of the range used as ``low`` and ``high``.

        Raises:
            ValueError: when the similarity does not give N numbers.
        """
        scores = _numbers(self.similarity, list(text), [str(a) for a in answer])
        stretched, stats = torch.empty_like(scores), {}
        for kind, rows in cells_of(len(scores), self.kind, metadata).items():
            window = self.windows.setdefault(kind, RunningRescale(**self.settings))
            stretched[rows], seen = window(scores[rows])
            stats |= {f"{kind}/{key}" if kind else key: value for key, value in seen.items()}
        return stretched, stats

    def state_dict(self) -> dict[str, Any]:
        """The windows."""
        return {"windows": {kind: window.state_dict() for kind, window in self.windows.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.windows = {}
        for kind, saved in state["windows"].items():
            self.windows[kind] = RunningRescale(**self.settings)
            self.windows[kind].load_state_dict(saved)


@reward(paper="Cheng et al. 2025, arXiv 2503.18991")
@batched
def sentence_coverage(text: Sequence[str], answer: Sequence[Any], *, similarity: SimilarityOption = TRIGRAMS) -> Tensor:  # type: ignore[assignment]
    """How well the sentences of the reference answer are covered by those that were written.

    W_i = mean over the answer's sentences k of the largest similarity(k, l) over the written sentences l

    1 - W says how hard the sample is, as ``dynamic_scale`` wants to know: list this reward with weight 0.

    Args:
        text: N texts that the policy wrote.
        answer: N reference answers.
        similarity: given n texts and n references, returns n numbers in [0,1]: a function, or an import path to one;
            character trigrams by default.

    Returns:
        (N,) in the range of the similarity; 0 for an empty text.

    Raises:
        ValueError: when a reference answer is empty.

    Source: Cheng et al. 2025, arXiv 2503.18991.
    """
    written = [sentences(t) for t in text]
    wanted = [sentences(str(a)) for a in answer]
    if not all(wanted):
        raise ValueError(f"the reference answer of sample {wanted.index([])} is empty; fix the task's answers")
    pairs = [(ours, theirs) for w, r in zip(written, wanted, strict=True) for theirs in r for ours in w]
    scores = _numbers(_resolve(similarity), [p[0] for p in pairs], [p[1] for p in pairs])
    blocks = torch.split(scores, [len(w) * len(r) for w, r in zip(written, wanted, strict=True)])
    covered = [
        block.reshape(len(r), len(w)).amax(dim=1).mean() if w else scores.new_zeros(())
        for block, w, r in zip(blocks, written, wanted, strict=True)
    ]
    return torch.stack(covered)
