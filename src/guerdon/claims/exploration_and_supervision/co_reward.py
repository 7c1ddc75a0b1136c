"""A policy that votes on its own answers may be sure of a wrong one and be paid for it. Co-Reward asks every question
in two phrasings and pays each for what the other's vote says, so a mistake pays only if both phrasings make it.

Thirty questions of six answers in two phrasings, each a row of a table: a phrasing gives the right answer half of the
time, or, misled, a wrong one 45 % and the right one 30 %. Of the questions 9 mislead in no phrasing, 12 in one, 4 in
both to different answers, and 5 in both to the same. Baseline is the vote of each phrasing on itself. Compared is the
share of phrasings that are locked: a wrong answer above 0.9. The learning rate was chosen from 0.2, 0.5, 1 and 2 on
seeds 100 and up, with 25 questions: the gain is there at all, least at 2 (0.31 locked against 0.09).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import Tabular
from guerdon.claims.testbeds.voters import adjacent
from guerdon.rewards.contrastive_vote import contrastive_reward
from guerdon.rewards.label_free import vote

ANSWERS, GROUP, STEPS, LOCKED = 6, 8, 200, 0.9
KINDS = {  # what the two phrasings suggest, and in how many questions
    "neither": ((0, 0), 9),
    "one": ((0, 1), 6),
    "other": ((2, 0), 6),
    "apart": ((1, 2), 4),
    "together": ((3, 3), 5),
}
MODES = torch.tensor([mode for modes, count in KINDS.values() for _ in range(count) for mode in modes])
SHARED = 2 * KINDS["together"][1]  # phrasings, which come last


def own_vote(answer: Tensor, group: Tensor, pair: Tensor, **options: Any) -> Tensor:
    """Let each phrasing judge itself."""
    return vote(answer, group, **options).won.to(torch.get_default_dtype())


def phrasing(mode: int) -> Tensor:
    """(ANSWERS,) probabilities of the answers to a phrasing that suggests one of them; 0 is right."""
    if mode == 0:
        return torch.tensor([0.5] + [0.1] * (ANSWERS - 1))
    rest = torch.full((ANSWERS,), 0.25 / (ANSWERS - 2))
    return rest.index_fill(0, torch.tensor(mode), 0.45).index_fill(0, torch.tensor(0), 0.3)


def by_hand(method: Any) -> Iterator[Check]:
    """Who judges whom."""
    answer = torch.tensor([0, 0, 1, 1, 1, 0, 2, 2, 0])
    group, pair = torch.tensor([0, 0, 0, 1, 1, 1, 5, 5, 5]), torch.tensor([0] * 6 + [7] * 3)
    seen = method(answer[:6], group[:6], pair[:6])
    yield equal("each phrasing by the other's vote", seen, [0, 0, 1, 0, 0, 1])
    swapped = torch.cat([answer[3:6], answer[:3]])
    yield equal(
        "the same with the answers swapped", method(swapped, group[:6], pair[:6]), torch.cat([seen[3:], seen[:3]])
    )
    changed = answer[:6].index_fill(0, torch.tensor([3, 4, 5]), 0)
    yield equal("the first phrasing once the second says 0", method(changed, group[:6], pair[:6])[:3], [1, 1, 0])
    apart = torch.tensor([0, 1, 2, 0, 0, 0])
    yield equal("a phrasing whose partner is undecided", method(apart, group[:6], pair[:6]), [1, 0, 0, 0, 0, 0])
    alone = method(answer, group, pair)[6:].isnan().double()
    yield equal("no reward, not even 0, without a second phrasing", alone, [1, 1, 1])
    generator = torch.Generator().manual_seed(0)
    start = torch.stack([phrasing(int(mode)) for mode in MODES])
    drawn = torch.multinomial(start, GROUP, replacement=True, generator=generator).flatten()
    rows = adjacent(len(drawn), GROUP)
    votes = vote(drawn, rows).label[::GROUP] == 0
    # Who answers 0 everywhere is paid exactly where the label is 0.
    labels = torch.stack(
        [method(torch.where(rows % 2 == side, 0, drawn), rows, rows // 2)[::GROUP][side::2] for side in (0, 1)], dim=1
    )
    yield equal(
        "right labels of each question, taken together: those of the votes", labels.sum(1), votes.view(-1, 2).sum(1)
    )


def run(method: Any, seeds: int) -> Iterator[Check]:
    """By hand; then locked phrasings against the vote on oneself."""
    yield from by_hand(method)
    initial = torch.stack([phrasing(int(mode)) for mode in MODES])

    def trained(reward: Any) -> tuple[Tensor, Tensor]:
        """Whether each phrasing is locked, and the probability of the right answer: (steps + 1,S,P)."""

        def scored(actions: Tensor, prompt: Tensor) -> Tensor:
            group = adjacent(len(actions), GROUP)
            return reward(actions[:, 0], group, group // 2)

        history = Tabular(initial, scored).train(
            seeds=seeds,
            steps=STEPS,
            group_size=GROUP,
            lr=0.5 * len(initial),
            objective="ppo_clip",
            terms=[{"name": "kl", "beta": 0.005}],
        )
        probs = history.probs[:, :, :, 0]
        locked = (probs.argmax(dim=-1) != 0) & (probs.amax(dim=-1) > LOCKED)
        return locked.double(), probs[..., 0]

    (locked, right), (theirs, right_theirs) = trained(method), trained(own_vote)
    apart = slice(0, len(initial) - SHARED)
    yield paired(
        "share of phrasings locked on a wrong answer, against the vote on oneself",
        locked[-1].mean(dim=-1),
        theirs[-1].mean(dim=-1),
        better="lower",
        margin=0.1,
        curves={"co-reward": locked.mean(dim=-1).T, "own vote": theirs.mean(dim=-1).T},
        axis="share locked on a wrong answer by step",
    )
    yield paired("probability of the right answer", right[-1].mean(dim=-1), right_theirs[-1].mean(dim=-1), margin=0.1)
    yield every_seed(
        "share locked of questions whose phrasings do not mislead to the same answer",
        locked[-1, :, apart].mean(dim=-1),
        below=0.1,
    )
    yield every_seed(
        "share locked where both phrasings mislead to the same answer: the limit of the method",
        locked[-1, :, -SHARED:].mean(dim=-1),
        above=0.5,
        share=0.8,
    )


CLAIM = Claim(
    system="co-reward",
    run=run,
    method=contrastive_reward,
    mutation=Mutation("each phrasing is judged by its own vote", own_vote),
    recipe="""
sampling:
  prompts: 32
  group_size: 8
  max_new_tokens: 8
  sources: [paraphrase]
rewards: [co_reward, {name: task, watch: true}]
terms: [{name: kl, beta: 0.005}]
""",
    seeds=10,
)
