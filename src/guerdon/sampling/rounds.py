"""Sources that see the rewards of a batch and ask for more rollouts where these tell most, or where all have failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field

from guerdon.credit.prior import PredictorOption, PromptPrior
from guerdon.registry import register
from guerdon.rollouts import Rollouts
from guerdon.sampling.allocation import ConfidenceAllocator, OneStepBudget, Tally, tally
from guerdon.sampling.hints import SolvedStore, seed_with_solved
from guerdon.sampling.sources import Draw, Source
from guerdon.tasks.base import Problem, Starts


@register("source", "confidence_allocator", paper="Bamba et al. 2025, arXiv 2510.06672")
class ConfidenceRounds(Source):
    """Further rollouts for the prompts whose mean reward they would make known best: groups of unequal size.

    ``sampling.group_size`` is the first share of every prompt, which should be 2 at least; ``ConfidenceAllocator``
    shares out the rest.

    Args:
        budget: rollouts per prompt over all phases, on average.
        phases, bonus, alpha: see ``ConfidenceAllocator``.

    Source: Bamba et al. 2025, arXiv 2510.06672.
    """

    when = "scoring"

    def __init__(
        self,
        *,
        budget: Annotated[float, Field(gt=0)] = 8.0,
        phases: Annotated[int, Field(ge=2)] = 3,
        bonus: Annotated[float, Field(ge=0)] = 0.1,
        alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05,
    ) -> None:
        self.options: dict[str, Any] = {"budget": budget, "phases": phases, "bonus": bonus, "alpha": alpha}

    def draw(self, draw: Draw) -> Rollouts | None:
        """The next phase's rollouts."""
        assert draw.starts is not None
        known, problems = _known(draw), draw.starts.of_group
        assert draw.starts is not None
        allocator = ConfidenceAllocator(initial=len(draw.starts) // len(problems), **self.options)
        amount = allocator.share(len(problems), draw.round + 1)
        if not amount or not len(known.group):
            return None
        chosen = known.group.repeat_interleave(allocator(known, amount)).tolist()
        return _sample(draw, [problems[group] for group in chosen], chosen)


@register("source", "one_step_budget", paper="Zhang et al. 2026, arXiv 2603.10848")
class OneStepRounds(Source):
    """One more rollout of each prompt for which it is worth its cost, again and again: groups of unequal size.

    ``sampling.group_size`` is where every prompt begins (4 in the source). It goes with credit ``shrinkage_baseline``;
    give both the same prior.

    Args:
        cost, most, floor: see ``OneStepBudget``.
        prior, rate, key, predictor: see ``PromptPrior``.

    Source: Zhang et al. 2026, arXiv 2603.10848.
    """

    when = "scoring"

    def __init__(
        self,
        *,
        cost: Annotated[float, Field(ge=0)] = 0.002,
        most: Annotated[int, Field(ge=1)] = 16,
        floor: Annotated[float, Field(gt=0)] = 0.01,
        prior: float = 0.5,
        rate: Annotated[float, Field(ge=0, le=1)] = 0.3,
        key: str | None = None,
        predictor: PredictorOption = None,
    ) -> None:
        self.budget = OneStepBudget(cost=cost, most=most, floor=floor)
        self.expected = PromptPrior(prior=prior, rate=rate, key=key, predictor=predictor)

    def draw(self, draw: Draw) -> Rollouts | None:
        """One rollout of every prompt that should have one more; none, and a look at the outcome, once it is enough."""
        assert draw.starts is not None
        known, problems = _known(draw), draw.starts.of_group
        asked = [problems[group] for group in known.group.tolist()]
        ids, prompts = [problem.task_id for problem in asked], [problem.prompt for problem in asked]
        metadata: Sequence[Mapping[str, Any]] = [problem.metadata for problem in asked]
        prior = self.expected.expected(ids, prompts, metadata).to(known.mean)
        chosen = known.group[self.budget(known.mean, known.given, prior)].tolist()
        if chosen:
            return _sample(draw, [problems[group] for group in chosen], chosen)
        self.expected.learn(ids, known.mean, prompts)
        return None

    def state_dict(self) -> dict[str, Any]:
        """What is expected of each problem."""
        return self.expected.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.expected.load_state_dict(state)


@register("source", "seed_with_solved", paper="Bamba et al. 2025, arXiv 2510.06672")
class SeedWithSolved(Source):
    """Another try, after solved problems like it, for every prompt of which all rollouts have failed.

    The new rollouts belong to the prompt's group. They were sampled in a context of their own, and are evaluated in it.
    Right answers enter the store, whatever the context; evaluation problems never do.

    Args:
        rollouts: further rollouts of each failed prompt.
        correct: raw weighted reward from which on an answer counts as right.
        k, least, longest, form: see ``seed_with_solved``.
        capacity: largest number of solved problems that are kept.

    Source: Bamba et al. 2025, arXiv 2510.06672.
    """

    when = "scoring"

    def __init__(
        self,
        *,
        rollouts: Annotated[int, Field(ge=1)] = 4,
        correct: float = 1.0,
        k: Annotated[int, Field(ge=1)] = 2,
        least: float = 0.0,
        longest: Annotated[int, Field(ge=1)] = 1000,
        form: str = "{prompt}\n{solution}\n\n",
        capacity: Annotated[int, Field(ge=1)] = 4096,
    ) -> None:
        self.rollouts, self.correct = rollouts, correct
        self.options: dict[str, Any] = {"k": k, "least": least, "longest": longest, "form": form}
        self.store = SolvedStore(capacity=capacity)

    def draw(self, draw: Draw) -> Rollouts | None:
        """Rollouts of the failed prompts with examples before them, once."""
        assert draw.rollouts is not None
        assert draw.reward is not None
        assert draw.starts is not None
        problems, group, text = draw.starts.of_group, draw.rollouts.group.tolist(), draw.rollouts.text
        assert text is not None
        right = (draw.reward >= self.correct).tolist()
        solved = [row for row, good in enumerate(right) if good]
        self.store.add([problems[group[row]].prompt for row in solved], [text[row] for row in solved])
        failed = sorted(set(group) - {group[row] for row in solved})
        if draw.round or not failed:
            return None
        seeded = {
            key: replace(problems[key], prompt=seed_with_solved(problems[key].prompt, self.store, **self.options))
            for key in failed
        }
        chosen = [key for key in failed for _ in range(self.rollouts)]
        return _sample(draw, [seeded[key] for key in chosen], chosen)

    def state_dict(self) -> dict[str, Any]:
        """The solved problems."""
        return self.store.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.store.load_state_dict(state)


def _known(draw: Draw) -> Tally:
    """What the rewards so far say of each prompt; those that faulted don't count."""
    assert draw.rollouts is not None
    assert draw.reward is not None
    usable = draw.reward.isfinite()
    return tally(draw.reward[usable], draw.rollouts.group.cpu()[usable])


def _sample(draw: Draw, problems: list[Problem], groups: list[int]) -> Rollouts:
    starts = Starts(problems, torch.tensor(groups), draw.step)
    return draw.policy.sample(starts, draw.sampling, seed=draw.seed)
