"""What a language policy makes of texts that it need not have written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guerdon.engine.logits import token_logp
from guerdon.engine.reading import read
from guerdon.policies.rows import Placer, answers_before_turns, before_actions
from guerdon.rollouts import Rollouts

if TYPE_CHECKING:
    from guerdon.policies.language import LanguagePolicy


@torch.no_grad()
def prompt_logp(policy: LanguagePolicy, rollouts: Rollouts) -> Tensor:
    """Log-probability (N,P) of each prompt token given those before it, at temperature 1; nan where there is none.

    A prompt's first token follows nothing, so it has none either. A prompt that several trajectories share is
    read once.
    """
    tokens = rollouts.payload["prompt_tokens"]
    present = rollouts.payload["attention"][:, : tokens.shape[1]]
    out = torch.full(tokens.shape, float("nan"), device=tokens.device)
    at = torch.zeros_like(present)
    at[:, :-1] = present[:, 1:] & present[:, :-1]
    if not bool(at.any()):
        return out
    states = read(policy.model, tokens, present, at, max_tokens=policy.max_tokens)
    known = at.roll(1, dims=1)
    logp, _ = token_logp(policy.model.project, states, tokens[known], torch.ones(len(states), device=tokens.device))
    return out.masked_scatter(known, logp)


@torch.no_grad()
def answer_logp(policy: LanguagePolicy, rollouts: Rollouts, form: str = "{}") -> Tensor:
    """Mean log-probability (N,M) of the reference answer's tokens, had it been given in place of each turn.

    What a turn adds to it is what its observation told about the answer. What answers have in common is read once.

    Args:
        policy: reads them.
        rollouts: episodes with answers.
        form: how an answer is given, with ``{}`` where it stands; the rest of it is read and not counted.
    """
    texts, before = [str(answer) for answer in rollouts.answer or ()], policy.encode(form.partition("{}")[0])
    ids, attention, at, where = answers_before_turns(
        rollouts, before, [policy.encode(text) for text in texts], policy.pad
    )
    if not len(ids):
        return torch.zeros(len(rollouts), 0)
    states = read(policy.model, ids, attention, before_actions(at, attention), max_tokens=policy.max_tokens)
    logp, _ = token_logp(policy.model.project, states, ids[at], torch.ones(len(states)))
    mean = Placer(at)(logp).sum(dim=1) / at.sum(dim=1).clamp(min=1)
    return torch.zeros(where.shape).masked_scatter(where, mean)
