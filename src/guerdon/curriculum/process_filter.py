"""Which answers of a group to learn from: those whose steps agree with their outcome."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guerdon.credit.grouping import grouped


def process_consistency_filter(
    score: Tensor,
    steps: Tensor,
    right: Tensor,
    group: Tensor,
    *,
    keep: int,
    penalty: float = 1.0,
    most_steps: int | None = None,
    wrong: Literal["both", "correct"] = "both",
    draw: Tensor | None = None,
) -> Tensor:
    """Keep right answers with good steps and wrong ones with bad steps, as many of both as there can be.

    c_i = (score_i - penalty [one step at most, or most_steps or more]) o_i,  o_i = 1 if right, else -1

    Of the n+ right and n- wrong answers of a group the k+ and k- with the largest c stay, each side ranked by itself:
    k+ + k- = keep, with k+ k- as large as it can be. Scores of steps choose and never enter the reward, so there is
    nothing in them to farm. Where keep is odd the right side gets the smaller half. A group of one side keeps ``keep``
    of it and teaches nothing afterwards.

    Args:
        score: (N,) mean score of the steps of each answer.
        steps: (N,) how many there are.
        right: (N,) whether the answer is right.
        group: (N,) key of the answers that share a problem.
        keep: answers of each group that stay; smaller groups stay whole.
        penalty: what answers of one step, and very long ones, lose. The value is ours.
        most_steps: from how many steps on an answer is very long; never by default.
        wrong: ``both``: wrong answers are chosen by their steps too; ``correct``: at random, for weak models of steps.
        draw: (N,) uniform numbers by which they are chosen then; needed for ``correct``.

    Returns:
        (N,) bool.

    Raises:
        ValueError: when keep is below 1, or ``correct`` has nothing to draw by.

    Source: Ye et al. 2025, arXiv 2509.03403.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, wanted 1 or more")
    if wrong == "correct" and draw is None:
        raise ValueError("wrong is 'correct', which chooses wrong answers at random; give uniform numbers as draw")
    odd = steps <= 1
    if most_steps is not None:
        odd = odd | (steps >= most_steps)
    right = right.bool()
    level = score - penalty * odd.to(score.dtype)
    consistency = torch.where(right, level, -level if wrong == "both" or draw is None else draw.to(level.dtype))
    ones = right.to(score.dtype)
    good = grouped(ones, group)
    n_right = good.spread(good.total(ones))
    n_wrong = good.count() - n_right
    k_right = torch.minimum(n_right, (keep - n_wrong).clamp(min=keep // 2))
    quota = torch.where(right, k_right, keep - k_right)
    return _rank(consistency, 2 * group.long() + right.long()) < quota


def _rank(x: Tensor, key: Tensor) -> Tensor:
    """(N,) how many with the same key have a larger number, or the same and stand before: 0 for the largest."""
    order = x.argsort(descending=True, stable=True)
    order = order[key[order].argsort(stable=True)]
    place = torch.arange(len(x), device=x.device)
    sorted_key = key[order]
    opens = torch.cat([sorted_key.new_ones(min(len(x), 1)).bool(), sorted_key[1:] != sorted_key[:-1]])
    start = torch.where(opens, place, 0).cummax(dim=0).values
    return torch.empty_like(place).scatter(0, order, place - start)
