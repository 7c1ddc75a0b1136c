"""Where reward looks at actions alone, thoughts lose sight of what they are about. So a corrector rewrites them, the
policy imitates what it wrote, out of a buffer of the whole run, and reward moves the actions only.

Networks see two cards as an image of 5 x 7 pixels, name both, which is the thought, and say their sum modulo 5. A short
imitation has shown thoughts and actions that are each right half the time. PPO learns from whether the sum is right and
moves thought and action alike; GTR moves the action, and imitates thoughts of a script that is right 85 % of the time
and names two random cards otherwise, so that the sums of its cards are right in 88 %. Compared are the greedy success,
and the thoughts that are drawn, six in each of the 25 states. (Networks stand for the vision-language policy, whose
training takes minutes here.)

On seeds 100 to 104: with six values PPO had lost a third of its thoughts after 400 steps, and a buffer that kept each
pair once imitated the corrector's errors more than what it mostly says. With five values, 800 steps and 150 of
imitation PPO lost 62 % and GTR reached 83 %; after 400 of imitation the start was above the corrector; after 220, and
700 steps, GTR was above it on 2 seeds of 5, after 260 on 3. On the default seeds it was above on 2, where 3 were
wanted, and PPO lost 55 %. A second search gave 1400 steps at a rate of 0.007 instead of 700 at 0.01: on seeds 100 to
104 GTR was above its corrector on all five and PPO lost 49 %, more than half on 3. On the default seeds GTR is then
above it on 3 as wanted, but PPO loses 43 % of its thoughts, and more than half on one seed only. So what is claimed
holds in parts, at either setting; the claim says not reproduced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.cards import (
    LENGTH,
    THOUGHT,
    Cards,
    action_text,
    thought_text,
    thought_tokens,
)
from guerdon.claims.testbeds.sequences import Adam, Networks, imitate
from guerdon.credit.group import grpo
from guerdon.monitor.thoughts import ThoughtDiversity, thought_collapse
from guerdon.objectives.distill import guided_thought, thought_action_clip
from guerdon.objectives.policy import ppo_clip
from guerdon.sampling.thought_buffer import ThoughtBuffer
from guerdon.seeding import derive, torch_generator

GAMES, GROUP, STEPS, RATE, TAUGHT, LOOKS = 12, 8, 1400, 7e-3, 64, 6
KNOWN, SKILL = 0.5, 0.85
CARDS = Cards(values=5)


class Parts(NamedTuple):
    """What is under test."""

    imitate: Callable[..., Any]
    act: Callable[..., Any]
    buffer: Callable[..., Any]


class Seen(NamedTuple):
    """What networks do: greedy success (S,), and how diverse each one's thoughts are."""

    success: Tensor
    thoughts: list[ThoughtDiversity]


