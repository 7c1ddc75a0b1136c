"""Milestones on the way to a goal, made into a dense reward that leaves the best policy as it was."""

from __future__ import annotations

import torch
from torch import Tensor

from guerdon.credit.turn import returns_to_go


def milestones_met(reached: Tensor) -> Tensor:
    """How many milestones are met, in their order and for good: (N,M,K) checks to (N,M) counts.

    The k-th counts once all before it are met, and what was met stays so.

    Args:
        reached: (N,M,K) whether a check of milestone k passes before turn m.
    """
    ever = reached.bool().int().cummax(dim=1).values
    return ever.cumprod(dim=2).sum(dim=2)


def progress_labels(reached: Tensor, exists: Tensor) -> Tensor:
    """How far each state is on the way, between one milestone and the next by time: what a potential is trained on.

    y_t = (k + (t - t_k) / (t_{k+1} - t_k)) / K  for t_k <= t < t_{k+1},  t_k when the k-th was met, t_0 = 0

    After the last milestone that a trajectory meets y stays, for nobody knows how far the next was. One that meets none
    is 0 throughout: then the shaping is flat, and only the sparse reward is left; watch how many do.

    Args:
        reached: (N,M,K), see ``milestones_met``.
        exists: (N,M) turns there are; nothing else is read.

    Returns:
        (N,M) in [0,1], 0 where there is no turn.

    Source: Wang et al. 2026, arXiv 2603.19685. The division by K is inferred.
    """
    exists = exists.bool()
    count = milestones_met(reached & exists.unsqueeze(2))
    k = torch.arange(reached.shape[2] + 2, device=reached.device)
    met = ((count.unsqueeze(2) < k) & exists.unsqueeze(2)).sum(dim=1)  # when each was met; the length if never
    length = exists.sum(dim=1, keepdim=True)
    begun, following = met.gather(1, count), met.gather(1, count + 1)
    time = torch.arange(count.shape[1], device=count.device).expand(count.shape)
    between = (time - begun).double() / (following - begun).clamp(min=1)
    y = (count + torch.where(following < length, between, 0.0)) / reached.shape[2]
    return torch.where(exists, y, 0.0)


def potential_reward(
    potential: Tensor,
    exists: Tensor,
    done: Tensor,
    last: Tensor | None = None,
    *,
    gamma: float = 1.0,
    eta: float = 1.0,
    terminal: float = 0.0,
) -> Tensor:
    """Reward of each turn by how much the potential rises.

    F_m = eta (gamma P(s_{m+1}) - P(s_m)),  P = ``terminal`` once the episode has ended by itself

    With 0 at the end, discounted sums of F are -eta P(s_0), whatever was done, so the best policy stays the best; a
    return with another number would pay for ending there. One step against a value that knows nothing of P is another
    matter: there 0 takes from the last step all that P had come to, and the policy stays where it is one step away.
    For ``doubly_robust_advantage`` the end of a success is 1, as its label is.

    Args:
        potential: (N,M) P of the state before each turn, without gradient.
        exists: (N,M) turns there are; nothing else is read.
        done: (N,) the episode ended by itself.
        last: (N,) P of the state in which an episode was cut; that before its last turn by default.
        gamma: discount per turn; inferred.
        terminal: P of the end of an episode.
        eta: weight; inferred. Let it fall to 0 over training where P is learned and may be wrong.

    Source: Ng et al. 1999 (shaping by potentials); Wang et al. 2026, arXiv 2603.19685.
    """
    exists = exists.bool()
    p = potential.masked_fill(~exists, 0.0)
    end = exists & (exists.flip(1).cumsum(dim=1).flip(1) == 1)
    cut = p if last is None else last.unsqueeze(1).expand(p.shape)
    after = torch.where(end, torch.where(done.bool().unsqueeze(1), terminal, cut), p.roll(-1, dims=1))
    return torch.where(exists, eta * (gamma * after - p), 0.0)


def doubly_robust_advantage(
    reward: Tensor,
    values: Tensor,
    exists: Tensor,
    done: Tensor,
    last: Tensor | None = None,
    shaping: Tensor | None = None,
    *,
    gamma: float = 1.0,
    mix: float = 0.5,
) -> Tensor:
    """One step and the value after it, and the whole return, half and half, against the value.

    A_m = mix (r_m + F_m + gamma V(s_{m+1}) - V(s_m)) + (1 - mix) (G_m - V(s_m)),  G the discounted return

    The return is that of whoever acted: keep replayed data young. V is the chance of success, trained on the sparse
    outcome alone and never on shaped rewards. So G is the return of the sparse reward as well: with shaping in it the
    second part would be lower by P(s_m) than V expects, for every action alike, and a regression on log-ratios would
    push them all down. (The summaries that were read have r' in both parts.)

    Args:
        reward: (N,M) of each turn, not shaped.
        values: (N,M) V of the state before each turn, without gradient.
        exists: (N,M) turns there are; nothing else is read.
        done: (N,) the episode ended by itself.
        last: (N,) V of the state in which an episode was cut; 0 by default.
        shaping: (N,M) F of each turn, see ``potential_reward``; none by default.
        gamma: discount per turn.
        mix: weight of the first part; inferred from the recipe that the source extends.

    Returns:
        (N,M) 0 where there is no turn.

    Source: Wang et al. 2026, arXiv 2603.19685.
    """
    exists = exists.bool()
    r, v = (x.masked_fill(~exists, 0.0) for x in (reward, values))
    end = exists & (exists.flip(1).cumsum(dim=1).flip(1) == 1)
    cut = torch.zeros_like(v) if last is None else last.unsqueeze(1).expand(v.shape)
    after = torch.where(end, torch.where(done.bool().unsqueeze(1), 0.0, cut), v.roll(-1, dims=1))
    extra = 0.0 if shaping is None else shaping.masked_fill(~exists, 0.0)
    advantage = mix * (r + extra + gamma * after - v) + (1 - mix) * (returns_to_go(r, gamma) - v)
    return torch.where(exists, advantage, 0.0)
