"""The mean of four rollouts is a noisy baseline, and a value model may be wrong. V0.5 mixes both: the prior counts
fully within one standard error of the mean and less and less beyond, and prompts on which the two conflict get more
rollouts.

Squared errors, gradient noise and rollouts spent are exact, over all outcomes of four and more draws. Trained are
prompts with a right and a wrong answer, with the success rate as the honest prior, and random numbers as the other
one. Baselines are GRPO, and the mean alone at the same scale: most of the gain over GRPO comes from dividing the credit
by its spread over the batch, where silent groups don't shrink the step; the prior adds the rest.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, above, below, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.baseline import ShrinkageBaseline
from guerdon.credit.group import grpo
from guerdon.credit.grouping import center, per_action
from guerdon.reward_models.value import InContextValue
from guerdon.sampling.allocation import OneStepBudget
from guerdon.seeding import torch_generator

GROUP, PROMPTS, START = 4, 16, 0.1
MEAN_ALONE = {"name": "reinforce++_baseline", "unit": "trajectory", "ddof": 1}


class MeanAlone(ShrinkageBaseline):
    """Forget the prior."""

    def __call__(self, reward: Tensor, group: Tensor, mask: Tensor, *others: Any) -> tuple[Tensor, dict[str, float]]:
        credit = center(reward, group)
        return per_action(credit / (credit.std() + 1e-8) if self.scale else credit, mask), {}


def outcomes(p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Every outcome of four draws: its probability (16,), the rewards (64,) and their groups (64,)."""
    every = torch.tensor(list(product((0.0, 1.0), repeat=GROUP)), dtype=torch.float64)
    chance = (every * p + (1 - every) * (1 - p)).prod(dim=1)
    return chance, every.reshape(-1), torch.arange(len(every)).repeat_interleave(GROUP)


def credit_of(method: Callable[..., Any], prior: float, reward: Tensor, group: Tensor) -> Tensor:
    """Credit (N,) under a prior."""
    return method(prior=prior, rate=0.0)(reward, group, torch.ones(len(reward), 1).bool(), group)[0].squeeze(1)


def baseline_error(method: Callable[..., Any], p: float, prior: float) -> float:
    """Mean squared error of the baseline as an estimate of the success rate."""
    chance, reward, group = outcomes(p)
    baseline = (reward - credit_of(method, prior, reward, group))[::GROUP]
    return float((chance * (baseline - p) ** 2).sum())


def noise(credit: Tensor, p: float) -> float:
    """Variance of the gradient of a prompt with two answers, over its squared mean."""
    chance, reward, _ = outcomes(p)
    gradient = (credit * (reward - p)).reshape(-1, GROUP).mean(dim=1)
    mean = (chance * gradient).sum()
    return float((chance * (gradient - mean) ** 2).sum() / mean**2)


def rollouts_spent(p: float, prior: float) -> float:
    """Expected number of rollouts, from four up, until none is asked for."""
    budget, spent = OneStepBudget(), 0.0
    chance = torch.tensor([math.comb(GROUP, k) * p**k * (1 - p) ** (GROUP - k) for k in range(GROUP + 1)]).double()
    for n in range(GROUP, budget.most + 1):
        mean = torch.arange(n + 1).double() / n
        more = budget(mean, torch.full_like(mean, n), torch.full_like(mean, prior))
        spent += n * float(chance[~more].sum())
        going = torch.where(more, chance, 0.0)
        chance = torch.cat([going * (1 - p), going.new_zeros(1)]) + torch.cat([going.new_zeros(1), going * p])
    return spent


def told(method: Callable[..., Any], honest: bool) -> type:
    """A credit that is told the success rate of each prompt, or a random number."""

    class Told:
        def __init__(self) -> None:
            self.baseline = method(key="rate", scale=True)

        def __call__(
            self,
            reward: Tensor,
            group: Tensor,
            mask: Tensor,
            task_id: Tensor,
            tokens: Tensor,
            old_logp: Tensor,
            step: int,
        ) -> tuple[Tensor, dict[str, float]]:
            chosen = old_logp[:, 0].exp()
            rates = torch.where(tokens[:, 0] == 0, chosen, 1 - chosen)
            if not honest:
                rates = torch.rand(PROMPTS, generator=torch_generator(step, "random prior")).double()[task_id]
            return self.baseline(reward, group, mask, task_id, None, [{"rate": rate} for rate in rates.tolist()])

    return Told


