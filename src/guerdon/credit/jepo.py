"""Credit from what each reasoning adds to the group's estimate of an answer's likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.credit.grouping import first_rows, grouped, per_action
from guerdon.registry import register
from guerdon.rewards.answer_likelihood import log_mean_prob


@register("credit", paper="Likelihood-Based Reward Designs for General LLM Reasoning, 2026", needs_group=True)
def jepo(reward: Tensor, group: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
    """What each reasoning adds to the group's estimate of the answer's log-probability.

    A_i = log (1/G) sum_j e^l_j - log (1/(G-1)) sum_{j != i} e^l_j,  l the reward, a log-probability

    The mean over the group inside of the logarithm makes its bound of log E[pi(a*|p,z)] tighter than that of
    ``log_prob``, where it stands outside. Name it with reward ``answer_likelihood`` of kind ``log_prob``, unweighted.

    Args:
        reward: (N,) l, log-probability of the whole answer after each reasoning.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.

    Returns:
        (N,T) A_i on the actions of trajectory i, 0 elsewhere and in a group of one; and the mean over groups of the
        estimate, ``log_prob_mc``.

    Source: Tang et al. 2025 (JEPO), as Likelihood-Based Reward Designs for General LLM Reasoning, 2026, states it.
    """
    whole = log_mean_prob(reward, group)
    several = grouped(reward, group).count() > 1
    advantage = torch.where(several, whole - _log_mean_of_others(reward, group), 0.0)
    firsts = first_rows(group)[1]
    stats = {"log_prob_mc": float(whole[firsts].mean())} if len(firsts) else {}
    return per_action(advantage, mask), stats


def _log_mean_of_others(logp: Tensor, group: Tensor) -> Tensor:
    """(N,) log-mean-exp of the other members of each group.

    The largest is left out by summing the rest, the others by subtraction from a sum that holds the largest: neither
    loses what is left to rounding.
    """
    stats = grouped(logp, group)
    at_top = logp == stats.extreme(largest=True)
    row = torch.arange(len(logp), device=logp.device)
    top = at_top & (row == grouped(row.double(), group, at_top).extreme(largest=False).long())
    others = (stats.count() - 1).clamp(min=1)
    scaled = (logp - stats.extreme(largest=True)).exp()
    total = grouped(scaled, group)
    without = stats.extreme(largest=True) + ((total.spread(total.total(scaled)) - scaled) / others).clamp(min=0).log()
    rest = log_mean_prob(logp.masked_fill(top, float("-inf")), group) + (stats.count() / others).log()
    return torch.where(top, rest, without)
