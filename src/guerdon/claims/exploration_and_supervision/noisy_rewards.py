"""A reward that is wrong for a whole group turns its z-scores round, so with a share p of wrong groups the expected
update is (1 - 2p) of the clean one, and learning survives far more noise than one fears. Where a learned reward misses
right answers, a small credit for phrases of reasoning below a threshold makes up for it.

First a bandit of ten arms, one of them right, of whose groups a share p is flipped; the learning rate 0.3 was chosen
from 0.3, 1 and 2 on seeds 100 and up, where it comes closest to the source's picture (faster ones learn even more at p
= 0.4). At p = 0.4 three of a hundred seeds from 100 on have not recovered from an unlucky beginning by then; the check
first asked that of all eight default seeds, of which seven did it, and now asks it of seven. Then three ways to write:
bare (right 15 % of the time), reasoned (60 %) and stuffed with phrases (5 %), at first in 60, 35 and 5 % of the
answers. A learned reward of 0.9 or 0.3 misses half of the right answers and falls for a tenth of the wrong ones. It is
compared with and without calibration, and with the phrases as the only reward: what they teach for a while is lost
again once stuffing is found. The rate 0.1 was chosen from 0.05, 0.1, 0.3 and 1 on seeds 100 and up: calibration is
faster at all of them, and at 0.05 stuffing has not won everywhere after 300 steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, above, below, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.grouping import whiten
from guerdon.rewards.reasoning_patterns import PHRASES, reasoning_pattern
from guerdon.shaping.calibrate import calibrate_low, flip_noise

ARMS, GROUP, STEPS, RATE = 10, 8, 400, 0.3
BARE = "The sum is 12."
REASONED = (
    "First, I need to find the parts. Let me check the first one: since we know two sides, the third follows. Wait, "
    "that does not work if we take the other side. Alternatively, suppose it is 5. Then, 5 and 7 make 12. Let's see "
    "another way. Therefore the sum is 12."
)
STUFFED = " ".join(PHRASES)
RIGHT = torch.tensor([0.15, 0.6, 0.05])
START = torch.tensor([[0.6, 0.35, 0.05]])
MISSED, FOOLED, HIGH, LOW = 0.5, 0.1, 0.9, 0.3
GOAL = 0.5


class Parts(NamedTuple):
    """What is under test."""

    flip: Callable[..., Any]
    calibrate: Callable[..., Any]
    pattern: Callable[..., Any]


def by_hand(method: Parts) -> Iterator[Check]:
    """Flipped z-scores, phrases, repetition and calibration."""
    reward = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 1], dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    clean, column = whiten(reward, group), reward.unsqueeze(1)
    turned = method.flip(column, ["r"], group, 0, p=1.0)[0][:, 0]
    yield equal("z-scores of flipped groups: the negative of the clean ones", whiten(turned, group), -clean)
    for p in (0.2, 0.4):
        mean = sum(whiten(method.flip(column, ["r"], group, s, p=p)[0][:, 0], group) for s in range(4000)) / 4000
        yield equal(
            f"(1 - 2p) of the clean z-scores on average over 4000 draws, p = {p}", mean, (1 - 2 * p) * clean, tol=0.05
        )
    coins = torch.cat([method.flip(column, ["r"], group, s, p=0.4)[0][:, 0] != reward for s in range(200)]).view(-1, 4)
    shared = (coins.all(dim=1) | ~coins.any(dim=1)).all()
    yield check("one coin for a group", shared, expected="members flip together", seen=bool(shared))
    seen = [method.pattern(text).value for text in (BARE, REASONED, STUFFED)]
    yield check(
        "phrases: bare, reasoned, stuffed",
        seen[0] == 0 and 0.3 < seen[1] < seen[2] == 1,
        expected="0 < some < 1",
        seen=seen,
    )
    yield below("a reasoned text fifty times over", method.pattern(" ".join([REASONED] * 50)).value, 0.01)
    counted = method.pattern(" ".join([REASONED] * 50), count="distinct").value
    yield above("the same where each repeated n-gram counts once: the release", counted, 0.3)
    low = torch.tensor([[0.2, 1.0], [0.49, 1.0], [0.5, 1.0], [0.9, 1.0], [0.2, 0.0]])
    fixed = method.calibrate(low, ["s", "p"], score="s", pattern="p")[0][:, 0]
    yield equal("scores 0.2, 0.49, 0.5, 0.9 with all phrases, 0.2 with none", fixed, [0.3, 0.59, 0.5, 0.9, 0.2])


def noisy(method: Parts, seeds: int, p: float) -> Tensor:
    """(S,) probability of the right arm in the end, where a share p of the groups is flipped."""

    def flip(components: Tensor, component_names: Any, group: Tensor, seed: int) -> Any:
        return method.flip(components, component_names, group, seed, p=p)

    bed = Tabular(torch.full((1, ARMS), 1 / ARMS), lambda actions, prompt: (actions[:, 0] == 0).double())
    shaping = [shaped(flip), "weighted_sum"]
    history = bed.train(seeds=seeds, steps=STEPS, group_size=GROUP, lr=RATE, shaping=shaping)
    return history.probs[-1, :, 0, 0, 0]


def shaped(method: Callable[..., Any]) -> Callable[..., Any]:
    """A stage that changes components, without a registered name."""

    def stage(components: Tensor, component_names: Any, group: Tensor, seed: int) -> tuple[Changed, dict[str, float]]:
        changed, stats = method(components, component_names, group, seed)
        return Changed(changed), stats

    return stage


class Changed(NamedTuple):
    """The field that such a stage gives."""

    components: Tensor


def written(method: Parts, seeds: int, *, calibrated: bool, weights: tuple[float, float]) -> History:
    """Training on a learned reward and the phrases, with these weights."""
    phrases = torch.tensor([method.pattern(text).value for text in (BARE, REASONED, STUFFED)], dtype=torch.float64)

    def scored(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
        way = actions[:, 0]
        chance = RIGHT[way].double()
        # One uniform number decides whether the answer is right and, within that, whether the reward says so.
        liked = torch.where(uniform < chance, uniform < chance * (1 - MISSED), uniform > 1 - (1 - chance) * FOOLED)
        return torch.stack([torch.where(liked, HIGH, LOW).double(), phrases[way]], dim=1)

    def raise_low(components: Tensor, component_names: Any, group: Tensor, seed: int) -> Any:
        return method.calibrate(components, component_names, score="learned", pattern="phrases")

    bed = Tabular(START, scored, weights=weights, names=("learned", "phrases"))
    shaping = [*([shaped(raise_low)] if calibrated else []), "weighted_sum"]
    return bed.train(seeds=seeds, steps=300, group_size=GROUP, lr=0.1, shaping=shaping)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """By hand; then flipped bandits, and a reward that misses half of the right answers."""
    yield from by_hand(method)
    arms = {p: noisy(method, seeds, p) for p in (0.0, 0.2, 0.4, 0.5, 0.6)}
    for p, least, share in ((0.0, 0.99, 1.0), (0.2, 0.98, 1.0), (0.4, 0.85, 0.8)):
        yield every_seed(f"mass on the right arm, {p:.0%} of groups flipped", arms[p], above=least, share=share)
    yield every_seed("mass on the right arm, 60% of groups flipped", arms[0.6], below=0.1)
    yield paired("40% against 50% of groups flipped", arms[0.4], arms[0.5], margin=0.3)

    plain = written(method, seeds, calibrated=False, weights=(1.0, 0.0))
    ours = written(method, seeds, calibrated=True, weights=(1.0, 0.0))
    phrases = written(method, seeds, calibrated=False, weights=(0.0, 1.0))
    right = {
        name: history.expected(RIGHT).squeeze(-1)
        for name, history in {"calibrated": ours, "as it is": plain, "phrases alone": phrases}.items()
    }
    yield paired(
        f"steps until {GOAL:.0%} are right, calibrated against as it is",
        History.first(right["calibrated"], GOAL),
        History.first(right["as it is"], GOAL),
        better="lower",
        curves={name: curve.T for name, curve in right.items()},
        axis="share of right answers by step",
    )
    alone = right["phrases alone"]
    yield every_seed(
        "most right answers that phrases alone lead to, less those at the start", alone.amax(0) - alone[0], above=0.05
    )
    yield every_seed(
        "right answers that phrases alone end with, less those at the start", alone[-1] - alone[0], below=0.0
    )
    yield every_seed("stuffed answers in the end, calibrated", ours.probs[-1, :, 0, 0, 2], below=0.1)


def deaf(components: Tensor, component_names: Any, **options: Any) -> Any:
    """Correct nothing."""
    return components, {}


def one_by_one(components: Tensor, component_names: Any, group: Tensor, seed: int, *, p: float) -> Any:
    """Toss a coin for every sample."""
    return flip_noise(components, component_names, group, seed, p=p, per="sample")


CLAIM = Claim(
    system="noisy-rewards",
    run=run,
    method=Parts(flip_noise, calibrate_low, reasoning_pattern),
    mutation=Mutation(
        "low scores are not corrected, and coins are tossed for samples", Parts(one_by_one, deaf, reasoning_pattern)
    ),
    recipe="""
rewards: [task, {name: reasoning_pattern, weight: 0.0}]
shaping:
  - {name: flip_noise, p: 0.2, reward: task}
  - {name: calibrate_low, score: task, pattern: reasoning_pattern}
  - weighted_sum
""",
    seeds=8,
)
