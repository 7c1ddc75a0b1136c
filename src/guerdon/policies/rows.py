"""Rows of tokens: where actions stand in them, and how ragged lists become tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import pad as padded

from guerdon.rollouts import Rollouts, pad_actions


class Placer:
    """Puts numbers of acted positions back into (N,T), zero elsewhere."""

    def __init__(self, mask: Tensor) -> None:
        self.mask, self.where = mask, mask.nonzero(as_tuple=True)

    def __call__(self, x: Tensor) -> Tensor:
        return x.new_zeros(*self.mask.shape, *x.shape[1:]).index_put(self.where, x)


def before_actions(acted: Tensor, attention: Tensor) -> Tensor:
    """(N,C) true on the token after which each action was chosen: the one attended to before it."""
    columns = torch.arange(attention.shape[1], device=attention.device)
    latest = torch.where(attention, columns, -1).cummax(dim=1).values
    row, column = acted.nonzero(as_tuple=True)
    out = torch.zeros_like(attention)
    out[row, latest[row, column - 1]] = True
    return out


def present_tokens(ids: Tensor, attention: Tensor) -> list[list[int]]:
    """The tokens (N,P) that are attended to, row by row."""
    return [row[kept[: ids.shape[1]]].tolist() for row, kept in zip(ids, attention, strict=True)]


def join_prompts(parts: Sequence[Rollouts], pad: int) -> TensorDict:
    """The material of several batches of a language policy below one another.

    Prompts are left-padded with ``pad`` to the longest, completions have room for the longest, and rows whose tokens
    nothing restricted list none.
    """
    widest = max(part.payload["prompt_tokens"].shape[1] for part in parts)
    longest = max(part.mask.shape[1] for part in parts)
    columns: dict[str, list[Tensor]] = {"prompt_tokens": [], "attention": [], "temperature": []}
    for part in parts:
        payload, missing = part.payload, (widest - part.payload["prompt_tokens"].shape[1], 0)
        columns["prompt_tokens"].append(padded(payload["prompt_tokens"], missing, value=pad))
        columns["attention"].append(pad_actions(padded(payload["attention"], missing), widest + longest))
        columns["temperature"].append(payload["temperature"])
    if any("listed" in part.payload.keys() for part in parts):  # noqa: SIM118 - a TensorDict has no membership test
        of_part = [part.payload.get("listed", part.mask.new_empty(*part.mask.shape, 0).long()) for part in parts]
        most = max(listed.shape[2] for listed in of_part)
        columns["listed"] = [
            padded(listed, (0, most - listed.shape[2], 0, longest - listed.shape[1]), value=-1) for listed in of_part
        ]
    return TensorDict({name: torch.cat(column) for name, column in columns.items()}, [sum(map(len, parts))])
