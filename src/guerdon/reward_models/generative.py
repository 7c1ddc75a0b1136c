"""A reward model that writes: which of two actions is better, with principles, grounding and comparison before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.rewards.judge import HIGHEST
from guerdon.rewards.verdict import read_choice

# Given n prompts: what a policy or a judge writes to each.
Write = Callable[[Sequence[str]], Sequence[str]]

SECTIONS = (
    ("Principles", "what a good action must do here, derived from the intent and the state of the page"),
    ("Grounding", "what each action touches, in elements of the page"),
    ("Comparison", "which of the two does more by the principles"),
    ("Verdict", "1 or 2, and nothing after it"),
)


class Candidate(NamedTuple):
    """An action that a policy proposes, and the thought behind it."""

    action: str
    thought: str = ""

    @property
    def text(self) -> str:
        """Both, as they are shown to a judge."""
        return f"Thought: {self.thought}\nAction: {self.action}" if self.thought else f"Action: {self.action}"


def web_state(instruction: str, observation: str, history: Sequence[str] = ()) -> str:
    """What is known before an action: the instruction, what was done so far, and the page as text."""
    done = "\n".join(f"{number}. {step}" for number, step in enumerate(history, start=1)) or "nothing"
    return f"Instruction: {instruction}\n\nSo far:\n{done}\n\nPage:\n{observation}"


def comparison_prompt(state: str, first: str, second: str) -> str:
    """Ask which of two actions is better, by way of principles, grounding and comparison.

    The verdict comes last, so that it follows from what was written before it.
    """
    asked = "\n".join(f"{name}: {what}" for name, what in SECTIONS)
    return f"{state}\n\nAction 1\n{first}\n\nAction 2\n{second}\n\nWhich action is better? Write:\n{asked}\n"


class GenerativePRM:
    """A judge of pairs made of whoever can write: a policy, an endpoint, a script.

    It takes the place of any function that judges pairs: reward ``tournament`` and ``judge_pairwise``, ``arena``,
    ``web_prm`` and ``knockout`` take it as it is. In training its text is an answer like any other, which reward
    ``pairwise_verdict`` scores.

    Args:
        write: n prompts to n texts.
        form: state, first and second candidate to a prompt; ``comparison_prompt`` by default.

    Source: WebArbiter (2026). The wording of the prompt is ours.
    """

    def __init__(self, write: Write, *, form: Callable[[str, str, str], str] = comparison_prompt) -> None:
        self.write, self.form = write, form

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Compare m pairs.

        Args:
            prompts, first, second: m states, and the candidates as texts.

        Returns:
            (m,2): 10 for the better one and 0 for the other; nan where the text ends with no verdict.

        Raises:
            ValueError: when the writer does not give one text per prompt.
        """
        asked = [self.form(*pair) for pair in zip(prompts, first, second, strict=True)]
        said = list(self.write(asked)) if asked else []
        if len(said) != len(asked):
            raise ValueError(f"the writer gave {len(said)} texts for {len(asked)} prompts, want one for each")
        scores = {1: (HIGHEST, 0.0), 2: (0.0, HIGHEST), None: (math.nan, math.nan)}
        return torch.tensor([scores[read_choice(text)] for text in said]).reshape(-1, 2)
