"""A criterion that pays in full for every box beyond a bound stops teaching once boxes are beyond it, and a strict one
teaches nothing before they are. Vision-R1 scores form, precision and recall by bounds that are raised during training.

The policy is a Gaussian over the corners of one box, with a deviation of 1 % of its side, and starts at an IoU of 0.61.
Each box is written as JSON and scored by the registered reward, in two stages as a recipe has them. Compared are the
first rule alone, the second alone, and the first followed by the second. (With a deviation that is learned as well, the
first rule alone got to 0.90 in 400 steps, for the few boxes that failed went on teaching, and the stages to 0.96.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History
from guerdon.credit.group import grpo
from guerdon.objectives.policy import reinforce
from guerdon.rewards.boxes import pairwise_iou
from guerdon.rewards.detection import box_criterion
from guerdon.seeding import torch_generator
from guerdon.shaping.stages import Stage, Stages, Until

Box = Sequence[float]
FIRST: dict[str, Any] = {"precision": (0.5, 0.75), "hit": 0.5, "recall": (0.5, 0.75)}
SECOND: dict[str, Any] = {"precision": (0.75, 0.9), "hit": 0.75, "recall": (0.5, 0.75)}
OBJECT, START = (30.0, 30.0, 80.0, 80.0), torch.tensor([38.0, 24.0, 87.0, 75.0])
DEVIATION, GROUP, STEPS, SWITCH, RATE = 0.5, 8, 240, 120, 0.1


def item(box: Box, label: str = "cat") -> dict[str, Any]:
    """An object as models write it."""
    return {"bbox_2d": [round(float(x), 2) for x in box], "label": label}


def scored(method: Any, boxes: Sequence[Box], objects: Sequence[Box], **options: Any) -> list[float]:
    """Form, precision and recall of an answer."""
    detail = method(json.dumps([item(box) for box in boxes]), [item(box) for box in objects], **options).detail
    return [detail["format"], detail["precision"], detail["recall"]]


def stages(*rules: dict[str, Any]) -> Stages:
    """Rules that follow one another as in the section ``stages`` of a recipe, every one but the last for 120 steps."""
    return Stages(
        [
            Stage(f"rule{i}", rewards={"box": rule}, until=Until(steps=SWITCH) if i < len(rules) - 1 else None)
            for i, rule in enumerate(rules)
        ]
    )


def trained(method: Callable[..., Any], schedule: Stages, seeds: int) -> Tensor:
    """(STEPS,S) mean IoU of the boxes of each step."""
    moved = torch.zeros(seeds, 1, 4, requires_grad=True)  # in deviations
    optimizer = torch.optim.Adam([moved], lr=RATE)
    generators = [torch_generator(seed, "boxes") for seed in range(seeds)]
    group, mask = torch.arange(seeds).repeat_interleave(GROUP), torch.ones(seeds * GROUP, 1, dtype=torch.bool)
    overlaps = []
    for _ in range(STEPS):
        policy = Normal(START + DEVIATION * moved, DEVIATION)
        noise = torch.stack([torch.randn(GROUP, 4, generator=generator) for generator in generators])
        boxes = (policy.mean + DEVIATION * noise).detach()
        flat = boxes.flatten(0, 1).tolist()
        options = schedule.current.rewards["box"]
        reward = torch.tensor([sum(scored(method, [box], [OBJECT], **options)) for box in flat])
        logp = policy.log_prob(boxes).sum(dim=-1).reshape(-1, 1)
        loss = reinforce(logp, grpo(reward, group, mask), mask) * seeds
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.update({})
        overlaps.append(torch.from_numpy(pairwise_iou(flat, [OBJECT])).reshape(seeds, GROUP).mean(dim=1))
    return torch.stack(overlaps)


def run(method: Any, seeds: int) -> Iterator[Check]:
    """What boxes earn before and after the switch, then training."""
    four = [(40.0 * i, 0.0, 40.0 * i + 10, 10.0) for i in range(4)]
    for name, rule in (("first", FIRST), ("second", SECOND)):
        yield equal(f"four perfect boxes under the {name} rule", scored(method, four, four, **rule), [1, 1, 1])
    middling = [(0.0, 0.0, 10.0, 7.0)]
    yield equal("a box of GIoU 0.7 under the first rule", scored(method, middling, four[:1], **FIRST), [1, 0.7, 1])
    yield equal("the same under the second", scored(method, middling, four[:1], **SECOND), [1, 0, 0])
    recalls = [scored(method, four[:n], four, **FIRST)[2] for n in (1, 2, 4)]
    yield equal("recall where 1, 2 and 4 of 4 objects are hit", recalls, [0, 0.5, 1])
    crowd = [four[0], *((200.0, 20.0 * i, 210.0, 20.0 * i + 10) for i in range(4))]
    counted = [scored(method, crowd, four[:1], denominator=way)[1] for way in ("matched", "predicted")]
    yield equal("precision of one right box in five, by pairs and by boxes", counted, [1, 0.2])
    nothing = [method(text, []).value for text in ("[]", "There is nothing.", json.dumps([item(OBJECT)]))]
    yield equal("nothing to find: an empty list, no list, a box", nothing, [3, 3, 0])
    heights = torch.linspace(7.6, 9.5, GROUP).tolist()
    for name, rule, wanted in (("first", FIRST, False), ("second", SECOND, True)):
        group = torch.tensor([sum(scored(method, [(0, 0, 10, h)], four[:1], **rule)) for h in heights])
        spread = float(group.std())
        what = f"spread of rewards in a group of IoU 0.76 to 0.95 under the {name} rule"
        yield check(what, (spread > 0) is wanted, expected="> 0" if wanted else "0", seen=f"{spread:.3g}")

    both = trained(method, stages(FIRST, SECOND), seeds)
    first, second = (trained(method, stages(rule), seeds) for rule in (FIRST, SECOND))
    ours, plateau = both[-20:].mean(dim=0), first[-20:].mean(dim=0)
    yield every_seed("mean IoU at the end, with the stages", ours, above=0.88)
    yield every_seed("mean IoU at the end, with the first rule alone", plateau, above=0.75, below=0.85)
    curves = {"stages": both.T, "first rule": first.T, "second rule": second.T}
    yield paired(
        "mean IoU at the end, stages against the first rule",
        ours,
        plateau,
        share=1.0,
        curves=curves,
        axis="IoU by step",
    )
    yield paired(
        "steps to a mean IoU of 0.88, stages against the second rule from the start",
        History.first(both, 0.88),
        History.first(second, 0.88),
        better="lower",
        share=1.0,
    )


def fixed(text: str, answer: Any, **options: Any) -> Any:
    """The first rule, whatever the stage."""
    return box_criterion(text, answer, **(options | FIRST))


CLAIM = Claim(
    system="vision-r1",
    run=run,
    method=box_criterion,
    mutation=Mutation("the criterion is never refined", fixed),
    recipe="""
rewards:
  - {name: box_criterion, label: boxes, precision: [0.5, 0.75], hit: 0.5, recall: [0.5, 0.75]}
stages:
  - {name: first, until: {steps: 1500}}
  - {name: second, rewards: {boxes: {precision: [0.75, 0.9], hit: 0.75}}}
""",
    seeds=10,
)
