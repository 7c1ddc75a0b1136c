"""Rewards by shared n-grams, as the standard libraries compute them: BLEU, chrF, ROUGE; and the token F1 of SQuAD.

All are called once per sample. A reference is a text or a list of texts that are equally good. A text without words,
or one that is too long to be compared, scores 0 and says so.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from guerdon.errors import RewardError
from guerdon.rewards.extract import needed, reference_texts
from guerdon.rewards.forms import Score, reward

Length = Annotated[int, Field(ge=1)]

_LONGEST = 10_000  # characters; the longest common subsequence takes time in the product of both lengths


def jaccard(first: Iterable[Hashable], second: Iterable[Hashable]) -> float:
    """Jaccard similarity |A ∩ B| / |A ∪ B| of sets or multisets; 1 for two empty ones."""
    a, b = Counter(first), Counter(second)
    common = (a & b).total()
    union = a.total() + b.total() - common
    return common / union if union else 1.0


class _Sacrebleu:
    """A metric of sacrebleu on single texts."""

    def __init__(self, name: str, metric: Any, longest: int) -> None:
        self._name, self._metric, self._longest = name, metric, longest

    def __call__(self, text: str, answer: Any) -> Score:
        """Score one text.

        Args:
            text: what the policy wrote.
            answer: the reference, or several.

        Returns:
            In [0,1]: 1 for a reference itself.

        Raises:
            RewardError: when a reference is empty.
        """
        references = reference_texts(self._name, answer)
        return _unfit(text, self._longest) or Score(_share(self._metric.sentence_score(text, references).score))


@reward("bleu")
class Bleu(_Sacrebleu):
    """Score BLEU, as sacrebleu computes it for a sentence: the precision of n-grams, times a penalty for being short.

    min(1, exp(1 - |reference| / |text|)) exp(mean_n log p_n),  with n up to the length of the text where that is less

    Args:
        order: the longest n-gram.
        tokenize: sacrebleu's way to split words: ``13a`` for European languages, ``zh`` Chinese, ``char`` characters,
            ``intl`` and ``none``.
        smooth: what becomes of a precision of 0: ``exp`` halves it each time, ``floor``, ``add-k``, or ``none``.
        lowercase: whether case is ignored.
        longest: characters of a text; a longer one scores 0.

    Raises:
        RecipeError: when the sacrebleu library is missing.

    Source: Papineni et al. 2002; Post 2018, arXiv 1804.08771 (sacrebleu).
    """

    def __init__(
        self,
        *,
        order: Annotated[int, Field(ge=1)] = 4,
        tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a",
        smooth: Literal["exp", "floor", "add-k", "none"] = "exp",
        lowercase: bool = False,
        longest: Length = _LONGEST,
    ) -> None:
        library = needed("sacrebleu", "bleu", "text")
        metric = library.BLEU(
            max_ngram_order=order, tokenize=tokenize, smooth_method=smooth, lowercase=lowercase, effective_order=True
        )
        super().__init__("bleu", metric, longest)


@reward("chrf")
class Chrf(_Sacrebleu):
    """Score chrF, as sacrebleu computes it for a sentence: the F-score of character n-grams.

    (1 + beta^2) P R / (beta^2 P + R),  P and R being means over n; the best over the references

    Args:
        order: the longest n-gram of characters; white space does not count.
        word_order: the longest n-gram of words; 2 is chrF++.
        beta: how much more recall counts than precision.
        lowercase: whether case is ignored.
        longest: characters of a text; a longer one scores 0.

    Raises:
        RecipeError: when the sacrebleu library is missing.

    Source: Popović 2015, 2017; Post 2018, arXiv 1804.08771 (sacrebleu).
    """

    def __init__(
        self,
        *,
        order: Annotated[int, Field(ge=1)] = 6,
        word_order: Annotated[int, Field(ge=0)] = 0,
        beta: Annotated[int, Field(ge=1)] = 2,
        lowercase: bool = False,
        longest: Length = _LONGEST,
    ) -> None:
        library = needed("sacrebleu", "chrf", "text")
        metric = library.CHRF(char_order=order, word_order=word_order, beta=beta, lowercase=lowercase)
        super().__init__("chrf", metric, longest)


@reward("rouge")
class Rouge:
    """Score ROUGE, as the rouge-score library computes it: words, pairs of words or a subsequence that both share.

    Words are runs of ``a-z`` and ``0-9`` in lower case, so other scripts have none: use ``chrf`` for those.

    Args:
        kind: ``rouge1`` words, ``rouge2`` pairs, ``rougeL`` the longest common subsequence, ``rougeLsum`` that of each
            line.
        measure: which of the three; the best over the references.
        stem: whether words are reduced to their stems (Porter).
        longest: characters of a text; a longer one scores 0.

    Raises:
        RecipeError: when the rouge-score library is missing.

    Source: Lin 2004; https://github.com/google-research/google-research/tree/master/rouge.
    """

    def __init__(
        self,
        *,
        kind: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL",
        measure: Literal["fmeasure", "precision", "recall"] = "fmeasure",
        stem: bool = False,
        longest: Length = _LONGEST,
    ) -> None:
        library = needed("rouge_score.rouge_scorer", "rouge", "text")
        tokenizers = needed("rouge_score.tokenizers", "rouge", "text")
        self._kind, self._measure, self._longest = kind, measure, longest
        self._tokenizer = tokenizers.DefaultTokenizer(stem)
        self._scorer = library.RougeScorer([kind], tokenizer=self._tokenizer)

    def __call__(self, text: str, answer: Any) -> Score:
        """Score one text.

        Args:
            text: what the policy wrote.
            answer: the reference, or several.

        Returns:
            In [0,1]: 1 for a reference itself.

        Raises:
            RewardError: when a reference has too few words for the kind.
        """
        references = reference_texts("rouge", answer)
        fewest = 2 if self._kind == "rouge2" else 1
        for reference in references:
            if len(self._tokenizer.tokenize(reference)) < fewest:
                raise RewardError(
                    f"reward 'rouge': the reference answer {reference!r:.60} has fewer than {fewest} words of a-z and "
                    f"0-9, so '{self._kind}' of it is always 0; use 'chrf'"
                )
        unfit = _unfit(text, self._longest)
        if unfit is not None:
            return unfit
        found = [self._scorer.score(reference, text)[self._kind] for reference in references]
        return Score(max(float(getattr(score, self._measure)) for score in found))


@reward("token_f1")
def token_f1(text: str, answer: Any) -> Score:
    """F1 of the words that a text shares with the reference answer, as SQuAD counts them.

    2 c / (|text| + |reference|),  c = words of both, each as often as in the one that has fewer; the best over the
    references. Words are what white space separates in lower case, without ASCII punctuation and without a, an, the.

    Args:
        text: what the policy wrote, all of it.
        answer: the reference, or several.

    Returns:
        In [0,1]: 1 for the words of a reference, in any order; 0 without a common word.

    Raises:
        RewardError: when a reference has no words.

    Source: Rajpurkar et al. 2016, arXiv 1606.05250.
    """
    references = [squad_words(reference) for reference in reference_texts("token_f1", answer)]
    if not all(references):
        raise RewardError(
            f"reward 'token_f1': the reference answer {answer!r:.60} has only articles and punctuation; use 'exact'"
        )
    written = squad_words(text)
    if not written:
        return Score(0.0, detail={"why": "the text has no words"})
    return Score(max(overlap_f1(written, words) for words in references))


def overlap_f1(ours: Counter[str], theirs: Counter[str]) -> float:
    """F1 of two bags of words that are not both empty: twice what they share, of all that they hold."""
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_words(text: str) -> Counter[str]:
    """The words of a text as SQuAD compares them: in lower case, without ASCII punctuation, a, an and the."""
    return Counter(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _share(percent: float) -> float:
    """From 0 to 100 to 0 to 1; sacrebleu's logarithms may leave a full score a little beyond."""
    return min(1.0, max(0.0, percent / 100))


def _unfit(text: str, longest: int) -> Score | None:
    """What a text gets that cannot be compared."""
    if not text.strip():
        return Score(0.0, detail={"why": "the text is empty"})
    if len(text) > longest:
        return Score(0.0, detail={"why": f"the text has {len(text)} characters, more than {longest}"})
    return None
