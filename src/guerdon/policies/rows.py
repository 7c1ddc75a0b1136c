"""Rows of tokens: where actions stand in them, and how ragged lists become tensors."""

from __future__ import annotations

import torch
from torch import Tensor


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
