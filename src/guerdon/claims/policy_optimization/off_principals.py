"""Training by reward is said to spare the leading singular directions of a model's matrices and their large entries,
where imitation rewrites them. A report measures both: how far spectrum and subspaces move, and where changes fall.

A pretrained transformer of 100,000 weights is trained by GRPO, and by imitation of right answers in capitals until it
is as good, or as far from its start. Not reproduced in full. Where imitation is as good, reward has moved spectrum and
subspaces about a tenth as far, and the weights too; at equal distance neither is reliably smaller. Reward changes fewer
principal entries than chance and than imitation do, but that is rounding: large entries have coarser steps in bfloat16,
so imitation spares them as well. Before rounding, the entries that reward moved furthest are principal ones more often
than by chance, and those of imitation less often. Where changes fall does depend on the matrices' geometry: rotated
heads change elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from guerdon.analysis.spectra import Spectrum, principal_mask, rotate_heads, spectral_report
from guerdon.claims.core import Check, Claim, Mutation, below, equal, every_seed, paired
from guerdon.claims.testbeds.pretrained import (
    WIDTH,
    Weights,
    by_imitation,
    by_reward,
    model_of,
    pretrained,
    served,
    success,
    train,
)
from guerdon.seeding import torch_generator
from guerdon.sparsity.masks import MaskSet
from guerdon.sparsity.updates import mask_overlap

Report = Callable[..., dict[str, Spectrum]]

STEPS, LR, IMITATION_LR, PROMPTS, LEADING, ALPHA = 200, 1e-5, 4e-5, 8, 16, 0.1


def trailing(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, k: int = 64, alpha: float = ALPHA
) -> dict[str, Spectrum]:
    """A report that takes the trailing singular directions for the leading ones."""
    turned = {}
    for name, old in before.items():
        if old.ndim == 2:
            u, s, v = torch.linalg.svd(old.double(), full_matrices=False)
            turned[name] = (u * s.flip(0)) @ v
    moved = {name: turned[name] + after[name] - before[name] for name in turned}
    return spectral_report(turned, moved, k=k, alpha=alpha)


def by_hand(report: Report) -> Iterator[Check]:
    """Updates along known singular directions, and changes at random places."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 8, generator=generator, dtype=torch.float64)).Q for n in (12, 8))
    s = torch.arange(8, 0, -1, dtype=torch.float64)
    old = u @ torch.diag(s) @ v.T
    along = report({"w": old}, {"w": old + 0.5 * torch.outer(u[:, 0], v[:, 0])}, k=3)["w"]
    yield equal("spectral shift of an update along u1 v1'", along.shift, 0.5 / s.norm())
    yield below("rotation, in radians, by an update along u1 v1'", along.angle, 1e-9)
    mixed = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    rest = report({"w": old}, {"w": old + 0.1 * u[:, 3:] @ mixed @ v[:, 3:].T}, k=3)["w"]
    yield below("rotation of the leading subspaces by an update of the others", rest.angle, 1e-9)

    wide = torch.randn(200, 100, generator=generator, dtype=torch.float64)
    hit = torch.rand(wide.shape, generator=generator) < 0.3
    random = report({"w": wide}, {"w": torch.where(hit, 1.01 * wide, wide)}, alpha=ALPHA)["w"]
    error = 3 * (ALPHA * (1 - ALPHA) / int(hit.sum())) ** 0.5
    shares = [random.principal.share, random.small.share]
    yield equal("random changes on the principal and on the small entries", shares, [ALPHA, ALPHA], tol=error)


def rotated(start: Weights, seed: int) -> Weights:
    """The same function with the values of its attention heads rotated."""
    model = model_of(start)
    rotate_heads(model, generator=torch_generator(seed, "rotation"))
    return {name: w.detach() for name, w in model.named_parameters()}


def distance(first: Weights, second: Weights) -> float:
    """Norm of the difference of all weights."""
    return float(torch.stack([(first[name] - second[name]).norm() for name in first]).norm())


def imitated(start: Weights, seed: int, lr: float, until: Callable[[Weights], bool], *, every: int = 1) -> Weights:
    """Trained to write right answers in capitals, on as many answers a step as by reward."""
    loss = by_imitation(seed, capitals=True, batch=8 * PROMPTS)
    return train(start, loss, steps=4 * STEPS, lr=lr, until=until, every=every)


