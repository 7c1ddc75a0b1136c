"""What a policy never does it is never rewarded for. RL-PLUS adds a right answer from outside to every group, with an
importance weight that stays bounded though nobody knows how likely that answer was where it came from.

Prompts share weights. On half of them the policy writes the one right answer with probability 6e-6, on the other half
one of four first symbols is enough, and it has half of its mass there. GRPO never solves a hard prompt, RL-PLUS solves
some. Not reproduced: it does not learn them faster than GRPO with an imitation loss of weight 1. With the uniform part
of its mixture taken as 1 the weight of an unlikely action is close to 4 pi, so what is least likely is taught least,
and some hard prompts fade away. It does keep more of the right answers to easy prompts than imitation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, below, equal, every_seed, paired
from guerdon.claims.testbeds.shared import Answers, Shared
from guerdon.objectives.off_policy import rl_plus

EACH, LENGTH, SYMBOLS, COMMON, RARE = 8, 4, 8, 0.2, 0.05
EASY, HARD = slice(0, EACH), slice(EACH, 2 * EACH)
MODES = torch.tensor([0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
PROBABILITIES = torch.tensor([1e-6, 0.01, 0.1, 0.5, 1.0], dtype=torch.float64)


def plain_ratio(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    external: Tensor,
    *,
    gamma: float = 0.5,
    max_length: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """RL-PLUS without the uniform part of the mixture, and with the same credit for likely and unlikely actions."""
    return rl_plus(logp, old_logp, advantage, mask, external, gamma=0.0, uniform=1e-9, max_length=max_length)


def imitation(logp: Tensor, external: Tensor) -> Tensor:
    """Cross-entropy of demonstrations, per action."""
    return -logp[external].mean()


def demonstrated(method: Callable[..., Any], old: Tensor, now: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """What single external actions of advantage 1 add to the objective, and its slope in their log-probability."""
    logp = now.log().unsqueeze(1).requires_grad_()
    credit, one = torch.ones_like(logp.detach()), torch.ones_like(logp, dtype=torch.bool)
    gain = torch.stack(
        [
            -method(logp[i : i + 1], old.log().view(-1, 1)[i : i + 1], credit[:1], one[:1], one[:1], **options)[0]
            for i in range(len(now))
        ]
    )
    slope = torch.autograd.grad(gain.sum(), logp, allow_unused=True)[0] if gain.requires_grad else None
    return gain.detach(), torch.zeros_like(gain) if slope is None else slope[:, 0]


def prompts() -> tuple[Shared, Tensor]:
    """Easy prompts, of which four first symbols are right, and hard ones; and a demonstration (P,T) of each."""
    target = torch.randint(SYMBOLS, (2 * EACH, LENGTH), generator=torch.Generator().manual_seed(5))
    target[EASY, 0] %= 4
    right = torch.ones(2 * EACH, LENGTH, SYMBOLS, dtype=torch.bool)
    right[EASY, 0, 4:] = False
    right[HARD] = torch.nn.functional.one_hot(target[HARD], SYMBOLS).bool()
    start = torch.full((2 * EACH, LENGTH, SYMBOLS), 1 / SYMBOLS, dtype=torch.float64)
    start[EASY, 0, :4] = MODES
    start[HARD] = torch.where(right[HARD], RARE, (1 - RARE) / (SYMBOLS - 1)).double()
    own, common = torch.eye(2 * EACH) * (1 - COMMON) ** 0.5, torch.full((2 * EACH, 1), COMMON**0.5)
    return Shared(start, torch.cat([own, common], dim=1), right), target


def run(method: Any, seeds: int) -> Iterator[Check]:
    """The weight by hand, then hard prompts with a demonstration each."""
    on, free = PROBABILITIES[[1, 4]], {"gamma": 0.0, "max_length": 1}
    gain, slope = demonstrated(method, on, on, **free)
    yield equal("weight at probability 0.01 and 1", gain, [0.0388, 1.0], tol=1e-4)
    yield equal("its slope in log pi", slope, [0.0388, 1.0], tol=1e-4)
    gain, _ = demonstrated(method, torch.zeros(5, dtype=torch.float64), PROBABILITIES, **free)
    yield below("largest weight of an action that was impossible before", gain.max(), 4 + 1e-9)
    _, focused = demonstrated(method, PROBABILITIES, PROBABILITIES, gamma=0.5, max_length=1)
    _, plain = demonstrated(method, PROBABILITIES, PROBABILITIES, **free)
    yield equal("credit kept at these probabilities", focused / plain, (1 - PROBABILITIES).sqrt(), tol=1e-6)

    bed, target = prompts()
    settings: dict[str, Any] = {"seeds": seeds, "steps": 200, "lr": 40.0, "credit": "dr_grpo", "optimizer": "sgd"}
    plain_objective = {"name": "reinforce", "aggregate": "sum_over_max_length", "max_length": LENGTH}
    shown = Answers(torch.arange(2 * EACH).expand(seeds, -1), target.expand(seeds, -1, -1))
    beside = {"group_size": 7, "shown": shown, **settings}
    grpo = bed.train(group_size=8, objective=plain_objective, **settings)
    plus = bed.train(objective={"name": method, "max_length": LENGTH}, **beside)
    imitated = bed.train(objective=plain_objective, terms=[imitation], **beside)

    def solved(history: Tensor) -> Tensor:
        """(S, steps + 1) success on hard prompts."""
        return bed.solved(history)[:, :, HARD].mean(dim=-1).T

    def found(history: Tensor) -> Tensor:
        """(S,) share of the right first symbols of easy prompts that 16 samples hold on average."""
        return (1 - (1 - history[-1, :, EASY, 0, :4]) ** 16).mean(dim=(1, 2))

    def any_of_16(history: Tensor, step: int) -> Tensor:
        """(S,) share of prompts of which one of 16 samples is right."""
        return (1 - (1 - bed.solved(history)[step]) ** 16).mean(dim=-1)

    curves = {"rl-plus": solved(plus), "grpo": solved(grpo), "grpo and imitation": solved(imitated)}
    yield every_seed("GRPO's success on hard prompts", curves["grpo"][:, -1], below=0.01)
    what, axis = "success on hard prompts", "success on hard prompts by step"
    yield paired(f"{what}, against GRPO", curves["rl-plus"][:, -1], curves["grpo"][:, -1], curves=curves, axis=axis)
    yield paired(f"{what}, against GRPO and imitation", curves["rl-plus"][:, -1], curves["grpo and imitation"][:, -1])
    yield paired("any of 16 answers right, against the start", any_of_16(plus, -1), any_of_16(plus, 0))
    yield paired("right answers found on easy prompts, against GRPO and imitation", found(plus), found(imitated))


CLAIM = Claim(
    system="rl-plus",
    run=run,
    method=rl_plus,
    mutation=Mutation("external actions have an unbounded ratio, and likely ones keep their credit", plain_ratio),
    recipe="""
sampling: {prompts: 64, group_size: 7, max_new_tokens: 8, sources: [demonstrations]}
credit: dr_grpo
objective: rl_plus
terms: [{name: entropy, beta: 0.001}]
""",
)
