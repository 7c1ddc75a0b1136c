"""Right answers that were found with a hint, put among the answers to the prompt without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.errors import RecipeError
from guerdon.registry import import_object, register
from guerdon.rewards.base import score
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source, raw_reward
from guerdon.seeding import derive
from guerdon.tasks.base import Problem, Starts

Hint = Callable[[Problem], str | None]


def all_zero(reward: Tensor, group: Tensor, *, most: float = 0.0) -> Tensor:
    """(N,) whether no trajectory of a group earned more than ``most``; NaN is no reward, and nothing else is unknown.

    Args:
        reward: (N,) outcomes.
        group: (N,) key of the trajectories that share a start.
        most: reward that still counts as nothing.
    """
    stats = grouped(reward, group, reward.isfinite())
    silent = (stats.extreme(largest=True) <= most) & (stats.count() > 0)
    return grouped(silent.to(stats.values), group).extreme(largest=True) > 0


def rows_to_replace(group: Tensor, chosen: Tensor, count: int, draws: Tensor) -> Tensor:
    """Which rows of some groups give way: ``count`` of each, at random, all different.

    (The release draws indices with replacement, so that one row may be replaced twice and fewer answers enter.)

    Args:
        group: (N,) key of the trajectories that share a start.
        chosen: (N,) true on the rows of the groups in question.
        count: rows of each; all of a group that has fewer.
        draws: (N,) uniform numbers.

    Returns:
        (N,) bool.
    """
    order = torch.argsort(draws, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    sorted_group = group[order]
    new = torch.ones_like(sorted_group, dtype=torch.bool)
    new[1:] = sorted_group[1:] != sorted_group[:-1]
    place = torch.arange(len(group), device=group.device)
    first = torch.where(new, place, 0).cummax(dim=0).values if len(group) else place
    rank = torch.empty_like(place).scatter_(0, order, place - first)
    return chosen & (rank < count)


def hinted(problem: Problem, hint: Hint, form: str = "{hint}\n{prompt}") -> Problem | None:
    """A problem with a hint in its prompt; None where there is none.

    Args:
        problem: what is asked.
        hint: gives the hint.
        form: how both are written.
    """
    said = hint(problem)
    return None if said is None else replace(problem, prompt=form.format(hint=said, prompt=problem.prompt))


def as_hint(hint: str | Hint) -> Hint:
    """A hint as a recipe names it: ``package.module:function``, a function, or an entry of a problem's metadata."""
    if callable(hint):
        return hint
    if ":" in hint:
        return import_object(hint)
    return lambda problem: problem.metadata.get(hint)


def first_letters(problem: Problem) -> str | None:
    """The first half of the reference answer, for tasks whose answers are words."""
    answer = str(problem.answer or "")
    return answer[: (len(answer) + 1) // 2] or None


@register("source", "hint_rejection")
class HintRejection(Source):
    """Right answers, found with a hint, for every prompt of which all rollouts earned nothing.

    A prompt that fails throughout has no gradient. It is asked again with a hint, until all of ``accepted`` answers are
    right or ``tries`` are used up. Those answers join the group as answers to the prompt alone: the hint is forgotten,
    their log-probabilities are the present policy's without it, and so the ratio is 1, although they are off-policy.
    Keep ``accepted`` small. Where the tries fail, the group stays as it is.

    (KEPO replaces that many rollouts, see ``rows_to_replace``; a source of a recipe adds rows, so here the group has
    more.)

    Args:
        hint: the teacher's: ``package.module:function`` from a problem to a text or None, or the name of an entry of
            the problem's metadata.
        accepted: J, answers that must all be right.
        tries: how often a prompt is asked with its hint.
        correct: raw weighted reward from which on an answer counts as right.
        nothing: most raw weighted reward of a rollout that counts as nothing.
        always: hint every prompt, not only those that fail.
        form: how hint and prompt are written.

    Raises:
        RecipeError: when no problem has a hint.

    Source: KEPO: Knowledge-Enhanced Preference Optimization, its code.
    """

    when = "scoring"

    def __init__(
        self,
        *,
        hint: str | Hint = "hint",
        accepted: Annotated[int, Field(ge=1)] = 2,
        tries: Annotated[int, Field(ge=1)] = 5,
        correct: float = 1.0,
        nothing: float = 0.0,
        always: bool = False,
        form: str = "{hint}\n{prompt}",
    ) -> None:
        self.hint, self.form = as_hint(hint), form
        self.accepted, self.tries, self.always = accepted, tries, always
        self.correct, self.nothing = correct, nothing

    def draw(self, draw: Draw) -> Rollouts | None:
        """The accepted answers, once per step."""
        assert draw.starts is not None
        assert draw.rollouts is not None
        assert draw.reward is not None
        if draw.round:
            return None
        group = draw.rollouts.group.cpu()
        failed = torch.ones_like(group, dtype=torch.bool)
        if not self.always:
            failed = all_zero(draw.reward, group, most=self.nothing)
        problems = draw.starts.of_group
        open_groups = group[failed].unique().tolist()
        asked = {key: hinted(problems[key], self.hint, self.form) for key in open_groups}
        if asked and not any(asked.values()):
            raise RecipeError(
                "source 'hint_rejection': no problem of this batch has a hint; name an entry of the problems' metadata "
                "or a function 'package.module:function' as 'hint'"
            )
        left = {key: problem for key, problem in asked.items() if problem is not None}
        found: dict[int, list[list[int]]] = {}
        for attempt in range(self.tries):
            if not left:
                break
            found |= self._attempt(draw, left, attempt)
            left = {key: problem for key, problem in left.items() if key not in found}
        if not found:
            return None
        keys = [key for key, answers in found.items() for _ in answers]
        starts = Starts([problems[key] for key in keys], torch.tensor(keys), draw.step)
        rows = draw.policy.replay(starts, [answer for answers in found.values() for answer in answers], draw.sampling)
        rows.external = None  # KEPO counts them as the policy's own, at a ratio of 1
        return rows

    def _attempt(self, draw: Draw, left: dict[int, Problem], attempt: int) -> dict[int, list[list[int]]]:
        """Tokens of the answers of those groups whose answers are all right."""
        starts = Starts.repeat(list(left.values()), self.accepted, version=draw.step)
        tried = draw.policy.sample(starts, draw.sampling, seed=derive(draw.seed, "hint", attempt))
        rewards = [spec for spec in draw.rewards if not spec.watch]
        tried, faults = score(tried, rewards, draw.step)
        right = raw_reward(tried, rewards, faults) >= self.correct
        assert tried.tokens is not None
        whole = right.reshape(len(left), self.accepted).all(dim=1).tolist()
        found = {}
        for place, (key, good) in enumerate(zip(left, whole, strict=True)):
            rows = range(place * self.accepted, (place + 1) * self.accepted)
            if good:
                found[key] = [tried.tokens[row][tried.mask[row]].tolist() for row in rows]
        return found
