"""What a second attempt is worth: whether it corrects the first, spoils it, or repeats it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class SelfCorrection(NamedTuple):
    """Two attempts at many problems; shares of all problems unless said otherwise.

    Attributes:
        first, second: right answers in the first and in the second attempt.
        gain: second - first, Delta(t1,t2). Never judge by it alone: it also grows where first answers become worse.
        fixed: wrong answers that became right, Delta(i->c).
        spoiled: right answers that became wrong, Delta(c->i); gain = fixed - spoiled.
        fix_rate: share of the wrong first answers that became right; nan where none is wrong.
        edited: mean difference of the two texts from 0 (copied) to 1 (nothing in common); nan without texts.
        copied: share of second answers that are the first, word for word; nan without texts.
    """

    first: float
    second: float
    gain: float
    fixed: float
    spoiled: float
    fix_rate: float
    edited: float
    copied: float


def edit_ratio(first: str, second: str) -> float:
    """How much of two texts is not shared: (|a| + |b| - 2 M) / (|a| + |b|), M characters in matching blocks.

    Returns:
        0 for equal texts, 1 for texts with nothing in common; 0 for two empty ones.
    """
    return 1.0 - difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def self_correction(
    turn_reward: Tensor, texts: Sequence[tuple[str, str]] | None = None, *, right: float = 1.0
) -> SelfCorrection:
    """Compare second attempts with first ones.

    Args:
        turn_reward: (N,2) score of either attempt, from task ``self_correct`` before any shaping; rows with a nan are
            left out.
        texts: both answers of each of the N problems.
        right: least score of a right answer.

    Raises:
        ValueError: when there are not two attempts, or not as many texts as rows.

    Source: Kumar et al. 2024, arXiv 2409.12917 (SCoRe): its metrics.
    """
    if turn_reward.ndim != 2 or turn_reward.shape[1] != 2:
        raise ValueError(f"turn_reward has shape {tuple(turn_reward.shape)}, wanted (N,2): a score of both attempts")
    if texts is not None and len(texts) != len(turn_reward):
        raise ValueError(f"{len(texts)} pairs of texts for {len(turn_reward)} problems; give one pair for each")
    usable = turn_reward.isfinite().all(dim=1)
    one, two = (turn_reward[usable] >= right).double().unbind(dim=1)
    fixed, wrong = (1 - one) * two, 1 - one
    nan = float("nan")
    pairs = [] if texts is None else [pair for pair, keep in zip(texts, usable.tolist(), strict=True) if keep]
    edits = torch.tensor([edit_ratio(*pair) for pair in pairs], dtype=torch.float64)
    same = torch.tensor([a == b for a, b in pairs], dtype=torch.float64)
    return SelfCorrection(
        first=float(one.mean()),
        second=float(two.mean()),
        gain=float((two - one).mean()),
        fixed=float(fixed.mean()),
        spoiled=float((one * (1 - two)).mean()),
        fix_rate=float(fixed.sum() / wrong.sum()) if wrong.any() else nan,
        edited=float(edits.mean()) if pairs else nan,
        copied=float(same.mean()) if pairs else nan,
    )
