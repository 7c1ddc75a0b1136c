"""With fixed weights the easy one of several objectives saturates while the others stagnate. DW-GRPO measures how fast
each reward is being learned, as a slope over the last batches, and moves weight to those that are not.

Of two rewards, earned 30 % and 3 % of the time at first, one is learned about ten times as fast as the other. Without
``largest``, which says when a reward has nothing left to give, a learned reward looks like one that stagnates, and the
weights do nothing (0.72 against 0.71). The retrieval of the same paper, a beam search from communities down to
entities, is tried on graphs of 64 entities whose summaries are vague, so that the nearest community is often not the
right one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import networkx as nx
import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.shaping.schedule import SlopeWeightedSum, SlopeWeights
from guerdon.tasks.search import communities, hierarchical_beam

PROMPTS, FAST, SLOW = 4, 0.3, 0.03
GRAPHS, SIDE, SIZE = 12, 4, 16


class Parts(NamedTuple):
    """What is under test."""

    controller: Any = SlopeWeights
    options: Any = {}  # noqa: RUF012 - read, never written


def learned(history: History, reward: int) -> Tensor:
    """(steps + 1, S) chance of one reward."""
    return history.probs[:, :, :, reward, 0].mean(dim=-1)


def nearest_found(seed: int, beams: Sequence[int]) -> Tensor:
    """For every beam the share of graphs in which the first entity found is the one nearest to the question."""
    generator = torch.Generator().manual_seed(seed)
    hits = []
    for _ in range(GRAPHS):
        shapes = ((SIDE, 1, 1), (SIDE, SIDE, 1), (SIDE, SIDE, SIDE))
        parts = [torch.randn(*shape, SIZE, generator=generator) for shape in shapes]
        entities = torch.nn.functional.normalize((parts[0] + parts[1] + parts[2]).reshape(-1, SIZE), dim=-1)
        known = {str(i): entity for i, entity in enumerate(entities)}
        near = (entities @ entities.T).fill_diagonal_(-1).topk(3).indices.tolist()
        graph = nx.Graph((str(i), str(j)) for i, others in enumerate(near) for j in others)

        def summarise(texts: Sequence[str], known: dict[str, Tensor] = known) -> str:
            """A new word that means about the same as the texts do on average."""
            name = f"summary{len(known)}"
            vague = 0.15 * torch.randn(SIZE, generator=generator)
            known[name] = torch.stack([known[text] for text in texts]).mean(dim=0) + vague
            return name

        def embed(texts: Sequence[str], known: dict[str, Tensor] = known) -> Tensor:
            return torch.stack([torch.stack([known[word] for word in text.split()]).sum(dim=0) for text in texts])

        top = communities(graph, summarise=summarise)
        meant = entities[int(torch.randint(len(entities), (1,), generator=generator))]
        known["question"] = meant + 0.25 * torch.randn(SIZE, generator=generator)
        wanted = str(int((entities @ known["question"]).argmax()))
        hits.append([hierarchical_beam("question", top, embed, beam=beam)[0][0].name == wanted for beam in beams])
    return torch.tensor(hits).double().mean(dim=0)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Weights by hand, then two rewards learned at different speeds, then retrieval."""
    weights, even = method.controller(["flat", "rising"]), method.controller(["a", "b"])
    out: dict[str, float] = {}
    for step in range(20):
        out = weights.update({"flat": 0.3, "rising": 0.01 * step})
        if step == 18:
            yield equal("before the window is full all weights are", list(out.values()), [1.0, 1.0])
    yield check("the flat reward weighs more", out["flat"] > out["rising"], expected="flat > rising", seen=out)
    yield equal("the weights add up to", sum(out.values()), 2.0)
    for step in range(25):
        out = even.update({"a": 0.01 * step, "b": 0.5 + 0.01 * step})
    yield equal("equal slopes", list(out.values()), [1.0, 1.0])

    initial = torch.tensor([[FAST, 1 - FAST], [SLOW, 1 - SLOW]]).expand(PROMPTS, 2, 2)
    bed = Tabular(initial, lambda actions, prompt: (actions == 0).double(), names=("fast", "slow"))
    settings: dict[str, Any] = {"seeds": seeds, "steps": 200, "group_size": 8, "lr": 0.5, "credit": "grpo"}
    shaping = {"name": SlopeWeightedSum, "largest": 1.0, **method.options}
    ours = bed.train(shaping=[shaping], per_seed=True, **settings)
    fixed = bed.train(**settings)
    fast, slow = (History.first(learned(fixed, reward), 0.5) for reward in (0, 1))
    yield every_seed(
        "with fixed weights, steps to 0.5 of the slow reward by those of the fast one", slow / fast, above=8.0
    )
    yield paired(
        "the smaller of the two rewards after 200 steps",
        torch.minimum(learned(ours, 0)[-1], learned(ours, 1)[-1]),
        torch.minimum(learned(fixed, 0)[-1], learned(fixed, 1)[-1]),
        curves={"slope weights": learned(ours, 1).T, "fixed weights": learned(fixed, 1).T},
        axis="the slow reward by step",
    )
    yield paired("mean of the slow reward over training", learned(ours, 1).mean(dim=0), learned(fixed, 1).mean(dim=0))
    wide, greedy = torch.stack([nearest_found(seed, (3, 1)) for seed in range(seeds)]).T
    yield paired("the nearest entity is found first, with a beam of 3 and of 1", wide, greedy)


CLAIM = Claim(
    system="dw-grpo",
    run=run,
    method=Parts(),
    mutation=Mutation(
        "the sign of the slopes is turned round, so that what improves gets the weight",
        Parts(partial(SlopeWeights, favour="improving"), {"favour": "improving"}),
    ),
    recipe="""
rewards: [task, {name: regex, pattern: "^[a-z]+$"}]
shaping: [{name: slope_weights, window: 20, largest: 1.0}]
credit: grpo
""",
)
