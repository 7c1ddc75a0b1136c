"""Credit from comparing the beginnings that the answers of one group share: a prefix tree over their tokens."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import first_rows, group_mean, grouped, per_action, whiten
from guerdon.engine.packing import compact
from guerdon.registry import register


class PrefixTree(NamedTuple):
    """Where each action (N,T) stands in the tree of its group; off the mask the numbers mean nothing.

    Attributes:
        node: key of the beginning that ends with the action, the same for all rows of a group that begin so.
        parent: key of the beginning before the action. The first actions of a group have the group's root.
        first: true at one action of each node: that of the row that comes first in the order of the tokens.
    """

    node: Tensor
    parent: Tensor
    first: Tensor


def prefix_tree(tokens: Tensor, group: Tensor, mask: Tensor) -> PrefixTree:
    """Find which answers of a group begin alike, and how far.

    Answers begin alike as long as their actions are the same tokens; what stands off the mask is not compared, so
    rows to which a tool answered differently stay together until they act differently. Equal answers share all of
    their nodes. The cost is that of sorting the rows.

    Args:
        tokens: (N,T) token of each action.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.

    Returns:
        The tree.
    """
    mask, width = mask.bool(), tokens.shape[1]
    written, length, order = compact(tokens, mask)
    place = torch.arange(width, device=tokens.device)
    # Beyond their ends rows hold -1, so that a row and a longer one that begins with it differ.
    filled = torch.where(place < length.unsqueeze(1), written, -1)
    rows, row = torch.unique(torch.cat([group.unsqueeze(1), filled], dim=1), dim=0, return_inverse=True)
    # Different rows in lexicographic order: a node opens in the row that no longer shares it with the row before.
    # Two of them never agree as far as the padding of both, or they would be the same row.
    agree = (rows[1:] == rows[:-1]).long().cumprod(dim=1).sum(dim=1)
    shared = torch.cat([agree.new_zeros(min(len(rows), 1)), agree])
    opens = torch.where(torch.arange(width + 1, device=rows.device) >= shared.unsqueeze(1), _column(rows), 0)
    key = opens.cummax(dim=0).values * (width + 1) + torch.arange(width + 1, device=rows.device)
    node, parent = (x.gather(1, order.clamp(min=0)) for x in (key[row, 1:], key[row, :-1]))
    _, leader = first_rows(row)
    opened_here = torch.div(node, width + 1, rounding_mode="floor") == row.unsqueeze(1)
    return PrefixTree(node, parent, mask & opened_here & (leader[row] == _column(tokens).squeeze(1)).unsqueeze(1))


def tree_values(reward: Tensor, tree: PrefixTree, mask: Tensor) -> Tensor:
    """Mean reward of the answers that begin as far as each action: V(s_{t+1}), (N,T), 0 off the mask."""
    return group_mean(per_action(reward, mask), tree.node, mask)


@register("credit", paper="Tran et al. 2025, arXiv 2509.18314", needs_group=True)
def tempo(
    reward: Tensor, tokens: Tensor, group: Tensor, mask: Tensor, *, scale: bool = True, eps: float = 1e-6, ddof: int = 1
) -> Tensor:
    """Group-relative advantage, plus what each token changed of the mean outcome of the answers that begin alike.

    A_{i,t} = (r_i - mean_g r + V(s_{t+1}) - V(s_t)) / (std_g r + eps)

    V(s) is the mean reward of the answers of the group that begin with s, so V of the empty beginning is mean_g r.
    Where no sibling diverges V does not change and the credit is ``grpo``'s. The changes of an answer that is like no
    other add up to r_i - mean_g r; equal answers never separate, and share the mean of their rewards. The published
    method is this credit with objective ``dapo`` (clip 0.2 and 0.28), no KL and groups of 7.

    Args:
        reward: (N,) outcome of each trajectory.
        tokens: (N,T) token of each action.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        scale: divide by the group's spread; without, nothing is divided.
        eps: added to the standard deviation.
        ddof: 1 for the sample standard deviation, 0 for the population one.

    Returns:
        (N,T) A_{i,t}, 0 off the mask; exactly 0 where all rewards of a group are equal, and in a group of one, which
        the release gives nan.

    Source: Tran et al. 2025, arXiv 2509.18314.
    """
    mask = mask.bool()
    stats = grouped(reward, group)
    tree = prefix_tree(tokens, group, mask)
    after = tree_values(reward, tree, mask)
    change = after - _before(after, stats.mean(), mask)
    advantage = per_action(stats.deviation(), mask) + change
    if scale:
        spread = stats.std(ddof) + eps
        advantage = advantage / torch.where(spread > 0, spread, 1.0).unsqueeze(1)
    return advantage.masked_fill(~mask, 0.0)


class Siblings(NamedTuple):
    """Credit of each action against its siblings, and whether it has any, (N,T) each."""

    advantage: Tensor
    valid: Tensor


def sibling_advantage(reward: Tensor, tokens: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-4) -> Siblings:
    """Compare the beginnings that part at a token with one another, each of them once.

    B_{i,t} = (R(s_{t+1}) - mean_c R(c)) / (std_c R(c) + eps),  c: the distinct beginnings that go on from s_t

    R is the mean reward of the answers that begin so, and std that of the population. However many answers go one
    way, it counts once. Where all ways are equally good the credit is 0 and still valid.

    Args:
        reward: (N,) outcome of each trajectory.
        tokens: (N,T) token of each action.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        eps: added to the standard deviation.

    Returns:
        The credit, 0 where it is not valid, and where it is: on actions with two ways to go at least.

    Source: Jiang et al. 2026, arXiv 2602.10699, and its code.
    """
    mask = mask.bool()
    tree = prefix_tree(tokens, group, mask)
    value = tree_values(reward, tree, mask)
    apart = whiten(value, tree.parent, tree.first, eps=eps, ddof=0)
    several = grouped(value, tree.parent, tree.first).count() > 1
    node = grouped(value, tree.node, mask)  # hands on to all rows of a node what its first one was given
    return Siblings(node.spread(node.total(apart)), node.spread(node.total(several.to(value.dtype))) > 0)


@register("credit", paper="Jiang et al. 2026, arXiv 2602.10699", needs_group=True)
def sibling_grpo(
    reward: Tensor,
    tokens: Tensor,
    group: Tensor,
    mask: Tensor,
    *,
    weight: Annotated[float, Field(ge=0)] = 1.0,
    eps: float = 1e-4,
    ddof: int = 1,
) -> tuple[Tensor, dict[str, float]]:
    """Group-relative advantage, plus each token's advantage over the tokens that other answers wrote in its place.

    A_{i,t} = (r_i - mean_g r) / (std_g r + eps) + weight (actions / actions with siblings) B_{i,t}

    B: ``sibling_advantage``. Answers that share a beginning get rewards that are close together, so their advantages
    within the group are compressed; among siblings each way to go on is judged on the same scale. The source adds a
    second loss, the mean over the actions with siblings; under an objective with the mean over all actions the factor
    above gives the same gradient, as long as nothing is clipped. Its KL is the term ``kl`` with beta 1e-3.

    Args:
        reward: (N,) outcome of each trajectory.
        tokens: (N,T) token of each action.
        group: (N,) key of the trajectories that share a start.
        mask: (N,T) true on actions.
        weight: of the comparison of siblings.
        eps: added to the standard deviations.
        ddof: of the group's standard deviation: 1 for the sample one, 0 for the population's.

    Returns:
        (N,T) A_{i,t}, 0 off the mask; and the share of actions that have ``siblings``.

    Source: Jiang et al. 2026, arXiv 2602.10699, and its code.
    """
    mask = mask.bool()
    outcome = per_action(whiten(reward, group, eps=eps, ddof=ddof), mask)
    siblings = sibling_advantage(reward, tokens, group, mask, eps=eps)
    actions, valid = int(mask.sum()), int(siblings.valid.sum())
    advantage = outcome + weight * actions / max(valid, 1) * siblings.advantage
    return advantage, {"siblings": valid / max(actions, 1)}


def _before(after: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    """What stood at the action before: (N,T) of numbers after each action (N,T) and before the first (N,)."""
    at = torch.where(mask, torch.arange(1, mask.shape[1] + 1, device=mask.device), 0).cummax(dim=1).values
    earlier = torch.cat([at.new_zeros(len(at), 1), at[:, :-1]], dim=1)
    return torch.cat([start.unsqueeze(1), after], dim=1).gather(1, earlier)


def _column(x: Tensor) -> Tensor:
    """Numbers of the rows of ``x``: (rows, 1)."""
    return torch.arange(len(x), device=x.device).unsqueeze(1)
