"""A small vocabulary for prompt search, one word of each meaning and of these those that matter, and plain searches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from guerdon.seeding import torch_generator

Score = Callable[[Tensor], Tensor]


def one_per_cluster(
    embeddings: Tensor, count: int = 2000, *, tokens: Tensor | None = None, seed: int = 0, iterations: int = 10
) -> Tensor:
    """Tokens that stand for their neighbours: cluster embeddings by k-means, keep the nearest to each centre.

    Args:
        embeddings: (V,D) of every token.
        count: clusters (2000 is inferred).
        tokens: (n,) those to choose from, such as whole words; all by default.
        seed: of the first centres (k-means++).
        iterations: of k-means.

    Returns:
        (at most count,) int64 tokens, rising; all of them where there are no more than ``count``.

    Source: Zhou et al. 2023, arXiv 2310.12774.
    """
    chosen = torch.arange(len(embeddings)) if tokens is None else tokens.long().unique()
    if len(chosen) <= count:
        return chosen
    points = embeddings[chosen].double().cpu()
    start = points[_spread_out(points, count, torch_generator(seed, "one_per_cluster"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster is left out below
        centres, label = kmeans2(points.numpy(), start.numpy(), iter=iterations, minit="matrix", missing="warn")
    far = (points - torch.from_numpy(centres[label])).square().sum(dim=1)
    label = torch.from_numpy(label).long()
    # By cluster, and in a cluster by distance; the first of each is its nearest.
    order = torch.argsort(far, stable=True)
    order = order[torch.argsort(label[order], stable=True)]
    first = torch.cat([torch.ones(1, dtype=torch.bool), label[order].diff() > 0])
    return chosen[order[first]].sort().values


def _spread_out(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of first centres by k-means++: each is drawn in proportion to its squared distance from those before.

    scipy has the same, at a cost that grows with the square of the number of clusters.
    """
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    squares = points.square().sum(dim=1)
    far = torch.full_like(squares, math.inf)
    for _ in range(count - 1):
        latest = points[chosen[-1]]
        far = torch.minimum(far, (squares - 2 * points @ latest + latest @ latest).clamp(min=0.0))
        far[chosen[-1]] = 0.0
        edges = far.cumsum(dim=0)
        u = torch.rand((), generator=generator, dtype=torch.float64) * edges[-1]
        chosen.append(min(int(torch.searchsorted(edges, u, right=True)), len(points) - 1))
    return torch.tensor(chosen)


def reward_influence(reward: Tensor, empty: Tensor) -> Tensor:
    """How much a token before the input changes the reward, summed over inputs: sum_x R(x; v) - R(x; empty).

    Interactions between tokens are not seen: each is tried alone.

    Args:
        reward: (V,X) reward of each input with each token before it.
        empty: (X,) without.

    Returns:
        (V,).

    Source: Zhou et al. 2023, arXiv 2310.12774.
    """
    return (reward - empty).sum(dim=1)


def kl_influence(log_probs: Tensor, empty: Tensor) -> Tensor:
    """How much a token before the input changes the answer, summed over inputs: sum_x KL(p(.|x,v) || p(.|x)).

    Args:
        log_probs: (V,X,Y) log-probabilities of the answers to each input with each token before it.
        empty: (X,Y) without.

    Returns:
        (V,) in nats.

    Source: Zhou et al. 2023, arXiv 2310.12774.
    """
    probs = log_probs.exp()
    return torch.where(probs > 0, probs * (log_probs - empty), 0.0).sum(dim=(1, 2))


def influential(influence: Tensor, *, quantile: float = 0.99, least: int = 1) -> Tensor:
    """Tokens at or above a quantile of the influence, and at least so many.

    Args:
        influence: (V,); NaN is never chosen.
        quantile: 0.99 in the source, 0.9 in its demonstration.
        least: fewest tokens kept, for ties at the top may leave too few.

    Returns:
        (n,) int64 indices, the most influential first.

    Source: Zhou et al. 2023, arXiv 2310.12774.
    """
    known = influence.double().nan_to_num(nan=-math.inf)
    order = torch.argsort(known, descending=True, stable=True)
    order = order[~torch.isnan(influence[order])]
    if not len(order):
        return order
    level = torch.quantile(known[order], quantile)
    return order[: max(int((known[order] >= level).sum()), min(least, len(order)))]


class Found(NamedTuple):
    """A prompt (L,), its score, and how many prompts were scored on the way."""

    prompt: Tensor
    score: float
    evaluations: int


