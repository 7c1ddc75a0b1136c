"""Which task to practise next: rather those that fail more often than they succeed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from guerdon.seeding import torch_generator


class SuccessSoftmax:
    """Draws tasks by their running success rates.

    P(j) = softmax_j((1/2 - s_j) / temperature),  s_j = (successes_j + prior n_0) / (tries_j + n_0)

    Counts fade by ``decay`` with every update, so that s_j follows a policy that learns. The prior count n_0 keeps a
    task that was tried once from being thought impossible or done. (The 1/2 cancels: only differences of rates count.)

    Args:
        tasks: how many there are.
        temperature: T_c above 0; the larger, the more even. The value is ours.
        prior: success rate of a task of which nothing is known.
        prior_count: n_0 above 0, tries that the prior is worth.
        decay: of the counts per update; 1 forgets nothing.

    Raises:
        ValueError: when one of these is out of range.

    Source: Lu et al. 2025, arXiv 2505.18719. (The formula is inferred; its code is not in the release. Prior and decay
    are ours.)
    """

    def __init__(
        self,
        tasks: int,
        *,
        temperature: float = 0.5,
        prior: float = 0.5,
        prior_count: float = 4.0,
        decay: float = 0.99,
    ) -> None:
        for name, value in {"tasks": tasks, "temperature": temperature, "prior_count": prior_count}.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}, wanted greater than 0")
        if not 0 < decay <= 1 or not 0 <= prior <= 1:
            raise ValueError(f"decay is {decay} and prior {prior}; wanted decay in (0,1] and prior in [0,1]")
        self.temperature, self.prior, self.prior_count, self.decay = temperature, prior, prior_count, decay
        self.successes, self.tries = torch.zeros(tasks, dtype=torch.float64), torch.zeros(tasks, dtype=torch.float64)

    @property
    def rates(self) -> Tensor:
        """(J,) running success rate s_j of each task."""
        return (self.successes + self.prior * self.prior_count) / (self.tries + self.prior_count)

    @property
    def probabilities(self) -> Tensor:
        """(J,) P(j)."""
        return ((0.5 - self.rates) / self.temperature).softmax(dim=0)

    def draw(self, n: int, seed: int) -> Tensor:
        """(n,) int64 numbers of tasks; a pure function of the seed and of what was seen."""
        generator = torch_generator(seed, "success_softmax")
        return torch.multinomial(self.probabilities, n, replacement=True, generator=generator)

    def update(self, task: Tensor, success: Tensor) -> None:
        """Take in a batch.

        Args:
            task: (N,) number of the task of each trajectory.
            success: (N,) whether it succeeded, or a number in [0,1].

        Raises:
            ValueError: when a number is not that of a task.
        """
        if len(task) and not 0 <= int(task.min()) <= int(task.max()) < len(self.tries):
            raise ValueError(
                f"task goes from {int(task.min())} to {int(task.max())}, wanted 0 to {len(self.tries) - 1}"
            )
        won = success.to(self.successes)
        self.successes = (self.decay * self.successes).index_add(0, task, won)
        self.tries = (self.decay * self.tries).index_add(0, task, torch.ones_like(won))

    def state_dict(self) -> dict[str, Any]:
        """The counts of each task."""
        return {"successes": self.successes.tolist(), "tries": self.tries.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.successes = torch.tensor(state["successes"], dtype=torch.float64)
        self.tries = torch.tensor(state["tries"], dtype=torch.float64)
