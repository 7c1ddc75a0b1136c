"""Rows that a small language model wrote with a search engine, to look at what learns from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.engine.tools import Tool
from guerdon.objectives.divergence import kl
from guerdon.objectives.policy import ppo_clip
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.rollouts import Rollouts
from guerdon.seeding import torch_generator
from guerdon.tasks.base import Starts
from guerdon.tasks.knowledge_graph import GraphQA

SEGMENTS = {"query": ("[", "]")}


class Rows(NamedTuple):
    """What was written.

    Attributes:
        rollouts: N rows of T tokens.
        token_text: the text of each of their actions.
        inserted: (N,T) bool, the tokens of the search engine.
    """

    rollouts: Rollouts
    token_text: list[list[str]]
    inserted: Tensor


def searched_rows(prompts: int = 8, group_size: int = 16) -> Rows:
    """Sample rows of an untrained model; whatever it asks, it is told a fact."""
    task = GraphQA(hops=[1], entities=8, relations=["b"], query=("[", "]"), documents=("(", ")"))
    torch.manual_seed(0)
    policy = TinyLM(task, width=16, layers=1, heads=2)

    def respond(queries: list[str]) -> list[str]:
        return task.respond([f"{task.entities[0]} b"] * len(queries))

    tool = Tool(name=respond, opening="[", closing="]", insert_opening="(", insert_closing=")")
    starts = Starts.repeat(task.train_batch(prompts, seed=0), group_size)
    with torch.no_grad():
        rollouts = policy.sample(starts, LanguageSampling(max_new_tokens=120, tool=tool), seed=0)
    width = rollouts.payload["prompt_tokens"].shape[1]
    inserted = rollouts.payload["attention"][:, width:] & ~rollouts.mask
    return Rows(rollouts, policy.token_text(rollouts) or [], inserted)


def gradient_of(rows: Rows, mask: Tensor) -> Tensor:
    """(N,T) gradient by the log-probability of every token, of clipped policy gradient and KL under a mask."""
    old = rows.rollouts.old_logp
    logp = (old - 0.1).requires_grad_()
    advantage = torch.randn(logp.shape, generator=torch_generator(0, "advantage"))
    loss = ppo_clip(logp, old, advantage, mask)[0] + kl(logp, old - 0.5, mask, beta=0.1)[0]
    (gradient,) = torch.autograd.grad(loss, logp)
    return gradient
