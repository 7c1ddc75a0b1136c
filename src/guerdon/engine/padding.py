"""Ragged token lists as tensors, for whatever wants rows of one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def left_pad(sequences: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Stack ragged token lists into (N,C) ids and a (N,C) bool mask, padded on the left."""
    return _stacked(sequences, pad, left=True)


def right_pad(sequences: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Stack ragged token lists into (N,C) ids and a (N,C) bool mask, padded on the right."""
    return _stacked(sequences, pad, left=False)


def _stacked(sequences: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    length = torch.tensor([len(s) for s in sequences], dtype=torch.int64).unsqueeze(1)
    width = max((len(s) for s in sequences), default=0)
    column = torch.arange(width)
    mask = column >= width - length if left else column < length
    ids = torch.full(mask.shape, pad, dtype=torch.int64)
    ids[mask] = torch.tensor([token for s in sequences for token in s], dtype=torch.int64)
    return ids, mask