def run(method: Callable[..., Any], seeds: int) -> Iterator[Check]:
    """Errors, noise and budgets over all outcomes, then training."""
    for p, prior, wanted in ((0.5, 0.5, 0.018), (0.5, 0.4, 0.025), (0.2, 0.3, 0.011), (0.1, 0.9, 0.0263)):
        seen = baseline_error(method, p, prior)
        yield equal(f"squared error of the baseline at success rate {p:g}, prior {prior:g}", seen, wanted, tol=1e-3)
    spent = rollouts_spent(0.1, 0.9) - rollouts_spent(0.5, 0.5)
    yield above("rollouts spent more on rate .1 with prior .9 than on .5 with .5", spent, 0.0)
    rates = [0.05, 0.1, 0.3, 0.5, 0.7, 0.9]
    plain = {p: noise(grpo(*outcomes(p)[1:], torch.ones(64, 1).bool()).squeeze(1), p) for p in rates}
    honest = [noise(credit_of(method, p, *outcomes(p)[1:]), p) / plain[p] for p in rates]
    yield below("gradient noise against GRPO's with an honest prior, at worst", max(honest), 1.0)
    priors = torch.linspace(0.05, 0.95, 10).tolist()
    random = [sum(noise(credit_of(method, v, *outcomes(p)[1:]), p) for v in priors) / 10 / plain[p] for p in rates]
    yield below("with a random prior, at worst", max(random), 1.1)

    value = InContextValue(head="logistic")
    prompts = [f"add {i} and {i + 1}" for i in range(9)] + [f"spell word{i} backward" for i in range(9)]
    guesses = []
    for able in (0.9, 0.1):  # the policy unlearns to add, and learns to spell
        value.observe(prompts, torch.tensor([able] * 9 + [1 - able] * 9))
        guesses += value(["add 20 and 21", "spell zebra backward"]).tolist()
    follows = guesses[0] > 0.5 > guesses[1] and guesses[2] < 0.5 < guesses[3]
    seen = ", ".join(f"{guess:.2f}" for guess in guesses)
    yield check("the value model follows its support", follows, expected="high, low; low, high", seen=seen)

    bed = Tabular(torch.tensor([START, 1 - START]).expand(PROMPTS, 2), lambda actions, prompt: 1.0 - actions[:, 0])
    settings: dict[str, Any] = {"seeds": seeds, "steps": 60, "group_size": GROUP, "lr": 0.5 * PROMPTS, "per_seed": True}
    credits: dict[str, Any] = {
        "honest prior": told(method, True),
        "random prior": told(method, False),
        "grpo": "grpo",
        "mean alone": MEAN_ALONE,
    }
    curves = {name: bed.train(credit=c, **settings).probs[..., 0, 0].mean(dim=-1) for name, c in credits.items()}
    samples = {name: GROUP * History.first(curve, 0.9) for name, curve in curves.items()}
    shown, axis = {name: curve.T for name, curve in curves.items()}, "success by step"
    what = "samples of a prompt until 90 % success"
    honest, mean = samples["honest prior"], samples["mean alone"]
    yield paired(what, honest, samples["grpo"], better="lower", curves=shown, axis=axis)
    yield paired(f"{what}, against the mean alone", honest, mean, better="lower")
    ratio = samples["random prior"] / samples["grpo"]
    yield every_seed(f"{what} with a random prior, in GRPO's", ratio, below=1.1)


CLAIM = Claim(
    system="v0.5",
    run=run,
    method=ShrinkageBaseline,
    mutation=Mutation("the prior is forgotten", MeanAlone),
    recipe="""
sampling: {prompts: 128, group_size: 4, max_new_tokens: 8}
credit: {name: shrinkage_baseline, predictor: "guerdon.reward_models.value:InContextValue", scale: true}
""",
    seeds=8,
)
