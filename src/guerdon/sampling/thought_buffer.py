"""Corrected thoughts of the whole run, kept apart from what reward is earned with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field

from guerdon.registry import import_object, register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source
from guerdon.seeding import torch_generator
from guerdon.tasks.base import Problem, Starts

# Given n observations and what was thought and done: n corrected thoughts; None where there is nothing to correct with.
Correct = Callable[[Sequence[str], Sequence[str]], Sequence[str | None]]


class ThoughtBuffer:
    """Pairs (observation, corrected thought) of the whole run, from which imitation draws while other data go.

    Refused are thoughts of the wrong form, those that repeat themselves, and those that contain the action verbatim:
    a thought that gives the action away makes the action a copy, and what is learned from reward is lost. Each
    observation is kept once, with its last corrections: draws are of observations first and of their corrections then,
    so that states that come up often, as the first of an episode do, weigh no more than others. Corrections that agree
    are several: were each kept once as well, a corrector's errors would outnumber what it mostly says.

    Args:
        form: what a thought must match as a whole; anything that is not blank by default.
        most_repeated: largest share of n-grams of words that repeat an earlier one.
        ngram: n.
        per_observation: corrections kept of each observation, the newest.
        capacity: observations kept, the newest.

    Attributes:
        refused: how many pairs were refused, by reason.

    Source: Wei et al. 2025, arXiv 2503.08525. (Bounds and the order of draws are ours.)
    """

    def __init__(
        self,
        *,
        form: str | re.Pattern[str] = r"(?s).*\S.*",
        most_repeated: float = 0.5,
        ngram: int = 3,
        per_observation: int = 16,
        capacity: int = 65_536,
    ) -> None:
        self.form, self.most_repeated, self.ngram = re.compile(form), most_repeated, ngram
        self.per_observation, self.capacity = per_observation, capacity
        self.known: dict[str, list[str]] = {}
        self.refused: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(len(thoughts) for thoughts in self.known.values())

    def add(self, observations: Sequence[str], thoughts: Sequence[str | None], actions: Sequence[str]) -> int:
        """Take in pairs; how many were accepted.

        Args:
            observations, thoughts: the pairs; None where there was no correction.
            actions: what the policy did or should do, which the thought must not contain.
        """
        accepted = 0
        for observation, thought, action in zip(observations, thoughts, actions, strict=True):
            why = "missing" if thought is None else self.flaw(thought, action)
            if thought is None or why:
                self.refused[why] += 1
                continue
            kept = self.known.pop(observation, [])  # what comes again is among the newest
            self.known[observation] = [*kept, thought][-self.per_observation :]
            accepted += 1
        while len(self.known) > self.capacity:
            del self.known[next(iter(self.known))]
        return accepted

    def flaw(self, thought: str, action: str) -> str:
        """Why a thought is refused: ``form``, ``repetition`` or ``action``; empty if it is not."""
        if self.form.fullmatch(thought) is None:
            return "form"
        if repetition(thought, self.ngram) > self.most_repeated:
            return "repetition"
        words = action.strip()
        return "action" if words and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", thought) else ""

    def draw(self, n: int, seed: int) -> list[tuple[str, str]]:
        """``n`` pairs with replacement: every observation alike, then its corrections; none if it is empty."""
        observations = list(self.known)
        if not observations:
            return []
        generator = torch_generator(seed, "thought_buffer")
        chosen = torch.randint(len(observations), (n,), generator=generator).tolist()
        lots = torch.rand(n, generator=generator, dtype=torch.float64).tolist()
        out = []
        for place, lot in zip(chosen, lots, strict=True):
            thoughts = self.known[observations[place]]
            out.append((observations[place], thoughts[int(lot * len(thoughts))]))
        return out

    def state_dict(self) -> dict[str, Any]:
        """The pairs, oldest observation first."""
        return {"known": [[observation, thoughts] for observation, thoughts in self.known.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.known = {observation: list(thoughts) for observation, thoughts in state["known"]}


def repetition(text: str, n: int = 3) -> float:
    """Share of the n-grams of words that repeat an earlier one; 0 where there is none."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@register("source", "thought_buffer", paper="Wei et al. 2025, arXiv 2503.08525")
class CorrectedThoughts(Source):
    """Corrected thoughts of this batch and of all before, for term ``guided_thought``.

    A corrector reads each prompt with what the policy wrote to it, and gives the thought that should have stood there.
    Its pairs go to a ``ThoughtBuffer``; some of the buffer join the batch as rows of thought alone, without reward or
    credit. For answers of one turn, ``<think>...</think>`` and then the action.

    Args:
        corrector: given n prompts and n texts, returns n thoughts, or None where it has none: a function, or an import
            path to one.
        rows: pairs that join each batch.
        opening, closing: what stands around a thought; the closing mark is taught too.
        most_repeated, ngram, per_observation, capacity: see ``ThoughtBuffer``.

    Source: Wei et al. 2025, arXiv 2503.08525.
    """

    when = "credit"
    external = True

    def __init__(
        self,
        *,
        corrector: Annotated[Correct, BeforeValidator(lambda x: import_object(x) if isinstance(x, str) else x)],
        rows: Annotated[int, Field(ge=1)] = 64,
        opening: str = "<think>",
        closing: str = "</think>",
        most_repeated: Annotated[float, Field(ge=0, le=1)] = 0.5,
        ngram: Annotated[int, Field(ge=1)] = 3,
        per_observation: Annotated[int, Field(ge=1)] = 16,
        capacity: Annotated[int, Field(ge=1)] = 65_536,
    ) -> None:
        self.corrector, self.rows, self.opening, self.closing = corrector, rows, opening, closing
        self.buffer = ThoughtBuffer(
            most_repeated=most_repeated, ngram=ngram, per_observation=per_observation, capacity=capacity
        )

    def draw(self, draw: Draw) -> Rollouts | None:
        """Some pairs, once those of this batch are in the buffer."""
        assert draw.rollouts is not None
        assert draw.starts is not None
        prompt_of = dict(zip(draw.starts.group.tolist(), (p.prompt for p in draw.starts.problems), strict=True))
        batch = draw.rollouts
        assert batch.text is not None
        own = [row for row, group in enumerate(batch.group.tolist()) if group in prompt_of]
        prompts, texts = [prompt_of[int(batch.group[row])] for row in own], [batch.text[row] for row in own]
        actions = [text.rpartition(self.closing)[2].strip() for text in texts]
        self.buffer.add(prompts, list(self.corrector(prompts, texts)), actions)
        pairs = self.buffer.draw(self.rows, draw.seed)
        if not pairs:
            return None
        group = int(batch.group.max()) + 1 + torch.arange(len(pairs))
        starts = Starts([Problem(-1, prompt) for prompt, _ in pairs], group, draw.step)
        encode = draw.policy.encode  # type: ignore[attr-defined]  # it replays, so it writes
        return draw.policy.replay(starts, [encode(f"{self.opening}{h}{self.closing}") for _, h in pairs], draw.sampling)

    def state_dict(self) -> dict[str, Any]:
        """The buffer."""
        return self.buffer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.buffer.load_state_dict(state)
