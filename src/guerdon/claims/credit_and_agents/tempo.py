"""The answers of a group are a tree: those that begin alike share what comes of their beginning. TEMPO adds to the
credit of GRPO what each token changed of the mean outcome of all answers that begin as this one does.

A table writes three binary decisions, two tokens of no meaning behind each; one of the eight leaves is right. TEMPO's
credit is also larger than GRPO's, by about a tenth on average, so GRPO is given that size too: most of the gain stays.
Seen on seeds 100 to 109, in steps until 90 % success of TEMPO, GRPO, GRPO of the same size: 74, 132, 121 at a third of
the learning rate that was kept, 26, 46, 41 at that rate, 10, 14, 15 at three times that rate. Where tokens of no
meaning vary more (30 % instead of 10 %) fewer answers share their beginnings: 28 steps instead of 26.

With no shared beginning the two are said to give the same updates. They do on all tokens but the first, whose credit
doubles: the empty beginning is shared by all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.stepwise import Stepwise, Walks
from guerdon.claims.testbeds.tabular import History
from guerdon.credit.group import dr_grpo, grpo
from guerdon.credit.tree import tempo

DECISIONS, MEANINGLESS, USUAL = 3, 2, 0.9
GROUP, STEPS, RATE, GOAL = 7, 90, 0.3, 0.9


def without_values(
    reward: Tensor, tokens: Tensor, group: Tensor, mask: Tensor, *, scale: bool = True, eps: float = 1e-6
) -> Tensor:
    """The outcome alone."""
    return grpo(reward, group, mask, eps=eps) if scale else dr_grpo(reward, group, mask)


def of_the_same_size(reward: Tensor, tokens: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """GRPO's credit, made as large as TEMPO's in every batch."""
    plain = without_values(reward, tokens, group, mask)
    size = plain.abs().sum().clamp(min=1e-9)
    return plain * tempo(reward, tokens, group, mask).abs().sum() / size


def decisions() -> Stepwise:
    """A tree of decisions, of which always the first is right, each with tokens of no meaning behind it."""
    per_node = MEANINGLESS + 1  # the decision itself, and before it the tokens behind the last one
    inner = 2**DECISIONS - 1
    nodes = 2 * inner + 1
    following = torch.full((nodes * per_node, 2), -1)
    initial = torch.tensor([USUAL, 1 - USUAL]).repeat(nodes * per_node, 1)
    for node in range(nodes):
        last = node * per_node + MEANINGLESS
        for place in range(node * per_node, last):
            following[place] = place + 1
        if node < inner:
            following[last] = torch.tensor([(2 * node + 1) * per_node, (2 * node + 2) * per_node])
            initial[last] = 0.5
        else:
            following[last - 1] = -1
    leaf = inner * per_node

    def score(walks: Walks) -> dict[str, Tensor]:
        return {"right": (walks.mask & (walks.states == leaf)).any(dim=1).double()}

    return Stepwise(following, initial, DECISIONS * per_node, score, starts=torch.tensor([MEANINGLESS]))


def success(bed: Stepwise, probs: Tensor) -> Tensor:
    """(steps + 1,S) chance of the right leaf."""
    leaf = (2**DECISIONS - 1) * (MEANINGLESS + 1)
    return bed.visits(probs)[..., leaf, :].sum(dim=-1)


def run(method: Any, seeds: int) -> Iterator[Check]:
    """Four answers by hand, what changes of value add up to, then a race."""
    tokens = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 4, 5], [0, 4, 6]])
    reward, group = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    mask = torch.ones(4, 3, dtype=torch.bool)
    wanted = torch.tensor([[0.75, 1, 1.25], [-0.25, 0, -0.75], [-0.25, -0.5, -0.25], [-0.25, -0.5, -0.25]])
    yield equal("credit of ABC, ABD, AEF, AEG", method(reward, tokens, group, mask, scale=False), wanted)
    yield equal("the same over the spread", method(reward, tokens, group, mask, eps=0.0), 2 * wanted)
    changes = method(reward, tokens, group, mask, scale=False) - dr_grpo(reward, group, mask)
    yield equal("changes of value add up to reward minus mean", changes.sum(dim=1), reward - 0.25)
    apart = method(reward, tokens + 10 * torch.arange(4).unsqueeze(1), group, mask, scale=False)
    yield equal("nothing shared: GRPO's, and twice that at the first token", apart[0], [1.5, 0.75, 0.75])
    twins = method(reward, tokens[[0, 0, 2, 2]], group, mask, scale=False)
    yield equal("equal answers with rewards 1 and 0, end to end", twins[:2, 2], [0.75, -0.25])
    longer = torch.tensor([[True, True, False]] * 2 + [[True] * 3] * 2)
    short = method(reward, torch.tensor([[5, 6, 9], [5, 6, 8], [5, 6, 9], [5, 6, 9]]), group, longer, scale=False)
    yield equal("what stands behind the end is not compared", short[:, 1], [0.75, -0.25, -0.25, -0.25])

    bed = decisions()
    settings: dict[str, Any] = {"seeds": seeds, "steps": STEPS, "group_size": GROUP, "lr": RATE * bed.length}
    credits = {"tempo": method, "grpo": "grpo", "grpo of the same size": of_the_same_size}
    curves = {name: success(bed, bed.train(credit=credit, **settings).probs) for name, credit in credits.items()}
    steps = {name: History.first(curve, GOAL) for name, curve in curves.items()}
    shown = {name: curve.T for name, curve in curves.items()}
    what = "steps until 90 % success"
    yield paired(what, steps["tempo"], steps["grpo"], better="lower", curves=shown, axis="success by step")
    same = steps["grpo of the same size"]
    yield paired(f"{what}, against GRPO with credit of the same size", steps["tempo"], same, better="lower")


CLAIM = Claim(
    system="tempo",
    run=run,
    method=tempo,
    mutation=Mutation("tokens are not told apart", without_values),
    recipe="""
credit: tempo
objective: {name: dapo, clip_low: 0.2, clip_high: 0.28}
sampling: {prompts: 32, group_size: 7, max_new_tokens: 8}
""",
    quick=True,
)
