"""Boxes that follow once all objects are found cost nothing in mAP, so a detector that is rewarded by it learns to name
as many as it can. Multiplied by the number of objects over the number of boxes, where that is below 1, mAP pays for the
right number.

The policy is a table over how many boxes to name, 1 to 10, in scenes of two objects. Where the boxes lie is not its to
choose: half of them lie on an object, within a tenth of its sides, the others nowhere near. Each answer is written as
JSON and scored by the registered rewards. Compared are the number of boxes and the share of them that find an object of
their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import Tabular
from guerdon.rewards.boxes import box_iou
from guerdon.rewards.detection import box_detection, box_map, box_map_length, box_repetition
from guerdon.seeding import numpy_generator
from guerdon.shaping.length import cosine_length

SCENES, MOST, DRAWS, NEAR = 4, 10, 100, 0.5


class Parts(NamedTuple):
    """What is under test: mAP with the penalty for its length, and the reward by one-to-one matching."""

    length: Any
    detection: Any


def item(box: Any) -> dict[str, Any]:
    """An object as models write it."""
    return {"bbox_2d": [round(float(x), 2) for x in box], "label": "cat"}


def said(items: list[dict[str, Any]]) -> str:
    """An answer as models write it."""
    return f"<think>...</think><answer>{json.dumps(items)}</answer>"


class Scenes:
    """What answers of 1 to 10 boxes earn: for each scene and number of boxes some, drawn once."""

    def __init__(self) -> None:
        draw = numpy_generator(0, "scenes")
        self.references: list[list[dict[str, Any]]] = []
        self.texts: list[list[list[str]]] = []
        for _ in range(SCENES):
            low = draw.uniform([[0, 0], [60, 60]], [[20, 20], [80, 80]])
            objects = np.concatenate([low, low + draw.uniform(20, 40, (2, 2))], axis=1)
            self.references.append([item(box) for box in objects])
            self.texts.append([[said(self._boxes(draw, objects, k)) for _ in range(DRAWS)] for k in range(1, MOST + 1)])

    @staticmethod
    def _boxes(draw: np.random.Generator, objects: np.ndarray, count: int) -> list[dict[str, Any]]:
        on = objects[draw.integers(2, size=count)]
        near = on + draw.uniform(-0.1, 0.1, (count, 4)) * np.tile(on[:, 2:] - on[:, :2], 2)
        corner = draw.uniform(150, 200, (count, 2))
        far = np.concatenate([corner, corner + draw.uniform(20, 40, (count, 2))], axis=1)
        return [item(box) for box in np.where(draw.random((count, 1)) < NEAR, near, far)]

    def scored(self, reward: Any) -> Tensor:
        """(SCENES,MOST,DRAWS) what the answers earn."""
        table = [
            [[reward(text, reference).value for text in texts] for texts in scene]
            for scene, reference in zip(self.texts, self.references, strict=True)
        ]
        return torch.tensor(table, dtype=torch.float64)


def share_found(text: str, reference: list[dict[str, Any]]) -> Any:
    """Part of the boxes that find an object of their own at an IoU of 0.5: by the F1 of unlabelled boxes."""
    boxes = [thing["bbox_2d"] for thing in reference]
    score = box_iou(text, boxes, award="f1")
    named = score.detail["boxes"]
    return score._replace(value=score.value * (named + len(boxes)) / 2 / named)


def trained(table: Tensor, seeds: int) -> Tensor:
    """(steps + 1,S,SCENES,MOST) probabilities of each number of boxes, under rewards (SCENES,MOST,DRAWS)."""

    def reward(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
        return table[prompt, actions[:, 0], (uniform * DRAWS).long()]

    bed = Tabular(torch.full((SCENES, MOST), 1 / MOST), reward)
    return bed.train(seeds=seeds, steps=200, group_size=16, lr=2.0).probs[:, :, :, 0]


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """One object and nine boxes too many, then training."""
    one, far = [item((0, 0, 10, 10))], [item((100 + 20 * i, 0, 110 + 20 * i, 10)) for i in range(9)]
    first, last = said(one + far), said(far + one)
    yield equal("mAP of the right box and nine others after it: the hack", box_map(first, one).value, 1.0)
    yield equal("mAP of the nine others and then the right box", box_map(last, one).value, 0.1)
    yield equal("the first answer with the penalty for its length", method.length(first, one).value, 0.1)
    yield equal("the first answer by matching", method.detection(first, one).value, 0.7 + 0.3 * (1 - 0.9 / 2))
    stray = said([{**far[0], "label": "dog"}, *one])
    yield equal("mAP after a box of a label that is not there", box_map(stray, one).value, 0.5)
    yield equal(
        "nothing to find, and nothing named", [method.length("None", []).value, box_map("[]", []).value], [1, 1]
    )
    yield equal("nothing named, though there is something", method.length("[]", one).value, 0.0)
    yield equal("the first of several boxes, for a referring expression", box_iou(first, one, award="first").value, 1.0)
    yield equal("one object named twice, and nine others", box_repetition(said(one + one + far)).value, -1 / 11)
    iou, length = torch.tensor([[1.0], [1.0], [0.0], [0.0]]), torch.tensor([0, 4096, 0, 512])
    added = cosine_length(torch.zeros(4), iou, ["iou"], length, correct="iou")
    yield equal("reward of length: right and short, right and long, wrong and short, wrong", added, [1, 0.5, 0, -0.25])

    scenes = Scenes()
    count = torch.arange(1, MOST + 1, dtype=torch.float64)
    found = scenes.scored(share_found).mean(dim=-1)
    ours, theirs = trained(scenes.scored(method.length), seeds), trained(scenes.scored(box_map), seeds)
    many, few = ((probs * count).sum(dim=-1).mean(dim=-1) for probs in (theirs, ours))
    yield every_seed("boxes named after training with mAP", many[-1], above=7.0)
    yield every_seed("boxes named after training with the penalty", few[-1], above=1.0, below=3.0)
    precise, spread = ((probs * found).sum(dim=-1).mean(dim=-1) for probs in (ours, theirs))
    yield paired(
        "share of the boxes that find an object, with the penalty against mAP alone",
        precise[-1],
        spread[-1],
        share=1.0,
        curves={"mAP": many.T, "with the penalty": few.T},
        axis="boxes named by step",
    )


CLAIM = Claim(
    system="vlm-r1",
    run=run,
    method=Parts(box_map_length, box_detection),
    mutation=Mutation("the number of boxes is not looked at", Parts(box_map, box_map)),
    recipe="""
rewards:
  - {name: box_map_length, weight: 1.0}
  - {name: tags, names: [think, answer], weight: 1.0}
  - {name: box_repetition, weight: 1.0}
shaping: [weighted_sum, {name: cosine_length, correct: box_map_length}]
""",
    seeds=10,
)
