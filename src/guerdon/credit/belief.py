"""Credit for what a turn told about the answer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guerdon.credit import grouping
from guerdon.credit.turn import returns_to_go, turns_of
from guerdon.registry import register


def information_gain(answer_logp: Tensor, exists: Tensor, *, gain: Literal["prob", "logprob"] = "prob") -> Tensor:
    """How much likelier each turn made the reference answer.

    r_m = exp(l_{m+1}) - exp(l_m) (``prob``) or l_{m+1} - l_m (``logprob``)

    Args:
        answer_logp: (N,M) mean log-probability l of the answer's tokens before each turn.
        exists: (N,M) turns there are; nothing else is read.
        gain: of probabilities or of their logarithms.

    Returns:
        (N,M), 0 at the last turn of each trajectory, after which nothing was asked, and where there is no turn.

    Source: IGPO: Information Gain-based Policy Optimization for Multi-Turn LLM Agents.
    """
    belief = torch.where(exists, answer_logp, 0.0)
    belief = belief.exp() if gain == "prob" else belief
    told = torch.zeros_like(belief)
    told[:, :-1] = belief[:, 1:] - belief[:, :-1]
    return torch.where(_followed(exists), told, 0.0)


def _followed(exists: Tensor) -> Tensor:
    """(N,M) true on turns after which another one follows."""
    return exists & torch.nn.functional.pad(exists, (0, 1))[:, 1:]


@register("credit", needs_group=True)
def igpo(
    reward: Tensor,
    answer_logp: Tensor,
    group: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    gain: Literal["prob", "logprob"] = "prob",
    normalise: Literal["separate", "joint"] = "separate",
    gamma: float = 1.0,
    eps: float = 1e-6,
    ddof: int = 1,
) -> tuple[Tensor, dict[str, float]]:
    """Pay every turn for how much likelier it made the reference answer, and the last one for the outcome.

    A_{i,m} = sum_{u >= m} gamma^(u-m) z_{i,u};  z = standardised information gain, at the last turn the outcome

    ``separate`` standardises all gains of a group together and its outcomes apart, ``joint`` both in one. Where all
    outcomes of a group are equal there is still something to learn, unless the turns told the same. Gains belong to the
    turn whose observation changed the belief. Discounting counts turns; tokens of a tool take no time.

    Args:
        reward: (N,) outcome.
        answer_logp: (N,M) mean log-probability of the answer's tokens before each turn.
        group: (N,) key of the trajectories that share a start.
        turn: (N,T) turn of each action, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.
        gain: of probabilities, as in the source's code, or of their logarithms, as in its later version.
        normalise: ``separate`` is the later version's; ``joint`` follows the first, as far as is known.
        gamma: discount per turn.
        eps: added to the standard deviations.
        ddof: 1 for the sample standard deviation, 0 for the population one.

    Returns:
        (N,T) A of the turn on each of its actions, 0 elsewhere; and the mean ``gain`` of a turn that has one.

    Source: IGPO: Information Gain-based Policy Optimization for Multi-Turn LLM Agents, its code and a summary.
    """
    turns = turns_of(turn, mask, answer_logp.shape[1])
    followed = _followed(turns.exists)
    last = turns.exists & ~followed
    told = information_gain(answer_logp, turns.exists, gain=gain)
    key = group.unsqueeze(1).expand(turns.exists.shape)
    outcome = torch.where(last, reward.unsqueeze(1), 0.0)
    if normalise == "joint":
        z = grouping.whiten(told + outcome, key, turns.exists, eps=eps, ddof=ddof)
    else:
        z = grouping.whiten(told, key, followed, eps=eps, ddof=ddof)
        z = z + grouping.whiten(outcome, key, last, eps=eps, ddof=ddof)
    size = float(told[followed].mean()) if bool(followed.any()) else 0.0
    return turns.spread(returns_to_go(z, gamma)), {"gain": size}
