"""Plain text as a task: say what comes next, or what stands in between."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from guerdon.errors import RecipeError, TaskError
from guerdon.registry import register
from guerdon.rewards.forms import Score
from guerdon.rewards.next_segment import TAGS, Tags, prediction_of, prefix_match
from guerdon.seeding import derive, numpy_generator
from guerdon.tasks.base import Problem, Task

Kind = Literal["next", "middle"]
NEXT = "{context}\n\nWhat does this text say next? Write it between {open} and {close}."
MIDDLE = "{context} [...] {after}\n\nWhat does this text say in place of [...]? Write it between {open} and {close}."
_RESOLUTION = 10_000  # of the share that is held out


class Triple(NamedTuple):
    """A sentence of a text, with what stands before and after it.

    Attributes:
        context: the sentences before.
        target: the sentence.
        after: the one after it.
        following: the target and the sentences after it, as far as they are shown to a judge.
    """

    context: str
    target: str
    after: str
    following: str


def sentences_of(text: str, *, least_words: int = 2) -> list[str]:
    """Sentences of a text: cut behind ``.``, ``!`` or ``?`` and white space, and at empty lines; very short ones go."""
    pieces = re.split(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+|\n\s*\n", text.strip())
    found = (" ".join(piece.split()) for piece in pieces if piece)
    return [sentence for sentence in found if len(sentence.split()) >= least_words]


def next_segment_tasks(text: str, *, least_words: int = 2, following: int = 3) -> list[Triple]:
    """The n - 2 triples of a text of n sentences: every sentence with one before it and one after it.

    Args:
        text: plain text.
        least_words: words of a sentence, below which it is dropped.
        following: sentences that ``following`` holds at most.

    Returns:
        (s_1 ... s_{i-1}, s_i, s_{i+1}) for i = 2 ... n - 1; none for a text of fewer than three sentences.

    Source: Reinforcement Learning on Pre-Training Data, 2025.
    """
    s = sentences_of(text, least_words=least_words)
    return [Triple(" ".join(s[:i]), s[i], s[i + 1], " ".join(s[i : i + following])) for i in range(1, len(s) - 1)]


@register("task", "next_segment", paper="Reinforcement Learning on Pre-Training Data, 2025")
class NextSegment(Task):
    """Reinforcement learning on plain text: the next sentence from those before it, or a middle one from both sides.

    E_next[r] + weight E_middle[r], by drawing a middle one with probability weight / (1 + weight)

    A weight on the reward would be cancelled wherever credit divides by a group's deviation, so it is one on how often.
    The reward ``task`` compares words, see ``prefix_match``; reward ``next_segment`` may ask a judge. Whole texts are
    held out. Deduplicate and decontaminate texts first; and compare with as much supervised learning on them
    (``warm_start``), which others found the stronger start at equal compute.

    Attributes:
        train_set, held_out: the sentences of either side of the split.
    """

    kind = "language"
    supplies = frozenset({"answer"})

    def __init__(
        self,
        *,
        path: str | None = None,
        texts: list[str] | None = None,
        weight: Annotated[float, Field(ge=0)] = 0.5,
        least_words: Annotated[int, Field(ge=1)] = 2,
        following: Annotated[int, Field(ge=1)] = 3,
        ask_next: str = NEXT,
        ask_middle: str = MIDDLE,
        tags: Tags | None = TAGS,
        eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        seed: int = 0,
    ) -> None:
        """Read and cut the texts.

        Args:
            path: a ``.jsonl`` file whose lines have a ``text``, or a file of texts with an empty line between them.
            texts: the texts themselves, in place of a file.
            weight: of middle sentences; the source's lies between 0 and 1 and depends on the application.
            least_words: words below which a sentence is dropped, and words of content that a prediction must have.
            following: sentences that a prediction may be a beginning of.
            ask_next, ask_middle: prompts, with ``{context}``, ``{open}`` and ``{close}`` (the tags), and ``{after}``.
            tags: what stands around a prediction; null for the whole of what is written.
            eval_fraction: share of the texts that is held out.
            seed: which ones.

        Raises:
            RecipeError: when there is not exactly one of ``path`` and ``texts``.
            TaskError: when a side of the split has no sentence to ask for.
        """
        if (path is None) == (texts is None):
            raise RecipeError("task 'next_segment' needs either 'path' or 'texts'; give one of them")
        self.weight, self.least_words, self.tags = weight, least_words, tags
        self.asks: dict[Kind, str] = {"next": ask_next, "middle": ask_middle}
        self.scorer = self._score
        self.train_set: list[Triple] = []
        self.held_out: list[Triple] = []
        for text in dict.fromkeys(_read(path) if path is not None else texts or ()):
            held_out = derive(seed, "held out", text) % _RESOLUTION < eval_fraction * _RESOLUTION
            side = self.held_out if held_out else self.train_set
            side += next_segment_tasks(text, least_words=least_words, following=following)
        for name, side in (("trained on", self.train_set), ("held out", self.held_out)):
            if not side:
                raise TaskError(
                    f"task 'next_segment': no text with three sentences is {name}; give more texts, or change "
                    f"eval_fraction ({eval_fraction})"
                )

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Draw ``n`` sentences; a pure function of ``seed``."""
        generator = numpy_generator(seed, "next_segment")
        places = generator.integers(len(self.train_set), size=n)
        kinds = generator.random(n) < self.weight / (1 + self.weight)
        return [self.problem(self.train_set[i], "middle" if m else "next") for i, m in zip(places, kinds, strict=True)]

    def eval_problems(self, n: int) -> list[Problem]:
        """The first ``n`` held-out sentences, each to be told from those before it, always the same.

        Raises:
            TaskError: when fewer are held out.
        """
        if n > len(self.held_out):
            raise TaskError(
                f"task 'next_segment' holds out {len(self.held_out)} sentences, want {n}; raise eval_fraction, or "
                "evaluate on fewer problems"
            )
        return [self.problem(triple, "next") for triple in self.held_out[:n]]

    def problem(self, triple: Triple, kind: Kind) -> Problem:
        """What is asked of a sentence; of a middle one nothing but itself is right."""
        opening, closing = self.tags or ("", "")
        prompt = self.asks[kind].format(context=triple.context, after=triple.after, open=opening, close=closing)
        following = triple.following if kind == "next" else triple.target
        return Problem(
            task_id=derive(0, "next_segment", prompt) % 2**62,
            prompt=prompt,
            answer=triple.target,
            metadata={"kind": kind, "following": following},
            demonstration=(f"{opening}{triple.target}{closing}",),
        )

    def _score(self, text: str, metadata: dict[str, str]) -> Score:
        """Whether the prediction is a beginning of what follows, by its words."""
        prediction = prediction_of(text, self.tags)
        right = prediction is not None and prefix_match(prediction, metadata["following"], least=self.least_words)
        return Score(float(right), detail={"prediction": prediction})


def _read(path: str) -> Sequence[str]:
    try:
        content = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TaskError(f"task 'next_segment': cannot read '{path}' ({error.strerror}); give a text file") from None
    if not path.endswith(".jsonl"):
        return [part.strip() for part in re.split(r"\n\s*\n", content) if part.strip()]
    out = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            out.append(json.loads(line)["text"])
        except (json.JSONDecodeError, KeyError, TypeError):
            raise TaskError(
                f"task 'next_segment': line {number} of '{path}' is no JSON object with a 'text'; write one per line"
            ) from None
    return out
