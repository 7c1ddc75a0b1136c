"""Search for prompts by leaving out tokens of a longer one."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from guerdon.seeding import numpy_generator

Fitness = Callable[[Tensor], Sequence[float] | Tensor | np.ndarray]
Start = Literal["copies", "pruned"]
Survival = Literal["generational", "steady"]


class Pruned(NamedTuple):
    """A prompt with tokens left out.

    Attributes:
        keep: (T,) bool, the tokens that are left.
        fitness: what it scored.
    """

    keep: Tensor
    fitness: float


@dataclass
class PruneResult:
    """What a search has found.

    Attributes:
        best: the fittest prompt of all that were tried; of equals the first.
        tried: all of them, in the order in which they were tried.
    """

    best: Pruned
    tried: list[Pruned] = field(repr=False)


class _Scorer:
    """Scores masks, each text once, up to a budget, and remembers everything."""

    def __init__(self, fitness: Fitness, tokens: Sequence[Hashable], fixed: Tensor | None, budget: int) -> None:
        self.fitness, self.tokens, self.budget = fitness, list(tokens), budget
        self.fixed = np.zeros(len(self.tokens), dtype=bool)
        if fixed is not None:
            if fixed.shape != self.fixed.shape:
                raise ValueError(
                    f"fixed has shape {tuple(fixed.shape)}, wanted one entry for each of {len(tokens)} tokens"
                )
            self.fixed = np.asarray(fixed.bool().cpu())
        self.tried: list[Pruned] = []
        self.seen: set[tuple[Hashable, ...]] = set()

    def fresh(self, keep: np.ndarray) -> bool:
        """Whether the text was not met before; it counts as met from now on."""
        text = tuple(token for token, kept in zip(self.tokens, keep, strict=True) if kept)
        if text in self.seen:
            return False
        self.seen.add(text)
        return True

    @property
    def left(self) -> int:
        return self.budget - len(self.tried)

    def __call__(self, masks: Sequence[np.ndarray]) -> list[float]:
        """Fitness of each, NaN counting as the worst."""
        if not masks:
            return []
        keep = torch.from_numpy(np.stack(masks))
        values = [float(v) for v in self.fitness(keep)]
        if len(values) != len(masks):
            raise ValueError(f"fitness gave {len(values)} numbers for {len(masks)} prompts; wanted one for each")
        values = [-math.inf if math.isnan(v) else v for v in values]
        self.tried += [Pruned(row, value) for row, value in zip(keep, values, strict=True)]
        return values

    def result(self) -> PruneResult:
        return PruneResult(max(self.tried, key=lambda each: each.fitness), self.tried)


def prompt_quine(
    fitness: Fitness,
    tokens: Sequence[Hashable],
    *,
    fixed: Tensor | None = None,
    population: int = 30,
    children: int = 50,
    tournament: float = 0.2,
    removed: tuple[int, int] = (1, 4),
    min_length: int = 15,
    max_prompts: int = 10_000,
    start: Start = "copies",
    survival: Survival = "generational",
    seed: int = 0,
) -> PruneResult:
    """Evolve a prompt by random pruning: a child is its parent with a few tokens less.

    A parent is the fittest of a random fifth of the population. Children must be texts not met before and keep
    ``min_length`` tokens. Then the best of the children replace their parents (``generational``), or the best of both
    stay (``steady``, whose rule is inferred). It ends when no child can be made, or ``max_prompts`` have been tried.

    Lengths only fall, and fit parents die, so the best prompt is the best ever tried. Search on few examples selects
    noise: re-rank what is found on others (``rerank``). Give a model the token ids that are kept, not their text, which
    would be tokenised anew.

    Args:
        fitness: of masks (n,T) bool, n numbers; larger is better, NaN counts as the worst.
        tokens: the T tokens of the whole prompt, which tell whether a text is new.
        fixed: (T,) bool, tokens that stay: placeholders and the template.
        population, children: how many live, and how many are made in a generation.
        tournament: part of the population that a parent must beat.
        removed: fewest and most tokens that a child lacks.
        min_length: fewest tokens of a prompt.
        max_prompts: most prompts that are tried.
        start: a population of copies of the prompt, or of it with 1/20 to 1/5 of its tokens left out (``pruned``).
        survival: see above.
        seed: of all draws.

    Returns:
        The best prompt, and all that were tried.

    Raises:
        ValueError: when an option is out of its range, or fitness gives another number of values than of prompts.

    Source: Wang et al. 2025, Evolving Prompts In-Context.
    """
    low, high = removed
    if population < 1 or children < 1 or not 1 <= low <= high or not 0 < tournament <= 1:
        raise ValueError(
            f"population {population}, children {children}, removed {removed}, tournament {tournament}; wanted counts "
            "of 1 and more, in order, and a tournament in (0,1]"
        )
    score = _Scorer(fitness, tokens, fixed, max_prompts)
    draw = numpy_generator(seed, "prompt_quine")
    living = _founders(score, population, min_length, start, draw)
    rivals = math.ceil(tournament * population)
    while score.left > 0:
        made: list[np.ndarray] = []
        for _ in range(5 * children):  # children that are not new are drawn again, but not for ever
            if len(made) == min(children, score.left):
                break
            chosen = draw.choice(len(living), size=min(rivals, len(living)), replace=False)
            parent, _ = max((living[i] for i in chosen), key=lambda each: each[1])
            child = _without(parent, int(draw.integers(low, high + 1)), score.fixed, draw)
            if child is not None and child.sum() >= min_length and score.fresh(child):
                made.append(child)
        if not made:
            break
        grown = list(zip(made, score(made), strict=True))
        rivalling = grown if survival == "generational" else grown + living
        living = sorted(rivalling, key=lambda each: -each[1])[:population]
    return score.result()


def greedy_prune(
    fitness: Fitness,
    tokens: Sequence[Hashable],
    *,
    fixed: Tensor | None = None,
    threshold: float = 0.96,
    min_length: int = 1,
    max_prompts: int = 10_000,
) -> PruneResult:
    """Go through a prompt token by token, and drop for good what costs next to nothing (TAPruning).

    A token goes if fitness without it is at least ``threshold`` times the best fitness seen; a best fitness below 0 is
    divided by the threshold instead. Passes are repeated until one changes nothing (the rule of passes is inferred).

    Args:
        fitness, tokens, fixed, max_prompts: see ``prompt_quine``.
        threshold: what must be left of the best fitness.
        min_length: fewest tokens of a prompt.

    Source: Wang et al. 2025, Evolving Prompts In-Context.
    """
    score = _Scorer(fitness, tokens, fixed, max_prompts)
    keep = np.ones(len(score.tokens), dtype=bool)
    (best,) = score([keep.copy()])
    changed = True
    while changed and score.left > 0:
        changed = False
        for token in np.flatnonzero(keep & ~score.fixed):
            if score.left < 1 or keep.sum() <= min_length:
                break
            shorter = keep.copy()
            shorter[token] = False
            (value,) = score([shorter])
            if value >= (threshold * best if best > 0 else best / threshold):
                keep, changed = shorter, True
            best = max(best, value)
    return score.result()


def rerank(found: PruneResult, fitness: Fitness, *, share: float = 0.1) -> PruneResult:
    """Score the fittest prompts anew, on data that the search has not seen.

    Args:
        found: what a search returned.
        fitness: on other examples.
        share: part of the prompts tried that is scored anew, the fittest; one at least.

    Returns:
        The best by the new fitness, of equals the one that was fitter before, and all that were scored anew.
    """
    count = max(1, math.ceil(share * len(found.tried)))
    ranked = sorted(found.tried, key=lambda each: -each.fitness)[:count]
    values = [float(v) for v in fitness(torch.stack([each.keep for each in ranked]))]
    again = [Pruned(each.keep, -math.inf if math.isnan(v) else v) for each, v in zip(ranked, values, strict=True)]
    return PruneResult(max(again, key=lambda each: each.fitness), again)


def _founders(
    score: _Scorer, population: int, min_length: int, start: Start, draw: np.random.Generator
) -> list[tuple[np.ndarray, float]]:
    whole = np.ones(len(score.tokens), dtype=bool)
    score.fresh(whole)
    (value,) = score([whole])
    living = [(whole, value)] * population
    if start == "copies":
        return living
    made = []
    for _ in range(5 * population):
        if len(made) == min(population, score.left):
            break
        count = max(1, round(draw.uniform(1 / 20, 1 / 5) * len(whole)))
        pruned = _without(whole, count, score.fixed, draw)
        if pruned is not None and pruned.sum() >= min_length and score.fresh(pruned):
            made.append(pruned)
    return list(zip(made, score(made), strict=True)) or living


def _without(keep: np.ndarray, count: int, fixed: np.ndarray, draw: np.random.Generator) -> np.ndarray | None:
    """The mask without ``count`` of its tokens; None where so many can't go."""
    free = np.flatnonzero(keep & ~fixed)
    if len(free) < count:
        return None
    shorter = keep.copy()
    shorter[draw.choice(free, size=count, replace=False)] = False
    return shorter
