"""Whether a question needs thought or tools can't be learned by a policy that no longer tries without. A2FM forces some
answers to every question into each mode, and what the cheap mode earns there says how little the costly modes are
worth.

Two tables choose, by the question, the mode of an answer (instant, reasoning, agentic) and whether the answer is as
good as that mode allows. Three questions are easy, two need thought and one needs tools; the modes cost 1, 6 and 20. A
policy begins in the instant mode in 10 % of the cases, and still has to learn it: 10 % of its answers there are good,
95 % in the others. A group has 3 free answers and 3 forced ones of each mode; a mode is learned from the free ones,
answers from all. The baselines are GRPO on right and wrong with 12 free answers, and A2FM's reward with 12 free
answers: those in the instant mode are handed to it as if they had been forced, or it would know nothing of how easy
questions are.

Settings were looked for on seeds 100 to 109. Where the instant mode does not have to be learned, forced answers make no
difference here: a policy that begins in it in 1 % of the cases ends in it on nine seeds of ten with them and without,
and at 0.1 % on few with either, for answers whose mode was given don't teach a mode. With half of its answers good at
first there is none either. So the claim is about a mode that has to be learned. Which costly mode GRPO prefers on easy
questions is left to chance, and with two easy questions of six the cost fell by a fifth in the mean over seeds alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.credit.group import grpo
from guerdon.objectives.policy import ppo_clip
from guerdon.seeding import torch_generator
from guerdon.shaping.mode_cost import FORCED, MODES, cost_of_pass, easiness, mode_cost_reward, mode_factor
from guerdon.shaping.mode_cost import mode_of as split

NAMES, TAGS = list(MODES), list(MODES.values())
# Chance of a right answer by question, in the instant, the reasoning and the agentic mode; and what the modes cost.
RIGHT = torch.tensor(
    [[0.95, 0.96, 0.96]] * 2 + [[0.9, 0.92, 0.92], [0.3, 0.9, 0.9], [0.2, 0.8, 0.85], [0.05, 0.3, 0.8]]
)
EASY = 3  # the first three questions
COST = torch.tensor([1.0, 6.0, 20.0])
START = torch.tensor([0.1, 0.5, 0.4])
SKILL = torch.tensor([0.1, 0.95, 0.95])  # chance of an answer as good as the mode allows, at the start
QUESTIONS, GROUP, STEPS, EVERY, LR = len(RIGHT), 12, 300, 10, 5.0


class Curves(NamedTuple):
    """(S,points) accuracy, cost of a right answer, and share of the instant mode on the easy questions."""

    accuracy: Tensor
    price: Tensor
    instant: Tensor


@functools.wraps(mode_cost_reward)
def no_cost(
    reward: Tensor, group: Tensor, text: Sequence[str], metadata: Sequence[Mapping[str, Any]], **options: Any
) -> Any:
    """Every mode is worth the same."""
    named = torch.tensor([split(said, MODES)[0] is not None for said in text])
    named |= torch.tensor([FORCED in about for about in metadata])
    return reward * named, {}


def measured(choice: Tensor, skill: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Accuracy, cost of a right answer and instant share (S,) of policies (S,Q,3)."""
    probs = choice.softmax(dim=-1)
    right, cost = (probs * RIGHT * skill.sigmoid()).sum(dim=-1), (probs * COST).sum(dim=-1)
    price = torch.tensor([cost_of_pass(c, r) for c, r in zip(cost, right, strict=True)])
    return right.mean(dim=1), price, probs[:, :EASY, 0].mean(dim=1)


