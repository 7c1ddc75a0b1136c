"""Without labels, the answer that most of a group give stands for the right one; rewarding it alone makes all
reasoning alike. EVOL-RL gives the majority between 0.5 and 1 and the others between -1 and -0.5, the more the less a
text resembles the others, so the vote decides what is right and novelty what spreads.

Each answer is one of six ways to reason with one of four results; 40 % begin with the first result. The texts are
compared by their character trigrams (0.98 for one way with two results, about 0.45 for two ways). Baseline is the plain
vote. Groups are of 16 and the learning rate 2, chosen from three pairs on seeds 100 and up; a rate of 8 leaves the
baseline an entropy of 0.03 and EVOL-RL 1.70.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, above, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import Tabular
from guerdon.claims.testbeds.voters import adjacent, tie_lots
from guerdon.rewards.label_free import vote
from guerdon.rewards.novelty_vote import evol_reward, evol_rl
from guerdon.rewards.text import trigram_embedding

WAYS = (
    "count the parts one by one and add them up",
    "draw a table and read off the last row",
    "work backwards from what is asked",
    "guess a value and correct it twice",
    "split the sum into tens and units",
    "compare with a simpler problem of the same kind",
)
RESULTS, FIRST, PROMPTS, GROUP = 4, 0.4, 4, 16
TEXTS = [f"{way}, so the answer is {result}" for way in WAYS for result in range(RESULTS)]


def blind(answer: Tensor, embedding: Tensor, group: Tensor, **options: Any) -> Tensor:
    """Take all texts for equal."""
    return evol_reward(answer, torch.ones_like(embedding), group, **options)


def by_hand(method: Any) -> Iterator[Check]:
    """Bands, order, duplicates and what is not valid."""
    generator = torch.Generator().manual_seed(0)
    answer = torch.randint(-1, 3, (200,), generator=generator)
    group = torch.randint(0, 20, (200,), generator=generator)
    vectors, lot = torch.randn(200, 8, generator=generator), torch.rand(3, generator=generator)
    priority = lot[answer.clamp(min=0)]
    reward, won = method(answer, vectors, group, priority=priority), vote(answer, group, priority=priority).won
    yield above("least reward in a majority less the largest elsewhere", reward[won].min() - reward[~won].max(), 0.9999)
    order = torch.randperm(200, generator=generator)
    moved = method(answer[order], vectors[order], group[order], priority=priority[order])
    yield equal("rewards after the batch is permuted", moved, reward[order])
    pair = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    twin = method(torch.tensor([0, 0, 0, 1]), pair, torch.zeros(4).long())
    yield equal("two equal texts, one of its own, a lone minority", twin, [0.5, 0.5, 1.0, -0.5])
    same = method(torch.tensor([0, 0, 0, 1, 1]), torch.ones(5, 2), torch.zeros(5).long())
    yield equal("all texts equal", same, [0.75] * 3 + [-0.75] * 2)
    few = method(torch.tensor([0, -1, -1, 0, 0, -1]), torch.eye(6), torch.tensor([0, 0, 0, 1, 1, 1]))
    yield equal("one valid answer in a group, and two in another", few, [-1, -1, -1, 0.75, 0.75, -1])
    texts = ["first <think> a </think> x: 1", "x: 1", "something else: 1", "x: 2", "nothing"]
    seen, _ = evol_rl(texts, torch.zeros(5).long(), pattern=r"\d")
    yield equal("the reward of recipes, on texts", seen, [0.5, 0.5, 1.0, -0.5, -1.0])


def run(method: Any, seeds: int) -> Iterator[Check]:
    """By hand; then entropy of the ways against the plain vote."""
    yield from by_hand(method)
    table = trigram_embedding(TEXTS)

    def drawn(actions: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        answer = actions[:, 0] % RESULTS
        return answer, adjacent(len(answer), GROUP), tie_lots(answer, uniform, GROUP)

    def novel(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
        answer, group, priority = drawn(actions, uniform)
        return method(answer, table[actions[:, 0]], group, priority=priority)

    def plain(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
        answer, group, priority = drawn(actions, uniform)
        return vote(answer, group, priority=priority).won.double()

    result = torch.full((RESULTS,), (1 - FIRST) / (RESULTS - 1)).index_fill(0, torch.tensor(0), FIRST)
    initial = (result.repeat(len(WAYS)) / len(WAYS)).expand(PROMPTS, -1)

    def trained(reward: Any) -> tuple[Tensor, Tensor]:
        """Entropy of the ways and mass of the likeliest result, (steps + 1,S)."""
        history = Tabular(initial, reward).train(seeds=seeds, steps=300, group_size=GROUP, lr=2.0)
        probs = history.probs[:, :, :, 0].unflatten(-1, (len(WAYS), RESULTS))
        ways = probs.sum(dim=-1)
        entropy = -torch.special.xlogy(ways, ways).sum(dim=-1).mean(dim=-1)
        return entropy, probs.sum(dim=-2).amax(dim=-1).mean(dim=-1)

    (entropy, mass), (baseline, other) = trained(novel), trained(plain)
    yield paired(
        "entropy of the ways to reason, in nats, against the plain vote",
        entropy[-1],
        baseline[-1],
        margin=1.0,
        share=1.0,
        curves={"evol-rl": entropy.T, "plain vote": baseline.T},
        axis="entropy of the ways by step",
    )
    yield every_seed("entropy of the ways under EVOL-RL (ln 6 is 1.79)", entropy[-1], above=1.6)
    yield every_seed("mass of the first result under EVOL-RL", mass[-1], above=0.97)
    yield every_seed("mass of the first result under the plain vote", other[-1], above=0.97)
    yield paired("mass of the first result, of which variety costs less than 0.02", mass[-1], other[-1], margin=-0.02)


CLAIM = Claim(
    system="evol-rl",
    run=run,
    method=evol_reward,
    mutation=Mutation("all texts are taken for equal", blind),
    recipe="""
rewards: [{name: evol_rl, pattern: "[a-z]+"}, {name: task, watch: true}]
sampling: {prompts: 32, group_size: 16, max_new_tokens: 8}
objective: {name: ppo_clip, clip_low: 0.2, clip_high: 0.28}
""",
    seeds=8,
)
