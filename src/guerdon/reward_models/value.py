"""What to expect of a prompt, told from how others like it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.rewards.text import trigram_embedding

Embed = Callable[[Sequence[str]], Tensor]

STEPS, DECAY = 100, 0.01  # Newton-like steps of the logistic head, and its weight decay per prompt of the support


class InContextValue:
    """Predicts a policy's mean reward on a prompt from a support set of prompts it was tried on, without training.

    neighbours: V = (V_0 + sum_j c_j y_j) / (1 + sum_j c_j) over the most similar prompts j, c = max(cosine, 0)
    logistic: V = sigmoid(w x + b), fitted to the support

    When the policy changes, the support changes, and nothing else has to. A small stand-in for a pretrained in-context
    classifier. A support that is not renewed tells of a policy that is gone.

    Args:
        head: how the support is read.
        embed: n texts to (n,D) vectors; hashed character trigrams by default.
        neighbours: how many similar prompts are asked.
        capacity: largest support; the oldest prompts go first.
        refit_every: batches of outcomes after which the support in use is renewed.
        binarise: turn mean rewards into 1 where they reach this, else 0, as the source does at 0.5. What is predicted
            then is the probability of reaching it, which has to be calibrated before it can stand for a mean reward.
        prior: V_0, said of a prompt that is like no other.

    Source: Zhang et al. 2026, arXiv 2603.10848, whose prior comes from such a model.
    """

    def __init__(
        self,
        *,
        head: Literal["neighbours", "logistic"] = "neighbours",
        embed: Embed = trigram_embedding,
        neighbours: int = 8,
        capacity: int = 512,
        refit_every: int = 1,
        binarise: float | None = None,
        prior: float = 0.5,
    ) -> None:
        self.head, self.embed, self.neighbours, self.capacity = head, embed, neighbours, capacity
        self.refit_every, self.binarise, self.prior = refit_every, binarise, prior
        self.support: dict[str, float] = {}
        self.batches = 0
        self._fit({})

    def observe(self, prompts: Sequence[str], means: Tensor) -> None:
        """Take in the mean reward (n,) of n prompts; a prompt's newest outcome replaces the one before."""
        for prompt, mean in zip(prompts, means.tolist(), strict=True):
            self.support.pop(prompt, None)
            self.support[prompt] = mean
        for prompt in list(self.support)[: max(len(self.support) - self.capacity, 0)]:
            del self.support[prompt]
        self.batches += 1
        if self.batches % self.refit_every == 0:
            self._fit(dict(self.support))

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(n,) expected mean reward of n prompts."""
        if not self.fitted:
            return torch.full((len(prompts),), self.prior)
        vectors = _unit(self.embed(prompts))
        if self.head == "logistic":
            return torch.sigmoid(vectors @ self._weights[:-1] + self._weights[-1])
        near = (vectors @ self._vectors.T).clamp(min=0.0).topk(min(self.neighbours, len(self.fitted)), dim=1)
        return (self.prior + (near.values * self._targets[near.indices]).sum(dim=1)) / (1 + near.values.sum(dim=1))

    def _fit(self, support: dict[str, float]) -> None:
        """Put a support to use."""
        self.fitted = support
        if not support:
            return
        self._vectors = _unit(self.embed(list(support)))
        means = torch.tensor(list(support.values()))
        self._targets = means if self.binarise is None else (means >= self.binarise).to(means.dtype)
        if self.head == "logistic":
            self._weights = _logistic(self._vectors, self._targets)

    def state_dict(self) -> dict[str, Any]:
        """The support as it grows, and the one in use."""
        return {"support": list(self.support.items()), "fitted": list(self.fitted.items()), "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.support, self.batches = dict(state["support"]), state["batches"]
        self._fit(dict(state["fitted"]))


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def _logistic(vectors: Tensor, targets: Tensor) -> Tensor:
    """Weights (D+1,) of the least cross-entropy with a quadratic penalty; the last is the bias, without penalty."""
    weights = torch.zeros(vectors.shape[1] + 1, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = vectors @ weights[:-1] + weights[-1]
        fit = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
        total = fit + DECAY / 2 * weights[:-1].square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[arg-type]
    return weights.detach()
