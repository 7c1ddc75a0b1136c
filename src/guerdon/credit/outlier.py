"""Outliers of credit kept in check, alone or as the last step of any estimator."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import per_action, whiten
from guerdon.registry import register
from guerdon.shaping import bound


@register("credit", paper="Zhang et al. 2025, arXiv 2505.02835")
def stable_reinforce(
    reward: Tensor,
    mask: Tensor,
    *,
    sigmas: Annotated[float, Field(gt=0)] = 3.0,
    outside: Literal["zero", "clip"] = "zero",
    eps: float = 1e-8,
) -> tuple[Tensor, dict[str, float]]:
    """Outcome whitened over the whole batch, without the trajectories that lie more than three deviations out.

    z_i = (r_i - mean_B r) / (std_B r + eps);  A_i = z_i where |z_i| <= sigmas, 0 elsewhere

    Without it, one wrong answer among 255 right ones gets a credit of -16 and outweighs its batch. So would one right
    answer among 255 wrong ones: ``sigma_filter`` says when to prefer ``clip``. The published method is this credit
    with objective ``stable_reinforce``, term ``kl`` with beta 1e-3, one sample per prompt and learning rate 3e-7.

    Args:
        reward: (N,) outcome of each trajectory; one that is not finite gets no credit and enters no statistic.
        mask: (N,T) true on actions.
        sigmas: the bound.
        outside: what becomes of credit beyond it: none (``zero``) or the bound (``clip``).
        eps: added to the standard deviation.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere; and the share of trajectories beyond the bound as
        ``outliers``.

    Source: Zhang et al. 2025, arXiv 2505.02835.
    """
    acted = torch.any(mask, dim=1)
    usable = acted & reward.isfinite()
    whitened = whiten(torch.where(usable, reward, 0.0), None, usable, eps=eps)
    scores = torch.where(usable, whitened, float("nan"))
    bounded, stats = bound.sigma_filter(scores, acted, sigmas=sigmas, outside=outside)
    return per_action(bounded, mask), stats


@register("credit", paper="Zhang et al. 2025, arXiv 2505.02835")
def sigma_filter(
    advantage: Tensor,
    mask: Tensor,
    *,
    sigmas: Annotated[float, Field(gt=0)] = 3.0,
    outside: Literal["zero", "clip"] = "zero",
    standardise: bool = True,
    eps: float = 1e-8,
) -> tuple[Tensor, dict[str, float]]:
    """Take the outliers out of another estimator's credit: ``credit: [grpo, sigma_filter]``.

    z = (A - mean_B A) / (std_B A + eps);  A -> z where |z| <= sigmas, 0 elsewhere

    Args:
        advantage: (N,T) credit so far; actions whose credit is not finite lose it and enter no statistic.
        mask: (N,T) true on actions.
        sigmas: the bound.
        outside: what becomes of credit beyond it: none (``zero``) or the bound (``clip``).
        standardise: whiten over the actions of the batch first, each action counting once. Set it to false after an
            estimator that gives z-scores already: whitening would hand groups that tie a common shift.
        eps: added to the standard deviation.

    Returns:
        (N,T) filtered credit, 0 off the mask; and the share of actions beyond the bound as ``outliers``.

    Source: Zhang et al. 2025, arXiv 2505.02835.
    """
    usable = mask & advantage.isfinite()
    scores = torch.where(usable, advantage, 0.0)
    if standardise:
        scores = whiten(scores, None, usable, eps=eps)
    scores = torch.where(usable | ~mask, scores, float("nan"))
    bounded, stats = bound.sigma_filter(scores, mask, sigmas=sigmas, outside=outside)
    return torch.where(mask, bounded, 0.0), stats
