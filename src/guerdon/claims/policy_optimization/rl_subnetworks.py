"""Reinforcement learning leaves many weights of a model as they are in bfloat16, changes nearly the same ones whatever
the seed, and loses nothing if it is confined to them from the start.

A pretrained transformer of 100,000 weights is trained for 200 steps by GRPO, and by imitation of right answers in
capitals, which it seldom writes, both at a learning rate of 3e-6. At 1e-5 it gains three times as much, but the
difference in sparsity shrinks below 0.2 and chance explains nearly all of the overlap. Much is a matter of precision:
in float32 hardly a weight stays as it was. A model that is read in bfloat16 does not see what training did off the
mask, so a mask of what changed could be expected to keep the gain; as many weights at random keep a good half of it.
That imitated answers are likely to begin with (in the own case) explains about a fifth of the difference in sparsity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from guerdon.claims.core import Check, Claim, Mutation, below, check, equal, every_seed, paired
from guerdon.claims.testbeds.pretrained import Weights, by_imitation, by_reward, pretrained, served, success, train
from guerdon.seeding import torch_generator
from guerdon.sparsity.masks import MaskedUpdates, MaskSet, masked_finetune
from guerdon.sparsity.updates import Sparsity, mask_overlap, update_rank, update_sparsity
from guerdon.training.optim import Optimizer, Updates

STEPS, LR, TOL = 200, 3e-6, 1e-5


class Method(NamedTuple):
    """What is under test."""

    sparsity: Callable[..., Sparsity]
    masked: Callable[[Updates, MaskSet], Updates]


class GradientsOnly(MaskedUpdates):
    """Masks gradients alone: an optimiser's memory and weight decay move weights off the mask."""

    def step(self, lr: float) -> float:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.masks.clear(name, parameter.grad)
        return self.inner.step(lr)


def in_float32(before: Weights, after: Weights, *, tol: float = TOL, dtype: torch.dtype = torch.float32) -> Sparsity:
    """Sparsity without rounding."""
    return update_sparsity(before, after, tol=tol, dtype=torch.float32)


