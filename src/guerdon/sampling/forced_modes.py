"""Answers in every mode, whichever the policy would choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from guerdon.errors import RecipeError
from guerdon.registry import register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source
from guerdon.shaping.mode_cost import FORCED, MODES
from guerdon.tasks.base import Starts


@register("source", "forced_modes", paper="Chen et al. 2025, arXiv 2510.12838")
class ForcedModes(Source):
    """Some answers to every problem in each mode, beside those for which the policy chooses it.

    The tag of the mode ends the prompt of a forced answer. So it is context and no action, and the choice of a mode is
    learned from the free answers alone; how to answer in a mode is learned from both. All of them belong to one group.
    ``sampling.group_size`` is the number of free answers: 3 in the source, beside 3 of each mode.

    A policy that no longer chooses a mode would otherwise never find out what that mode would earn.

    Args:
        each: forced answers per problem and mode.
        modes: tags by the modes' names, as in shaping ``mode_cost_reward``.

    Raises:
        RecipeError: when there is no mode.

    Source: Chen et al. 2025, arXiv 2510.12838.
    """

    when = "sampling"

    def __init__(self, *, each: Annotated[int, Field(ge=1)] = 3, modes: dict[str, str] | None = None) -> None:
        self.each, self.modes = each, MODES if modes is None else modes
        if not self.modes:
            raise RecipeError("source 'forced_modes' has no modes; give a tag by the name of each")

    def draw(self, draw: Draw) -> Rollouts | None:
        """The forced answers."""
        assert draw.starts is not None
        forced = [
            (group, replace(problem, prompt=problem.prompt + tag, metadata={**problem.metadata, FORCED: name}))
            for group, problem in draw.starts.of_group.items()
            for name, tag in self.modes.items()
            for _ in range(self.each)
        ]
        starts = Starts([problem for _, problem in forced], torch.tensor([group for group, _ in forced]), draw.step)
        return draw.policy.sample(starts, draw.sampling, seed=draw.seed)
