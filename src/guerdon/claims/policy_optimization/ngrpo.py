"""A group in which everything is wrong has no advantages under GRPO, so nothing happens until luck strikes. NGRPO adds
an imagined right answer to the group's statistics: whatever was tried and failed is pushed away, and search goes on.

Learned are prompts with fifty answers, of which the right one has probability 0.01 and the wrong ones fall off as the
square of their rank: the policy is confidently wrong. Every batch is used for two updates, with the published clip.
The gain comes from ruling answers out, so it takes steps that are large enough to do so: at a thirty-second of this
learning rate it is the other way round, for a lone success is worth 2.27 to NGRPO and 2.83 to GRPO. Entropy rises under
failure only where the policy is peaked: a constant push has no mean direction, and from a uniform policy its noise can
only lower the entropy.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.group import grpo, ngrpo

ARMS, RIGHT, PROMPTS, GROUP = 50, 0.01, 32, 8
RATE = 8.0 * PROMPTS
CLIP = {"name": "ppo_clip", "clip_low": 0.16, "clip_high": 0.24}


def without_company(reward: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Imagine nobody."""
    return ngrpo(reward, group, mask, virtual=0, eps=eps)


def credit_of(method: Callable[..., Tensor], right: int) -> tuple[float, float]:
    """Credit of a wrong and of a right answer in a group of eight; nan where there is none."""
    reward = (torch.arange(GROUP) < right).double()
    credit = method(reward, torch.zeros(GROUP).long(), torch.ones(GROUP, 1).bool()).squeeze(1)
    return credit[-1].item(), credit[0].item()


def success(history: History) -> Tensor:
    """Probability (steps + 1, S, P) of the right answer."""
    return history.probs[..., 0, 0]


def samples(history: History) -> Tensor:
    """Samples (S,) of a prompt until its right answer has 90 %, median over the prompts."""
    reached = [History.first(curve, 0.9) for curve in success(history).unbind(dim=-1)]
    return GROUP * torch.stack(reached, dim=-1).quantile(0.5, dim=-1)


def run(method: Callable[..., Any], seeds: int) -> Iterator[Check]:
    """Advantages of small groups, then the search for a rare right answer."""
    for right, wanted in ((0, (-1 / 3, -1 / 3)), (1, (-0.504, 1.764)), (4, (-1.054, 0.843)), (7, (-2.667, 0.333))):
        yield equal(f"a wrong and a right answer, {right} of 8 right", credit_of(method, right), wanted, tol=1e-3)
    yield equal("an answer of a group that is all right", credit_of(method, 8), [0, 0])
    yield equal("GRPO where all are wrong", credit_of(grpo, 0), [0, 0])

    wrong = torch.arange(1, ARMS).double() ** -2
    initial = torch.cat([torch.tensor([RIGHT]).double(), (1 - RIGHT) * wrong / wrong.sum()]).expand(PROMPTS, ARMS)
    bed = Tabular(initial, lambda actions, prompt: (actions[:, 0] == 0).double())
    train = partial(bed.train, seeds=seeds, steps=80, group_size=GROUP, lr=RATE, objective=CLIP, updates=2)
    ours, theirs = train(credit=method), train(credit="grpo")
    yield paired(
        "median samples of a prompt until its right answer has 90 %",
        samples(ours),
        samples(theirs),
        better="lower",
        curves={"ngrpo": success(ours).mean(dim=-1).T, "grpo": success(theirs).mean(dim=-1).T},
        axis="probability of the right answer by step",
    )
    hopeless = Tabular(initial, lambda actions, prompt: torch.zeros(len(actions)))
    fruitless = hopeless.train(
        seeds=seeds, steps=100, group_size=GROUP, lr=RATE, objective=CLIP, updates=2, credit=method
    )
    entropy = fruitless.entropy().mean(dim=-1)
    yield every_seed("entropy gained in 100 steps without a success, in nats", entropy[-1] - entropy[0], above=0.0)


CLAIM = Claim(
    system="ngrpo",
    run=run,
    method=ngrpo,
    mutation=Mutation("no right answer is imagined", without_company),
    recipe="credit: ngrpo\nobjective: {name: ppo_clip, clip_low: 0.16, clip_high: 0.24}\n",
    quick=True,
)
