"""Where all answers of a group agree, right or wrong, comparing them teaches nothing. COPO then compares the prompt
with the others of the batch, and lets the entropy of the final answers decide which comparison counts.

Half of the prompts begin at 30 % success; the others give one wrong answer 99 % of the time and the right one once in
a thousand. Every batch is used for four updates. Their clip matters: a push that is the same for all answers has no
mean direction, but the clip holds back what it does to rare ones, so on the whole it flattens the policy. Baselines
are GRPO and the comparison of prompts alone.
The switch has a price, not shown below: one right answer among seven equal wrong ones has an entropy of 0.38, far below
1.5, and is hardly heard. Were the leak ten times as large, GRPO would learn all prompts here, and COPO only most.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, below, equal, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.consistency import Consistency, copo
from guerdon.credit.group import grpo

ANSWERS, PROMPTS, EASY, LEAK = 10, 16, 0.3, 0.001
LOCAL_NEVER = 1e3  # a threshold that no entropy reaches


def upside_down(*fields: Any, gamma: float = 20.0, **options: Any) -> tuple[Consistency, dict[str, float]]:
    """Let the local credit count where the answers agree."""
    return copo(*fields, gamma=-gamma, **options)


def of_answers(method: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The method where an answer is one token."""

    def credit(reward: Tensor, group: Tensor, mask: Tensor, tokens: Tensor) -> tuple[Consistency, dict[str, float]]:
        return method(reward, group, mask, [str(token) for token in tokens[:, 0].tolist()], **options)

    return credit


def run(method: Callable[..., Any], seeds: int) -> Iterator[Check]:
    """The switch and the comparison of prompts, then training."""
    one_each = torch.arange(8) % 4
    reward, group = torch.tensor([1.0] * 8 + [0.0] * 16, dtype=torch.float64), torch.arange(3).repeat_interleave(8)
    tokens = torch.cat([torch.zeros(16).long(), one_each]).unsqueeze(1)
    mask = torch.ones(24, 1).bool()
    credit, _ = of_answers(method)(reward, group, mask, tokens)
    weight = credit.local_weight[::8, 0]
    yield below("weight of the local credit where all agree, in units of 1e-14", weight[0] * 1e14, 9.4)
    halfway, _ = of_answers(method, rho=torch.tensor(4.0).log().item())(reward, group, mask, tokens)
    yield equal("its weight where the entropy is rho", halfway.local_weight[-1, 0], 0.5)
    wide = of_answers(method)(reward, group, mask, torch.arange(24).unsqueeze(1))[0].local_weight[0, 0]
    yield equal("its weight where all eight differ", wide, 1.0, tol=1e-4)
    yield equal("GRPO of prompts all right and all wrong", grpo(reward, group, mask), torch.zeros(24, 1))
    between = (1 - credit.local_weight) * credit.prompt_advantage
    apart = between[[0, 8], 0]
    yield equal("credit of prompts all right and all wrong", apart, [2 / 3**0.5, -1 / 3**0.5], tol=1e-3)

    easy = torch.full((ANSWERS,), (1 - EASY) / (ANSWERS - 1)).index_fill(0, torch.tensor(0), EASY)
    hard = torch.full((ANSWERS,), LEAK).index_fill(0, torch.tensor(1), 1 - LEAK * (ANSWERS - 1))
    initial = torch.stack([easy, hard]).repeat(PROMPTS // 2, 1)
    bed = Tabular(initial, lambda actions, prompt: (actions[:, 0] == 0).double())
    train = partial(bed.train, seeds=seeds, steps=100, group_size=8, lr=1.0 * PROMPTS, updates=4, per_seed=True)
    ours = train(credit=of_answers(method), objective="blended_clip")
    plain = train(credit="grpo", objective="ppo_clip")
    alone = train(credit=of_answers(copo, rho=LOCAL_NEVER), objective="blended_clip")

    def accuracy(history: History) -> Tensor:
        """Probability (S, steps + 1) of the right answer."""
        return history.probs[..., 0, 0].mean(dim=-1).T

    curves = {"copo": accuracy(ours), "grpo": accuracy(plain), "prompts alone": accuracy(alone)}
    final = {name: curve[:, -1] for name, curve in curves.items()}
    axis = "accuracy by step"
    yield paired("accuracy against GRPO", final["copo"], final["grpo"], curves=curves, axis=axis)
    yield paired("accuracy against the comparison of prompts alone", final["copo"], final["prompts alone"])


CLAIM = Claim(
    system="copo",
    run=run,
    method=copo,
    mutation=Mutation("the local credit counts where the answers agree", upside_down),
    recipe="credit: copo\nobjective: blended_clip\ntraining: {steps: 400, minibatches: 4}\n",
    seeds=8,
)
