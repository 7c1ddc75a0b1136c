"""Of a vocabulary few words change what a model says, so a search over all of it wastes nearly every evaluation. Words
are clustered by meaning, one of each cluster is tried alone, and only the most influential percent is searched.

The vocabulary is invented: 1000 meanings of 7 words each, whose embeddings lie close together; 1 % of the meanings
raise the margin of 32 inputs, the others hardly change it, and a meaning counts once in a prompt. Clusters were first
as many as meanings; on seed 100 k-means then left a tenth of the meanings without a cluster, so 1250 were taken.
Nothing else was tried. SmolLM2 is left out: the influence of 1250 words on 32 texts is 40,000 forward passes, hours on
one core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.evolve.pruning import (
    genetic_search,
    greedy_append,
    influential,
    kl_influence,
    one_per_cluster,
    particle_swarm,
    reward_influence,
)
from guerdon.seeding import torch_generator

MEANINGS, WORDS, SIZE, SHARE, INPUTS, LENGTH, CLUSTERS = 1000, 7, 16, 0.01, 32, 5, 1250


class Parts(NamedTuple):
    """What is under test: influence of words, and the choice by it."""

    influence: Any
    choose: Any


class World:
    """Words, what they mean, and what prompts of them earn."""

    def __init__(self, seed: int) -> None:
        g = torch_generator(seed, "words")
        words = MEANINGS * WORDS
        self.meaning = torch.randperm(words, generator=g) % MEANINGS
        centre = torch.randn(MEANINGS, SIZE, generator=g)
        self.embeddings = centre[self.meaning] + 0.15 * torch.randn(words, SIZE, generator=g)
        self.strong = torch.zeros(MEANINGS, dtype=torch.bool)
        self.strong[torch.randperm(MEANINGS, generator=g)[: int(SHARE * MEANINGS)]] = True
        effect = 0.05 * torch.randn(MEANINGS, INPUTS, generator=g)
        effect[self.strong] += 0.3 + 0.7 * torch.rand(int(self.strong.sum()), 1, generator=g)
        self.effect = torch.cat([effect, torch.zeros(1, INPUTS)]).double()
        self.start = torch.randn(INPUTS, generator=g).double() - 1

    def rewards(self, prompts: Tensor) -> Tensor:
        """(n,X) log-likelihood of the right answer to each input after prompts (n,L)."""
        said = self.meaning[prompts].sort(dim=1).values
        again = torch.cat([torch.zeros_like(said[:, :1]).bool(), said.diff(dim=1) == 0], dim=1)
        margin = self.effect[said.masked_fill(again, MEANINGS)].sum(dim=1) + self.start
        return torch.nn.functional.logsigmoid(margin)

    def score(self, prompts: Tensor) -> Tensor:
        """(n,)."""
        return self.rewards(prompts).mean(dim=1)


def searched(parts: Parts, world: World, seed: int) -> tuple[Tensor, int]:
    """The pruned vocabulary, and how many prompts it took to find."""
    tried = one_per_cluster(world.embeddings, CLUSTERS, seed=seed)
    empty = world.rewards(torch.zeros(1, 0, dtype=torch.int64))[0]
    influence = parts.influence(world.rewards(tried.unsqueeze(1)), empty)
    return tried[parts.choose(influence)], len(tried) + 1


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Influence and choice by hand, then an invented vocabulary."""
    reward, empty = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]]), torch.tensor([1.0, 1.0])
    influence = method.influence(reward, empty)
    yield equal("influence on the reward of three words on two inputs", influence, [1.0, -2.0, 2.0])
    probs = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]])
    seen = kl_influence(probs.log(), torch.tensor([[0.5, 0.5]]).log())
    yield equal("influence on the answer, in nats", seen, [0.0, math.log(2)])
    yield equal("words at or above the median", method.choose(influence, quantile=0.5), [2, 0])
    ties = method.choose(torch.tensor([0.0, 1.0, 1.0, 1.0]), quantile=0.99)
    yield equal("ties at the top are kept together", ties, [1, 2, 3])
    few = method.choose(torch.tensor([0.0, 3.0, 2.0, 1.0]), quantile=1.0, least=3)
    yield equal("as many are kept as are asked for", few, [1, 2, 3])

    worlds = [World(s) for s in range(seeds)]
    pruned = [searched(method, world, s) for s, world in enumerate(worlds)]
    everything = torch.arange(MEANINGS * WORDS)
    recall = [
        int(w.strong[w.meaning[kept].unique()].sum()) / int(w.strong.sum())
        for w, (kept, _) in zip(worlds, pruned, strict=True)
    ]
    yield every_seed(
        "part of the strong meanings that is kept",
        torch.tensor(recall, dtype=torch.float64),
        above=0.9 - 1e-9,
        share=0.8,
    )
    full = [greedy_append(w.score, everything, length=LENGTH) for w in worlds]
    ours = [greedy_append(w.score, kept, length=LENGTH) for w, (kept, _) in zip(worlds, pruned, strict=True)]
    others = [
        everything[torch.randperm(len(everything), generator=torch_generator(s, "others"))[: len(kept)]]
        for s, (kept, _) in enumerate(pruned)
    ]
    random = [greedy_append(w.score, some, length=LENGTH) for w, some in zip(worlds, others, strict=True)]
    start = [float(w.score(torch.zeros(1, 0, dtype=torch.int64))[0]) for w in worlds]
    gained = [(a.score - s) / (b.score - s) for a, b, s in zip(ours, full, start, strict=True)]
    yield every_seed(
        "gain of greedy search in the pruned vocabulary, in that of the full one", gained, above=0.95, share=0.8
    )
    spent = [(a.evaluations + cost) / b.evaluations for a, b, (_, cost) in zip(ours, full, pruned, strict=True)]
    yield every_seed("evaluations, influence included, in those of the full one", spent, below=0.05)
    yield paired(
        "score of greedy search, against as many random words",
        [f.score for f in ours],
        [f.score for f in random],
        share=1.0,
    )
    for search in (genetic_search, particle_swarm):
        small = [
            search(w.score, kept, length=LENGTH, seed=s).score
            for s, (w, (kept, _)) in enumerate(zip(worlds, pruned, strict=True))
        ]
        large = [search(w.score, everything, length=LENGTH, seed=s).score for s, w in enumerate(worlds)]
        yield paired(f"score of {search.__name__}, against the same in the full vocabulary", small, large)


def blind(reward: Tensor, empty: Tensor) -> Tensor:
    """Every word as influential as it is late in the alphabet."""
    return torch.arange(len(reward), dtype=torch.float64)


CLAIM = Claim(
    system="claps",
    run=run,
    method=Parts(reward_influence, influential),
    mutation=Mutation("influence is not measured", Parts(blind, influential)),
    seeds=10,
)
