"""Credit of turns: returns to go, compared with those from the same state or of the same turn.

A turn is what the policy does between two observations. Rewards come per action (``dense``), stand where they were
earned, and add up to the outcome; what one turn's actions earned is that turn's reward. Time counts turns.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from guerdon.credit.grouping import Singleton, center, per_action, whiten
from guerdon.registry import register


@dataclass(frozen=True)
class Turns:
    """Which action belongs to which turn; made by ``turns_of``.

    Attributes:
        index: (N,T) turn of each action, any valid number off actions.
        mask: (N,T) true on actions that lie in a turn.
        exists: (N,M) turns in which something was done.
    """

    index: Tensor
    mask: Tensor
    exists: Tensor

    def total(self, x: Tensor) -> Tensor:
        """Sum of x (N,T) over the actions of each turn: (N,M)."""
        kept = torch.where(self.mask, x, 0.0)
        return kept.new_zeros(self.exists.shape).scatter_add(1, self.index, kept)

    def spread(self, x: Tensor) -> Tensor:
        """Hand every action the number of its turn: x (N,M) gives (N,T), exactly 0 off the mask."""
        return torch.where(self.mask, x.gather(1, self.index), torch.zeros((), dtype=x.dtype, device=x.device))

    def first(self, where: Tensor) -> Tensor:
        """(N,M) position of the first action of each turn among those of ``where`` (N,T); T if it has none there."""
        size = self.index.shape[1]
        position = torch.where(self.mask & where, torch.arange(size, device=self.index.device), size)
        return position.new_full(self.exists.shape, size).scatter_reduce(1, self.index, position, "amin")


def turns_of(turn: Tensor, mask: Tensor, count: int | None = None) -> Turns:
    """Read off which turns there are.

    Args:
        turn: (N,T) turn of each action, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.
        count: number M of turns to make room for; by default as many as the longest trajectory has, and one at least.

    Raises:
        ValueError: when an action's turn is not below ``count``.
    """
    acts = mask.bool() & (turn >= 0)
    most = int(torch.where(acts, turn, -1).max()) + 1 if turn.numel() else 0
    if count is not None and most > count:
        raise ValueError(f"turn goes up to {most - 1}, but there are {count} turns (0 to {count - 1}); pad to {most}")
    index = torch.where(acts, turn, 0).long()
    counted = index.new_zeros(len(turn), max(most, 1) if count is None else count).scatter_add(1, index, acts.long())
    return Turns(index, acts, counted > 0)


def returns_to_go(x: Tensor, gamma: float = 1.0) -> Tensor:
    """Discounted sum of what is still to come: R_m = x_m + gamma R_{m+1}, for x (N,M)."""
    running, by_turn = torch.zeros_like(x[:, 0]) if x.shape[1] else x.new_zeros(len(x)), []
    for column in reversed(x.unbind(dim=1)):
        running = column + gamma * running
        by_turn.append(running)
    return torch.stack(by_turn[::-1], dim=1) if by_turn else x


def group_by_anchor(state_key: Tensor, group: Tensor, exists: Tensor | None = None) -> Tensor:
    """Number the pairs of group and state: turns of one group that began in the same state get the same key.

    Any trajectory and any time count, also the same state seen twice by one trajectory; states of different groups
    never meet.

    Args:
        state_key: (N,M) identity of the state each turn started from.
        group: (N,) key of the trajectories that share a start.
        exists: (N,M) turns there are; nothing else is read. All by default.

    Returns:
        (N,M) int64, from 0; 0 where there is no turn.
    """
    exists = torch.ones_like(state_key, dtype=torch.bool) if exists is None else exists
    state = torch.unique(state_key.masked_fill(~exists, 0), return_inverse=True)[1]
    pair = torch.unique(group, return_inverse=True)[1].unsqueeze(1) * (int(state.max()) + 1 if state.numel() else 1)
    return torch.unique((pair + state).masked_fill(~exists, 0), return_inverse=True)[1].masked_fill(~exists, 0)


def anchor_keys(
    observations: Sequence[Sequence[Any]],
    group: Tensor,
    *,
    similarity: Annotated[float, Field(gt=0, le=1)] = 1.0,
) -> Tensor:
    """Identities of observed states, for ``state_key``: equal observations, or texts that are nearly equal.

    Mappings, sets, lists, arrays and tensors are compared by what they hold, in whatever order a mapping lists it.
    Below 1, a text joins the first text of its group that it resembles (difflib's ratio), else it starts a state of its
    own; that takes a comparison with every state of the group. The source's value is 0.95.

    Args:
        observations: for each of N trajectories what was seen before each of its turns.
        group: (N,) key of the trajectories that share a start.
        similarity: least ratio at which two texts count as one state; 1 asks for equality.

    Returns:
        (N,M) int64, M the most turns; -1 where there is no turn.

    Raises:
        TypeError: when ``similarity`` is below 1 and an observation is not a text.
    """
    keys = torch.full((len(observations), max(map(len, observations), default=0)), -1)
    known: dict[tuple[int, Any], int] = {}
    texts: dict[int, list[str]] = {}
    for row, (seen, key) in enumerate(zip(observations, group.tolist(), strict=True)):
        for column, observation in enumerate(seen):
            identity = canonical(observation)
            if similarity < 1:
                if not isinstance(observation, str):
                    raise TypeError(
                        f"observation {column} of trajectory {row} is a {type(observation).__name__}, and similarity "
                        f"{similarity} compares texts; turn it into a str, or set similarity to 1"
                    )
                identity = _resembled(observation, texts.setdefault(key, []), similarity)
            keys[row, column] = known.setdefault((key, identity), len(known))
    return keys


def canonical(x: Any) -> Any:
    """A hashable stand-in for an observation: equal for observations that hold the same."""
    if isinstance(x, Mapping):
        return "mapping", frozenset((canonical(key), canonical(value)) for key, value in x.items())
    if isinstance(x, set | frozenset):
        return "set", frozenset(map(canonical, x))
    if isinstance(x, list | tuple):
        return "list", tuple(map(canonical, x))
    if hasattr(x, "tolist") and hasattr(x, "shape"):  # tensors and arrays
        return "array", tuple(x.shape), str(x.dtype), canonical(x.tolist())
    return type(x).__name__, x


@register("credit", paper="Feng et al. 2025, arXiv 2505.10978", needs_group=True)
def gigpo(
    reward: Tensor,
    dense: Tensor,
    state_key: Tensor,
    group: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    omega: float = 1.0,
    gamma: float = 0.95,
    f_norm: Literal["one", "std"] = "one",
    episode_stat: Literal["trajectories", "steps"] = "trajectories",
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Tensor:
    """Group-relative credit of the episode, and of each turn among the turns that began in the same state.

    A_{i,m} = (R_i - mean_g R) / F + omega (R_{i,m} - mean_S R) / F_S,  R_{i,m} = sum_{u >= m} gamma^(u-m) r_{i,u}

    S: all turns of the group from that state, whenever and by whichever trajectory; nothing has to be sampled anew. A
    state that was met once says nothing and adds 0. With omega 0 this is ``dr_grpo`` (``one``) or ``grpo`` (``std``).

    Args:
        reward: (N,) outcome R_i of each trajectory.
        dense: (N,T) reward of each action, which sums to the outcome; r_{i,m} is what turn m's actions earned.
        state_key: (N,M) identity of the state each turn started from.
        group: (N,) key of the trajectories that share a start.
        turn: (N,T) turn of each action, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.
        omega: weight of the second part.
        gamma: discount per turn, inferred from the source's runs on agents. At 1, two visits of one trajectory to
            a state are worth the same.
        f_norm: F = 1 (``one``) or the standard deviation of the group, plus eps (``std``); the same for both parts.
        episode_stat: what the mean and deviation of the first part count: each trajectory once, or each once per turn
            (``steps``), as the release does; long trajectories weigh more then.
        eps: added to the standard deviations.
        singleton: what the first part gives a group of one: nothing (``zero``) or its reward (``raw``, the release).

    Returns:
        (N,T) A of the turn on each of its actions, 0 elsewhere.

    Raises:
        ValueError: when state_key has too few turns.

    Source: Feng et al. 2025, arXiv 2505.10978.
    """
    turns = turns_of(turn, mask, state_key.shape[1])

    def compare(x: Tensor, key: Tensor, valid: Tensor | None, alone: Singleton) -> Tensor:
        if f_norm == "one":
            return center(x, key, valid, singleton=alone)
        return whiten(x, key, valid, eps=eps, singleton=alone)

    if episode_stat == "trajectories":
        episode = per_action(compare(reward, group, None, singleton), turns.exists)
    else:
        rows = [x.unsqueeze(1).expand(turns.exists.shape) for x in (reward, group)]
        episode = compare(rows[0], rows[1], turns.exists, singleton)
    anchor = group_by_anchor(state_key, group, turns.exists)
    step = compare(returns_to_go(turns.total(dense), gamma), anchor, turns.exists, "zero")
    return turns.spread(episode + omega * step)


@register("credit")
def mapo(
    dense: Tensor,
    group: Tensor,
    turn: Tensor,
    mask: Tensor,
    *,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
    gamma: float = 1.0,
    eps: float = 1e-6,
    ddof: int = 1,
) -> tuple[Tensor, dict[str, float]]:
    """Returns to go, compared with those of the same turn of the group and with those of the whole batch.

    A_{i,m} = alpha (G_{i,m} - mean_{g,m} G) / (std_{g,m} G + eps) + (1 - alpha) (G_{i,m} - mean_B G) / (std_B G + eps)

    G_{i,m} = sum_{u >= m} gamma^(u-m) r_{i,u}. The first part needs no sampling beyond the group, and takes out how
    much is left to earn at turn m. Where only one trajectory of a group came as far it says nothing, and the second
    part, over all turns of the batch, remains. With alpha 1 and a single turn this is ``grpo``.

    Only the abstract was read: the formulas follow its description, and alpha is ours. Another method called MAPO
    reweighs advantages by certainty; this is not it.

    Args:
        dense: (N,T) reward of each action, which sums to the outcome; r_{i,m} is what turn m's actions earned, as a
            judge of every turn sees it.
        group: (N,) key of the trajectories that share a start.
        turn: (N,T) turn of each action, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.
        alpha: share of the first part.
        gamma: discount per turn.
        eps: added to the standard deviations.
        ddof: 1 for the sample standard deviation, 0 for the population one.

    Returns:
        (N,T) A of the turn on each of its actions, 0 elsewhere; and the share of turns that stand ``alone``.

    Source: MAPO: Mixed Advantage Policy Optimization for Long-Horizon Multi-Turn Dialogue (abstract).
    """
    turns = turns_of(turn, mask)
    value = returns_to_go(turns.total(dense), gamma)
    number = torch.arange(value.shape[1], device=value.device).expand(value.shape)
    key = group_by_anchor(number, group, turns.exists)
    same_turn = whiten(value, key, turns.exists, eps=eps, ddof=ddof)
    batch = whiten(value, None, turns.exists, eps=eps, ddof=ddof)
    alone = torch.bincount(key[turns.exists])[key[turns.exists]] == 1
    share = float(alone.double().mean()) if len(alone) else 0.0
    return turns.spread(alpha * same_turn + (1 - alpha) * batch), {"alone": share}


def _resembled(text: str, known: list[str], similarity: float) -> int:
    """Number of the first known text that this one resembles; it becomes known itself if there is none."""
    for number, other in enumerate(known):
        if text == other or difflib.SequenceMatcher(None, text, other).ratio() >= similarity:
            return number
    known.append(text)
    return len(known) - 1
