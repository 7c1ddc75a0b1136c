"""Credit on two time scales: for the subgoals that a policy sets itself, and for the actions that pursue them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from guerdon.credit import grouping
from guerdon.credit.step import GAE
from guerdon.credit.turn import Turns, turns_of
from guerdon.registry import register
from guerdon.shaping.stages import OTHER, mark_segments

TAGS = {"switch": ("<switch>", "</switch>"), "subgoal": ("<subgoal>", "</subgoal>")}


class TwoLevels(NamedTuple):
    """Credit of turns (N,M), 0 where there is no turn.

    ``low`` of the actions of each turn; ``high`` of choosing the subgoal, 0 off the turns that begin a segment;
    ``term`` of keeping or switching the subgoal. Adding the values they were computed from gives the critic's targets.
    """

    low: Tensor
    high: Tensor
    term: Tensor


def two_level_gae(
    turn_reward: Tensor,
    low_values: Tensor,
    high_values: Tensor,
    term_values: Tensor,
    boundary: Tensor,
    exists: Tensor,
    end_value: Tensor,
    *,
    gamma: float = 1.0,
    lam_turn: float = 1.0,
    lam_seg: float = 0.95,
) -> TwoLevels:
    """Generalised advantage estimation within segments of turns, and from one segment to the next.

    low:  delta_m = r_m + gamma v' - Vlo_m;  A_m = delta_m + gamma lam_turn A_{m+1} within the segment
          v' = Vlo_{m+1} within the segment, Vhi of the next segment at its last turn
    high: A_k = R_k + gamma^{d_k} Vhi_{k+1} - Vhi_k + gamma^{d_k} lam_seg A_{k+1}
          R_k = sum_{j < d_k} gamma^j r_{b_k + j}
    term: A_m = r_m + gamma r_{m+1} + ... to the segment's end + gamma^... Vhi of the next segment - Vterm_m

    Segment k begins at turn b_k and has d_k turns. Low-level credit never crosses the end of its segment: what comes
    after is the next subgoal's, and reaches back through Vhi alone. What follows the last turn is worth ``end_value``,
    to both levels.

    Args:
        turn_reward: (N,M) reward of each turn.
        low_values, high_values, term_values: (N,M) values of the state before the turn's action, before a subgoal is
            chosen, and before it is kept or switched; the second is read at boundaries alone.
        boundary: (N,M) turns that begin a segment; the first turn there is always does.
        exists: (N,M) turns there are; nothing else is read, and others take no time.
        end_value: (N,) value of the state after the last turn; 0 where the episode ended by itself.
        gamma: discount per turn.
        lam_turn, lam_seg: how far credit reaches beyond the critic, by turns within a segment and by segments.
    """
    first = exists & (exists.cumsum(dim=1) == 1)
    begins = exists & (boundary | first)
    reward, low, high, term = (x.masked_fill(~exists, 0.0) for x in (turn_reward, low_values, high_values, term_values))
    # Of the turn after: its value and credit; of the segment after: its value and credit; of the rest of the segment:
    # its discounted reward and the discount to its end.
    next_low, next_high = end_value, end_value
    credit_low, credit_high, rest = (torch.zeros_like(end_value) for _ in range(3))
    discount, ends = torch.ones_like(end_value), torch.ones_like(end_value, dtype=torch.bool)
    found: list[tuple[Tensor, ...]] = []
    for m in range(reward.shape[1] - 1, -1, -1):
        here, opens = exists[:, m], begins[:, m]
        inside = (~ends).to(reward)
        following = torch.where(ends, next_high, next_low)
        of_low = reward[:, m] + gamma * following - low[:, m] + gamma * lam_turn * inside * credit_low
        rewards = reward[:, m] + gamma * inside * rest
        reach = gamma * torch.where(ends, 1.0, discount)
        to_end = rewards + reach * next_high
        of_high = to_end - high[:, m] + reach * lam_seg * credit_high
        found.append((of_low * here, of_high * opens, (to_end - term[:, m]) * here))
        next_low, credit_low = torch.where(here, low[:, m], next_low), torch.where(here, of_low, credit_low)
        next_high, credit_high = torch.where(opens, high[:, m], next_high), torch.where(opens, of_high, credit_high)
        rest, discount = torch.where(here, rewards, rest), torch.where(here, reach, discount)
        ends = torch.where(here, opens, ends)
    if not found:
        return TwoLevels(reward, reward, reward)
    return TwoLevels(*(torch.stack(column[::-1], dim=1) for column in zip(*found, strict=True)))


@register("credit", paper="Peng et al. 2026, arXiv 2602.16165")
def hae(
    dense: Tensor,
    values: Tensor,
    marks: Mapping[str, Tensor],
    turn: Tensor,
    mask: Tensor,
    bootstrap: Tensor,
    done: Tensor,
    *,
    gamma: float = 1.0,
    lam_turn: float = 1.0,
    lam_seg: float = 0.95,
    whiten: bool = False,
    eps: float = 1e-8,
) -> GAE:
    """Hierarchical advantage estimation: to the subgoal what its segment led to, to the action what it did for it.

    Subgoal tokens of turns that begin a segment get the high-level credit, action tokens the low-level one, switch
    tokens that of keeping or switching: see ``two_level_gae``. All other tokens, such as those of a subgoal that was
    kept, get none.

    One critic serves all levels, for it is read at three kinds of positions: Vterm before the first switch token of a
    turn, Vhi before the first subgoal token of a turn that begins a segment, Vlo before the first action token. A turn
    that lacks such tokens is read before its first action. (The release has a head for each, and reads Vhi at the first
    token of the turn, before the switch is decided. After an episode that was cut it takes the last turn's own Vlo, if
    anything; here that is ``bootstrap``.)

    Args:
        dense: (N,T) reward of each action; what a turn's actions earned is the turn's reward.
        values: (N,T) critic's value of the state before each action.
        marks: (N,T) bool by name, as ``segment_tags`` gives them: ``subgoal``, ``action``, ``boundary`` (all actions of
            the turns that begin a segment) and, if it is to be credited, ``switch``.
        turn: (N,T) turn of each action, -1 off actions.
        mask: (N,T) true on actions; nothing off the mask is read.
        bootstrap: (N,) critic's value of the state after the last action.
        done: (N,) the episode ended by itself: nothing follows, and ``bootstrap`` is read as 0.
        gamma: discount per turn.
        lam_turn, lam_seg: see ``two_level_gae``.
        whiten: shift and scale the credit of each level to mean 0 and standard deviation 1 over the turns of the batch
            that have tokens of that level.
        eps: added to those (population) standard deviations.

    Returns:
        The advantage and the critic's targets, (N,T) each. Where a value was read the target is its credit before
        whitening plus the value; elsewhere it is the value itself, so the critic's loss is 0 there.

    Raises:
        ValueError: when a mark is missing.

    Source: Peng et al. 2026, arXiv 2602.16165.
    """
    missing = next((name for name in ("subgoal", "action", "boundary") if name not in marks.keys()), None)  # noqa: SIM118
    if missing:
        known = ", ".join(marks.keys()) or "nothing"
        raise ValueError(f"marks have no '{missing}', only {known}; make them with segment_tags")
    mask = mask.bool()
    turns, v = turns_of(turn, mask), values.masked_fill(~mask, 0.0)
    parts = {name: marks[name] & mask for name in marks.keys()}  # noqa: SIM118  # a TensorDict iterates over rows
    boundary = turns.total(parts["boundary"].to(v)) > 0
    boundary |= turns.exists & (turns.exists.cumsum(dim=1) == 1)
    parts["subgoal"] = parts["subgoal"] & (turns.spread(boundary.to(v)) > 0)
    levels = {"low": parts["action"], "high": parts["subgoal"], "term": parts.get("switch", torch.zeros_like(mask))}
    places = {level: _places(turns, where) for level, where in levels.items()}
    read = {level: v.gather(1, place) for level, place in places.items()}
    credit = two_level_gae(
        turns.total(dense),
        read["low"],
        read["high"],
        read["term"],
        boundary,
        turns.exists,
        bootstrap.to(v.dtype).masked_fill(done.bool(), 0.0),
        gamma=gamma,
        lam_turn=lam_turn,
        lam_seg=lam_seg,
    )
    advantage, returns = torch.zeros_like(v), v
    for level in ("term", "high", "low"):  # where a position serves two levels, the low one's target stands
        spoken = turns.total(levels[level].to(v)) > 0
        of_level: Tensor = getattr(credit, level)
        here = torch.zeros_like(turns.index).scatter_add(1, places[level], spoken.long()) > 0
        returns = torch.where(here, turns.spread(of_level) + v, returns)
        if whiten:
            of_level = grouping.whiten(of_level, None, spoken, eps=eps, ddof=0)
        advantage = advantage + turns.spread(of_level) * levels[level]
    return GAE(advantage, returns)


def subgoal_penalties(
    exists: Tensor,
    kept: Tensor,
    changed: Tensor,
    invalid: Tensor,
    *,
    keep: float = -0.3,
    inconsistent: float = -0.3,
    invalid_action: float = -0.1,
    spread: Literal["turn", "trajectory"] = "turn",
) -> Tensor:
    """What is added to the reward of turns so that subgoals are neither clung to nor changed on the sly.

    keep [kept] + inconsistent [kept, but another subgoal is written] + invalid_action [the action is none]

    Args:
        exists: (N,M) turns there are.
        kept: (N,M) turns that keep the subgoal.
        changed: (N,M) turns whose subgoal differs from that of the turn before.
        invalid: (N,M) turns whose action the environment does not know.
        keep, inconsistent, invalid_action: the three numbers.
        spread: ``keep`` on every turn that keeps, or on each its share of the trajectory's turns, so that a trajectory
            loses ``keep`` at most (``trajectory``).

    Returns:
        (N,M) 0 where there is no turn.

    Source: Peng et al. 2026, arXiv 2602.16165.
    """
    size = exists.sum(dim=1, keepdim=True).clamp(min=1) if spread == "trajectory" else 1
    penalty = keep * kept.double() / size + inconsistent * (kept & changed).double() + invalid_action * invalid.double()
    return penalty.to(torch.get_default_dtype()) * exists


def segment_tags(
    token_text: Sequence[Sequence[str]],
    mask: Tensor,
    turn: Tensor,
    *,
    tags: Mapping[str, tuple[str, str]] | None = None,
    switch_word: str = "SWITCH",
) -> dict[str, Tensor]:
    """Marks for ``hae`` from turns written as <switch>KEEP|SWITCH</switch><subgoal>...</subgoal> and an action.

    The action is what lies in neither, its own tags included. A turn without tags is all action and keeps its subgoal;
    the first turn of a trajectory begins a segment whatever it says.

    Args:
        token_text: for every trajectory the text of each of its actions.
        mask: (N,T) true where the policy acted.
        turn: (N,T) turn of each action, -1 off actions.
        tags: opening and closing mark of ``switch`` and ``subgoal``.
        switch_word: what a turn says that begins a segment, in capitals or not.

    Returns:
        (N,T) bool: ``switch``, ``subgoal``, ``action`` and ``boundary``, see ``hae``.
    """
    turns, tags = turns_of(turn, mask), tags or TAGS
    order = mask.long().cumsum(dim=1) - 1
    rows, numbers = turns.exists.nonzero(as_tuple=True)
    within = turns.mask[rows] & (turn[rows] == numbers.unsqueeze(1))
    written = [[token_text[int(row)][int(i)] for i in order[row, here]] for row, here in zip(rows, within, strict=True)]
    found = mark_segments(written, within, tags)
    opening, closing = tags["switch"]
    said = ["".join(pieces).partition(opening)[2].partition(closing)[0] for pieces in written]
    switched = torch.tensor([text.strip().lower() == switch_word.lower() for text in said], dtype=torch.bool)
    begins = (turns.exists.cumsum(dim=1) == 1) & turns.exists
    begins[rows, numbers] |= switched.to(begins.device)
    counts = {name: torch.zeros_like(turn).index_add(0, rows, where.to(turn)) for name, where in found.items()}
    return {
        "switch": counts["switch"] > 0,
        "subgoal": counts["subgoal"] > 0,
        "action": counts[OTHER] > 0,
        "boundary": turns.spread(begins.double()) > 0,
    }


def _places(turns: Turns, where: Tensor) -> Tensor:
    """(N,M) position at which each turn's value is read: its first token of a kind, else its first action."""
    size = turns.index.shape[1]
    own, any_action = turns.first(where), turns.first(turns.mask)
    return torch.where(own < size, own, any_action).clamp(max=max(size - 1, 0))