def furthest(start: Weights, after: Weights) -> float:
    """Share of the tenth of entries that moved most, before rounding, on the principal entries, over chance."""
    shares = []
    for name, old in start.items():
        if old.ndim == 2:
            moved = (after[name] - old).abs()
            far = moved.flatten().topk(round(ALPHA * moved.numel())).indices
            shares.append(principal_mask(old, k=LEADING, alpha=ALPHA).flatten()[far].double().mean() / ALPHA)
    return float(torch.stack(shares).mean())


def spectral(report: Report, start: Weights, after: Weights) -> dict[str, float]:
    """Means over matrices of what the report says of the weights as they are served."""
    spectra = list(report(start, served(after), k=LEADING, alpha=ALPHA).values())
    rows = [{"shift": x.shift, "angle": x.angle, "large": x.principal.ratio, "small": x.small.ratio} for x in spectra]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def kinship(first: tuple[Weights, Weights], second: tuple[Weights, Weights], *, turned: bool) -> float:
    """Overlap over chance of the changes of two runs, in the matrices that a rotation of the heads turns or others."""

    def chosen(pair: tuple[Weights, Weights]) -> MaskSet:
        masks = {}
        for name, mask in MaskSet.of_change(*pair).masks.items():
            if name.endswith("qkv.weight"):
                masks[name] = mask[2 * WIDTH :] if turned else mask[: 2 * WIDTH]
            elif mask.ndim == 2 and name.endswith("attention.out.weight") == turned:
                masks[name] = mask
        return MaskSet({name: mask.clone() for name, mask in masks.items()})

    overlap = mask_overlap(chosen(first), chosen(second))
    return overlap.of_first / overlap.chance_first


def measured(report: Report, seed: int) -> dict[str, dict[str, float]]:
    """Everything about one pretrained model."""
    start = pretrained(seed)
    rewarded = train(start, by_reward(seed, prompts=PROMPTS), steps=STEPS, lr=LR)
    before, goal, length = success(start), success(rewarded), distance(start, rewarded)
    as_far = imitated(start, seed, LR, lambda now: distance(start, now) >= length)
    as_good = imitated(start, seed, IMITATION_LR, lambda now: success(now) >= goal, every=10)
    turned = served(rotated(start, seed))
    runs = (start, rewarded), (turned, train(turned, by_reward(seed, prompts=PROMPTS), steps=STEPS, lr=LR))
    return {
        "success": {"before": before, "reward": goal, "as good": success(as_good), "as far": success(as_far)},
        "distance": {"reward": length, "as good": distance(start, as_good), "as far": distance(start, as_far)},
        "reward": {**spectral(report, start, rewarded), "furthest": furthest(start, rewarded)},
        "as good": spectral(report, start, as_good),
        "as far": {**spectral(report, start, as_far), "furthest": furthest(start, as_far)},
        "overlap": {"turned": kinship(*runs, turned=True), "others": kinship(*runs, turned=False)},
    }


def run(report: Report, seeds: int) -> Iterator[Check]:
    """Numbers by hand, then a pretrained model trained by reward, and by imitation until it is as good or as far."""
    yield from by_hand(report)
    start = pretrained(0, steps=50)
    logits = [model_of(w)(torch.arange(8).view(2, 4)) for w in (start, rotated(start, 0))]
    yield equal("logits after a rotation of the heads", logits[1], logits[0].detach(), tol=1e-5)
    each = [measured(report, seed) for seed in range(seeds)]

    def seen(part: str, name: str) -> list[float]:
        return [row[part][name] for row in each]

    yield paired("success after training by reward and before it", seen("success", "reward"), seen("success", "before"))
    names = {"shift": "spectral shift", "angle": "angle", "large": "changes on principal entries, over chance"}
    for other, what in (("as good", "as good"), ("as far", "as far from the start")):
        for name, metric in names.items():
            against = f"{metric}, against imitation that is {what}"
            yield paired(against, seen("reward", name), seen(other, name), better="lower")
    yield every_seed("changes on principal entries, over chance", seen("reward", "large"), below=1.0, share=0.8)
    yield every_seed("changes on small entries, over chance", seen("reward", "small"), above=1.0, share=0.8)
    yield every_seed("imitation's changes on principal entries", seen("as good", "large"), above=1.0, share=0.8)
    yield every_seed("furthest moved entries on principal ones", seen("reward", "furthest"), below=1.0, share=0.8)
    yield paired(
        "overlap with a run from rotated heads, over chance, in other matrices against rotated ones",
        seen("overlap", "others"),
        seen("overlap", "turned"),
    )


CLAIM = Claim(
    system="off-principals",
    run=run,
    method=spectral_report,
    mutation=Mutation("the trailing singular directions are taken for the leading ones", trailing),
    seeds=5,
)
