"""A few tokens cause most of the loss of entropy: credit for likely ones costs it, credit for unlikely ones gives some.
STEER estimates the change that each token makes and lets those weigh less that change entropy most.

Exact are the first-order formula against finite differences and the estimate's correlation with the true change.
Trained are sequences of three symbols out of six, of which 12 are right, from uniform probabilities, on 64 samples for
300 steps. The rate 2 is one of three that were tried on seeds 100 to 104; at 4 and 8 plain PPO has lost its entropy
after 50 steps already, and STEER with a least weight of 0.3 keeps more of it there as well. The default of 0.8 shows
little, as the source says for on-policy training. Weights that are small early slow learning, so PPO at half the rate,
which reaches a success of 0.9 as late as STEER does (after some 150 steps), is a second baseline: it ends with as
little entropy as at the full rate.

The specification's count of right sequences that survive is an average, and so is the check: a first form of it, that
no seed ends with fewer than GRPO, failed on one of the eight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, above, below, equal, every_seed, paired
from guerdon.claims.testbeds.prefixes import Prefixes
from guerdon.objectives.entropy import categorical_entropy
from guerdon.objectives.entropy_change import change_weights, entropy_change, first_order_entropy_change, steer
from guerdon.objectives.policy import ppo_clip

SYMBOLS, LENGTH, RIGHT, STEPS, LR = 6, 3, 12, 300, 2.0


class Parts(NamedTuple):
    """The objective, and the weights in it."""

    objective: Any
    weights: Any


def backwards(omega: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """Weigh those most that change entropy most."""
    largest = omega.abs().masked_fill(~mask.bool(), 0.0).amax()
    return change_weights(largest - omega.abs(), mask, **options)


def steer_backwards(
    logp: Tensor, old_logp: Tensor, entropy: Tensor, advantage: Tensor, mask: Tensor, *, lambda_min: float = 0.8
) -> Any:
    """PPO in which tokens that change entropy most weigh most."""
    omega = entropy_change(logp, old_logp, entropy, advantage, mask)
    weight = backwards(omega, mask, lambda_min=lambda_min)
    return ppo_clip(logp, old_logp, advantage * weight, mask, dual_clip=3.0)


def against_differences(trials: int = 20) -> tuple[float, float]:
    """Largest relative error of the first-order formula, and mean correlation of -Omega with the true change.

    Over random distributions of 12 symbols, each of which is credited and blamed.
    """
    generator = torch.Generator().manual_seed(0)
    errors, agreement = [], []
    tokens, credit = torch.arange(12).repeat(2), torch.tensor([1.0, -1.0]).double().repeat_interleave(12)
    for _ in range(trials):
        logits = torch.randn(12, generator=generator, dtype=torch.float64)
        logp, entropy, lr = logits.log_softmax(dim=0), categorical_entropy(logits), 1e-5
        step = lr * credit.unsqueeze(1) * (torch.nn.functional.one_hot(tokens, 12) - logp.exp())
        true = categorical_entropy(logits + step) - entropy
        first = first_order_entropy_change(logits.expand(24, 12), tokens, credit, lr=lr)
        errors.append(float((first - true).norm() / true.norm()))
        rows = logp[tokens].unsqueeze(0)
        mask = torch.ones_like(rows).bool()
        omega = entropy_change(rows, rows, entropy.expand_as(rows), credit.unsqueeze(0), mask)[0]
        agreement.append(float(torch.corrcoef(torch.stack([-omega, true]))[0, 1]))
    return max(errors), sum(agreement) / trials


def quadrants() -> Tensor:
    """Signs of -Omega: credit and blame for a token of 0.9, then for one of 0.1."""
    probs = torch.tensor([0.9, 0.1], dtype=torch.float64)
    logp = probs.log().repeat_interleave(2).unsqueeze(0)
    entropy = categorical_entropy(probs.log()).expand_as(logp)
    credit = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    return -entropy_change(logp, logp, entropy, credit, torch.ones_like(logp).bool()).sign()[0]


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Formula, estimate and weights; then training."""
    error, agreement = against_differences()
    yield below("relative error of the first-order formula, at worst", error, 1e-3)
    yield above("correlation of the estimate with the true change of entropy", agreement, 0.75)
    wanted = [-1.0, 1.0, 1.0, -1.0]
    yield equal("entropy by credit and blame for a likely token, and for an unlikely one", quadrants(), wanted)
    mask = torch.ones(1, 3, dtype=torch.bool)
    omega = torch.tensor([[0.0, -0.5, 1.0]], dtype=torch.float64)
    yield equal("exponential weights", method.weights(omega, mask)[0], [1.0, 0.8**0.5, 0.8])
    yield equal("linear weights", method.weights(omega, mask, weights="linear")[0], [1.2, 1.0, 0.8])
    yield equal("weights of small changes", method.weights(omega / 100, mask)[0, 2], 0.8**0.5)
    alike = method.weights(torch.ones(1, 3), mask, weights="linear")[0]
    yield equal("linear weights of equal changes", alike, [1.0] * 3)

    chance = torch.zeros(SYMBOLS**LENGTH)
    chance[torch.randperm(len(chance), generator=torch.Generator().manual_seed(7))[:RIGHT]] = 1.0
    bed = Prefixes(SYMBOLS, LENGTH, chance)
    options: dict[str, Any] = {"seeds": seeds, "steps": STEPS, "group_size": 16, "groups": 4, "every": 5}

    gentle, strong = ({"name": method.objective, "lambda_min": least} for least in (0.8, 0.3))
    runs = {
        "grpo": bed.train(**options, lr=LR),
        "grpo at half the rate": bed.train(**options, lr=LR / 2),
        "steer, 0.8": bed.train(**options, lr=LR, objective=gentle),
        "steer, 0.3": bed.train(**options, lr=LR, objective=strong),
    }
    entropy = {name: bed.entropy(lessons.logits) for name, lessons in runs.items()}
    shown = {name: x.T for name, x in entropy.items()}
    axis = "entropy of a sequence in nats, every 5 steps"
    ends = {name: x[-1] for name, x in entropy.items()}
    ours = ends["steer, 0.3"]
    yield paired(f"entropy after {STEPS} steps, least weight 0.3", ours, ends["grpo"], curves=shown, axis=axis)
    yield paired("the same against GRPO at half the rate", ours, ends["grpo at half the rate"])
    found = {name: several(bed, lessons.logits[-1]) for name, lessons in runs.items()}
    what = "right sequences that have more than 1 % in the end, on average"
    yield paired(what, found["steer, 0.3"], found["grpo"], share=0.0)
    yield every_seed("success in the end, least weight 0.3", bed.success(runs["steer, 0.3"].logits[-1]), above=0.95)


def several(bed: Prefixes, logits: Tensor) -> Tensor:
    """(S,) number of right sequences that are written more than once in a hundred times."""
    return ((bed.whole(logits) > 0.01) & (bed.chance > 0)).sum(dim=-1).double()


CLAIM = Claim(
    system="steer",
    run=run,
    method=Parts(steer, change_weights),
    mutation=Mutation("tokens that change entropy most weigh most", Parts(steer_backwards, backwards)),
    recipe="objective: {name: steer, lambda_min: 0.3}\n",
    seeds=8,
)
