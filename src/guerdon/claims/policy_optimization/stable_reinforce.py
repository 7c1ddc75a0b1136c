"""StableReinforce keeps single samples from blowing up a batch: the ratio is bounded before PPO clips it, and credit
more than three standard deviations out is dropped. A judge in training is also paid for verdicts that follow from its
rationale.

In training, one score in a hundred is a fault of ±50 that says nothing about the answer; REINFORCE++, which whitens
over the batch and keeps everything, is the baseline. The price shows in the exact checks: a rare success is an outlier
too, and only the option ``outside: clip`` keeps its credit.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, below, check, equal, paired
from guerdon.claims.testbeds.tabular import Tabular
from guerdon.credit import outlier
from guerdon.objectives import off_policy
from guerdon.objectives.policy import Objective, surrogate
from guerdon.rewards.consistency import consistency_score

START = torch.tensor([0.25, 0.30, 0.25, 0.20])  # the last answer is right
FAULTS, SIZE, PROMPTS, BATCHES = 0.01, 50.0, 64, 100


class Parts(NamedTuple):
    """What keeps a run stable."""

    objective: Callable[..., Objective]
    credit: Callable[..., tuple[Tensor, dict[str, float]]]
    score: Callable[[Tensor, Tensor, Tensor], Tensor]


def unbounded(logp: Tensor, old_logp: Tensor, advantage: Tensor, mask: Tensor) -> Objective:
    """PPO's clip alone."""
    return surrogate(logp, old_logp, advantage, mask, hi_pos=1.2, lo_neg=0.8, max_log_ratio=float("inf"))


def unfiltered(reward: Tensor, mask: Tensor, *, outside: str = "zero") -> tuple[Tensor, dict[str, float]]:
    """Batch whitening alone."""
    return outlier.stable_reinforce(reward, mask, sigmas=1e9)


def added(form: Tensor, accuracy: Tensor, consistency: Tensor) -> Tensor:
    """Consistency pays whether or not the verdict is right."""
    return 0.5 * form + accuracy + 0.5 * consistency


def exploded(objective: Callable[..., Objective]) -> tuple[float, float]:
    """Loss and gradient of one action of credit -2 whose log-probability rose by 200."""
    logp = torch.tensor([[200.0]]).requires_grad_()
    loss, _ = objective(logp, torch.zeros(1, 1), torch.tensor([[-2.0]]), torch.ones(1, 1).bool())
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.item(), gradient.item()


def score(actions: Tensor, prompt: Tensor, noise: Tensor) -> Tensor:
    """1 for the right answer, 0 for others; a fault of either sign now and then."""
    fault = torch.where(noise < FAULTS / 2, SIZE, -SIZE)
    return torch.where(noise < FAULTS, fault, (actions[:, 0] == 3).double())


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Ratio, filter and reward by hand, then a batch with faulty scores."""
    plain, _ = exploded(unbounded)
    yield check("loss of PPO's clip alone at log-ratio 200, A = -2", plain == float("inf"), expected="inf", seen=plain)
    loss, gradient = exploded(method.objective)
    yield below("loss with the ratio bounded before", loss, 2e3 * (1 + 1e-5))
    yield equal("its gradient", gradient, 0.0)

    reward, mask = torch.tensor([1.0] * 255 + [0.0], dtype=torch.float64), torch.ones(256, 1).bool()
    whitened, _ = unfiltered(reward, mask)
    yield equal("whitened credit of one wrong answer among 255 right ones", whitened[-1], [-15.94], tol=0.01)
    credit, stats = method.credit(reward, mask)
    yield equal("filtered credit of that answer", credit[-1], [0.0])
    yield equal("the right ones keep theirs", credit[:-1], whitened[:-1])
    yield equal("share that was dropped", stats.get("outliers", 0.0), 1 / 256)
    rare, _ = method.credit(1 - reward, mask, outside="clip")
    yield equal("a single right answer keeps 3 with outside: clip", rare[-1], [3.0])

    table = torch.tensor([[1.0, 1, 1], [1, 1, -1], [1, 0, 1], [1, 0, -1], [1, 1, 0], [0, 1, 1], [0, 0, 1]])
    rewards = method.score(*table.unbind(dim=1))
    yield equal("rewards of (form, accuracy, consistency)", rewards, [2.0, 1.0, 0.5, 0.5, 1.5, 1.5, 0.0])

    bed = Tabular(START.repeat(PROMPTS, 1), score)
    train = partial(bed.train, seeds=seeds, steps=BATCHES, group_size=8, lr=4.0 * PROMPTS, per_seed=True)
    ours, theirs = (
        train(credit=credit, objective=objective).probs[..., 0, 3].mean(dim=-1).T
        for credit, objective in ((method.credit, method.objective), ("reinforce++", "ppo_clip"))
    )
    yield paired(
        "accuracy after training with 1 % faulty scores of ±50",
        ours[:, -1],
        theirs[:, -1],
        share=1.0,
        curves={"stable reinforce": ours, "reinforce++": theirs},
        axis="probability of the right answer by batch",
    )


CLAIM = Claim(
    system="stable-reinforce",
    run=run,
    method=Parts(off_policy.stable_reinforce, outlier.stable_reinforce, consistency_score),
    mutation=Mutation(
        "no bound on the ratio, no filter, and consistency is added instead of multiplied",
        Parts(unbounded, unfiltered, added),
    ),
    recipe="credit: stable_reinforce\nobjective: stable_reinforce\nterms: [{name: kl, beta: 0.001}]\n",
    quick=True,
)
