"""Reward models of how concisely something was reasoned."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from guerdon.registry import imported
from guerdon.reward_models.generative import Write
from guerdon.rewards.base import Score, batched, reward

# Given n questions and n texts: n scores in [0,1], nan where there is none.
ConcisenessScorer = Callable[[Sequence[str], Sequence[str]], Sequence[float] | Tensor]
ScorerOption = Annotated[ConcisenessScorer | None, BeforeValidator(imported)]

_WORD = re.compile(r"\w+|[^\w\s]")
_SCORE = re.compile(r"(?<![\d.])(0\.\d|1\.0|1)(?![\d.]*\d)")


def tenth_up(share: float) -> float:
    """The next of 0.1, 0.2, ..., 1.0 that is not below a share."""
    return min(max(math.ceil(10 * share - 1e-9), 1), 10) / 10


def novel_share(text: str, *, order: int = 3) -> float:
    """Part of the n-grams of words in a text that it has not said before: 1 for a text that repeats nothing.

    Args:
        text: what was written; without an n-gram it has repeated nothing.
        order: n.
    """
    said = _WORD.findall(text.casefold())
    grams = [tuple(said[i : i + order]) for i in range(len(said) - order + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def conciseness_prompt(question: str, reasoning: str) -> str:
    """Ask for the score of a piece of reasoning; with the score after it, an example for supervised training."""
    return (
        f"Question: {question}\n\nReasoning:\n{reasoning}\n\nHow concise is the reasoning, from 0.1 (mostly repetition "
        "and detours) to 1.0 (every step is needed)? Whether its result is right does not matter.\nScore:"
    )


def read_conciseness(text: str) -> float:
    """The last score of 0.1, 0.2, ..., 1.0 that a text gives; nan if there is none."""
    found = [float(score) for score in _SCORE.findall(text)]
    return found[-1] if found and found[-1] > 0 else math.nan


class ConcisenessModel:
    """A scorer made of whoever can write: a small model trained on scores of a large one, an endpoint, a script.

    Args:
        write: n prompts to n texts.
        form: question and reasoning to a prompt; ``conciseness_prompt`` by default.

    Source: Wang et al. 2025, arXiv 2511.09158 (CRM, a 3B model trained on 65k scores by a 72B one). The wording of the
    prompt is ours.
    """

    def __init__(self, write: Write, *, form: Callable[[str, str], str] = conciseness_prompt) -> None:
        self.write, self.form = write, form

    def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
        """(n,) scores in {0.1, ..., 1.0} of n texts, nan where the writer gives none.

        Raises:
            ValueError: when the writer does not give one text per prompt.
        """
        said = list(self.write([self.form(*pair) for pair in zip(prompts, texts, strict=True)])) if texts else []
        if len(said) != len(texts):
            raise ValueError(f"the writer gave {len(said)} texts for {len(texts)} prompts, want one for each")
        return torch.tensor([read_conciseness(text) for text in said])


@reward("conciseness", paper="Wang et al. 2025, arXiv 2511.09158")
@batched
def conciseness(
    text: Sequence[str],
    prompt: Sequence[str],
    *,
    scorer: ScorerOption = None,
    order: Annotated[int, Field(ge=1)] = 3,
) -> list[Any]:
    """Score how concisely each text reasons, whether or not it is right: c of shaping ``conciseness_reward``.

    by default the share of its word n-grams that a text has not said before, rounded up to 0.1, 0.2, ..., 1.0

    List it with weight 0. The default sees repetition alone: it neither knows what a step is for, nor how long a text
    is. Any scorer can be satisfied by leaving out steps that are needed, so run a plain reward of length beside it.

    Args:
        text: N texts that the policy wrote.
        prompt: what was asked.
        scorer: questions and texts to scores in [0,1]: a ``ConcisenessModel``, a function, or an import path of one.
        order: n of the default's n-grams.

    Returns:
        N scores; nan, where the scorer gives none, is a score that does not apply.

    Source: Wang et al. 2025, arXiv 2511.09158. (The default stands for their trained model and is ours.)
    """
    if scorer is None:
        return [tenth_up(novel_share(said, order=order)) for said in text]
    given = torch.as_tensor(scorer(prompt, text), dtype=torch.float64).tolist()
    return [Score(0.0 if math.isnan(score) else score, valid=not math.isnan(score)) for score in given]
