"""Outcome credit of the answers whose steps agree with their outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped, per_action, whiten
from guerdon.credit.process import steps_of
from guerdon.curriculum.process_filter import process_consistency_filter
from guerdon.registry import register
from guerdon.seeding import torch_generator


@register("credit", paper="Ye et al. 2025, arXiv 2509.03403", needs_group=True)
def process_filter(
    dense: Tensor,
    group: Tensor,
    mask: Tensor,
    components: Tensor,
    component_names: Sequence[str],
    seed: int,
    component_weights: Tensor | None = None,
    *,
    outcome: str,
    keep: Annotated[int, Field(ge=1)],
    penalty: float = 1.0,
    most_steps: Annotated[int, Field(ge=1)] | None = None,
    wrong: Literal["both", "correct"] = "both",
    threshold: float = 0.0,
    eps: float = 1e-4,
    ddof: int = 1,
) -> tuple[Tensor, dict[str, float]]:
    """Group-relative advantage of the outcome, among the answers that ``process_consistency_filter`` keeps.

    A_i = (o_i - mean o) / (std o + eps) over the kept answers of the group, 0 for the others

    Scores of steps are read as ``credit.process`` says, and choose answers only. An answer that is not kept has no
    credit, so objectives that are gradients of the credit don't evaluate it; ``aggregate: valid_token_mean`` does not
    count it either.

    Args:
        dense: (N,T) reward of each action: the score of each step at its last action.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        components, component_names, component_weights: the rewards by name, to find the outcome.
        seed: of the step's draws.
        outcome: name of the reward that says whether an answer is right.
        keep: answers of each group that are kept, fewer than ``sampling.group_size``.
        penalty, most_steps, wrong: see ``process_consistency_filter``.
        threshold: an answer is right if its outcome is above this.
        eps: added to the standard deviation.
        ddof: 1 for the sample standard deviation, 0 for the population one.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere; the shares of answers that are ``kept``, and of kept ones
        whose group has one side only, as ``one_sided``.

    Raises:
        RecipeError: when no reward is called like the outcome.

    Source: Ye et al. 2025, arXiv 2509.03403.
    """
    mask = mask.bool()
    found = steps_of(dense, mask, components, component_names, component_weights, outcome=outcome)
    count = found.ends.sum(dim=1)
    kept = process_consistency_filter(
        found.score.sum(dim=1) / count.clamp(min=1),
        count,
        found.outcome > threshold,
        group,
        keep=keep,
        penalty=penalty,
        most_steps=most_steps,
        wrong=wrong,
        draw=torch.rand(len(group), generator=torch_generator(seed, "process filter")).to(group.device),
    )
    tied = grouped(found.outcome, group, kept).tied() & kept
    share = (tied.sum() / kept.sum().clamp(min=1)).item()
    stats = {"kept": (kept.sum() / max(len(kept), 1)).item(), "one_sided": share}
    return per_action(whiten(found.outcome, group, kept, eps=eps, ddof=ddof), mask), stats
