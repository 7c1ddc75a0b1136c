"""A delayed reward handed back to the turns that earned it, by an estimator whose sum over turns learns the outcome."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from guerdon.credit.turn import Turns, turns_of
from guerdon.registry import register
from guerdon.rollouts import at_last_action, at_turn_ends

Ground = Literal["bonus", "penalty"]
_PAPER = "Wang et al. 2025, arXiv 2505.20732"


class ProgressEstimator(nn.Module):
    """What each turn contributed, read from the features at the end of the turn by a linear head.

    c_{i,m} = w h_{i,last(i,m)} + b

    Nothing but the sum over turns is ever compared with anything, so what an estimator can see decides where it puts
    the contribution: one that reads a whole history well may say 0 until the last turn and everything there. A head
    that is only linear, on features of the turn rather than of all before it, has no such way out. (The source puts the
    head on a language model and trains both.) The head begins at 0.

    Args:
        width: size D of the features.

    Source: Wang et al. 2025, arXiv 2505.20732.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features (...,D) to estimates (...)."""
        return self.head(features).squeeze(-1)


def turn_contributions(estimate: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
    """What the estimator says at the last action of each turn; all other positions are left out.

    Args:
        estimate: (N,T); nothing but the ends of turns is read.
        turn: (N,T) turn of each action, -1 off actions.
        mask: (N,T) true on actions.

    Returns:
        (N,M) 0 where there is no turn.

    Source: Wang et al. 2025, arXiv 2505.20732.
    """
    turns = turns_of(turn, mask)
    position = torch.where(turns.mask, torch.arange(turn.shape[1], device=turn.device), -1)
    last = position.new_full(turns.exists.shape, -1).scatter_reduce(1, turns.index, position, "amax")
    return torch.where(turns.exists, estimate.gather(1, last.clamp(min=0)), torch.zeros((), dtype=estimate.dtype))


def progress_loss(contribution: Tensor, reward: Tensor) -> Tensor:
    """How far contributions miss the outcome: mean_i (sum_m c_{i,m} - R_i)^2.

    Args:
        contribution: (N,M) 0 where there is no turn.
        reward: (N,) outcome R_i.

    Returns:
        A scalar; no turn has a label of its own.

    Source: Wang et al. 2025, arXiv 2505.20732.
    """
    return (contribution.sum(dim=1) - reward).square().mean()


def progress_reward(
    contribution: Tensor,
    grounded: Tensor,
    exists: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.5,
    ground: Ground = "bonus",
) -> Tensor:
    """Reward of each turn: its contribution, and whether its action could be executed.

    r_{i,m} = alpha c_{i,m} + beta g_{i,m};  with ``penalty``, g - 1 in place of g

    After the last turn nothing is seen any more, so its g is 1. With ``bonus``, as in the source, every turn that does
    anything pays beta, while all contributions together are no more than the outcome: where the policy chooses how many
    turns it takes, use ``penalty``, or keep the number of turns small.

    Args:
        contribution: (N,M).
        grounded: (N,M) whether the observation after each turn shows that its action was executable.
        exists: (N,M) turns there are; nothing else is read.
        alpha, beta: weights, as in the release.
        ground: whether an action that can be executed pays, or one that can't costs.

    Returns:
        (N,M) 0 where there is no turn.

    Source: Wang et al. 2025, arXiv 2505.20732. Its release also multiplies by the turns that are left, which gives the
        last turn nothing, and has an example whose contributions are all the centred outcome; neither is done here.
    """
    exists = exists.bool()
    last = exists & (exists.flip(1).cumsum(dim=1).flip(1) == 1)
    g = (grounded.bool() | last).to(contribution.dtype) - (1.0 if ground == "penalty" else 0.0)
    paid = alpha * contribution + beta * g
    return torch.where(exists, paid, torch.zeros((), dtype=paid.dtype, device=paid.device))


class Attributed(NamedTuple):
    """Reward of each trajectory (N,) and of each action (N,T), which adds up to it."""

    reward: Tensor
    dense: Tensor


@register("shaping", "progress_attribution", paper=_PAPER)
class ProgressAttribution:
    """Hand the outcome back to turns, by an estimator that knows them by the states between which they led.

    r_{i,m} = alpha c(s_m, s_{m+1}) + beta g_{i,m},  c fitted to sum_m c(s_m, s_{m+1}) = R_i over what is stored

    It needs no features, only ``state_key``, and can't tell turns apart that lead from and to the same states. Where
    the last turn of an episode that was cut led is not known, and it contributes 0: with a number of its own it would
    take back what all turns before it are paid for nothing. A turn is grounded where the state changed. Best read by
    ``gae``. For contributions that a model reads from texts, see ``ProgressEstimator``. (An estimator that is fitted
    to one small batch after the other instead puts its misses onto whatever turns there are, and pays for doing
    nothing.)

    Args:
        alpha, beta, ground: see ``progress_reward``.
        explore: trajectories to see first; until then the outcome stands at the last action.
        memory: trajectories that are stored, the latest; old ones are as true as new ones, for a contribution belongs
            to what was done and not to who does it.
        passes: sweeps over them per batch; each divides what the sums still miss among the turns of a trajectory, and
            takes for each transition the mean over its visits.
        max_turns: trajectories with as many turns or more teach the estimator nothing, as in the release.

    Source: Wang et al. 2025, arXiv 2505.20732, which fits a model once, to what the policy did before RL; the table
        that goes on learning is ours.
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 0.5,
        ground: Ground = "bonus",
        explore: Annotated[int, Field(ge=0)] = 0,
        memory: Annotated[int, Field(ge=1)] = 1000,
        passes: Annotated[int, Field(ge=1)] = 50,
        max_turns: Annotated[int, Field(ge=1)] = 35,
    ) -> None:
        self.alpha, self.beta, self.ground = alpha, beta, ground
        self.explore, self.memory, self.passes, self.max_turns = explore, memory, passes, max_turns
        self._keys = torch.zeros(0, 3, dtype=torch.int64)
        self._values = torch.zeros(0, dtype=torch.float64)
        self._stored = torch.zeros(0, 0, dtype=torch.int64)  # rows of the table; -1 where there is no turn
        self._outcomes = torch.zeros(0, dtype=torch.float64)
        self._seen = 0

    def __call__(
        self, reward: Tensor, state_key: Tensor, turn: Tensor, mask: Tensor, done: Tensor
    ) -> tuple[Attributed, dict[str, float]]:
        """Learn from a batch, and hand its outcomes back.

        Args:
            reward: (N,) outcome.
            state_key: (N,M) identity of the state each turn started from.
            turn: (N,T) turn of each action, -1 off actions.
            mask: (N,T) true on actions.
            done: (N,) the episode ended by itself; the state after the last turn is known by nothing else.

        Returns:
            The rewards of turns, at the last action of each, and the mean absolute ``miss`` of their sum.
        """
        turns = turns_of(turn, mask, state_key.shape[1])
        transition, known = _transitions(state_key, turns, done)
        place = self._placed(transition, known)
        self._learn(reward.double(), place, known)
        if self._seen < self.explore:
            return Attributed(reward, at_last_action(reward, mask.bool())), {}
        contribution = self._values[place].masked_fill(~known, 0.0)
        changed = transition[..., 0] != transition[..., 1]
        miss = (contribution.sum(dim=1) - reward).abs()
        weights: dict[str, Any] = {"alpha": self.alpha, "beta": self.beta, "ground": self.ground}
        paid = progress_reward(contribution, changed, turns.exists, **weights).to(reward.dtype)
        dense = at_turn_ends(paid, torch.where(turns.mask, turn, -1))
        return Attributed(paid.sum(dim=1), dense), {"miss": float(miss.mean()) if len(miss) else 0.0}

    def _placed(self, transition: Tensor, known: Tensor) -> Tensor:
        """(N,M) row of each transition in the table, which grows by those that are new."""
        seen = transition[known]
        keys, index = torch.unique(torch.cat([self._keys.to(seen.device), seen]), dim=0, return_inverse=True)
        values = self._values.new_zeros(len(keys))
        values[index[: len(self._values)]] = self._values
        self._keys, self._values = keys, values
        self._stored = torch.where(self._stored < 0, -1, index[self._stored.clamp(min=0)])
        place = transition.new_zeros(known.shape)
        place[known] = index[len(index) - len(seen) :]
        return place

    def _learn(self, reward: Tensor, place: Tensor, known: Tensor) -> None:
        """Store what can be learned from, and fit the table to all that is stored."""
        length = known.sum(dim=1)
        useful = (length > 0) & (length < self.max_turns) & reward.isfinite()
        fresh = place.masked_fill(~known, -1)[useful]
        width = max(self._stored.shape[1], fresh.shape[1])
        both = [nn.functional.pad(x, (0, width - x.shape[1]), value=-1) for x in (self._stored, fresh)]
        self._stored = torch.cat(both)[-self.memory :]
        self._outcomes = torch.cat([self._outcomes, reward[useful]])[-self.memory :]
        self._seen += len(reward)
        exists = self._stored >= 0
        rows, count = self._stored.clamp(min=0), exists.sum(dim=1)
        flat = rows[exists]
        visits = torch.bincount(flat, minlength=len(self._values)).clamp(min=1)
        for _ in range(self.passes):
            missing = self._outcomes - self._values[rows].masked_fill(~exists, 0.0).sum(dim=1)
            share = (missing / count).unsqueeze(1).expand(exists.shape)[exists]
            self._values = self._values + torch.zeros_like(self._values).index_add_(0, flat, share) / visits

    def state_dict(self) -> dict[str, Any]:
        """The table, and what it was fitted to."""
        return {
            "keys": self._keys.tolist(),
            "values": self._values.tolist(),
            "stored": self._stored.tolist(),
            "outcomes": self._outcomes.tolist(),
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self._keys = torch.tensor(state["keys"], dtype=torch.int64).reshape(-1, 3)
        self._values = torch.tensor(state["values"], dtype=torch.float64)
        self._stored = torch.tensor(state["stored"], dtype=torch.int64).reshape(len(state["outcomes"]), -1)
        self._outcomes = torch.tensor(state["outcomes"], dtype=torch.float64)
        self._seen = state["seen"]


def _transitions(state_key: Tensor, turns: Turns, done: Tensor) -> tuple[Tensor, Tensor]:
    """(N,M,3) state, state after, and whether the episode ended there; and (N,M) for which turns that is known."""
    ends = turns.exists & (turns.exists.flip(1).cumsum(dim=1).flip(1) == 1)
    over = ends & done.bool().unsqueeze(1)
    after = state_key.roll(-1, dims=1).masked_fill(ends, 0)
    return torch.stack([state_key, after, over.long()], dim=2), turns.exists & (~ends | over)
