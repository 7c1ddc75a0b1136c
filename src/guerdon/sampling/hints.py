"""Help for prompts that fail throughout: solved problems like them, put before the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guerdon.rewards.text import trigram_embedding

Embed = Callable[[Sequence[str]], Tensor]


class SolvedStore:
    """Prompts and verified solutions, found again by how much their prompts are alike.

    A prompt keeps its newest solution. Beyond the capacity the oldest ones go. Fill it from training problems alone:
    an evaluation problem in it would be taught.

    Args:
        embed: n texts to (n,D) vectors, compared by cosine; hashed character trigrams by default.
        capacity: largest number of prompts.
    """

    def __init__(self, *, embed: Embed = trigram_embedding, capacity: int = 4096) -> None:
        self.embed, self.capacity = embed, capacity
        self.solutions: dict[str, str] = {}
        self._vectors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.solutions)

    def add(self, prompts: Sequence[str], solutions: Sequence[str]) -> None:
        """Take in solved problems."""
        for prompt, solution in zip(prompts, solutions, strict=True):
            self.solutions.pop(prompt, None)
            self.solutions[prompt] = solution
        for prompt in list(self.solutions)[: max(len(self) - self.capacity, 0)]:
            del self.solutions[prompt]
            self._vectors.pop(prompt, None)

    def nearest(self, prompt: str, *, k: int = 2, least: float = 0.0) -> list[tuple[str, str]]:
        """The most similar solved problems, the best last, where it stands next to the prompt.

        Args:
            prompt: what is to be solved; its own solution, if it has one, is never given away.
            k: how many.
            least: cosine that a problem must exceed to count as similar.

        Returns:
            At most k pairs of prompt and solution.
        """
        known = [other for other in self.solutions if other != prompt]
        if not known:
            return []
        missing = [other for other in known if other not in self._vectors]
        if missing:
            self._vectors |= dict(zip(missing, _unit(self.embed(missing)), strict=True))
        scores = torch.stack([self._vectors[other] for other in known]) @ _unit(self.embed([prompt]))[0]
        best = torch.argsort(scores, descending=True, stable=True)[:k].flip(0).tolist()
        return [(known[i], self.solutions[known[i]]) for i in best if float(scores[i]) > least]

    def state_dict(self) -> dict[str, Any]:
        """The solved problems, oldest first."""
        return {"solutions": list(self.solutions.items())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.solutions = dict(state["solutions"])
        self._vectors = {}


def seed_with_solved(
    prompt: str,
    store: SolvedStore,
    *,
    k: int = 2,
    least: float = 0.0,
    longest: int = 1000,
    form: str = "{prompt}\n{solution}\n\n",
) -> str:
    """Put the most similar solved problems before a prompt.

    What is sampled from the result was sampled in that context: its log-probabilities belong to it, and not to the
    prompt alone.

    Args:
        prompt: a prompt whose rollouts have all failed.
        store: solved problems.
        k, least: see ``SolvedStore.nearest``.
        longest: characters of a solution that are shown; the rest is cut.
        form: how an example is written.

    Returns:
        The examples and the prompt; the prompt alone where nothing similar has been solved.

    Source: Bamba et al. 2025, arXiv 2510.06672.
    """
    examples = store.nearest(prompt, k=k, least=least)
    return "".join(form.format(prompt=p, solution=solution[:longest]) for p, solution in examples) + prompt


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
