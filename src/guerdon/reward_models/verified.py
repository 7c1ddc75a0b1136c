"""How many answers are right for the right reason: pass rates of sound ways, and how well judges tell them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.analysis.inference_cost import pass_at_k


def verified_pass_at_n(right: Tensor, sound: Tensor, n: int) -> Tensor:
    """Chance that n of the samples hold one that is right by a sound way.

    mean over problems of 1 - C(S - c, n) / C(S, n),  c = samples that are both

    Args:
        right: (P,S) bool, whether the answer of each sample is right.
        sound: (P,S) bool, whether its way is valid; by people in the source, by any judge here.
        n: samples that one would draw, at most S. With ``sound`` all true this is pass@n.

    Returns:
        A scalar.

    Raises:
        ValueError: when the shapes differ, or n is not from 1 to S.

    Source: Yuan et al. 2025, arXiv 2510.07774 (Verified pass@N); Chen et al. 2021, arXiv 2107.03374 (the estimator).
    """
    if right.shape != sound.shape or right.ndim != 2:
        raise ValueError(f"right has shape {tuple(right.shape)} and sound {tuple(sound.shape)}; wanted (P,S) both")
    return pass_at_k((right.bool() & sound.bool()).sum(dim=1), right.shape[1], n).mean()


def answer_recall(ranked: Tensor, answer: Tensor, k: int) -> Tensor:
    """Share of problems whose answer is among the k likeliest direct answers: what can be recalled without a way to it.

    Args:
        ranked: (P,K) answers that were given when reasoning was forbidden, likeliest first, as a beam search has them.
        answer: (P,) the right ones.
        k: how many count.

    Source: Yuan et al. 2025, arXiv 2510.07774 (answer-recall probe).
    """
    return (ranked[:, :k] == answer.unsqueeze(1)).any(dim=1).double().mean()


class FalsePositives(NamedTuple):
    """How well a judge finds answers that are right for the wrong reason.

    Attributes:
        precision, recall, f1: of those it calls unsound among the right answers.
        share: (B,) of false positives among the right answers of each band of scores; nan where there are none.
    """

    precision: float
    recall: float
    f1: float
    share: Tensor


def false_positives(
    score: Tensor, right: Tensor, sound: Tensor, *, threshold: float = 0.5, bands: int = 11
) -> FalsePositives:
    """Look at a judge's scores of answers that are right, some of which only happen to be.

    A judge is calibrated where the share of false positives falls from band to band.

    Args:
        score: (N,) in [0,1].
        right, sound: (N,) bool, the truth; a false positive is right and not sound.
        threshold: below it the judge calls a way unsound.
        bands: bands of scores: 11 keep the whole numbers of a scale from 0 to 10 apart.

    Source: Yuan et al. 2025, arXiv 2510.07774. The threshold is inferred.
    """
    score, sound = score[right.bool()], sound.bool()[right.bool()]
    called = score < threshold
    hit = float((called & ~sound).sum())
    precision, recall = (hit / max(float(x.sum()), 1.0) for x in (called, ~sound))
    band = (score.clamp(0, 1) * (bands - 1)).round().long()
    count, false = (torch.bincount(band, weights=x.double(), minlength=bands) for x in (torch.ones_like(score), ~sound))
    share = torch.where(count > 0, false / count.clamp(min=1), float("nan"))
    return FalsePositives(precision, recall, 2 * precision * recall / max(precision + recall, 1e-12), share)