def answers(state: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(B,3) answers to states (B,1) whose thought, and whose action, are right with some chance, else random."""
    right = CARDS.answers(state)
    guess = torch.randint(CARDS.values, right.shape, generator=generator)
    keep = torch.rand(len(right), 2, generator=generator) < share
    return torch.where(keep[:, [0] * THOUGHT + [1]], right, guess)


def look(networks: Networks) -> Seen:
    """Greedy success in all states, and the thoughts that are drawn in them."""
    state = CARDS.states.expand(len(networks.seeds), -1, -1)
    success = (networks.write(state) == CARDS.answers(state))[..., -1].double().mean(dim=1)
    often = state.repeat(1, LOOKS, 1)
    drawn = networks.write(often, [torch_generator(seed, "look") for seed in networks.seeds])
    keys = often[0, :, 0].tolist()
    return Seen(success, [thought_collapse([thought_text(t) for t in row], keys) for row in drawn.tolist()])


def train(parts: Parts | None, start: Networks) -> Networks:
    """Learn by GTR, or, without parts, by PPO on thought and action."""
    networks, seeds = start.copy(), len(start.seeds)
    optimizer, buffers = Adam(networks, RATE), [parts.buffer() for _ in range(seeds)] if parts else []
    generators = [torch_generator(seed, "gtr") for seed in networks.seeds]
    group, mask = torch.arange(GAMES).repeat_interleave(GROUP), torch.ones(GAMES * GROUP, LENGTH, dtype=torch.bool)
    thinks = torch.arange(LENGTH) < THOUGHT
    marks, turn = {"thought": thinks.expand_as(mask)}, torch.zeros_like(mask, dtype=torch.int64)
    taught = thinks.expand(TAUGHT, -1)
    for step in range(STEPS):
        picks = [
            torch.randint(len(CARDS.states), (GAMES,), generator=torch_generator(s, "g", step)) for s in start.seeds
        ]
        state = torch.stack(picks).repeat_interleave(GROUP, dim=1).unsqueeze(-1)
        tokens = networks.write(state, generators)
        reward = (tokens == CARDS.answers(state))[..., -1].float()
        logp = networks.read(state, tokens).logp
        credit = [grpo(reward[s], group, mask) for s in range(seeds)]
        if parts is None:
            losses = [ppo_clip(logp[s], logp[s].detach(), credit[s], mask)[0] for s in range(seeds)]
        else:
            imitated = networks.read(*corrected(buffers, state, tokens, networks.seeds, step)).logp
            losses = [
                parts.act(logp[s], logp[s].detach(), credit[s], mask, turn, marks)[0]
                + parts.imitate(imitated[s], taught, taught)[0]
                for s in range(seeds)
            ]
        optimizer.step(torch.stack(losses).sum())
    return networks


def corrected(buffers: list[Any], state: Tensor, tokens: Tensor, seeds: list[int], step: int) -> tuple[Tensor, Tensor]:
    """Correct a batch into the buffers, and draw states (S,B,1) with answers (S,B,3) whose action is not read."""
    states, thoughts = [], []
    for s, seed in enumerate(seeds):
        better = answers(state[s], SKILL, torch_generator(seed, "corrector", step)).tolist()
        keys = [str(key) for key in state[s, :, 0].tolist()]
        done = [action_text(t) for t in tokens[s].tolist()]
        buffers[s].add(keys, [thought_text(t) for t in better], done)
        pairs = buffers[s].draw(TAUGHT, derive(seed, "taught", step))
        states.append([[int(key)] for key, _ in pairs])
        thoughts.append([[*thought_tokens(thought), 0] for _, thought in pairs])
    return torch.tensor(states), torch.tensor(thoughts)


def by_hand(method: Parts) -> Iterator[Check]:
    """Who is moved by what, what the buffer takes, and what the diagnostic sees."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    marks, turn = {"thought": torch.tensor([[True, True, False]])}, torch.zeros(1, 3, dtype=torch.int64)
    logp = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    loss, _ = method.act(logp, logp.detach(), torch.full((1, 3), 2.0), mask, turn, marks)
    loss.backward()
    yield equal("what reward moves: two tokens of a thought, and an action", logp.grad, [[0, 0, -2.0]])
    logp = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    loss, _ = method.imitate(logp, mask, marks["thought"])
    loss.backward()
    yield equal("what a correction moves", logp.grad, [[-0.5, -0.5, 0]])
    yield equal("its cross-entropy", loss.detach(), 1.5)
    buffer = method.buffer(per_observation=2)
    buffer.add(["a"] * 9 + ["b"], ["I see a 1"] * 9 + ["I see a 2"], ["say 3"] * 10)
    share = sum(key == "a" for key, _ in buffer.draw(4000, 0)) / 4000
    yield equal("share of a state that came nine times out of ten", share, 0.5, tol=0.03)
    flawed = ["so I say 3", "   ", "one two " * 9]
    yield equal("accepted: with the action, blank, repeating itself", buffer.add(["c"] * 3, flawed, ["say 3"] * 3), 0)
    states = [0, 1, 2, 3]
    known = thought_collapse([f"I see {s}" for s in states], states)
    none = thought_collapse(["I see"] * 4, states)
    seen = [known.share, known.per_100, none.share, none.per_100]
    yield equal("information and thoughts per 100 states: each its own, and all one", seen, [1, 100, 0, 25])


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """By hand; then PPO and GTR from one start."""
    yield from by_hand(method)
    start = Networks(CARDS.writing(), range(seeds))
    generator = torch_generator(0, "gtr shown")
    state = CARDS.states[torch.randint(len(CARDS.states), (4096,), generator=generator)]
    imitate(start, state, answers(state, KNOWN, generator), steps=260, batch=64)
    before, ppo, ours = look(start), look(train(None, start)), look(train(method, start))
    corrector = SKILL + (1 - SKILL) / CARDS.values
    yield every_seed("success of the start, which is below that of the corrector", before.success, below=corrector)
    lost = [1 - after.per_100 / first.per_100 for after, first in zip(ppo.thoughts, before.thoughts, strict=True)]
    yield every_seed("share of its different thoughts that PPO loses", lost, above=0.5, share=0.6)
    kept = [after.per_100 / first.per_100 for after, first in zip(ours.thoughts, before.thoughts, strict=True)]
    yield every_seed("share that GTR keeps", kept, above=0.8, share=0.8)
    informed = [[x.share for x in seen.thoughts] for seen in (ours, ppo)]
    yield paired("information of thoughts about states, GTR against PPO", *informed)
    yield paired("success, GTR against PPO", ours.success, ppo.success)
    yield every_seed("success of GTR, beyond that of its corrector", ours.success - corrector, above=0.0, share=0.6)


def by_reward(logp: Tensor, old: Tensor, credit: Tensor, mask: Tensor, turn: Tensor, marks: Any) -> Any:
    """Move thoughts by reward, as actions."""
    return ppo_clip(logp, old, credit, mask)


def untaught(logp: Tensor, mask: Tensor, external: Tensor) -> Any:
    """Imitate nothing."""
    return 0 * logp.sum(), {}


CLAIM = Claim(
    system="gtr",
    run=run,
    method=Parts(guided_thought, thought_action_clip, ThoughtBuffer),
    mutation=Mutation(
        "thoughts are moved by reward, and corrections are not imitated", Parts(untaught, by_reward, ThoughtBuffer)
    ),
    seeds=5,
)
