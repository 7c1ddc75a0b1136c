"""Credit of each segment from how much a score of the text so far rose over it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guerdon.credit.process import Steps, steps_of
from guerdon.registry import register

First = Literal["centred", "score"]


def telescoped(score: Tensor, ends: Tensor, *, first: First = "centred") -> Tensor:
    """Gain of each segment: A_t = s_t - s_{t-1}, and for the first A_1 = s_1 - s_T, T the last.

    Centred, the gains of every text add up to 0, so nothing is earned by being long or short, and a score that never
    changes gives nothing. But what the first segment adds to its own score it adds to the last one too, and the two
    cancel: a right first step gains nothing by being right. ``score`` gives A_1 = s_1, and the sum is s_T.

    Args:
        score: (N,T) s at the ends of segments; nothing else is read.
        ends: (N,T) true there.
        first: what the first segment gets.

    Returns:
        (N,T) A at the ends, 0 elsewhere.

    Source: ExpRL: Exploratory RL for LLM Mid-Training, 2026.
    """
    ends = ends.bool()
    s = torch.where(ends, score, 0.0)
    width = s.shape[1]
    place = torch.arange(width, device=s.device)
    latest = torch.where(ends, place + 1, 0).cummax(dim=1).values
    before = torch.nn.functional.pad(latest, (1, 0))[:, :width]
    padded = torch.nn.functional.pad(s, (1, 0))
    gain = s - padded.gather(1, before)
    if first == "centred":
        last = padded.gather(1, latest[:, -1:]) if width else s[:, :0]
        gain = torch.where(before == 0, gain - last, gain)
    return torch.where(ends, gain, 0.0)


@register("credit", paper="ExpRL: Exploratory RL for LLM Mid-Training, 2026")
def telescoped_process(
    dense: Tensor, mask: Tensor, *, first: First = "centred", lowest: float = 1.0, highest: float = 5.0
) -> tuple[Tensor, dict[str, float]]:
    """Every action of a segment gets what the judge's score of the text rose by over it.

    A_t = s_t - s_{t-1},  A_1 = s_1 - s_T,  s = (score - lowest) / (highest - lowest);  no further normalisation

    Reward ``reference_judge`` with ``prefixes`` gives the scores, at the last action of each segment. Name it alone:
    whatever else is rewarded is read as a score. Scores must not be 0, which is why the judge's scale begins at 1.

    Args:
        dense: (N,T) score of the text up to each end of a segment, 0 elsewhere.
        mask: (N,T) true on actions.
        first: what the first segment gets, see ``telescoped``. ``centred`` is as published; where the first segment
            decides something, use ``score``.
        lowest, highest: ends of the scale.

    Returns:
        (N,T) credit, 0 off the mask and behind the last end; the mean score of whole texts in [0,1] (``score``), and
        the share of segments over which it fell (``worse``).

    Raises:
        ValueError: when the scale is empty.

    Source: ExpRL: Exploratory RL for LLM Mid-Training, 2026.
    """
    if not highest > lowest:
        raise ValueError(f"highest is {highest}, wanted above lowest, which is {lowest}")
    mask = mask.bool()
    steps = steps_of(dense, mask)
    score = torch.where(steps.ends, (steps.score - lowest) / (highest - lowest), 0.0)
    gain = telescoped(score, steps.ends, first=first)
    last = steps.ends & (steps.ends.flip(1).cumsum(dim=1).flip(1) == 1)
    later = steps.ends & (steps.ends.cumsum(dim=1) > 1)
    stats = {
        "score": float(score[last].mean()) if bool(last.any()) else 0.0,
        "worse": float(((gain < 0) & later).sum() / later.sum().clamp(min=1)),
    }
    held = Steps(gain, steps.ends, steps.outcome).of_action(gain)
    return held.masked_fill(~mask, 0.0), stats
