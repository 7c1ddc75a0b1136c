"""Where training without labels leads, and when it has collapsed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Numbers = Sequence[float] | Tensor
Sign = Literal["length collapse", "repetition", "slow decay"]

# A third of the length at the start is another behaviour; so is a text half of which has been said before.
SHORT, REPEATED = 1 / 3, 0.5
# Part of its best accuracy that a run has lost while its own reward rose.
DECAYED = 0.1


def sharpening_odds(p: float, *, beta: float, steps: int) -> float:
    """Odds against the majority's answer after exact steps on the vote, each held to the policy before it by KL.

    (1 - p_n) / p_n = (1 - p) / p exp(-n / beta)

    So the majority's answer takes everything, and accuracy goes to 1 where it is right and to 0 where it is wrong.

    Args:
        p: probability of the majority's answer at first, above 0 and at most 1.
        beta: coefficient of the KL divergence, above 0.
        steps: n.

    Returns:
        The odds, as long as the majority stays what it is.

    Raises:
        ValueError: when p or beta is out of range.

    Source: He et al. 2026, arXiv 2603.08660.
    """
    if not 0 < p <= 1 or not beta > 0:
        raise ValueError(f"p is {p} and beta {beta}; wanted p in (0,1] and beta above 0")
    return (1 - p) / p * math.exp(-steps / beta)


def sharpen(probs: Tensor, *, beta: float, steps: int = 1) -> Tensor:
    """Distributions after exact steps on the vote of infinitely many answers.

    p(a) <- p(a) exp([a is the mode] / beta) / Z, n times

    Args:
        probs: (...,A) probabilities of the answers. Of several first answers none gains, so nothing changes.
        beta: coefficient of the KL divergence to the policy before the step, above 0.
        steps: n; ``sharpening_limit`` says where they lead.

    Returns:
        (...,A).

    Source: He et al. 2026, arXiv 2603.08660.
    """
    alone = _mode(probs)
    return torch.softmax(probs.log() + torch.where(alone, steps / beta, 0.0), dim=-1)


def sharpening_limit(probs: Tensor) -> Tensor:
    """What the vote makes of distributions in the end: everything on the first answer, if there is one.

    Args:
        probs: (...,A) probabilities of the answers at first.

    Returns:
        (...,A); a distribution with several first answers stays as it is.

    Source: He et al. 2026, arXiv 2603.08660. (There, over texts: the policy at first, restricted to those with the
    majority's answer and normalised.)
    """
    alone = _mode(probs)
    return torch.where(alone.any(dim=-1, keepdim=True), alone.to(probs.dtype), probs)


def _mode(probs: Tensor) -> Tensor:
    first = probs == probs.amax(dim=-1, keepdim=True)
    return first & (first.sum(dim=-1, keepdim=True) == 1)


def reward_accuracy(own: Tensor, true: Tensor) -> float:
    """How often a reward that the policy gives itself agrees with the true one; nan without samples.

    Args:
        own, true: (N,) rewards of 0 or 1; samples where one is NaN do not count.
    """
    known = ~own.isnan() & ~true.isnan()
    return float((own[known] == true[known]).double().mean()) if bool(known.any()) else math.nan


class CollapseStep(NamedTuple):
    """When a training collapsed.

    Attributes:
        step: the first step that shows it; None if none does.
        by: whether labels said so (``reward accuracy``), or the vote alone (``agreement``).
    """

    step: int | None
    by: Literal["reward accuracy", "agreement"]


def model_collapse_step(
    accuracy: Numbers | None = None,
    agreement: Numbers | None = None,
    *,
    threshold: float = 0.01,
    certain: float = 0.99,
    patience: int = 10,
) -> CollapseStep:
    """First step at which a policy's own reward no longer says anything of the true one.

    with labels: first step of accuracy < threshold;  without: first of ``patience`` in a row of agreement >= certain

    The later a model collapses under its own vote, the stronger it is and the more training by true rewards is expected
    to bring. The source calls the number free of labels, though reward accuracy needs them; without labels unanimity
    stands for it, which a policy that is right everywhere reaches as well.

    Args:
        accuracy: per step, how often the vote and the true reward agree; see ``reward_accuracy``.
        agreement: per step, the mean of the vote's reward; read only where there is no accuracy.
        threshold: accuracy below which a step is one of collapse.
        certain, patience: agreement that counts as unanimity, and for how many steps. The rule is ours.

    Returns:
        The step, and by what.

    Raises:
        ValueError: when neither is given, or patience is below 1.

    Source: He et al. 2026, arXiv 2603.08660.
    """
    if patience < 1:
        raise ValueError(f"patience is {patience}, wanted 1 or more")
    if accuracy is not None:
        low = torch.as_tensor(accuracy, dtype=torch.float64) < threshold
        return CollapseStep(int(low.int().argmax()) if bool(low.any()) else None, "reward accuracy")
    if agreement is None:
        raise ValueError("give accuracy, where there are labels, or agreement")
    sure = torch.as_tensor(agreement, dtype=torch.float64) >= certain
    if len(sure) < patience:
        return CollapseStep(None, "agreement")
    streak = sure.unfold(0, patience, 1).all(dim=1)
    return CollapseStep(int(streak.int().argmax()) if bool(streak.any()) else None, "agreement")


def collapse_signs(
    *,
    length: Numbers | None = None,
    repetition: Numbers | None = None,
    reward: Numbers | None = None,
    accuracy: Numbers | None = None,
) -> list[Sign]:
    """How a training on the policy's own certainty went wrong, each reward in its own way.

    The probability of a text pays for short ones (``length collapse``), the entropy of its tokens for what has been
    said before (``repetition``), self-certainty and votes for agreeing on anything (``slow decay``).

    Args:
        length: mean length, step by step.
        repetition: share of repeated n-grams, step by step; see ``repeated_share``.
        reward: the policy's own reward, step by step.
        accuracy: the true reward on problems with labels, step by step, as often as ``reward``.

    Returns:
        The signs: the last length is below a third of the first; the last repetition is above one half, and the first
        was not; the last reward is above the first while the last accuracy is a tenth below its best.
    """
    found: list[Sign] = []
    if length is not None and len(length) and length[-1] < SHORT * length[0]:
        found.append("length collapse")
    if repetition is not None and len(repetition) and repetition[-1] > REPEATED >= repetition[0]:
        found.append("repetition")
    if reward is not None and accuracy is not None and len(reward) and len(accuracy):
        lost = float(accuracy[-1]) < (1 - DECAYED) * max(float(x) for x in accuracy)
        if lost and reward[-1] > reward[0]:
            found.append("slow decay")
    return found