def greedy_append(score: Score, vocabulary: Tensor, *, length: int = 5) -> Found:
    """Append the token that is best, ``length`` times.

    Args:
        score: of prompts (n,L) of equal length, (n,); larger is better.
        vocabulary: (v,) tokens.
        length: tokens of the prompt.

    Source: Zhou et al. 2023, arXiv 2310.12774.
    """
    prompt, best = vocabulary.new_zeros(0), -math.inf
    for _ in range(length):
        tried = torch.cat([prompt.expand(len(vocabulary), -1), vocabulary.unsqueeze(1)], dim=1)
        values = _scored(score, tried)
        prompt, best = tried[values.argmax()], float(values.max())
    return Found(prompt, best, length * len(vocabulary))


def genetic_search(
    score: Score,
    vocabulary: Tensor,
    *,
    length: int = 5,
    population: int = 128,
    mutants: int = 64,
    crossovers: int = 64,
    mutation: float = 0.1,
    epochs: int = 30,
    seed: int = 0,
) -> Found:
    """Breed prompts: change tokens of some, cross others, and keep the best of old and new.

    Args:
        score, vocabulary, length: see ``greedy_append``.
        population: prompts that live.
        mutants, crossovers: prompts made in an epoch; a mutant changes one token at least, a crossover takes each
            token from one of two parents (both inferred).
        mutation: chance that a token of a mutant changes.
        epochs: of breeding.
        seed: of all draws.

    Source: Zhou et al. 2023, arXiv 2310.12774.
    """
    g = torch_generator(seed, "genetic_search")
    living = _draw(vocabulary, (population, length), g)
    values = _scored(score, living)
    for _ in range(epochs):
        changed = torch.rand(mutants, length, generator=g) < mutation
        changed |= torch.arange(length) == torch.randint(length, (mutants, 1), generator=g)
        parents = living[torch.randint(population, (mutants,), generator=g)]
        mutated = torch.where(changed, _draw(vocabulary, (mutants, length), g), parents)
        one, other = (living[torch.randint(population, (crossovers,), generator=g)] for _ in range(2))
        crossed = torch.where(torch.rand(crossovers, length, generator=g) < 0.5, one, other)
        made = torch.cat([mutated, crossed])
        living, values = torch.cat([living, made]), torch.cat([values, _scored(score, made)])
        order = torch.argsort(values, descending=True, stable=True)[:population]
        living, values = living[order], values[order]
    best = int(values.argmax())
    return Found(living[best], float(values[best]), population + epochs * (mutants + crossovers))


def particle_swarm(
    score: Score,
    vocabulary: Tensor,
    *,
    length: int = 5,
    particles: int = 128,
    own: float = 0.3,
    best_of_all: float = 0.3,
    mutation: float = 0.1,
    epochs: int = 30,
    seed: int = 0,
) -> Found:
    """Move prompts towards the best that each has been and that any has been, token by token (the form is inferred).

    Args:
        score, vocabulary, length: see ``greedy_append``.
        particles: prompts.
        own, best_of_all, mutation: chances that a token becomes that of the prompt's own best, of the best of all, or
            a random one; otherwise it stays.
        epochs: of moving.
        seed: of all draws.

    Source: Zhou et al. 2023, arXiv 2310.12774.
    """
    g = torch_generator(seed, "particle_swarm")
    place = _draw(vocabulary, (particles, length), g)
    record, values = place.clone(), _scored(score, place)
    for _ in range(epochs):
        u = torch.rand(particles, length, generator=g)
        place = torch.where(u < own, record, place)
        place = torch.where((u >= own) & (u < own + best_of_all), record[values.argmax()], place)
        place = torch.where(u >= 1 - mutation, _draw(vocabulary, (particles, length), g), place)
        now = _scored(score, place)
        better = now > values
        record, values = torch.where(better.unsqueeze(1), place, record), torch.where(better, now, values)
    best = int(values.argmax())
    return Found(record[best], float(values[best]), particles * (epochs + 1))


def _draw(vocabulary: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return vocabulary[torch.randint(len(vocabulary), shape, generator=generator)]


def _scored(score: Score, prompts: Tensor) -> Tensor:
    values = torch.as_tensor(score(prompts)).double()
    if values.shape != prompts.shape[:1]:
        raise ValueError(
            f"score gave shape {tuple(values.shape)} for {len(prompts)} prompts; wanted one number for each"
        )
    return values.nan_to_num(nan=-math.inf)
