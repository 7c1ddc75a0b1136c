"""Which difficulty to practise next: one after the other, each until it succeeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from guerdon.credit.rank import group_rank
from guerdon.seeding import torch_generator


def difficulty_stages(
    length: Tensor,
    success: Tensor | None = None,
    *,
    stages: int = 3,
    length_weight: float = 1.0,
    success_weight: float = 1.0,
) -> Tensor:
    """Split problems into stages of equal size, from easy to hard.

    difficulty = w_l rank(length) - w_s rank(success);  stage = floor(stages rank(difficulty) / P)

    Ranks are those among the P problems, equal ones sharing the mean of theirs, so that neither scale matters; problems
    of equal difficulty have one stage, which makes the stages unequal where there are many. (How length and success are
    weighed is ours.)

    Args:
        length: (P,) actions that each problem takes.
        success: (P,) how often the first policy solves it; by length alone if left out.
        stages: J, how many.
        length_weight, success_weight: w_l and w_s.

    Returns:
        (P,) int64, 0 for the easiest.

    Raises:
        ValueError: when there are no stages.

    Source: Nong et al. 2025, CRAFT-GUI.
    """
    if stages < 1:
        raise ValueError(f"stages is {stages}, wanted 1 or more")
    difficulty = length_weight * _rank(length)
    if success is not None:
        difficulty = difficulty - success_weight * _rank(success)
    return (stages * _rank(difficulty) / max(len(length), 1)).long().clamp(0, stages - 1)


def _rank(x: Tensor) -> Tensor:
    """(P,) float64 place of each from 0 for the smallest; equal ones share the mean of theirs."""
    return group_rank(-x.double(), torch.zeros(len(x), dtype=torch.int64, device=x.device))


class StagedDifficulty:
    """Draws stages of difficulty: the present one, and for a share of the draws one of those before.

    The next stage begins when the running success rate of the present one reaches ``advance``; never because of time,
    which would leave a stage before it teaches, and starve those that build on it. The last stage stays.

    s = successes / tries of the present stage, both fading by ``decay`` per update, once there are ``least`` tries

    Args:
        stages: J, how many there are.
        keep: share of the draws that go to earlier stages, each as likely, so that they are not forgotten.
        advance: success rate that ends a stage.
        least: tries before a rate counts, after fading.
        decay: of the counts per update.

    Raises:
        ValueError: when one of these is out of range.

    Source: Nong et al. 2025, CRAFT-GUI. (Only that stages follow each other, and keep a share of those before, is known
    of it; the numbers are ours.)
    """

    def __init__(
        self, stages: int = 3, *, keep: float = 0.2, advance: float = 0.7, least: float = 32.0, decay: float = 0.8
    ) -> None:
        if stages < 1 or not 0 <= keep < 1 or not 0 < decay < 1:
            raise ValueError(
                f"stages is {stages}, keep {keep} and decay {decay}; wanted stages of 1 or more, keep in [0,1) and "
                "decay in (0,1)"
            )
        if not 0 < advance <= 1 or not least > 0:
            raise ValueError(f"advance is {advance} and least {least}; wanted advance in (0,1] and least above 0")
        self.stages, self.keep, self.advance, self.least, self.decay = stages, keep, advance, least, decay
        self.stage, self.successes, self.tries = 0, 0.0, 0.0

    @property
    def rate(self) -> float:
        """Running success rate of the present stage; 0 before the first try."""
        return self.successes / self.tries if self.tries else 0.0

    @property
    def probabilities(self) -> Tensor:
        """(J,) chance of each stage."""
        out = torch.zeros(self.stages, dtype=torch.float64)
        share = self.keep if self.stage else 0.0
        out[: self.stage] = share / max(self.stage, 1)
        out[self.stage] = 1 - share
        return out

    def draw(self, n: int, seed: int) -> Tensor:
        """(n,) int64 stages; a pure function of the seed and of what was seen."""
        generator = torch_generator(seed, "staged_difficulty")
        return torch.multinomial(self.probabilities, n, replacement=True, generator=generator)

    def choose(self, stage_of: Tensor, n: int, seed: int) -> Tensor:
        """(n,) int64 numbers of problems, of which those of one stage are drawn alike.

        Args:
            stage_of: (P,) stage of each problem.
            n: how many.
            seed: decides, with what was seen.

        Raises:
            ValueError: when a stage that is drawn from has no problem.
        """
        size = torch.bincount(stage_of, minlength=self.stages)
        chance = self.probabilities
        empty = (size[: self.stages] == 0) & (chance > 0)
        if bool(empty.any()):
            raise ValueError(f"stage {int(empty.nonzero()[0])} has no problem; use fewer stages, or add problems")
        weights = (chance / size[: self.stages].clamp(min=1))[stage_of]
        generator = torch_generator(seed, "staged_difficulty")
        return torch.multinomial(weights, n, replacement=True, generator=generator)

    def update(self, stage: Tensor | Sequence[int], success: Tensor | Sequence[float]) -> bool:
        """Take in a batch, and go on to the next stage if it is time.

        Args:
            stage: (N,) of each trajectory.
            success: (N,) whether it succeeded, or a number in [0,1]; NaN counts for nothing.

        Returns:
            Whether a new stage has begun.

        Raises:
            ValueError: when a number is not that of a stage.
        """
        of, won = torch.as_tensor(stage), torch.as_tensor(success).double()
        if len(of) and not 0 <= int(of.min()) <= int(of.max()) < self.stages:
            raise ValueError(f"stage goes from {int(of.min())} to {int(of.max())}, wanted 0 to {self.stages - 1}")
        present = won[(of == self.stage) & ~won.isnan()]
        self.successes = self.decay * self.successes + float(present.sum())
        self.tries = self.decay * self.tries + len(present)
        if self.stage + 1 == self.stages or self.tries < self.least or self.rate < self.advance:
            return False
        self.stage, self.successes, self.tries = self.stage + 1, 0.0, 0.0
        return True

    def state_dict(self) -> dict[str, Any]:
        """The stage and its counts."""
        return {"stage": self.stage, "successes": self.successes, "tries": self.tries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.stage, self.successes, self.tries = int(state["stage"]), float(state["successes"]), float(state["tries"])
