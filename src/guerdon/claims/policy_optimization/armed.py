"""A similarity to the reference answer puts very different answers into a narrow band, so that any reward it is added
to drowns it. ARMed stretches it over the range in which it has moved lately.

A scripted judge gives 0.82 + 0.05 quality + noise of 0.005, beside a reward of 0 or 1 for form; credit is the outcome
minus the mean of the batch. The form of the stretch is ours, for the paper's was not seen. Alone in a z-score the
stretch changes nothing, and that is checked too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.analysis.collapse import discriminability
from guerdon.claims.core import Check, Claim, Mutation, above, below, equal, every_seed, paired
from guerdon.claims.testbeds.judges import noise
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.grouping import center, per_action, whiten
from guerdon.credit.rank import group_rank
from guerdon.rewards.text import text_overlap
from guerdon.seeding import torch_generator
from guerdon.shaping.normalise import RunningRescale, RunningRescaleSum

PROMPTS, ANSWERS = 4, 8
QUALITY = torch.linspace(0, 1, ANSWERS, dtype=torch.float64)
# How good each answer to each prompt is, and how many first symbols are in form.
TABLE = torch.stack([QUALITY.roll(-p) for p in range(PROMPTS)])
IN_FORM = 2


class Parts(NamedTuple):
    """The stretch of one window of scores, and as shaping."""

    rescale: Any
    shaping: Any


def similarity(quality: Tensor, uniform: Tensor) -> Tensor:
    """What the judge says, in a band of 0.05."""
    return 0.82 + 0.05 * quality + 0.005 * noise(uniform)


def score(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
    """(N,2): the first symbol decides the form, the second is the answer."""
    form = (actions[:, 0] < IN_FORM).double()
    return torch.stack([form, similarity(TABLE[prompt, actions[:, 1]], uniform)], dim=1)


BED = Tabular(torch.full((PROMPTS, 2, ANSWERS), 1 / ANSWERS), score, names=("form", "similarity"))


def batch_baseline(reward: Tensor, mask: Tensor) -> Tensor:
    """Credit against the mean of the batch."""
    return per_action(center(reward, None), mask)


def quality(history: History) -> Tensor:
    """(steps + 1, S) expected quality of the answers."""
    return (history.probs[:, :, :, 1] * TABLE).sum(dim=-1).mean(dim=-1)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """What the stretch does to a batch of scores, then what it does to learning."""
    generator = torch_generator(0, "armed")
    good, uniform = torch.rand(2, 2048, generator=generator, dtype=torch.float64)
    raw, group = similarity(good, uniform), torch.arange(2048) // 8
    for variant in ("quantile", "logistic"):
        rescale = method.rescale(variant=variant)
        yield equal(f"{variant}: scores stay what they are until 64 are known", rescale(raw[:64])[0], raw[:64])
        for part in raw[64:1088].split(64):
            rescale(part)
        seen, told = rescale(raw[1088:])
        spread = [discriminability(x, group[1088:]).spread for x in (seen, raw[1088:])]
        yield above(f"{variant}: std within groups, stretched over raw", spread[0] / spread[1], 5.0)
        yield above(f"{variant}: std, stretched over raw", seen.std() / raw[1088:].std(), 5.0)
        ranks = torch.stack([group_rank(x, torch.zeros_like(group[1088:])) for x in (seen, raw[1088:])])
        yield above(f"{variant}: rank correlation with the raw score", torch.corrcoef(ranks)[0, 1], 0.99)
        auc = [discriminability(x, group[1088:], good[1088:] > 0.5).auc for x in (seen, raw[1088:])]
        yield equal(f"{variant}: AUC of better from worse answers, as before", auc[0], auc[1], tol=0.005)
        yield equal(
            f"{variant}: the range is that of the last 1024",
            [told["low"], told["high"]],
            torch.quantile(raw[64:1088], torch.tensor([0.05, 0.95], dtype=torch.float64)),
        )
    logistic = method.rescale(variant="logistic", warmup=2)
    logistic(torch.tensor([0.0, 1.0], dtype=torch.float64))
    wanted = torch.tensor(
        [0.5**0.5]
    ).sigmoid()  # a half above the mean of 0 and 1, whose deviation is the root of a half
    yield equal("logistic: distance from the mean in deviations", logistic(torch.ones(1).double())[0], wanted)
    linear = method.rescale(low=0.0, high=1.0)
    linear(raw[:1024])
    stretched = whiten(linear(raw[:1024])[0], group[:1024], eps=1e-9)
    difference = (stretched - whiten(raw[:1024], group[:1024], eps=1e-9)).abs().max()
    yield below("alone in a z-score inside groups an unclipped stretch changes nothing", difference, 1e-4)
    yield equal("text reward of the reference itself, and of other words", _overlaps(), [1.0, 0.0])

    settings: Mapping[str, Any] = {"seeds": seeds, "steps": 60, "group_size": 16, "lr": 8.0, "per_seed": True}
    raw_run = quality(BED.train(credit=batch_baseline, **settings))
    for variant in ("quantile", "logistic"):
        shaping = [{"name": method.shaping, "columns": ["similarity"], "variant": variant}]
        ours = quality(BED.train(credit=batch_baseline, shaping=shaping, **settings))
        yield paired(
            f"quality after 60 steps, {variant}",
            ours[-1],
            raw_run[-1],
            share=1.0,
            curves={f"stretched, {variant}": ours.T, "raw": raw_run.T},
            axis="quality by step",
        )
        yield every_seed(f"which is most of what there is, {variant}", ours[-1], above=0.75)


def _overlaps() -> list[float]:
    answer = "The aorta is dilated."
    return [text_overlap(answer, answer), text_overlap("no finding", answer)]


class Still:
    """No stretch: a score is returned as it is."""

    def __init__(self, **options: Any) -> None:
        self.inner = RunningRescale(**options)

    def __call__(self, scores: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Remember, and stretch nothing."""
        _, told = self.inner(scores)
        return scores, told


class StillSum(RunningRescaleSum):
    """Shaping whose windows never get warm."""

    def __init__(self, *, columns: list[str] | None = None, variant: str = "quantile") -> None:
        super().__init__(columns=columns, window=2**40, warmup=2**40)


CLAIM = Claim(
    system="armed",
    run=run,
    method=Parts(RunningRescale, RunningRescaleSum),
    mutation=Mutation("scores are remembered but not stretched", Parts(Still, StillSum)),
    recipe="""
rewards:
  - {name: regex, pattern: "^[a-z]+$"}
  - text_overlap
  - adaptive_semantic
  - {name: semantic_similarity, watch: true}
credit: reinforce++
""",
    seeds=10,
    quick=True,
)
