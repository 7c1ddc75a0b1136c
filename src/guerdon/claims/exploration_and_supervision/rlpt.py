"""Plain text holds its own rewards: a prediction of what comes next is right if the text goes on so, in as many words
as the prediction has.

Exactly: how texts are cut and asked for, and which predictions count. Then diaries of numbers, each three more than
the one before, modulo ten; some texts are held out. A table predicts the next sentence by the number in the last
one, or a middle sentence by the number in the one after it, among the ten numbers and a prediction too short to say
anything. It begins where supervised learning left it, right in 0.2 of cases, and learns by GRPO from the reward of
word comparison. Compared are the same on texts whose targets are shuffled, and supervised learning for as many steps
on as many targets, which ends as high: where every target is known, the reward says nothing that imitation doesn't.
Rate, group size and steps were the first that were tried (on seeds 0 to 2). A transformer of 32 units and two layers
was tried before, on diaries with steps of one to nine (seed 100): imitation left it right in 0.1 of cases, which is
chance, and 60 steps of GRPO changed nothing, so the table stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.rewards.next_segment import NextSegmentReward
from guerdon.seeding import torch_generator
from guerdon.tasks.segments import NextSegment, Triple, next_segment_tasks

NUMBERS, ADDED, SHORT = 10, 3, 10
STEPS, GROUP, RATE, KNOWN = 100, 8, 20.0, 0.2
SAID = [*(f"Now it is {number}." for number in range(NUMBERS)), "It is"]


class Parts(NamedTuple):
    """What is under test: the triples of a text, and the reward."""

    triples: Callable[..., list[Triple]]
    reward: Callable[..., Any]


def anything(**options: Any) -> Callable[..., Any]:
    """Whatever is said is right, if it says something."""
    rule = NextSegmentReward(**options)
    return lambda text, metadata: rule(text, [{"following": t} for t in text])


def diaries() -> list[str]:
    """Texts of five to nine sentences from every number on."""
    return [
        " ".join(f"Now it is {(start + ADDED * k) % NUMBERS}." for k in range(length))
        for start in range(NUMBERS)
        for length in range(5, 10)
    ]


def numbered(sentence: str) -> int:
    """The number in the last sentence of a text."""
    return int(sentence.rsplit(maxsplit=1)[-1].rstrip("."))


def prompts_of(triples: list[Triple], shuffled: bool) -> list[list[str]]:
    """What follows, by prompt: ten to tell the next sentence, by the number before, and ten to tell a middle one."""
    order = torch.randperm(len(triples), generator=torch_generator(0, "shuffled")).tolist()
    known: list[list[str]] = [[] for _ in range(2 * NUMBERS)]
    for place, triple in enumerate(triples):
        right = triples[order[place]] if shuffled else triple
        known[numbered(triple.context)].append(right.following)
        known[NUMBERS + numbered(triple.after)].append(right.target)
    return known


def bed(method: Parts, triples: list[Triple], *, shuffled: bool = False) -> Tabular:
    """The table where supervised learning left it, and the reward on its texts."""
    known = prompts_of(triples, shuffled)
    rule = method.reward(tags=None)

    def rewarded(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
        rows = zip(prompt.tolist(), uniform.tolist(), strict=True)
        follows = [{"following": known[p][int(u * len(known[p]))]} for p, u in rows]
        scores = rule([SAID[a] for a in actions[:, 0].tolist()], follows)
        return torch.tensor([score.value for score in scores])

    return Tabular(start(), rewarded)


def start() -> Tensor:
    """(P,A) probabilities at first."""
    table = torch.full((2 * NUMBERS, len(SAID)), (1 - KNOWN) / (len(SAID) - 1), dtype=torch.float64)
    table[torch.arange(2 * NUMBERS), right_answers()] = KNOWN
    return table


def right_answers() -> Tensor:
    """(P,) the right prediction of each prompt."""
    number = torch.arange(NUMBERS)
    return torch.cat([(number + ADDED) % NUMBERS, (number - ADDED) % NUMBERS])


def accuracy(probs: Tensor, held_out: list[Triple]) -> Tensor:
    """(steps + 1, S) chance of the next sentence of held-out texts, from probabilities (steps + 1,S,P,A)."""
    before = torch.tensor([numbered(triple.context) for triple in held_out])
    target = torch.tensor([numbered(triple.target) for triple in held_out])
    return probs[:, :, before, target].mean(dim=-1)


def imitated(seeds: int) -> Tensor:
    """(steps + 1,S,P,A) probabilities under supervised learning of as many targets, which are all alike."""
    logits = start().log().requires_grad_(True)
    update, seen = torch.optim.SGD([logits], lr=RATE), [start()]
    right = torch.nn.functional.one_hot(right_answers(), len(SAID)).bool()
    for _ in range(STEPS):
        update.zero_grad()
        (-logits.log_softmax(dim=-1)[right].mean()).backward()
        update.step()
        seen.append(logits.detach().softmax(dim=-1))
    return torch.stack(seen).unsqueeze(1).expand(-1, seeds, -1, -1)


def by_hand(method: Parts) -> Iterator[Check]:
    """How a text is cut and asked for, and which predictions count."""
    text = "It rained. Ann stayed in bed. Ha! Then it stopped at last. She went out. The sun shone."
    triples = method.triples(text)
    yield equal("triples of five sentences and one that is too short", len(triples), 3)
    task = NextSegment(texts=diaries(), eval_fraction=0.3)
    shown = [task.problem(triple, "middle").prompt for triple in triples]
    holds = all(t.after in p and t.target not in p for t, p in zip(triples, shown, strict=True))
    yield check("middle prompts", holds, expected="the next sentence and not the one asked for", seen=holds)
    ahead = [task.problem(triple, "next").prompt for triple in triples]
    leaks = any(t.target in p or t.after in p for t, p in zip(triples, ahead, strict=True))
    yield check("next prompts", not leaks, expected="nothing that comes later", seen="a leak" if leaks else "none")
    said = ["Ann stayed", "ann stayed in bed. Then it stopped", "Ann slept", "in bed", "Ann", "the"]
    known = [{"following": triples[0].following}] * len(said)
    given = method.reward(tags=None)(said, known)
    yield equal(
        "beginnings of what follows; other words; later words; too short", [s.value for s in given], [1, 1, 0, 0, 0, 0]
    )
    untagged = method.reward()(["Ann stayed in bed."], known[:1])
    yield equal("a prediction without tags", [s.value for s in untagged], [0.0])


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Cuts and rewards by hand, then diaries."""
    yield from by_hand(method)
    task = NextSegment(texts=diaries(), eval_fraction=0.3)
    settings: dict[str, Any] = {"seeds": seeds, "steps": STEPS, "group_size": GROUP, "lr": RATE}
    runs: dict[str, History] = {
        "text": bed(method, task.train_set).train(**settings),
        "shuffled text": bed(method, task.train_set, shuffled=True).train(**settings),
    }
    right = {name: accuracy(history.probs[..., 0, :], task.held_out) for name, history in runs.items()}
    right["imitation"] = accuracy(imitated(seeds), task.held_out)
    first = float(right["text"][0, 0])
    yield every_seed(f"right next sentences of held-out texts, {first:.2f} at first", right["text"][-1], above=0.8)
    yield every_seed("the same where targets are shuffled", right["shuffled text"][-1], below=0.3)
    yield every_seed("the same by as much supervised learning", right["imitation"][-1], above=0.9)
    yield paired(
        "right next sentences, against shuffled targets",
        right["text"][-1],
        right["shuffled text"][-1],
        margin=0.3,
        curves={name: x.T for name, x in right.items()},
        axis="right next sentences by step",
    )
    short = runs["text"].probs[-1, ..., 0, SHORT].mean(dim=-1)
    yield every_seed(
        f"predictions too short to say anything, {float(start()[0, SHORT]):.2f} at first", short, below=0.05
    )


CLAIM = Claim(
    system="rlpt",
    run=run,
    method=Parts(next_segment_tasks, NextSegmentReward),
    mutation=Mutation("every prediction is a beginning of what follows", Parts(next_segment_tasks, anything)),
    recipe="""
task: {name: next_segment, path: texts.txt}
sampling: {prompts: 64, group_size: 8, max_new_tokens: 64}
rewards: [next_segment]
credit: grpo
""",
)
