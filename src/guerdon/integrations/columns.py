"""Batches of other trainers as rollouts: which fields they can give, and how."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from guerdon import registry
from guerdon.errors import RecipeError
from guerdon.recipe import MethodSpec
from guerdon.registry import Bound, missing_field
from guerdon.rollouts import Rollouts, make_rollouts

Spec = str | Mapping[str, Any]

# What any trainer of language models with outcome rewards can tell of a batch, before the update.
COMMON = frozenset(
    "group task_id mask turn length done truncated text metadata step seed components component_names "
    "component_weights".split()
)
_REMEDIES = {"answer": "give the dataset a column 'answer'"}


def bind_signal(
    shaping: Sequence[Spec], credit: Spec | Sequence[Spec], supplied: frozenset[str], trainer: str
) -> tuple[list[Bound], list[Bound]]:
    """Find and bind the methods of both stages, and check that each gets the fields that it names.

    Raises:
        MissingField: naming field, method and trainer.
        RecipeError: for unknown names and options.
    """
    shapers = [_bind("shaping", spec) for spec in shaping]
    if not any("reward" in bound.method.produces for bound in shapers):
        shapers.append(registry.get("shaping", "weighted_sum").bind())
    credits = [_bind("credit", spec) for spec in ([credit] if isinstance(credit, str | Mapping) else credit)]
    if not credits:
        raise RecipeError("credit is empty; name at least one method, such as 'grpo'")
    available = set(supplied)
    for bound in (*shapers, *credits):
        lacking = next((name for name in bound.method.requires if name not in available), None)
        if lacking is not None:
            remedy = _REMEDIES.get(lacking, "use a method that does without, or train with 'guerdon train'")
            raise missing_field(bound.method, lacking, trainer, remedy)
        available |= {*bound.method.produces}
        if bound in shapers:
            available |= {"reward", "dense"}
    return shapers, credits


def _bind(stage: str, spec: Spec) -> Bound:
    found = MethodSpec.model_validate(spec if isinstance(spec, str) else dict(spec))
    return registry.get(stage, found.name).bind(found.options)


def text_of(message: Any) -> str:
    """The text of a completion or prompt: itself, or what the messages of a conversation say."""
    if isinstance(message, str):
        return message
    parts = []
    for turn in message:
        content = turn.get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text", "") for part in content)
        parts.append(content)
    return "\n".join(part for part in parts if part)


def identity(prompt: Any) -> int:
    """A number that is the same for the same prompt in every run."""
    return int.from_bytes(hashlib.blake2b(text_of(prompt).encode(), digest_size=8).digest(), "big") >> 1


def turns_of(mask: Tensor) -> Tensor:
    """(N,T) number of the turn of each action, -1 off actions; a turn is a run of actions without a gap."""
    before = torch.cat([mask.new_zeros(len(mask), 1), mask[:, :-1]], dim=1)
    return torch.where(mask, (mask & ~before).cumsum(dim=1) - 1, -1)


def as_rollouts(
    mask: Tensor,
    group: Tensor,
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    truncated: Tensor,
    tokens: Tensor | None = None,
) -> Rollouts:
    """A batch of completions as rollouts. ``old_logp`` is zero, for the trainer keeps its own.

    Args:
        mask: (N,T) true on tokens that the policy wrote.
        group: (N,) key of the completions of one prompt.
        prompts, completions: N texts or conversations.
        columns: further columns of the data, N values each; ``answer`` is the reference answer, and each is metadata.
        truncated: (N,) whether the completion was cut.
        tokens: (N,T) ids.
    """
    rows = range(len(prompts))
    optional: dict[str, Any] = {} if tokens is None else {"tokens": tokens.masked_fill(~mask, 0)}
    if "answer" in columns:
        optional["answer"] = list(columns["answer"])
    return make_rollouts(
        group,
        torch.tensor([identity(prompt) for prompt in prompts], dtype=torch.int64, device=mask.device),
        mask,
        torch.zeros(mask.shape, device=mask.device),
        done=~truncated,
        truncated=truncated,
        payload=TensorDict({}, [len(mask)]),
        turn=turns_of(mask),
        text=[text_of(completion) for completion in completions],
        metadata=[{name: values[row] for name, values in columns.items()} for row in rows],
        **optional,
    )
