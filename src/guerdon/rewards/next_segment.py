"""Whether a prediction of what a text says next is right: as a beginning of what does follow."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from guerdon.registry import register
from guerdon.rewards.base import batched
from guerdon.rewards.forms import Score
from guerdon.rewards.judges.base import JudgeOption, ask_counted, resolve_judge
from guerdon.rewards.judges.questions import Checklist, Item, JudgeError

Tags = tuple[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]]
TAGS: Tags = ("<answer>", "</answer>")
_PAPER = "Reinforcement Learning on Pre-Training Data, 2025"
# Words that say nothing by themselves; a prediction of nothing else is trivially a beginning of much.
FUNCTION_WORDS = frozenset(
    "a an the and or but if so as of to in on at by for from with is are was were be been it its this that these those "
    "he she they we you i his her their our your my not no do does did has have had will would can could there then "
    "than".split()
)
FOLLOWS = (
    "The answer says what the reference says next, up to where the answer ends: it is a beginning of the reference. "
    "Meaning counts, and wording may differ. An answer that adds, leaves out or contradicts something is none."
)


def words_of(text: str) -> list[str]:
    """Words and numbers of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def prediction_of(text: str, tags: Tags | None) -> str | None:
    """What stands between the last two tags of a text, the whole text without tags; None where they are missing."""
    if tags is None:
        return text.strip()
    end = text.rfind(tags[1])
    start = text.rfind(tags[0], 0, max(end, 0))
    return None if start < 0 or end < 0 else text[start + len(tags[0]) : end].strip()


def long_enough(prediction: str, reference: str, least: int) -> bool:
    """Whether a prediction has ``least`` words that say something, or all of those that the reference has, if fewer."""
    said, known = (sum(word not in FUNCTION_WORDS for word in words_of(text)) for text in (prediction, reference))
    return said >= max(min(least, known), 1)


def prefix_match(prediction: str, following: str, *, least: int = 2) -> bool:
    """Whether the words of a prediction are those with which the continuation begins, and enough of them.

    Args:
        prediction: what the policy thinks comes next.
        following: what does; more than the next sentence, for a prediction may reach beyond.
        least: words that say something which a prediction must have, see ``long_enough``.
    """
    said = words_of(prediction)
    return long_enough(prediction, following, least) and words_of(following)[: len(said)] == said


@register("reward", "next_segment", paper=_PAPER)
@batched
class NextSegmentReward:
    """1 where a prediction is a valid beginning of what follows in the text, 0 elsewhere.

    To ask for the very next sentence, and all of it, is too strict: texts are cut in many places. Very short
    predictions are valid beginnings of anything, so some content is asked for. Task ``next_segment`` writes what
    follows to the metadata, under ``following``.

    Args:
        judge: who says whether a prediction is a beginning, in other words perhaps: ``{backend: openai | local |
            scripted, ...}``, or an import path to a judge. By default words are compared, without a judge.
        tags: what stands around the prediction, of which the last counts; null for the whole text.
        least_words: words that say something which a prediction must have.
        criteria: what is put to the judge.
        kept: verdicts that are remembered.

    Source: Reinforcement Learning on Pre-Training Data, 2025. (The comparison of words and the wording are ours.)
    """

    def __init__(
        self,
        *,
        judge: JudgeOption | None = None,
        tags: Tags | None = TAGS,
        least_words: Annotated[int, Field(ge=1)] = 2,
        criteria: str = FOLLOWS,
        kept: Annotated[int, Field(ge=0)] = 100_000,
    ) -> None:
        self.judge = None if judge is None else resolve_judge(judge)
        self.tags, self.least_words, self.criteria, self.kept = tags, least_words, criteria, kept
        self._known: dict[str, float] = {}

    def __call__(
        self, text: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[Score | JudgeError] | tuple[list[Score | JudgeError], dict[str, float]]:
        """Score a batch.

        Args:
            text: N texts that the policy wrote.
            metadata: what is known of each problem; under ``following``, what follows.

        Returns:
            N scores, 0 or 1, with the ``prediction`` as detail; errors in the place of faults. With a judge, what it
            did as well.
        """
        predictions = [prediction_of(t, self.tags) for t in text]
        pairs = [(p, str(data["following"])) for p, data in zip(predictions, metadata, strict=True)]
        if self.judge is None:
            return [
                Score(float(p is not None and prefix_match(p, f, least=self.least_words)), detail={"prediction": p})
                for p, f in pairs
            ]
        asked = [p is not None and long_enough(p, f, self.least_words) for p, f in pairs]
        keys = [hashlib.sha256(repr(pair).encode()).hexdigest() for pair in pairs]
        fresh = {
            key: Checklist(prompt="", answers=(str(p),), reference=f, items=(Item(self.criteria),))
            for key, (p, f), wanted in zip(keys, pairs, asked, strict=True)
            if wanted and key not in self._known
        }
        answers, stats = ask_counted(self.judge, list(fresh.values()))
        new = {k: a if isinstance(a, JudgeError) else a.values[0] for k, a in zip(fresh, answers, strict=True)}
        said = {**self._known, **new}
        self._known |= {key: value for key, value in new.items() if not isinstance(value, JudgeError)}
        for key in list(self._known)[: max(len(self._known) - self.kept, 0)]:
            del self._known[key]
        return [
            _score(said[key] if wanted else 0.0, p) for key, wanted, (p, _) in zip(keys, asked, pairs, strict=True)
        ], stats


def _score(value: float | JudgeError, prediction: str | None) -> Score | JudgeError:
    return value if isinstance(value, JudgeError) else Score(float(value >= 0.5), detail={"prediction": prediction})
