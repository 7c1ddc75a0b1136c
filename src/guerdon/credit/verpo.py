"""Credit that joins how far an attempt got with whether the whole succeeded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import grouped, per_action, whiten
from guerdon.errors import RecipeError, nearest
from guerdon.registry import register


@register("credit", paper="Wang et al. 2026, arXiv 2601.03525", needs_group=True)
def verpo(
    components: Tensor,
    component_names: Sequence[str],
    group: Tensor,
    mask: Tensor,
    turn: Tensor,
    turn_reward: Tensor | None = None,
    *,
    outcome: str = "python_tests",
    local: str = "density_calibrated_tests",
    beta: Annotated[float, Field(ge=0)] = 0.5,
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9,
    outcome_weight: Annotated[float, Field(ge=0)] = 1.0,
    scale: bool = False,
    eps: float = 1e-6,
) -> tuple[Tensor, dict[str, float]]:
    """Whether all tests are passed, against the group, plus what each attempt is worth against all attempts of it.

    A_{i,k} = outcome_weight (G_i - mean_g G) + beta (R_{i,k} - mean over all attempts of the group),
    G_i = gamma^(attempts of i) where its outcome is 1, else 0

    While nobody passes all tests, G is 0 throughout and R still tells attempts apart; once somebody does, the outcome
    keeps partial success from becoming the goal. Attempts are turns. The weights of tests add up to different sums
    for different problems, so the two parts are not on one scale: watch their sizes, or give the reward ``normalise``.

    Args:
        components: (N,K) raw rewards; NaN counts as 0.
        component_names: their names.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        turn: (N,T) attempt of each action, -1 off actions.
        turn_reward: (N,M) worth R of each attempt. Without it there is one attempt, whose worth is ``local``.
        outcome: name of the reward that is 1 where the last attempt passes all tests.
        local: name of the reward with the worth of the attempt, not read where ``turn_reward`` is given.
        beta: of the attempts' part. This value and that of gamma are ours; the source's are not known.
        gamma: an outcome is worth less, the more attempts it took.
        outcome_weight: of the outcome's part.
        scale: divide both parts by their standard deviations, which the source does not.
        eps: added to these.

    Returns:
        (N,T) A of the attempt of each action, 0 off the mask; and the mean sizes of the two parts as ``outcome_size``
        and ``local_size``, and the share of groups in which nobody has credit as ``silent``.

    Raises:
        RecipeError: when a reward of a given name is not there.

    Source: Wang et al. 2026, arXiv 2601.03525.
    """
    mask, names = mask.bool(), list(component_names)
    for name in [outcome] if turn_reward is not None else [outcome, local]:
        if name not in names:
            raise RecipeError(f"verpo: no reward is called '{name}'{nearest(name, names)}")
    turn = torch.where(mask, turn, -1)
    attempts = turn.amax(dim=1) + 1
    reached = components[:, names.index(outcome)] >= 1
    whole = torch.where(reached, gamma ** attempts.to(components.dtype), 0.0)
    worth = components[:, [names.index(local)]] if turn_reward is None else turn_reward.to(components.dtype)
    worth = worth.masked_fill(worth.isnan(), 0.0)
    place = torch.arange(worth.shape[1], device=worth.device)
    made = place < attempts.unsqueeze(1)
    far = _above(worth, group.unsqueeze(1).expand(worth.shape), made, scale, eps)
    won = _above(whole, group, None, scale, eps)
    at = turn.clamp(0, worth.shape[1] - 1)
    advantage = per_action(outcome_weight * won, mask) + beta * far.gather(1, at).masked_fill(~mask, 0.0)
    credited = grouped((advantage != 0).any(dim=1).to(worth.dtype), group)
    silent = credited.extreme(largest=True) == 0
    stats = {
        "outcome_size": _mean(won.abs()),
        "local_size": _mean(far.abs()[made]),
        "silent": float((silent / credited.count()).sum() / (1 / credited.count()).sum().clamp(min=1)),
    }
    return advantage, stats


def _above(x: Tensor, key: Tensor, valid: Tensor | None, scale: bool, eps: float) -> Tensor:
    return whiten(x, key, valid, eps=eps) if scale else grouped(x, key, valid).deviation()


def _mean(x: Tensor) -> float:
    return x.mean().item() if x.numel() else 0.0
