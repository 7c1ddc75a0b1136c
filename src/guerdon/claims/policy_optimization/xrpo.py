"""XRPO spends its rollouts where they tell most, helps prompts that only fail with solved ones like them, and gives
more credit to right answers that the policy found unlikely.

The allocator is tried on twenty prompts with 0/1 rewards, by how well their success rates are known after 320 rollouts,
against 16 for each. Most of what could be won is lost because the spread has to be guessed from the same few rewards:
about 1 % of the squared error remains. Sharpening is tried on prompts with a common and a rare right answer, of
probability 0.3 and 0.02, against GRPO. Both let the rare one fade, sharpening a little more slowly.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.novelty import novelty_sharpen
from guerdon.sampling.allocation import ConfidenceAllocator, Tally, confidence_gain
from guerdon.sampling.hints import SolvedStore, seed_with_solved
from guerdon.seeding import torch_generator

PROMPTS, EACH, TRIALS = 20, 16, 800
COPIES = 16
START = torch.tensor([0.3, 0.02, 0.17, 0.17, 0.17, 0.17])  # two right answers, then four wrong ones


class Parts(NamedTuple):
    """What is under test."""

    allocator: Callable[..., ConfidenceAllocator]
    sharpen: Callable[..., Any]


def even(**options: Any) -> ConfidenceAllocator:
    """Let having been tried little decide alone."""
    changed: dict[str, Any] = options | {"bonus": 1e6}
    return ConfidenceAllocator(**changed)


def favour_the_likely(
    advantage: Tensor, reward: Tensor, group: Tensor, old_logp: Tensor, mask: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Turn the bonus round."""
    return novelty_sharpen(advantage, reward, group, -old_logp, mask)


def squared_errors(allocator: ConfidenceAllocator, rates: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Squared error (PROMPTS,) of the estimated rates, with rollouts shared out and with as many for each prompt."""
    uniform = torch.rand(PROMPTS, PROMPTS * EACH, generator=generator, dtype=torch.float64)
    reward, position = (uniform < rates.unsqueeze(1)).double(), torch.arange(PROMPTS * EACH)
    given = torch.full((PROMPTS,), allocator.initial)
    for phase in range(1, allocator.phases):
        seen = position < given.unsqueeze(1)
        mean = (reward * seen).sum(dim=1) / given
        spread = (((reward - mean.unsqueeze(1)) ** 2 * seen).sum(dim=1) / (given - 1)).sqrt()
        known = Tally(torch.arange(PROMPTS), given, mean, spread)
        given = given + allocator(known, allocator.share(PROMPTS, phase))
    estimate = (reward * (position < given.unsqueeze(1))).sum(dim=1) / given
    return (estimate - rates) ** 2, (reward[:, :EACH].mean(dim=1) - rates) ** 2


def sharpened(sharpen: Callable[..., Any], distance: float) -> float:
    """New credit of a right answer of credit 1 whose score lies this far from its group's mean."""
    old_logp = torch.tensor([[distance - 1], [-distance - 1]], dtype=torch.float64)
    advantage, reward = torch.tensor([[1.0], [0.0]], dtype=torch.float64), torch.tensor([1.0, 0.0])
    return sharpen(advantage, reward, torch.zeros(2).long(), old_logp, torch.ones(2, 1).bool())[0][0, 0].item()


def run(parts: Parts, seeds: int) -> Iterator[Check]:
    """Gains, credit and hints by hand; then estimation and training."""
    gain = confidence_gain(torch.full((4,), 0.5, dtype=torch.float64), torch.tensor([2, 4, 8, 16]))
    yield equal("gain of one more rollout at 2, 4, 8, 16", gain, [3.25, 0.175, 0.034, 0.009], tol=1e-3)
    seen = [sharpened(parts.sharpen, distance) for distance in (-0.5, -0.1, 0.2)]
    yield equal("credit of a right answer 0.5 and 0.1 below the mean, and 0.2 above", seen, [1.5, 1.238, 1.0], tol=1e-3)
    store = SolvedStore()
    store.add(["spell tiger backward", "spell lion backward", "add 3 and 4"], ["regit", "noil", "7"])
    hint = seed_with_solved("spell zebra backward", store, form="{solution} ")
    both = set(hint.split()[:2]) == {"regit", "noil"}
    yield check("hint for 'spell zebra backward'", both, expected="regit and noil", seen=hint)
    plain = seed_with_solved("?!", store)
    yield check("hint where nothing is similar", plain == "?!", expected="?!", seen=plain)

    allocator, rates = parts.allocator(initial=8, budget=EACH), torch.linspace(0.025, 0.975, PROMPTS).double()
    undecided = (rates > 0.25) & (rates < 0.75)
    errors = []
    for seed in range(seeds):
        generator = torch_generator(seed, "xrpo")
        trials = [torch.stack(squared_errors(allocator, rates, generator)) for _ in range(TRIALS)]
        errors.append(torch.stack(trials).mean(dim=0)[:, undecided].mean(dim=1))
    ours, each = torch.stack(errors).unbind(dim=1)
    yield paired(f"squared error of rates from .25 to .75, {TRIALS} trials a seed", ours, each, better="lower")

    bed = Tabular(START.expand(COPIES, 6), lambda actions, prompt: (actions[:, 0] < 2).double())
    train = partial(bed.train, seeds=seeds, steps=100, group_size=8, lr=0.25 * COPIES)

    def mass(history: History, answers: slice) -> Tensor:
        """Probability (S, steps + 1) of some answers."""
        return history.probs[..., 0, answers].sum(dim=-1).mean(dim=-1).T

    sharp, grpo = train(credit=["grpo", parts.sharpen]), train(credit="grpo")
    rare = {"xrpo": mass(sharp, slice(1, 2)), "grpo": mass(grpo, slice(1, 2))}
    axis = "probability of the rare right answer by step"
    yield paired("mass of the rare right answer", rare["xrpo"][:, -1], rare["grpo"][:, -1], curves=rare, axis=axis)
    right = [mass(history, slice(0, 2))[:, -1] for history in (sharp, grpo)]
    yield paired("success is within 1 point of GRPO's", *right, margin=-0.01, share=1.0)


CLAIM = Claim(
    system="xrpo",
    run=run,
    method=Parts(ConfidenceAllocator, novelty_sharpen),
    mutation=Mutation("the spread of rewards is ignored, and likely answers gain", Parts(even, favour_the_likely)),
    recipe="credit: [grpo, novelty_sharpen]\n",
)
