"""Common and easy cases get as much effort as rare and hard ones. GRPO-S multiplies the advantage by a factor for each
prompt, larger where answers lie far from the demonstration; the reward is learned from demonstrations, by inverse RL.

Of 100 problems five belong to a rare category that starts at an accuracy of 0.05, the others at 0.3; a verifier scores
them and the demonstration is the right answer. The baseline is GRPO. The hardness does the work. The part of the
factor that follows the gap between demonstration and answer slows a category down while it learns, as its usual gap is
that of earlier and worse answers: half-way the common category is up to 5 points behind. With the sign of the gap
turned around it helps, and that is checked too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import Tabular
from guerdon.credit.group import grpo
from guerdon.credit.grouping import per_action, whiten
from guerdon.credit.scale import DynamicScale
from guerdon.reward_models.train import FinitePolicy, ml_irl
from guerdon.rewards.text import sentence_coverage
from guerdon.seeding import torch_generator

PROBLEMS, RARE, ANSWERS = 100, 5, 8
EXPERT = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])


class Parts(NamedTuple):
    """The scale of credit, and the learning of rewards."""

    scale: Any
    irl: Any


class Bandit(nn.Module):
    """One reward for each of six actions."""

    def __init__(self) -> None:
        super().__init__()
        self.reward = nn.Parameter(torch.zeros(len(EXPERT)))

    def forward(self, actions: Tensor) -> Tensor:
        """Rewards of actions."""
        return self.reward[actions]


def agreement(irl: Any, seed: int) -> float:
    """Correlation of the learned reward with the log-probabilities of the expert, seen in batches of 256."""
    generator = torch_generator(seed, "dr-irl")
    model = Bandit()
    policy = FinitePolicy(torch.full_like(EXPERT, 1 / len(EXPERT)), batch=256, generator=generator)
    irl(model, lambda: torch.multinomial(EXPERT, 256, replacement=True, generator=generator), policy, rounds=200)
    return float(torch.corrcoef(torch.stack([model.reward.detach(), EXPERT.log()]))[0, 1])


def initial() -> Tensor:
    """(P,A): answer 0 is right."""
    right = torch.full((PROBLEMS, 1), 0.3, dtype=torch.float64)
    right[-RARE:] = 0.05
    return torch.cat([right, ((1 - right) / (ANSWERS - 1)).expand(-1, ANSWERS - 1)], dim=1)


def score(actions: Tensor, prompt: Tensor) -> Tensor:
    """(N,2): right or wrong, and how well the demonstration is covered, which is the same here."""
    return (actions[:, :1] == 0).double().expand(-1, 2)


BED = Tabular(initial(), score, weights=(1.0, 0.0), names=("task", "coverage"))


def by_category(scale: Any) -> Any:
    """The scale with the category of each problem known."""

    class ByCategory(scale):
        """Reads the category off the problem's number."""

        def __call__(
            self,
            advantage: Tensor,
            reward: Tensor,
            group: Tensor,
            components: Tensor,
            component_names: Any,
            task_id: Tensor,
        ) -> Any:
            """Scale."""
            kinds = [{"kind": "rare" if problem >= PROBLEMS - RARE else "common"} for problem in task_id.tolist()]
            return super().__call__(advantage, reward, group, components, component_names, kinds)

    return ByCategory


