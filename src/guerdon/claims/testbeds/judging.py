"""Small pages on which a network judges two actions, by way of a principle and of what each action touches."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from guerdon.claims.testbeds.sequences import Networks, Writing
from guerdon.reward_models.generative import Candidate
from guerdon.reward_models.web_prm import WebStep
from guerdon.seeding import torch_generator

ITEMS = ("milk", "bread", "tea", "salt", "rice", "oats")
PLACES, LENGTH = 5, 4
NAMES = (*ITEMS, "1", "2")
_READ = re.compile(r"find (\w+).*Page:\n([\w ]+)\n.*click (\d).*click (\d)", re.DOTALL)


@dataclass(frozen=True)
class Shelf:
    """Pages of five items at five places; the action that clicks on the item that is asked for is good.

    A prompt is (item asked for, item at each place, place of action 1, place of action 2). A justification names the
    item asked for, that under action 1, that under action 2, and the verdict: four symbols. Before each a network sees
    the item asked for, the page with the places of both actions marked on it, and the symbols so far.

    Attributes:
        name: of the environment.
        layouts: how many pages it has.
    """

    name: str
    layouts: int = 40

    def draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Prompts (count,8) and right verdicts (count,), 1 or 2 as often."""
        generator = torch_generator(seed, "shelf", self.name)
        rows = self._pages()[torch.randint(self.layouts, (count,), generator=generator)]
        good = torch.randint(PLACES, (count,), generator=generator)
        bad = (good + 1 + torch.randint(PLACES - 1, (count,), generator=generator)) % PLACES
        first = torch.rand(count, generator=generator) < 0.5
        places = torch.stack([torch.where(first, good, bad), torch.where(first, bad, good)], dim=1)
        goal = rows.gather(1, good.unsqueeze(1))
        return torch.cat([goal, rows, places], dim=1), torch.where(first, 1, 2)

    def steps(self, count: int, seed: int) -> list[WebStep]:
        """The same as steps of a benchmark, each with four bad actions."""
        out = []
        for prompt, verdict in zip(*(x.tolist() for x in self.draw(count, seed)), strict=True):
            goal, *page, first, second = prompt
            good = first if verdict == 1 else second
            clicks = [Candidate(f"click {place}") for place in range(PLACES)]
            rejected = tuple(click for place, click in enumerate(clicks) if place != good)
            page = " ".join(ITEMS[i] for i in page)
            out.append(WebStep(self.name, f"find {ITEMS[goal]}", page, clicks[good], rejected))
        return out

    def _pages(self) -> Tensor:
        drawn = [
            torch.randperm(len(ITEMS), generator=torch_generator(i, "page", self.name)) for i in range(self.layouts)
        ]
        return torch.stack(drawn)[:, :PLACES]


def justify(prompt: Tensor, verdict: Tensor) -> Tensor:
    """(B,4) what a teacher writes."""
    under = prompt[:, 1 : 1 + PLACES].gather(1, prompt[:, 1 + PLACES :])
    return torch.cat([prompt[:, :1], under, (len(ITEMS) + verdict - 1).unsqueeze(1)], dim=1)


def written(tokens: Sequence[int]) -> str:
    """The text of four symbols."""
    wants, first, second, verdict = (NAMES[token] for token in tokens)
    return f"Principles: find {wants}\nGrounding: action 1 is {first}, action 2 is {second}\nVerdict: {verdict}"


def writing() -> Writing:
    """The task of the networks."""
    place = torch.arange(LENGTH + 1)
    before = (torch.arange(LENGTH) < place.unsqueeze(1)).unsqueeze(-1)

    def observe(prompt: Tensor, tokens: Tensor) -> Tensor:
        page, marks = one_hot(prompt[..., 1 : 1 + PLACES], len(ITEMS)), one_hot(prompt[..., 1 + PLACES :], PLACES)
        marked = (marks.unsqueeze(-1) * page.unsqueeze(-3)).flatten(-3)
        asked = torch.cat([one_hot(prompt[..., 0], len(ITEMS)), marked], dim=-1)
        asked = asked.unsqueeze(-2).expand(-1, -1, LENGTH + 1, -1)
        known = (one_hot(tokens, len(NAMES)).unsqueeze(2) * before).flatten(-2)
        places = one_hot(place, LENGTH + 1).expand(*tokens.shape[:2], -1, -1)
        return torch.cat([asked, known, places], dim=-1).float()

    size = len(ITEMS) + 2 * PLACES * len(ITEMS) + LENGTH * len(NAMES) + LENGTH + 1
    return Writing(len(NAMES), LENGTH, size, observe)


def writer(networks: Networks, index: int) -> Callable[[Sequence[str]], list[str]]:
    """The network of one seed as a writer of justifications: it reads the prompt that a judge is given."""
    one = networks.only(index)

    def write(prompts: Sequence[str]) -> list[str]:
        rows = []
        for prompt in prompts:
            found = _READ.search(prompt)
            assert found is not None, "a prompt of comparison_prompt"
            page = [ITEMS.index(item) for item in found[2].split()]
            rows.append([ITEMS.index(found[1]), *page, int(found[3]), int(found[4])])
        return [written(tokens) for tokens in one.write(torch.tensor([rows]))[0].tolist()]

    return write