def drift_off_mask(masked: Callable[[Updates, MaskSet], Updates]) -> Tensor:
    """What three steps under a mask do to a weight off it, after one step without, with weight decay."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    inner = Optimizer({"w": weight}, weight_decay=0.1, grad_clip=None)
    updates: list[Updates] = [inner, *[masked(inner, MaskSet({"w": torch.tensor([True, False, True])}))] * 3]
    seen = []
    for each in updates:
        weight.grad = 2 * weight.detach()
        each.step(0.1)
        seen.append(weight.detach().clone())
    return (seen[-1] - seen[0])[1].abs()


def random_masks(masks: MaskSet, seed: int) -> MaskSet:
    """Masks that keep as many entries of each tensor, at random places."""
    generator = torch_generator(seed, "random mask")
    places = {name: torch.randperm(m.numel(), generator=generator).view(m.shape) for name, m in masks.masks.items()}
    return MaskSet({name: places[name] < m.sum() for name, m in masks.masks.items()})


def agreement(first: Weights, second: Weights, masks: MaskSet) -> float:
    """Share of the entries on masks in which two models differ by at most 1e-4."""
    one, other = served(first), served(second)
    near = [((one[name] - other[name]).abs() <= 1e-4)[mask] for name, mask in masks.masks.items()]
    return float(torch.cat(near).double().mean())


def measured(method: Method, seed: int) -> dict[str, float]:
    """Everything about one pretrained model."""
    start = pretrained(seed)

    def trained(data: int = seed, masks: MaskSet | None = None) -> Weights:
        def updates(optimizer: Optimizer) -> Updates:
            return optimizer if masks is None else method.masked(optimizer, masks)

        return train(start, by_reward(data), steps=STEPS, lr=LR, updates=updates)

    def imitated(*, capitals: bool) -> Weights:
        return train(start, by_imitation(seed, capitals=capitals), steps=STEPS, lr=LR)

    full, again = trained(), trained(data=seed + 1000)
    masks, others = (MaskSet.of_change(start, x, tol=TOL) for x in (full, again))
    inside, elsewhere = trained(masks=masks), trained(masks=random_masks(masks, seed))
    overlap, before = mask_overlap(masks, others), success(start)
    gain = success(full) - before
    ranks = update_rank(start, full)
    return {
        "start": before,
        "gain": gain,
        "reward": method.sparsity(start, full).overall,
        "float32": method.sparsity(start, full, dtype=torch.float32).overall,
        "capitals": method.sparsity(start, imitated(capitals=True)).overall,
        "own case": method.sparsity(start, imitated(capitals=False)).overall,
        "rank": sum(ranks.values()) / len(ranks),
        "overlap": min(overlap.of_first / overlap.chance_first, overlap.of_second / overlap.chance_second),
        "inside": (success(inside) - before) / gain,
        "elsewhere": (success(elsewhere) - before) / gain,
        "agreement": agreement(inside, full, masks),
    }


def by_hand(method: Method) -> Iterator[Check]:
    """Small tensors whose numbers can be told without a computer."""
    before = {"a": torch.tensor([1.0, 1.0, 0.0, 0.0])}
    after = {"a": torch.tensor([1.001, 1.01, 5e-6, 1e-3])}
    seen = method.sparsity(before, after)
    yield equal("unchanged in bfloat16, of two weights of 1 and two of 0", seen.overall, 0.5)
    yield equal("unchanged in float32", method.sparsity(before, after, dtype=torch.float32).overall, 0.25)
    told = f"{seen.tol:g}, {seen.dtype}"
    yield check("tolerance and precision are reported", told == "1e-05, torch.bfloat16", expected="both", seen=told)
    old, new, half = torch.ones(4), torch.zeros(4), torch.ones(4)
    tied = method.sparsity({"embed": old, "head": old, "rest": half}, {"embed": new, "head": new, "rest": half})
    yield equal("unchanged where two names share a tensor", tied.overall, 0.5)
    first, second = (MaskSet({"a": torch.tensor(x).bool()}) for x in ([1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0]))
    yield equal("overlap of two masks, and chance", torch.tensor(mask_overlap(first, second)), [2 / 3, 1, 1 / 3, 1 / 2])
    outer = torch.outer(torch.arange(6.0), torch.arange(4.0))
    yield equal("rank of an outer product", update_rank({"a": torch.zeros(6, 4)}, {"a": outer})["a"], 0.25)
    yield below("drift of a weight off the mask", drift_off_mask(method.masked), 1e-12)


def run(method: Method, seeds: int) -> Iterator[Check]:
    """Numbers by hand, then a pretrained model trained by reward, by imitation, and under masks."""
    yield from by_hand(method)
    each = [measured(method, seed) for seed in range(seeds)]
    seen = {name: [row[name] for row in each] for name in each[0]}
    yield every_seed("success gained by reward", seen["gain"], above=0.0)
    what = "unchanged in bfloat16 after 200 steps"
    yield paired(f"{what}, reward against imitation of capitals", seen["reward"], seen["capitals"], margin=0.2)
    yield paired(f"{what}, imitation in the own case against capitals", seen["own case"], seen["capitals"])
    yield every_seed("unchanged in float32 after training by reward", seen["float32"], below=0.1)
    yield every_seed("rank of the updates, as a share of full, averaged over matrices", seen["rank"], above=0.99)
    yield every_seed("overlap of the subnetworks of two runs, over chance", seen["overlap"], above=1.3, share=0.8)
    yield every_seed("share of the gain that the subnetwork recovers", seen["inside"], above=0.95)
    yield paired("the same, against as many weights at random", seen["inside"], seen["elsewhere"])
    yield every_seed("weights of the subnetwork within 1e-4 of full training", seen["agreement"], above=0.95)


CLAIM = Claim(
    system="rl-subnetworks",
    run=run,
    method=Method(update_sparsity, masked_finetune),
    mutation=Mutation(
        "weights are compared in float32, and only gradients are masked", Method(in_float32, GradientsOnly)
    ),
    seeds=5,
)
