"""Outcomes that are worth less if they were reached in a costly mode where a cheap one would have done."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.registry import register

# Modes by name, with the tag that an answer in it begins with.
MODES: dict[str, str] = {"instant": "<instant>", "reasoning": "<reasoning>", "agentic": "<agentic>"}
FORCED = "forced_mode"  # key in the metadata of a rollout whose mode was not the policy's choice


def _patterns(templates: dict[str, str]) -> dict[str, str]:
    for name, pattern in templates.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"the template of mode '{name}' is not a regular expression: {error}") from None
    return templates


Templates = Annotated[dict[str, str], AfterValidator(_patterns)]


def easiness(
    right: Tensor, cheap_forced: Tensor, group: Tensor, *, prior: float = 0.5, prior_count: float = 0.0
) -> Tensor:
    """How easy each problem is: the success rate of the rollouts that were forced into the cheap mode.

    p = (right ones + prior n_0) / (rollouts + n_0)

    Args:
        right: (N,) bool.
        cheap_forced: (N,) bool, rollouts that were forced into the cheap mode.
        group: (N,) key of the rollouts of one problem.
        prior: success rate of a problem of which nothing is known.
        prior_count: n_0, rollouts that the prior is worth: three rollouts tell a rate coarsely. 0 in the source.

    Returns:
        (N,) p in [0,1]; 0 where there is no such rollout and no prior.
    """
    known = grouped(right.double() * cheap_forced, group)
    count = grouped(cheap_forced.double(), group)
    size = count.mean() * count.count() + prior_count
    hits = known.mean() * known.count() + prior * prior_count
    return torch.where(size > 0, hits / torch.where(size > 0, size, 1.0), 0.0)


def mode_factor(
    easy: Tensor,
    cheap: Tensor,
    *,
    exponent: float = 2.0,
    least: float = 0.0,
    floor: float = 0.0,
) -> Tensor:
    """What the outcome of a costly mode is worth: the less, the easier the problem.

    1 in the cheap mode;  max(floor, 1 - p^exponent) in any other, if p >= least, else 1

    Args:
        easy: (N,) p, see ``easiness``.
        cheap: (N,) bool, whether a rollout is in the cheap mode.
        exponent: the larger, the more problems count as hard.
        least: easiness below which modes are free.
        floor: least factor. At 0 a right answer in a costly mode to a problem that is always solved in the cheap one is
            worth as little as a wrong answer.

    Returns:
        (N,) factor in [floor,1].

    Source: Chen et al. 2025, arXiv 2510.12838. (The floor is ours.)
    """
    costly = (1 - easy**exponent).clamp(min=floor)
    return torch.where(cheap.bool() | (easy < least), 1.0, costly)


def cost_of_pass(cost: Tensor, right: Tensor) -> float:
    """Mean cost of an answer over the share of right ones: what one right answer costs; infinite where none is right.

    Args:
        cost: (N,) tokens, seconds or money.
        right: (N,) whether each answer is right, or the chance of it.
    """
    share = float(right.double().mean()) if len(right) else 0.0
    return float(cost.double().mean()) / share if share else math.inf


@register("shaping", paper="Chen et al. 2025, arXiv 2510.12838")
def mode_cost_reward(
    reward: Tensor,
    group: Tensor,
    text: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    *,
    modes: dict[str, str] | None = None,
    cheap: str = "instant",
    templates: Templates | None = None,
    exponent: Annotated[float, Field(gt=0)] = 2.0,
    least: Annotated[float, Field(ge=0, le=1)] = 0.0,
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0,
    prior: Annotated[float, Field(ge=0, le=1)] = 0.5,
    prior_count: Annotated[float, Field(ge=0)] = 0.0,
    form: Literal["product", "sum"] = "product",
    weights: tuple[float, float, float] = (1.0, 0.1, 0.1),
    threshold: float = 0.5,
) -> tuple[Tensor, dict[str, float]]:
    """Outcome times form times a factor that makes costly modes worth less on easy problems.

    product: R f a;  sum: w_1 R + w_2 f + w_3 a

    f: 1 if the answer is in a mode and fits its template, else 0;  a: ``mode_factor`` of ``easiness``. It goes with the
    source ``forced_modes``, which draws answers in every mode, so that each problem's easiness is known.

    Args:
        reward: (N,) outcome R, of an earlier shaping method (``weighted_sum``).
        group: (N,) key of the trajectories that share a start.
        text: N texts that the policy wrote; the mode is that of the tag they begin with.
        metadata: what is known of the N problems; the mode of a forced rollout stands there, and its text has no tag.
        modes: tags by the modes' names; by default those of the source.
        cheap: name of the cheap mode.
        templates: by name, a regular expression that the text after the tag must match from its start; where a mode has
            none, any text will do.
        exponent, least, floor: see ``mode_factor``.
        prior, prior_count: see ``easiness``.
        form: the product, or the weighted sum that one description has.
        weights: of the sum; their values are ours.
        threshold: least outcome of a right answer.

    Returns:
        (N,) reward; the share of free rollouts that are not in the cheap mode (``costly``), that of all rollouts in
        which no mode was found or the template does not fit (``misfit``), and the mean ``easiness``.

    Raises:
        ValueError: when ``cheap`` or a template is of no mode.

    Source: Chen et al. 2025, arXiv 2510.12838. (Which forced rollouts make up p is stated in several ways; that it is
    those of the cheap mode in the same group is inferred.)
    """
    known = MODES if modes is None else modes
    fits = templates or {}
    unknown = next((name for name in (cheap, *fits) if name not in known), None)
    if unknown is not None:
        raise ValueError(f"mode_cost_reward: there is no mode '{unknown}' among {', '.join(known)}; give it a tag")
    names, formed, forced = [], [], []
    for said, about in zip(text, metadata, strict=True):
        given = (about or {}).get(FORCED)
        name, rest = (given, said) if given is not None else mode_of(said, known)
        names.append(name)
        forced.append(given is not None)
        formed.append(name in known and re.match(fits.get(name, ""), rest, re.DOTALL) is not None)
    in_cheap, was_forced, well = (
        torch.tensor(flags, dtype=torch.bool, device=reward.device)
        for flags in ([name == cheap for name in names], forced, formed)
    )
    right = reward >= threshold
    easy = easiness(right & well, in_cheap & was_forced, group, prior=prior, prior_count=prior_count)
    factor = mode_factor(easy, in_cheap, exponent=exponent, least=least, floor=floor).to(reward)
    if form == "product":
        shaped = reward * well * factor
    else:
        shaped = weights[0] * reward + weights[1] * well.to(reward) + weights[2] * factor
    if not len(reward):
        return shaped, {}
    free = ~was_forced
    stats = {"misfit": float((~well).double().mean()), "easiness": float(easy.mean())}
    return shaped, stats | ({"costly": float((~in_cheap)[free].double().mean())} if bool(free.any()) else {})


def mode_of(text: str, modes: Mapping[str, str]) -> tuple[str | None, str]:
    """The mode whose tag a text begins with, and the text after it; without a tag no mode, and the whole text."""
    begun = text.lstrip()
    fitting = [(tag, name) for name, tag in modes.items() if begun.startswith(tag)]
    if not fitting:
        return None, text
    tag, name = max(fitting, key=lambda pair: len(pair[0]))
    return name, begun[len(tag) :]