def train(method: Any, seeds: int, *, forced: int, first_seed: int = 0) -> Curves:
    """Train choices of mode by ``method``, or by right and wrong for None, with ``forced`` answers per mode."""
    generators = [torch_generator(first_seed + s, "a2fm") for s in range(seeds)]
    choice = START.log().expand(seeds, QUESTIONS, 3).clone().requires_grad_()
    skill = SKILL.logit().expand(seeds, QUESTIONS, 3).clone().requires_grad_()
    update = torch.optim.SGD([choice, skill], lr=LR)
    free = GROUP - 3 * forced
    given = torch.tensor([-1] * free + [mode for mode in range(3) for _ in range(forced)])
    seed = torch.arange(seeds).repeat_interleave(QUESTIONS * GROUP)
    question = torch.arange(QUESTIONS).repeat_interleave(GROUP).repeat(seeds)
    group, was_forced = seed * QUESTIONS + question, (given >= 0).repeat(seeds * QUESTIONS)
    # The tag and the answer are one action each; a tag that was given is none.
    mask = torch.stack([~was_forced, torch.ones_like(was_forced)], dim=1)
    points = [measured(choice.detach(), skill.detach())]
    for step in range(STEPS):
        draws = torch.cat([torch.rand(QUESTIONS * GROUP, 3, generator=g) for g in generators])
        edges = choice.detach().softmax(dim=-1).cumsum(dim=-1)[seed, question, :2]
        chosen = (draws[:, :1] > edges).sum(dim=-1)
        mode = torch.where(was_forced, given.repeat(seeds * QUESTIONS), chosen)
        place = seed, question, mode
        good = draws[:, 1] < skill.detach().sigmoid()[place]
        reward = (good & (draws[:, 2] < RIGHT[question, mode])).float()
        if method is not None:
            # Without forced answers the instant ones among the free stand for them.
            known = was_forced if forced else mode == 0
            text = ["x" if f else TAGS[m] + "x" for m, f in zip(mode.tolist(), known.tolist(), strict=True)]
            about = [{FORCED: NAMES[m]} if f else {} for m, f in zip(mode.tolist(), known.tolist(), strict=True)]
            reward, _ = method(reward, group, text, about)
        advantage = grpo(reward, group, mask)
        answer = torch.where(good, skill[place], -skill[place])
        logp = torch.stack([choice.log_softmax(dim=-1)[place], torch.nn.functional.logsigmoid(answer)], dim=1)
        loss, _ = ppo_clip(logp, logp.detach(), advantage, mask)
        update.zero_grad()
        (loss * seeds).backward()
        update.step()
        if (step + 1) % EVERY == 0:
            points.append(measured(choice.detach(), skill.detach()))
    return Curves(*(torch.stack(column, dim=1) for column in zip(*points, strict=True)))


def by_hand(method: Any) -> Iterator[Check]:
    """Factors by easiness; a group of four; a right answer in a costly mode where the cheap one never fails."""
    easy = torch.tensor([0.9, 0.0, 1.0, 0.9])
    cheap = torch.tensor([False, False, False, True])
    yield equal("factor at p = 0.9, 0 and 1, and in the instant mode", mode_factor(easy, cheap), [0.19, 1.0, 0.0, 1.0])
    group = torch.zeros(5, dtype=torch.int64)
    text = ["x", "x", "<reasoning>x", "<instant>x", "no tag"]
    about: list[dict[str, Any]] = [{FORCED: "instant"}, {FORCED: "instant"}, {}, {}, {}]
    half, _ = method(torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]), group, text, about)
    yield equal("instant forced right and wrong; free: reasoning, instant, no mode", half, [1.0, 0.0, 0.75, 1.0, 0.0])
    sure, _ = method(torch.ones(5), group, text, about)
    yield equal("the same where the instant mode never fails", sure, [1.0, 1.0, 0.0, 1.0, 0.0])
    floor, _ = method(torch.ones(5), group, text, about, floor=0.1)
    yield equal("with a floor of 0.1", floor, [1.0, 1.0, 0.1, 1.0, 0.0])
    known = torch.tensor([True, True, True]), torch.tensor([True, True, True]), torch.zeros(3, dtype=torch.int64)
    yield equal(
        "three right instant answers, with a prior of 1/2 worth 3", easiness(*known, prior_count=3.0), [0.75] * 3
    )
    price = cost_of_pass(torch.tensor([1.0, 20.0]), torch.tensor([1.0, 0.0]))
    yield equal("cost of a right answer: 1 and 20 tokens, one right", price, 21.0)


def run(method: Any, seeds: int) -> Iterator[Check]:
    """By hand; then choices of mode."""
    yield from by_hand(method)
    ours, theirs = train(method, seeds, forced=3), train(None, seeds, forced=0)
    free = train(method, seeds, forced=0)
    names = ("a2fm", "grpo", "without forced answers")
    yield every_seed(
        "cost of a right answer, over GRPO's", ours.price[:, -1] / theirs.price[:, -1], below=0.8, share=0.8
    )
    yield paired(
        "cost of a right answer, against GRPO",
        ours.price[:, -1],
        theirs.price[:, -1],
        better="lower",
        curves=dict(zip(names, (ours.price, theirs.price, free.price), strict=True)),
        axis="cost of a right answer, every 10 updates",
    )
    yield paired("accuracy, against GRPO", ours.accuracy[:, -1], theirs.accuracy[:, -1], margin=-0.03)
    yield paired(
        "instant share on easy questions, against no forced answers",
        ours.instant[:, -1],
        free.instant[:, -1],
        margin=0.1,
        curves=dict(zip(names, (ours.instant, theirs.instant, free.instant), strict=True)),
        axis="instant share on easy questions, every 10 updates",
    )


CLAIM = Claim(
    system="a2fm",
    run=run,
    method=mode_cost_reward,
    mutation=Mutation("every mode is worth the same", no_cost),
    recipe="""
sampling: {prompts: 16, group_size: 3, max_new_tokens: 12, sources: [{name: forced_modes, each: 3}]}
shaping: [weighted_sum, mode_cost_reward]
""",
)
