"""A list of all changes of a scene as (object, attribute, value) is right or wrong as a whole, and a policy that knows
only the form is almost never right. Credit for an object, for its attribute and for all three leads there step by step;
what is wrong is charged for, since otherwise naming everything pays, and what is missing, since silence would be safe.

A scene has six objects with four attributes of three values; one to four of the objects have changed, each in one
attribute. A small network writes up to five triplets, word by word: before each it sees which objects have changed and
are not named yet, and how the object changed that it has named. It begins with random triplets in the right form. What
it writes is scored as text by the registered reward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.sequences import Adam, Networks, Writing, imitate
from guerdon.claims.testbeds.tabular import bind
from guerdon.rewards.sets import triplet_set
from guerdon.seeding import torch_generator

OBJECTS, ATTRIBUTES, VALUES, MOST, CHANGED = 6, 4, 3, 5, 4
WORDS = OBJECTS + 1  # as many symbols as there are first words: an object, or the end
NAMES = ("color", "size", "shape", "material")
STEPS, SCENES, GROUP, RATE = 200, 16, 8, 3e-3
HELD_OUT = 128
Reward = Callable[..., Any]


def scenes(count: int, generator: torch.Generator) -> Tensor:
    """(count, 6) what changed of each object: 0 for nothing, else 1 + 3 attribute + value."""
    draw = torch.rand(count, OBJECTS, generator=generator)
    changed = draw.argsort(dim=1).argsort(dim=1) < torch.randint(1, CHANGED + 1, (count, 1), generator=generator)
    return changed * torch.randint(1, ATTRIBUTES * VALUES + 1, (count, OBJECTS), generator=generator)


def observe(prompt: Tensor, tokens: Tensor) -> Tensor:
    """(S,B,16,35) what is seen before each word: the place, what is left, and what the object named shows."""
    shape, length = tokens.shape[:2], 3 * MOST
    first = tokens[..., ::3]
    named = one_hot(first, WORDS)[..., :OBJECTS]
    before = torch.nn.functional.pad(named.cumsum(dim=2), (0, 0, 1, 0))[:, :, : MOST + 1].clamp(max=1)
    before = before.repeat_interleave(3, dim=2)[:, :, : length + 1]
    left = (prompt > 0).unsqueeze(2) & (before == 0)
    shown = one_hot(prompt.gather(2, first.clamp(max=OBJECTS - 1)), ATTRIBUTES * VALUES + 1)[..., 1:]
    shown = (shown * (first < OBJECTS).unsqueeze(-1)).repeat_interleave(3, dim=2)
    shown = torch.nn.functional.pad(shown, (0, 0, 1, 0))
    second = one_hot(tokens[..., 1::3].clamp(max=ATTRIBUTES - 1), ATTRIBUTES).repeat_interleave(3, dim=2)
    second = torch.nn.functional.pad(second, (0, 0, 1, 0))
    place = torch.arange(length + 1) % 3
    parts = [one_hot(place, 3).expand(*shape, -1, -1), left * (place == 0).unsqueeze(-1), left.any(-1, keepdim=True)]
    parts += [shown * (place > 0).unsqueeze(-1), second * (place == 2).unsqueeze(-1)]
    return torch.cat([part.float() for part in parts], dim=-1)


TASK = Writing(WORDS, 3 * MOST, 3 + OBJECTS + 1 + ATTRIBUTES * VALUES + ATTRIBUTES, observe)


def written(tokens: list[int]) -> str:
    """The text of a sequence: triplets up to the end; words that mean nothing at their place are written as ``?``."""
    parts = []
    for first, second, third in zip(tokens[::3], tokens[1::3], tokens[2::3], strict=True):
        if first == OBJECTS:
            break
        parts.append(f"({first}, {NAMES[second] if second < ATTRIBUTES else '?'}, {third if third < VALUES else '?'})")
    return " ".join(parts)


def wanted(prompt: list[int]) -> list[list[str]]:
    """The changes of a scene."""
    return [
        [str(index), NAMES[(change - 1) // VALUES], str((change - 1) % VALUES)]
        for index, change in enumerate(prompt)
        if change
    ]


def random_answers(count: int, generator: torch.Generator) -> Tensor:
    """(count,15) lists of zero to five random triplets."""
    sizes = torch.tensor([OBJECTS, ATTRIBUTES, VALUES]).repeat(MOST)
    tokens = (torch.rand(count, 3 * MOST, generator=generator) * sizes).long()
    ended = torch.arange(MOST) >= torch.randint(0, MOST + 1, (count, 1), generator=generator)
    tokens[:, ::3] = torch.where(ended, OBJECTS, tokens[:, ::3])
    return tokens


def acting(tokens: Tensor) -> Tensor:
    """(...,15) true up to the first end, which is an action itself; what follows it is not."""
    ended = (tokens[..., ::3] == OBJECTS).cumsum(dim=-1)
    inside = (ended == 0).repeat_interleave(3, dim=-1)
    inside[..., ::3] |= (tokens[..., ::3] == OBJECTS) & (ended == 1)
    return inside


def scores(reward: Reward, prompt: Tensor, tokens: Tensor, **options: Any) -> Tensor:
    """What sequences earn (n)."""
    rows = zip(prompt.tolist(), tokens.tolist(), strict=True)
    return torch.tensor([reward(written(answer), wanted(scene), **options).value for scene, answer in rows])


def exactly(prompt: Tensor, tokens: Tensor) -> Tensor:
    """(n) whether all triplets are right and none is missing, by the published reward's greatest value."""
    return (scores(triplet_set, prompt, tokens, normalise=True) == 1.0).float()


