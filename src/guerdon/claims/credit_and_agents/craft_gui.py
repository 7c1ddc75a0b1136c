"""Tasks of mixed length, drawn alike, spend their samples on long ones that never succeed. So difficulties follow each
other, each until it succeeds, with a share of those before, and each action is scored by form, kind and argument.

Networks see small pages as images and act on them: click on the widget of a colour, type a word, scroll, answer; tasks
have one, two or four pages, and a wrong action ends them. All actions are scored by ``gui_action`` as JSON. Imitation
has shown the kinds of actions, and the right argument in a fifth of cases; from there GRPO learns with an entropy bonus
of 0.05, from as many tasks by stages as drawn alike. A task pays 1 if each of its actions earns the whole score.

Settings were searched on seeds 100 to 104: tasks of up to six pages hardly moved, and without the bonus a page often
kept one answer for all goals. There stages did 54 % of the hard tasks in the end, and drawing alike 29 %. Where a task
paid the mean score of its actions, drawing alike did 69 % and stages 60 %: a reward for parts leaves stages nothing to
do. Stages that end after a third of the steps each did 58 %, so stages by the clock did not starve hard tasks here.

A first version also checked that paying by action beats paying by the end when tasks are drawn alike. On the default
seeds it did 52 % of the hard tasks against 26 %, but was ahead on 3 seeds of 5 only, and the check failed. It was our
addition and is left out; nothing else was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.pages import KINDS, Pages
from guerdon.claims.testbeds.sequences import Adam, Networks, imitate
from guerdon.credit.group import grpo
from guerdon.curriculum.staged import StagedDifficulty, difficulty_stages
from guerdon.objectives.aggregation import token_mean
from guerdon.objectives.policy import ppo_clip
from guerdon.rewards.gui_action import gui_action
from guerdon.seeding import derive, torch_generator

TASKS, GROUP, STEPS, RATE, BONUS, EVERY = 12, 8, 240, 5e-3, 0.05, 10
STAGES = {"advance": 0.6, "keep": 0.4}
KNOWN = 0.2
Drawn = Literal["stages", "alike"]


class Parts(NamedTuple):
    """What is under test."""

    reward: Callable[..., Any]
    curriculum: Callable[..., Any]


def scores(reward: Callable[..., Any], pages: Pages) -> Tensor:
    """(pages, goals, layouts, symbols) what each action earns."""
    out = torch.zeros(pages.right.shape)
    for page, goal, layout in torch.cartesian_prod(*(torch.arange(n) for n in out.shape[:3])).tolist():
        out[page, goal, layout] = reward(pages.texts, [pages.wanted(page, goal, layout)] * len(pages.texts))[0]
    return out


def demonstrations(pages: Pages, prompt: Tensor, seed: int) -> Tensor:
    """(B,T) actions of the right kind for problems (B,3); the argument is right in a fifth of them, else random."""
    generator = torch_generator(seed, "pages shown")
    right = pages.solutions(prompt)
    kinds = sorted({action["action"] for action in pages.actions})
    kind = torch.tensor([kinds.index(action["action"]) for action in pages.actions])
    alike = one_hot(kind).T[kind[right]].double()
    guess = torch.multinomial(alike.flatten(0, -2), 1, generator=generator).reshape(right.shape)
    return torch.where(torch.rand(right.shape, generator=generator) < KNOWN, right, guess)


def train(parts: Parts, start: Networks, table: Tensor, drawn: Drawn, pages: Pages) -> Tensor:
    """(steps / every + 1, levels, S) share of tasks done, while learning."""
    networks, seeds = start.copy(), len(start.seeds)
    optimizer, page = Adam(networks, RATE), torch.arange(len(KINDS))
    level = difficulty_stages(pages.length(pages.problems))
    curricula = [parts.curriculum(len(pages.lengths), **STAGES) for _ in range(seeds)]
    generators = [torch_generator(seed, "pages") for seed in networks.seeds]
    group, curve = torch.arange(TASKS).repeat_interleave(GROUP), [done(networks, pages)]
    for step in range(STEPS):
        rows = [
            curriculum.choose(level, TASKS, derive(seed, "tasks", step))
            if drawn == "stages"
            else torch.randint(len(level), (TASKS,), generator=torch_generator(seed, "tasks", step))
            for seed, curriculum in zip(networks.seeds, curricula, strict=True)
        ]
        chosen = torch.stack(rows).repeat_interleave(GROUP, dim=1)
        prompt = pages.problems[chosen]
        tokens = networks.write(prompt, generators)
        mask = pages.mask(prompt, tokens)
        mean = (table[page, prompt[..., 1:2], prompt[..., 2:3], tokens] * mask).sum(dim=-1) / pages.length(prompt)
        success = (mean > 1 - 1e-6).float()
        reading = networks.read(prompt, tokens)
        entropy = -(reading.log_probs.exp() * reading.log_probs).sum(dim=-1)
        losses = []
        for s in range(seeds):
            advantage = grpo(success[s], group, mask[s])
            loss, _ = ppo_clip(reading.logp[s], reading.logp[s].detach(), advantage, mask[s])
            losses.append(loss - BONUS * token_mean(entropy[s], mask[s]))
            curricula[s].update(level[chosen[s]], success[s])
        optimizer.step(torch.stack(losses).sum())
        if (step + 1) % EVERY == 0:
            curve.append(done(networks, pages))
    return torch.stack(curve)


@torch.no_grad()
def done(networks: Networks, pages: Pages) -> Tensor:
    """(levels, S) chance that a task of each level is done."""
    prompt = pages.problems.expand(len(networks.seeds), -1, -1)
    chance = pages.chance(prompt, networks.read(prompt, pages.solutions(prompt)).log_probs)
    return torch.stack([chance[:, pages.problems[:, 0] == level].mean(dim=1) for level in range(len(pages.lengths))])


def by_hand(method: Parts) -> Iterator[Check]:
    """Clicks, kinds and parts, and when a stage ends."""
    box = {"action": "click", "box": [2, 3, 6, 5]}

    def clicked(x: float, y: float) -> str:
        return f'{{"action": "click", "point": [{x}, {y}]}}'

    points = [clicked(4, 4), clicked(2, 3), clicked(6, 5), clicked(6, 3), clicked(6.01, 4)]
    seen = method.reward(points, [box] * 5, part="argument")[0]
    yield equal("clicks inside, on three corners, and just outside of a box", seen, [1, 1, 1, 1, 0])
    wrong = ['{"action": "long_press", "point": [4, 4]}', '{"action": "type", "text": "milk"}']
    yield equal("argument of the wrong kind of action", method.reward(wrong, [box] * 2, part="argument")[0], [0, 0])
    yield equal("the same with form and kind", method.reward(wrong + points[:1], [box] * 3)[0], [0.1, 0.1, 1.0])
    typed = [f'{{"action": "type", "text": "{text}"}}' for text in ("oat milk", "milk", "bread")]
    wanted = [{"action": "type", "text": "Oat milk"}] * 3
    yield equal("texts by their words", method.reward(typed, wanted, part="argument")[0], [1, 2 / 3, 0])
    scrolled = [f'{{"action": "scroll", "direction": "{way}"}}' for way in ("down", "up")]
    seen = method.reward(scrolled, [{"action": "scroll", "direction": "down"}] * 2)[0]
    yield equal("the right and the wrong direction", seen, [1.0, 0.4])
    said = ['{"action": "answer", "text": "7"}', '{"action": "back"}']
    judged = method.reward(said, [{"action": "answer", "text": "seven"}] * 2, judge=lambda a, b: [0.5] * len(a))[0]
    yield equal("an answer that the judge gives a half, and none", judged, [0.7, 0.1])

    staged = method.curriculum(3, advance=0.7)
    for _ in range(500):
        staged.update(torch.zeros(20, dtype=torch.int64), torch.full((20,), 0.6))
    yield equal("stage after 500 batches of which six in ten succeed", staged.stage, 0)
    for _ in range(10):
        staged.update(torch.zeros(20, dtype=torch.int64), torch.full((20,), 0.8))
    yield equal("and after ten of which eight do", staged.stage, 1)
    kept = staged.probabilities.tolist()
    yield equal("share of each stage then", kept, [0.2, 0.8, 0.0])


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Scores by hand; then stages against drawing alike."""
    yield from by_hand(method)
    pages = Pages()
    table = scores(method.reward, pages)
    full = (table > 1 - 1e-6) == pages.right
    yield check("actions that earn everything are those that lead on", full.all(), expected="all", seen=int(full.sum()))
    start = Networks(pages.writing(), range(seeds))
    shown = pages.problems[torch.randint(len(pages.problems), (4096,), generator=torch_generator(0, "pages problems"))]
    imitate(start, shown, demonstrations(pages, shown, 0), steps=400, batch=64)
    staged = train(method, start, table, "stages", pages)
    alike = train(method, start, table, "alike", pages)
    curves = {"stages": staged[:, 2].T, "drawn alike": alike[:, 2].T}
    yield every_seed("hard tasks done before", staged[0, 2], below=0.05)
    yield paired("hard tasks done", staged[-1, 2], alike[-1, 2], curves=curves, axis="hard tasks done, every 10 steps")
    yield every_seed("easy tasks done in the end, after stages", staged[-1, 0], above=0.5, share=0.8)


class ByTheClock(StagedDifficulty):
    """Goes on after ten batches, whatever came of them."""

    def update(self, stage: Any, success: Any) -> bool:
        """Take in a batch."""
        self.tries += 1
        if self.stage + 1 == self.stages or self.tries < 10:
            return False
        self.stage, self.tries = self.stage + 1, 0.0
        return True


CLAIM = Claim(
    system="craft-gui",
    run=run,
    method=Parts(gui_action, StagedDifficulty),
    mutation=Mutation("stages end after a time, whether they succeed or not", Parts(gui_action, ByTheClock)),
    seeds=5,
)
