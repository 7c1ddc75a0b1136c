"""Credit by step from how close to the right answer each step has come, and how sure of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import center, grouped, whiten
from guerdon.errors import RecipeError
from guerdon.registry import register

_PAPER = "Step Potential Advantage Estimation, 2026"
NonNegative = Annotated[float, Field(ge=0)]


def step_potential(accuracy: Tensor, confidence: Tensor) -> Tensor:
    """How good a place is, from the probability of the right answer there and how sure the policy is of an answer.

    Phi = 1.5 acc conf + 0.5 acc - conf, in [-1,1]: right and sure 1, right and unsure 0.5, neither 0, wrong and sure -1

    Args:
        accuracy, confidence: of the same shape, in [0,1].

    Source: Step Potential Advantage Estimation, 2026, with its code.
    """
    return 1.5 * accuracy * confidence + 0.5 * accuracy - confidence


class Potentials(NamedTuple):
    """Steps of N answers.

    Attributes:
        value: (N,K) potential at the end of each step.
        exists: (N,K) which steps there are; at least one in every answer with an action.
        step: (N,T) number of the step of each action, 0 off the mask.
        probed: (N,K) at the end of which steps there was a probe.
    """

    value: Tensor
    exists: Tensor
    step: Tensor
    probed: Tensor


def potentials_of(metadata: Sequence[Mapping[str, Any]], mask: Tensor, dtype: torch.dtype) -> Potentials:
    """Steps as source ``step_probe`` writes them: under ``step_probe``, ``ends``, ``accuracy`` and ``confidence``.

    Actions after the last end belong to the last step; an answer without an end is one step, of potential 0.

    Args:
        metadata: what is known of N problems.
        mask: (N,T) true on actions, among which ``ends`` counts from 0.
        dtype: of the potentials.

    Raises:
        RecipeError: when a row has no probes.
    """
    probes = [(data or {}).get("step_probe") for data in metadata]
    missing = next((row for row, probe in enumerate(probes) if probe is None), None)
    if missing is not None:
        raise RecipeError(
            f"credit 'spae' reads the probes of steps, and sample {missing} has none; list source 'step_probe' under "
            "sampling.sources"
        )
    mask = mask.bool()
    count = torch.tensor([len(probe["ends"]) for probe in probes], dtype=torch.int64)  # type: ignore[index]
    most = max(int(count.max()) if len(count) else 0, 1)
    rows = torch.zeros(3, len(probes), most, dtype=dtype)
    rows[0] = mask.shape[1]
    for i, probe in enumerate(probes):
        for place, name in enumerate(("ends", "accuracy", "confidence")):
            rows[place, i, : int(count[i])] = torch.tensor(probe[name], dtype=dtype)  # type: ignore[index]
    rows = rows.to(mask.device)
    there = torch.arange(most) < count.unsqueeze(1)
    value = torch.where(there, step_potential(rows[1], rows[2]), 0.0).to(mask.device)
    exists = (torch.arange(most) < count.clamp(min=1).unsqueeze(1)).to(mask.device) & mask.any(dim=1, keepdim=True)
    action = mask.cumsum(dim=1) - 1
    step = torch.searchsorted(rows[0].contiguous(), action.to(dtype).contiguous())
    step = torch.minimum(step, (count.clamp(min=1) - 1).unsqueeze(1).to(step)).masked_fill(~mask, 0)
    return Potentials(value, exists, step, there.to(mask.device))


def spae_advantage(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    steps: Potentials,
    *,
    alpha: float = 0.5,
    xi: float = 0.5,
    saturated: float = 0.9,
    eps: float = 1e-8,
) -> Tensor:
    """Outcome against the group, less for steps after the answer was found, and more where potential rose.

    A_t = (R - mean_g R) f_k + xi g_k, standardised over the actions of the batch;  k the step of action t
    f_k = 1 - alpha (1 - exp(-C_k)),  C_k = number of steps before k with Phi > saturated
    g_k = e^d_k - mean e^d,  d = Phi_k - Phi_{k-1} brought to [0,1] over the batch, 0 change at the first step

    f also shrinks the blame of wrong answers, once they had been right. Steps of equal change give g = 0.

    Args:
        reward: (N,) R.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        steps: of the answers.
        alpha: most that f takes away.
        xi: weight of g.
        saturated: potential above which the answer is as good as found; the published script's.
        eps: added to the standard deviation.

    Returns:
        (N,T) A, 0 off the mask.

    Source: Step Potential Advantage Estimation, 2026. (The mean of e^d is taken over steps.)
    """
    exists, value = steps.exists, steps.value
    before = torch.nn.functional.pad(value, (1, -1))
    first = torch.arange(value.shape[1], device=value.device) == 0
    change = torch.where(first | ~exists, 0.0, value - before)
    found = ((value > saturated) & exists).to(value)
    so_far = found.cumsum(dim=1) - found
    shrink = 1 - alpha * (1 - (-so_far).exp())
    spread = grouped(change, None, exists)
    low, high = spread.extreme(largest=False), spread.extreme(largest=True)
    width = high - low
    scaled = torch.where(width > 0, (change - low) / torch.where(width > 0, width, 1.0), 0.0)
    gain = center(scaled.exp(), None, exists)
    outcome = center(reward, group).unsqueeze(1) * shrink.to(reward.dtype) + xi * gain.to(reward.dtype)
    advantage = outcome.gather(1, steps.step)
    return whiten(advantage, None, mask.bool(), eps=eps)


@register("credit", paper=_PAPER, needs_group=True)
def spae(
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    metadata: Sequence[Mapping[str, Any]],
    *,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
    xi: NonNegative = 0.5,
    saturated: float = 0.9,
    threshold: float = 0.0,
    eps: float = 1e-8,
) -> tuple[Tensor, dict[str, float]]:
    """Step potential advantage estimation, see ``spae_advantage``; source ``step_probe`` makes the probes.

    Args:
        reward: (N,) outcome of each trajectory.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        metadata: what is known of each problem, with the probes of its answer.
        alpha, xi, saturated, eps: see ``spae_advantage``.
        threshold: outcome above which an answer is right.

    Returns:
        (N,T) credit. Mean actions up to the end of the first step above ``saturated`` (``solving``) and after it
        (``checking``), of answers that have such a step; the share of those that end wrong (``right_to_wrong``); and
        of wrong answers' steps whose blame was shrunk (``spared``).

    Source: Step Potential Advantage Estimation, 2026.
    """
    steps = potentials_of(metadata, mask, reward.dtype)
    advantage = spae_advantage(reward, group, mask, steps, alpha=alpha, xi=xi, saturated=saturated, eps=eps)
    return advantage, _diagnosed(reward, mask.bool(), steps, saturated, threshold)


def _diagnosed(reward: Tensor, mask: Tensor, steps: Potentials, saturated: float, threshold: float) -> dict[str, float]:
    found = (steps.value > saturated) & steps.exists
    ever = found.any(dim=1)
    after = (found.cumsum(dim=1) - found.long() > 0) & steps.exists
    wrong = reward <= threshold
    checking = (after.gather(1, steps.step) & mask).sum(dim=1)
    count = ever.sum().clamp(min=1)
    return {
        "solving": float(((mask.sum(dim=1) - checking) * ever).sum() / count),
        "checking": float((checking * ever).sum() / count),
        "right_to_wrong": float((wrong & ever).sum() / count),
        "spared": float((after & wrong.unsqueeze(1)).sum() / (steps.exists & wrong.unsqueeze(1)).sum().clamp(min=1)),
    }