def train(start: Networks, reward: Callable[[Tensor, Tensor], Tensor], steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """GRPO from the start; the exact-set accuracy of greedy answers and the mean length of sampled ones, (S,points)."""
    networks, credit, objective = start.copy(), bind("credit", "grpo"), bind("objective", "reinforce")
    optimizer, seeds = Adam(networks, RATE), len(start.seeds)
    draws = [torch_generator(seed, "star", "scenes") for seed in start.seeds]
    voices = [torch_generator(seed, "star", "answers") for seed in start.seeds]
    test = torch.stack([scenes(HELD_OUT, torch_generator(seed, "star", "held out")) for seed in start.seeds])
    group = torch.arange(seeds * SCENES).repeat_interleave(GROUP)
    right, length = [], []
    for step in range(steps + 1):
        if step % 25 == 0:
            greedy = networks.write(test)
            right.append(exactly(test.flatten(0, 1), greedy.flatten(0, 1)).view(seeds, -1).mean(dim=1))
        prompt = torch.stack([scenes(SCENES, draw) for draw in draws]).repeat_interleave(GROUP, dim=1)
        tokens = networks.write(prompt, voices)
        mask = acting(tokens).flatten(0, 1)
        length.append((tokens[..., ::3] != OBJECTS).float().cumprod(dim=-1).sum(dim=-1).mean(dim=1))
        value = reward(prompt.flatten(0, 1), tokens.flatten(0, 1))
        advantage = credit({"reward": value, "group": group, "mask": mask}).fields["advantage"]
        logp = networks.read(prompt, tokens).logp.flatten(0, 1)
        fields = {"logp": logp, "old_logp": logp.detach(), "advantage": advantage, "mask": mask}
        optimizer.step(objective(fields).fields["loss"] * seeds)
    return torch.stack(right, dim=1), torch.stack(length, dim=1)


def begun(seeds: list[int]) -> Networks:
    """Networks that write random triplets."""
    networks = Networks(TASK, seeds)
    generator = torch_generator(0, "star", "form")
    imitate(networks, scenes(4096, generator), random_answers(4096, generator), steps=300)
    return networks


EVERYTHING = " ".join(f"({index}, {name}, {value})" for index in range(10) for name in NAMES for value in range(VALUES))


def run(method: Reward, seeds: int) -> Iterator[Check]:
    """Two changes by hand, naming everything, then training."""
    two = [["1", "color", "0"], ["2", "size", "1"]]
    half = "(1, color, 0) (2, size, 2)"
    yield equal("all right", method("(2, size, 1) (1, color, 0)", two).value, 10.0)
    yield equal("one right, one with a wrong value", method(half, two).value, 5.5)
    yield equal("the same, where only what matches nothing is wrong", method(half, two, wrong="no_match").value, 6.5)
    yield equal("one right, written twice", method("(1, color, 0) (1, color, 0)", two).value, 4.0)
    yield equal("silence", method("", two).value, -2.0)
    yield equal("all 120 triplets of ten objects", method(EVERYTHING, two).value, -108.0)
    yield equal("the same where wrong ones are free: the hack", method(EVERYTHING, two, p_wrong=0.0).value, 10.0)
    yield equal(
        "nothing changed: silence, and three triplets", [method(t, []).value for t in ("", "(1, a, b)" * 3)], [0, -3]
    )

    start = begun(list(range(seeds)))
    ours, named = train(start, lambda prompt, tokens: scores(method, prompt, tokens))
    sparse, _ = train(start, exactly)
    free = {"p_wrong": 0.0, "p_missing": 0.0}
    _, listed = train(start, lambda prompt, tokens: scores(method, prompt, tokens, **free))
    yield paired(
        "exact-set accuracy after training, against 1 for an exact set and 0 otherwise",
        ours[:, -1],
        sparse[:, -1],
        share=1.0,
        curves={"triplets": ours, "exact set": sparse},
        axis="exact-set accuracy by 25 steps",
    )
    yield paired("the same on average over training", ours.mean(dim=1), sparse.mean(dim=1), share=1.0)
    yield every_seed("triplets named of at most 5, without penalties", listed[:, -25:].mean(dim=1), above=4.5)
    yield every_seed(
        "triplets named with penalties, where 2.5 are right", named[:, -25:].mean(dim=1), above=2.0, below=3.0
    )


def unpunished(text: str, answer: Any, **options: Any) -> Any:
    """The reward without its penalties."""
    return triplet_set(text, answer, **(options | {"p_wrong": 0.0, "p_missing": 0.0}))


CLAIM = Claim(
    system="star-r1",
    run=run,
    method=triplet_set,
    mutation=Mutation("neither wrong nor missing triplets cost anything", unpunished),
    recipe="""
rewards:
  - triplet_set
  - {name: tags, names: [think, answer]}
""",
    seeds=5,
)
