"""Completions that leave earlier ones and go on by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guerdon.errors import RecipeError
from guerdon.policies.rows import present_tokens
from guerdon.rollouts import Rollouts
from guerdon.tasks.base import Problem, Starts

if TYPE_CHECKING:
    from guerdon.policies.language import LanguagePolicy
    from guerdon.policies.language_sampling import LanguageSampling


@torch.no_grad()
def branch_completions(
    policy: LanguagePolicy,
    rollouts: Rollouts,
    rows: Sequence[int],
    at: Sequence[int],
    options: LanguageSampling,
    *,
    seed: int,
) -> Rollouts:
    """Write completions that leave earlier ones after their first ``at`` actions, and go on by themselves.

    A branch belongs to the group of the trajectory that it leaves, holds the actions that both share, with what
    was known of them, and says where it came from in ``parent`` and ``branch_at``. What branches share with one
    another and with their parents is computed once.

    Args:
        policy: wrote them, and writes on.
        rollouts: earlier completions.
        rows: which of them each branch leaves.
        at: number of actions that each branch keeps, less than its parent has.
        options: how to draw; the budget is that of the whole completion.
        seed: of the draws.

    Raises:
        RecipeError: when the completions may ask a tool, or are episodes.
    """
    if options.environments is not None:
        raise RecipeError("episodes branch between turns; use guerdon.policies.episodes.branch_episodes")
    if options.tool is not None:
        raise RecipeError("completions that may ask a tool cannot be branched; remove 'sampling.tool'")
    assert rollouts.tokens is not None
    parent, kept = torch.tensor(list(rows)), torch.tensor(list(at))
    of = rollouts[parent]
    assert of.tokens is not None
    prompts = present_tokens(of.payload["prompt_tokens"], of.payload["attention"])
    shared = [tokens[:n].tolist() for tokens, n in zip(of.tokens, at, strict=True)]
    out = policy.write(
        [[*prompt, *begun] for prompt, begun in zip(prompts, shared, strict=True)],
        policy.generation(options),
        seed=seed,
        budgets=(options.max_new_tokens - kept).tolist(),
    )
    width = int((kept + out.mask.sum(dim=1)).max())
    old = torch.arange(width) < kept.unsqueeze(1)
    new = (torch.arange(width) < (kept + out.mask.sum(dim=1)).unsqueeze(1)) & ~old

    def spliced(before: Tensor, after: Tensor, fill: float) -> Tensor:
        joint = torch.full((len(parent), width), fill, dtype=after.dtype)
        joint[old] = before[:, :width][old[:, : before.shape[1]]].to(after.dtype)
        joint[new] = after[out.mask]
        return joint

    known = of.entropy if of.entropy is not None else torch.zeros_like(of.old_logp)
    branches = policy.as_rollouts(
        Starts([_problem(of, i) for i in range(len(of))], of.group, int(of.version.max())),
        prompts,
        spliced(of.tokens, out.tokens, policy.pad),
        old | new,
        spliced(of.old_logp, out.logp, 0.0),
        options,
        finished=out.finished,
        entropy=spliced(known, out.entropy, 0.0),
    )
    branches.parent, branches.branch_at = parent, kept
    return branches


def _problem(rollouts: Rollouts, row: int) -> Problem:
    assert rollouts.prompt is not None
    answers, metadata = rollouts.answer, rollouts.metadata
    return Problem(
        int(rollouts.task_id[row]),
        rollouts.prompt[row],
        answers[row] if answers is not None else None,
        metadata[row] if metadata is not None else {},
    )
