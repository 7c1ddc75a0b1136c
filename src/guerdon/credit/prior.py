"""What is expected of a problem before its rollouts are seen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor

from guerdon.errors import RecipeError
from guerdon.registry import import_object

# Given n prompts, returns the mean reward to expect of each. It may also have ``observe(prompts, means)``, which is
# told what became of them, and ``state_dict`` and ``load_state_dict``.
Predictor = Callable[[Sequence[str]], Tensor]


def _resolve(predictor: Any) -> Any:
    found = import_object(predictor) if isinstance(predictor, str) else predictor
    return found() if inspect.isclass(found) else found


PredictorOption = Annotated[Predictor | None, BeforeValidator(_resolve)]


class PromptPrior:
    """The mean reward V that a problem is expected to have.

    It is, in this order: what the predictor says of its prompt; what the task knows of it; its own mean reward in
    earlier steps.

    Args:
        prior: what is expected of a problem of which nothing is known.
        rate: how far a problem's own estimate moves towards each new mean; 0 keeps it at ``prior``.
        key: name under which the task's metadata hold V.
        predictor: given n prompts, returns V of each: a function or class, or an import path to one, such as
            ``guerdon.reward_models.value:InContextValue``.
    """

    def __init__(
        self, *, prior: float = 0.5, rate: float = 0.3, key: str | None = None, predictor: Predictor | str | None = None
    ) -> None:
        self.prior, self.rate, self.key = prior, rate, key
        self.predictor: Predictor | None = _resolve(predictor)
        self.estimates: dict[int, float] = {}

    def expected(
        self,
        problems: Sequence[int],
        prompts: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Tensor:
        """V (Q,) of each problem.

        Args:
            problems: task_id of each problem.
            prompts: what is asked; a predictor needs it.
            metadata: what the task knows of it; ``key`` needs it.

        Raises:
            RecipeError: when a predictor lacks prompts, or a problem's metadata have no such key.
        """
        if self.predictor is not None:
            if prompts is None:
                raise RecipeError("a predictor of rewards reads prompts; use a language policy, or 'key'")
            return torch.as_tensor(self.predictor(prompts), dtype=torch.get_default_dtype())
        if self.key is not None:
            for known in metadata or [{}]:
                if self.key not in known:
                    names = ", ".join(known) or "nothing"
                    raise RecipeError(f"a problem's metadata have no '{self.key}', wanted as its prior; known: {names}")
            return torch.tensor([float(known[self.key]) for known in metadata or []])
        return torch.tensor([self.estimates.get(problem, self.prior) for problem in problems])

    def learn(self, problems: Sequence[int], means: Tensor, prompts: Sequence[str] | None = None) -> None:
        """Take in the mean reward (Q,) of each problem."""
        if self.predictor is not None:
            observe = getattr(self.predictor, "observe", None)
            if observe is not None and prompts is not None:
                observe(prompts, means)
        elif self.key is None:
            for problem, mean in zip(problems, means.tolist(), strict=True):
                before = self.estimates.get(problem, self.prior)
                self.estimates[problem] = before + self.rate * (mean - before)

    def state_dict(self) -> dict[str, Any]:
        """What is expected of each problem, and what the predictor remembers."""
        saved = self.predictor.state_dict() if hasattr(self.predictor, "state_dict") else {}  # type: ignore[union-attr]
        return {"estimates": {str(problem): v for problem, v in self.estimates.items()}, "predictor": saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.estimates = {int(problem): value for problem, value in state["estimates"].items()}
        if state["predictor"]:
            self.predictor.load_state_dict(state["predictor"])  # type: ignore[union-attr]
