"""Search over partial answers, step by step, led by a value function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch

from guerdon.engine.generate import GenerationOptions, generate
from guerdon.engine.padding import left_pad
from guerdon.engine.reading import read
from guerdon.errors import RecipeError
from guerdon.policies.language import LanguagePolicy
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.seeding import derive

State = TypeVar("State")


class Steps(Protocol[State]):
    """What a search asks of whatever writes the steps."""

    def extend(self, states: Sequence[State], count: int, depth: int) -> list[list[State]]:
        """At most ``count`` continuations of each state by one step.

        Args:
            states: partial answers.
            count: how many continuations of each.
            depth: number of the step, from 0.
        """
        ...

    def ended(self, state: State) -> bool:
        """Whether nothing can follow."""
        ...


class Found(NamedTuple, Generic[State]):
    """A partial or whole answer, and what the value function says of it."""

    state: State
    value: float


def value_beam(
    start: State,
    steps: Steps[State],
    value: Callable[[Sequence[State]], Sequence[float]],
    *,
    width: int = 4,
    branch: int = 4,
    max_steps: int = 32,
) -> list[Found[State]]:
    """Keep the most promising partial answers after every step.

    Each of at most ``width`` answers is continued ``branch`` times by one step; of all of them, and of those that have
    ended, the ``width`` of highest value go on. Answers that are equal count once.

    Args:
        start: the empty answer.
        steps: writes continuations, see ``LanguageSteps``.
        value: what to expect of partial and of whole answers, n numbers for n.
        width: answers kept after every step.
        branch: continuations of each.
        max_steps: the search stops here at the latest.

    Returns:
        The answers kept last, best first.

    Raises:
        ValueError: when width, branch or max_steps is below 1, or the numbers of values and answers differ.

    Source: Wang et al. 2024, arXiv 2412.16145.
    """
    for name, number in (("width", width), ("branch", branch), ("max_steps", max_steps)):
        if number < 1:
            raise ValueError(f"{name} is {number}, wanted 1 or more")
    beam = [Found(start, float("-inf"))]
    for depth in range(max_steps):
        growing = [found.state for found in beam if not steps.ended(found.state)]
        if not growing:
            break
        grown = [state for several in steps.extend(growing, branch, depth) for state in several]
        fresh = list(dict.fromkeys(grown))
        values = list(value(fresh)) if fresh else []
        if len(values) != len(fresh):
            raise ValueError(f"value gave {len(values)} numbers for {len(fresh)} answers; wanted one for each")
        kept = [found for found in beam if steps.ended(found.state)]
        kept += [Found(state, float(v)) for state, v in zip(fresh, values, strict=True)]
        # Stable, so that equal values keep the order in which the answers were written.
        beam = sorted(kept, key=lambda found: -found.value)[:width]
    return beam


@dataclass(frozen=True)
class LanguageSteps:
    """Steps of a language policy: pieces of text up to and including a delimiter.

    A state is the tuple of tokens written so far. Tokens are drawn with ``sampling``.

    Args:
        policy: with a value head, if ``values`` is to be used.
        prompt: what is answered.
        sampling: of the policy; its budget is that of a whole answer.
        delimiter: a step ends with a token that holds this text.
        seed: of all draws.
    """

    policy: LanguagePolicy
    prompt: str
    sampling: LanguageSampling
    delimiter: str = "\n"
    seed: int = 0

    def extend(self, states: Sequence[tuple[int, ...]], count: int, depth: int) -> list[list[tuple[int, ...]]]:
        """``count`` continuations of each state by one step, or up to the budget."""
        question = self.policy.encode_prompt(self.prompt)
        rows = [state for state in states for _ in range(count)]
        settings = GenerationOptions(
            **self.sampling.model_dump(include={"temperature", "top_k", "top_p"}),
            max_new_tokens=max(self._room(state) for state in states),
            stop_tokens=(*self.policy.stop_tokens(), *self._step_ends),
        )
        self.policy.module.eval()
        drawn = generate(
            self.policy.model,
            [[*question, *row] for row in rows],
            settings,
            pad=self.policy.pad,
            seed=derive(self.seed, "steps", depth),
        )
        written = [
            (*row, *tokens[keep][: self._room(row)].tolist())
            for row, tokens, keep in zip(rows, drawn.tokens, drawn.mask, strict=True)
        ]
        return [written[i * count : (i + 1) * count] for i in range(len(states))]

    def ended(self, state: tuple[int, ...]) -> bool:
        """Whether the end token was written or the budget is used up."""
        return bool(state) and (state[-1] in self.policy.stop_tokens() or self._room(state) == 0)

    @torch.no_grad()
    def values(self, states: Sequence[tuple[int, ...]]) -> list[float]:
        """What the policy's critic expects of each state.

        A critic learns what to expect before an action, so an answer that has ended is read without its last token.

        Raises:
            RecipeError: when the policy has no critic.
        """
        if self.policy.value is None:
            raise RecipeError(
                "the policy has no critic; build it with 'value_head: true', or pass another value function"
            )
        question = self.policy.encode_prompt(self.prompt)
        ids, attention = left_pad([[*question, *self._awaiting(s)] for s in states], self.policy.pad)
        last = torch.zeros_like(attention)
        last[:, -1] = True
        return self.policy.value(read(self.policy.model, ids, attention, last)).squeeze(-1).tolist()

    def text(self, state: tuple[int, ...]) -> str:
        """What a state says."""
        return str(self.policy.tokenizer.decode(list(state), skip_special_tokens=True))

    @functools.cached_property
    def _step_ends(self) -> tuple[int, ...]:
        """Tokens that hold the delimiter."""
        tokenizer = self.policy.tokenizer
        return tuple(i for i in range(len(tokenizer)) if self.delimiter in str(tokenizer.decode([i])))

    def _awaiting(self, state: tuple[int, ...]) -> tuple[int, ...]:
        return state[:-1] if self.ended(state) else state

    def _room(self, state: tuple[int, ...]) -> int:
        return self.sampling.max_new_tokens - len(state)