def factors(scale: Any, coverage: list[float], rewards: list[float], **options: Any) -> Tensor:
    """Factors of two prompts with two answers each, after a batch with gaps of 0.5."""
    method = scale(coverage="coverage", **options)
    group, mask = torch.tensor([0, 0, 1, 1]), torch.ones(4, 1, dtype=torch.bool)
    out = torch.zeros(0)
    for earned in ([1.0, 0.0, 1.0, 0.0], rewards):
        reward = torch.tensor(earned, dtype=torch.float64)
        components = torch.stack([reward, torch.tensor(coverage, dtype=torch.float64)], dim=1)
        advantage = grpo(reward, group, mask)
        out = method(advantage, reward, group, components, ("task", "coverage"))[0] / advantage
    return out[::2, 0]


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Factors by hand, a reward learned from an expert, and a rare category."""
    usual = [1.0, 0.0, 1.0, 0.0]
    yield equal("nothing unusual: the advantage is GRPO's", factors(method.scale, [0.6] * 4, usual), [1.0, 1.0])
    hard = factors(method.scale, [0.9, 0.9, 0.1, 0.1], usual)
    by_hand = torch.tensor([0.1, 0.9]).sigmoid() / torch.tensor(0.5).sigmoid()
    yield equal("the factor by hand: hardness 0.1 and 0.9", hard, by_hand, tol=1e-3)
    wide = factors(method.scale, [0.6] * 4, [0.5, 0.0, 0.5, 0.0])
    by_hand = torch.tensor([0.75, 0.5]).sigmoid()
    yield equal("and for a gap of 0.75 that used to be 0.5", wide, (by_hand[0] / by_hand[1]).expand(2), tol=1e-3)
    easy = factors(method.scale, [0.9, 0.9, 0.1, 0.1], usual, hardness_sign=-1)
    by_hand = torch.tensor([-0.1, -0.9]).sigmoid() / torch.tensor(-0.5).sigmoid()
    yield equal("with the sign of the hardness turned", easy, by_hand, tol=1e-3)
    said, wanted = ["One. Two."], ["Two. One. Four."]
    covered = sentence_coverage(said, wanted, similarity=lambda a, b: [x == y for x, y in zip(a, b, strict=True)])
    yield equal("two of three sentences covered", covered, [2 / 3])
    learned = [agreement(method.irl, seed) for seed in range(seeds)]
    yield every_seed("inverse RL on 6 actions: correlation of r with log pi_expert", learned, above=0.95)

    def accuracy(*scale: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(steps + 1, S) of the common and of the rare category."""
        credit = ["grpo", *({"name": by_category(method.scale), **options} for options in scale)]
        settings: Mapping[str, Any] = {"steps": 50, "group_size": 8, "lr": 0.2 * PROBLEMS, "per_seed": bool(scale)}
        right = BED.train(seeds=seeds, credit=credit, **settings).probs[:, :, :, 0, 0]
        return right[..., :-RARE].mean(dim=2), right[..., -RARE:].mean(dim=2)

    known = {"coverage": "coverage", "category": "kind"}
    common, rare = accuracy(known)
    grpo_common, grpo_rare = accuracy()
    curves = {"GRPO-S": rare.T, "GRPO": grpo_rare.T}
    yield paired("rare category", rare[-1], grpo_rare[-1], margin=0.01, curves=curves, axis="rare accuracy by step")
    yield paired("common category, within 2 points", common[-1], grpo_common[-1], margin=-0.02)
    _, turned = accuracy({**known, "gap_sign": -1})
    yield paired("rare category with the sign of the gap turned", turned[-1], rare[-1], margin=0.01)


class ScaledRewards(DynamicScale):
    """The factor multiplies the rewards, before the z-score inside the group."""

    def __call__(self, advantage: Tensor, reward: Tensor, group: Tensor, *more: Any) -> tuple[Tensor, dict[str, float]]:
        """Scale and normalise again."""
        acted = torch.ones_like(advantage, dtype=torch.bool)
        factor, stats = super().__call__(torch.ones_like(advantage), reward, group, *more)
        return per_action(whiten(factor[:, 0] * reward, group), acted), stats


def unopposed(reward: nn.Module, demonstrations: Any, policy: FinitePolicy, **options: Any) -> list[float]:
    """Inverse RL against a policy that never improves on the reward."""
    policy.rate = 0.0
    return ml_irl(reward, demonstrations, policy, **options)


CLAIM = Claim(
    system="dr-irl",
    run=run,
    method=Parts(DynamicScale, ml_irl),
    mutation=Mutation(
        "the factor multiplies the rewards, so the z-score cancels it; rewards are learned against a policy that stays",
        Parts(ScaledRewards, unopposed),
    ),
    recipe="""
rewards: [task, {name: sentence_coverage, weight: 0.0}]
credit: [grpo, dynamic_scale]
terms: [{name: kl, beta: 0.01}]
""",
    seeds=10,
    quick=False,
)
