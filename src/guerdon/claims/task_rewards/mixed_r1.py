"""One batch mixes choices, charts, boxes and captions, and no single rule can score them all. Mixed-R1 gives each kind
of task a reward of its own, and scores captions by matching the embeddings of their tokens with those of the reference,
both ways.

The similarity (BMAS) is tried on 200 sentences with the input embeddings of SmolLM2-135M (``guerdon[smollm2]``): words
are replaced by others of the same small vocabulary. The policy is a table over four symbols, which each kind of task
reads in its own way: as a letter, a number, a box, or four words. Its answers are scored by the registered rewards,
each where it applies; the baseline matches all answers with the reference. References are what the policy can't write:
a number and a box off its grid, and a longer sentence. How right answers are is read off its probabilities, not off the
rewards. Whitening by kind, which is ours, is compared where the credit's baseline is the whole batch: there captions
are nearly drowned, for their similarities spread far less than the 0 and 1 of choices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, below, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import Tabular
from guerdon.credit.grouping import per_action, whiten
from guerdon.rewards.bmas import Bmas
from guerdon.rewards.boxes import box_iou
from guerdon.rewards.forms import Score
from guerdon.rewards.multiple_choice import choice
from guerdon.rewards.verifiable import exact, relaxed_numeric
from guerdon.seeding import numpy_generator
from guerdon.shaping.compose import mixed

MODEL, SENTENCES, LEVELS = "smollm2-135m", 200, (0.0, 0.25, 0.5, 0.75, 1.0)
SLOTS = """
A One The / brown small tired happy young quiet / dog teacher boat child horse farmer robot / watches follows paints
carries finds remembers / a the one / red broken golden distant heavy empty / kite bridge letter garden lamp mountain
bicycle / near behind above under beside / the an that / old frozen crowded silent / river market station library forest
/ at before after / noon sunrise dinner midnight
"""
TYPES = ("choice", "chart", "box", "caption")
POSITIONS, SYMBOLS = 4, 6
GRID = (0, 20, 40, 60, 80, 100)
WORDS = (
    "brown green loud round paper seven",
    "dog lamp cloud piano bottle ship",
    "running frozen eaten folded sold hot",
)
PLACES = "grass moon desk bank river roof"
ANSWERS: dict[str, list[Any]] = {
    "choice": ["B", "E"],
    "chart": [3297, 1478],
    "box": [[18.0, 22.0, 63.0, 79.0], [41.0, 3.0, 97.0, 58.0]],
    "caption": ["A brown dog is running across the wet grass.", "The paper ship lies folded on the roof."],
}
WANTED = [("brown", "dog", "running", "grass"), ("paper", "ship", "folded", "roof")]
PROMPTS = [(kind, answer) for kind in TYPES for answer in ANSWERS[kind]]
TABLE = list(itertools.product(range(SYMBOLS), repeat=POSITIONS))


class Parts(NamedTuple):
    """What is under test: how rewards of several kinds of task are brought together, and that of captions."""

    mixed: Any
    bmas: Any


def written(kind: str, symbols: tuple[int, ...]) -> str:
    """What four symbols say in a task of that kind."""
    if kind == "choice":
        return f"<answer>{'ABCDEF'[symbols[0]]}</answer>"
    if kind == "chart":
        return f"<answer>{''.join(map(str, symbols))}</answer>"
    if kind == "box":
        return f"<answer>{[GRID[s] for s in symbols]}</answer>"
    return " ".join(words.split()[s] for words, s in zip((*WORDS, PLACES), symbols, strict=True))


def routed(bmas: Any) -> Tensor:
    """(P,6^4,4) what each answer earns from each reward; NaN from those of other kinds of task."""
    rewards = {
        "choice": lambda text, answer: choice(text, answer, labels="ABCDEF").value,
        "chart": relaxed_numeric,
        "box": lambda text, answer: box_iou(text, answer).value,
        "caption": lambda text, answer: bmas(text, answer).value,
    }
    scores = torch.full((len(PROMPTS), len(TABLE), len(TYPES)), float("nan"), dtype=torch.float64)
    for p, (kind, answer) in enumerate(PROMPTS):
        earned = [rewards[kind](written(kind, symbols), answer) for symbols in TABLE]
        scores[p, :, TYPES.index(kind)] = torch.tensor(earned, dtype=torch.float64)
    return scores


def matched() -> Tensor:
    """(P,6^4,1) 1 for an answer that is the reference."""
    tagged = [str(answer) if kind == "caption" else f"<answer>{answer}</answer>" for kind, answer in PROMPTS]
    rows = [
        [exact(written(kind, symbols), answer) for symbols in TABLE]
        for (kind, _), answer in zip(PROMPTS, tagged, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64).unsqueeze(-1)


def goodness() -> Tensor:
    """(P,6^4) how right each answer is: the right letter, within 5 %, the IoU, the share of the words that belong."""
    rows = []
    for p, (kind, answer) in enumerate(PROMPTS):
        if kind == "choice":
            rows.append([float("ABCDEF"[s[0]] == answer) for s in TABLE])
        elif kind == "chart":
            rows.append([float(abs(int("".join(map(str, s))) / answer - 1) <= 0.05) for s in TABLE])
        elif kind == "box":
            rows.append([overlap([GRID[x] for x in s], answer) for s in TABLE])
        else:
            wanted = WANTED[p % 2]
            rows.append([sum(w in wanted for w in written(kind, s).split()) / POSITIONS for s in TABLE])
    return torch.tensor(rows, dtype=torch.float64)


def overlap(a: list[int], b: list[float]) -> float:
    """IoU of two boxes, by hand."""
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    valid = a[2] > a[0] and a[3] > a[1]
    return width * height / (sum(areas) - width * height) if valid else 0.0


def batch_baseline(reward: Tensor, mask: Tensor) -> Tensor:
    """Credit against the whole batch."""
    return per_action(whiten(reward, None), mask)


def trained(compose: Any, scores: Tensor, seeds: int, *, normalise: str = "none", credit: Any = "grpo") -> Tensor:
    """(steps + 1,S,4) how right answers to each kind of task are, under rewards (P,6^4,K)."""
    index = torch.tensor([SYMBOLS**k for k in reversed(range(POSITIONS))])

    def shaping(components: Tensor, component_weights: Tensor, task_id: Tensor) -> Tensor:
        metadata = [{"task_type": PROMPTS[p][0]} for p in task_id.tolist()]
        return compose(components, component_weights, metadata, normalise=normalise)

    initial = torch.full((len(PROMPTS), POSITIONS, SYMBOLS), 1 / SYMBOLS)
    bed = Tabular(initial, lambda actions, prompt: scores[prompt, (actions * index).sum(dim=1)])
    settings = {"seeds": seeds, "steps": 150, "group_size": 16, "lr": 8.0}
    probs = bed.train(credit=credit, shaping=[shaping], per_seed=credit != "grpo", **settings).probs
    joint = torch.einsum("nspa,nspb,nspc,nspd->nspabcd", *probs.unbind(dim=3)).flatten(3)
    return (joint * goodness()).sum(dim=-1).unflatten(2, (len(TYPES), -1)).mean(dim=-1)


def corrupted(bmas: Any) -> tuple[Tensor, list[Score]]:
    """Similarity (SENTENCES,LEVELS) of sentences with some of their words replaced, and that of their first words."""
    draw = numpy_generator(0, "sentences")
    slots = [slot.split() for slot in SLOTS.split("/")]
    vocabulary = sorted({word for slot in slots for word in slot})
    rows, first = [], []
    for _ in range(SENTENCES):
        words = [str(draw.choice(slot)) for slot in slots]
        order, others = draw.permutation(len(words)), draw.choice(vocabulary, len(words))
        row = []
        for level in LEVELS:
            changed = dict(enumerate(words)) | {int(i): str(others[i]) for i in order[: round(level * len(words))]}
            row.append(bmas(" ".join(changed.values()), " ".join(words)).value)
        rows.append(row)
        first.append(bmas(words[0], " ".join(words)))
    return torch.tensor(rows), first


def vectors(text: str) -> list[list[float]]:
    """Embeddings whose cosines can be read off: cat and kitten have 0.8, nothing else has anything in common."""
    known: Mapping[str, list[float]] = {"cat": [1, 0, 0, 0], "kitten": [0.8, 0.6, 0, 0], "red": [0, 0, 1, 0]}
    return [known.get(word, [0.0, 0.0, 0.0, 1.0]) for word in text.split()]


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """The similarity by hand and on sentences, then four kinds of task at once."""
    by_hand = method.bmas(embeddings=vectors)
    texts = ["cat red", "red cat", "cat red junk", "cat", "kitten red"]
    seen = [by_hand(text, "cat red").value for text in texts]
    yield equal("BMAS of a text, shuffled, with junk, cut short, in other words", seen, [1, 1, 5 / 6, 0.75, 0.9])
    turned = [by_hand("cat red", text).value for text in texts]
    yield equal("the same with the arguments exchanged", turned, seen)
    sides = [by_hand(text, "cat red").detail for text in ("cat red junk", "cat")]
    halves = [[side["response"], side["reference"]] for side in sides]
    yield equal(
        "halves by response and reference: junk lowers the first, a cut the second",
        halves,
        [[2 / 3, 1], [1, 0.5]],
        1e-4,
    )
    pair = torch.tensor([[0.0, float("nan")], [float("nan"), 0.0], [1.0, float("nan")], [float("nan"), 50.0]])
    kinds = [{"task_type": kind} for kind in ("a", "b", "a", "b")]
    scaled = method.mixed(pair.double(), torch.ones(2), kinds, normalise="type", eps=0.0)
    yield equal("rewards of two kinds on one scale", scaled, [-(0.5**0.5), -(0.5**0.5), 0.5**0.5, 0.5**0.5])
    chart = [relaxed_numeric(text, 100) for text in ("95", "105", "94.9", "105.1")]
    yield equal("numbers off by 5 %, and by a little more", chart, [1, 1, 0, 0])

    bmas = method.bmas(embeddings=MODEL)
    similar, first = corrupted(bmas)
    mean = similar.mean(dim=0)
    shown = [round(float(x), 3) for x in mean]
    levels = ", ".join(f"{level:.0%}" for level in LEVELS)
    yield check(f"mean BMAS with {levels} of the words replaced", (mean.diff() < 0).all(), expected="falls", seen=shown)
    rank = np.corrcoef(*(stats.rankdata(x) for x in (np.tile(LEVELS, SENTENCES), similar.flatten())))[0, 1]
    yield below("Spearman's rank correlation of BMAS with the share replaced, over all sentences", rank, -0.9)
    alone = [float(np.mean(x)) for x in zip(*((one.value, one.detail["response"]) for one in first), strict=True)]
    yield below("mean BMAS of the first word alone, against half of the words replaced", alone[0], float(mean[2]))
    yield equal("its side of the response, which does not see the cut", alone[1], 1.0)

    scores = routed(bmas)
    ours, theirs = trained(method.mixed, scores, seeds), trained(mixed, matched(), seeds)
    for k, kind in enumerate(TYPES):
        yield every_seed(f"how much better {kind} answers have become", (ours[-1] - ours[0])[:, k], above=0.3)
    for k, kind in enumerate(TYPES[1:], 1):
        yield every_seed(
            f"the same of {kind} answers when all are matched", (theirs[-1] - theirs[0])[:, k].abs(), below=0.02
        )
    average, baseline = ours.mean(dim=-1), theirs.mean(dim=-1)
    yield paired(
        "how right answers are, over all kinds",
        average[-1],
        baseline[-1],
        share=1.0,
        curves={"a reward for each": average.T, "matching": baseline.T},
        axis="how right answers are by step",
    )
    apart, together = (
        trained(compose, scores, seeds, normalise=way, credit=batch_baseline)[-1, :, TYPES.index("caption")]
        for compose, way in ((method.mixed, "type"), (mixed, "none"))
    )
    yield paired("how right captions are under a baseline over the batch, each kind on its scale", apart, together)


class OneSided(Bmas):
    """What the tokens of the response find in the reference alone."""

    def __call__(self, text: str, answer: Any) -> Score:
        score = super().__call__(text, answer)
        return score._replace(value=score.detail["response"])


def in_batch(components: Tensor, component_weights: Tensor, metadata: Any, **options: Any) -> Tensor:
    """One scale for the whole batch."""
    return mixed(components, component_weights, [{"task_type": ""}] * len(components), **options)


CLAIM = Claim(
    system="mixed-r1",
    run=run,
    method=Parts(mixed, Bmas),
    mutation=Mutation(
        "captions are compared one way, and rewards of all kinds share a scale", Parts(in_batch, OneSided)
    ),
    recipe="""
rewards:
  - {name: choice, when: {task_type: choice}}
  - {name: relaxed_numeric, when: {task_type: chart}}
  - {name: box_iou, when: {task_type: grounding}}
  - {name: bmas, embeddings: "guerdon.claims.task_rewards.mixed_r1:vectors", when: {task_type: caption}}
  - {name: tags, names: [think, answer], weight: 0.5}
shaping: [mixed]
""",
    seeds=10,
)
