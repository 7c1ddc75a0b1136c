"""In a long dialogue one number at the end says little about any turn. MAPO compares what each turn still led to with
the same turn of the other rollouts, and, for turns that few rollouts reach, with the whole batch.

Played are dialogues of up to eight turns with a scripted user of hidden mood 0 to 5, who leaves where the mood falls to
0, and who is judged after every turn: the change of mood, plus or minus a half. A policy sees the turn and whether the
mood rose, fell or stayed. The outcome-only baseline is GRPO on the sum of the judgements.

The paper's formulas were not seen, and neither was its mixture. Here the two parts end close together, and in which
order depends on the batch. On seeds 100 to 109, with eight groups of eight the rise is 1.28 for the mixture, 1.27 for
turns alone and 1.30 for the batch alone, all within a standard error of 0.03 to 0.04; with four groups of four, where a
turn is compared with three others, it is 0.99, 0.89 and 1.10 (0.04 to 0.09).

Of the gain over GRPO on the seeds below, 0.22, most comes from returns to go: with the whole outcome at every turn (the
mutation) and the same baselines it is 0.06.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.episodes import Environment, Episodes, Step
from guerdon.credit.group import grpo
from guerdon.credit.turn import mapo

MOODS, REACTIONS = 6, 3
# By action (comfort, cheer, joke, small talk) and mood: the chance that the mood rises; where it does not, it may fall.
RISES = torch.tensor([[0.6, 0.7, 0.6, 0.2, 0.1, 0.0], [0.1, 0.2, 0.4, 0.6, 0.6, 0.0], [0.4] * 6, [0.1] * 6])
FALLS = torch.tensor([[0.1, 0.1, 0.1, 0.4, 0.5, 0.5], [0.6, 0.5, 0.3, 0.1, 0.1, 0.2], [0.4] * 6, [0.1] * 6])


@dataclass(frozen=True)
class Dialogue(Environment):
    """state = (turn * 6 + mood) * 3 + last reaction; the mood is hidden. Rewarded is what the judge says it did."""

    noise: float = 0.5
    turns: int = 8

    actions = 4
    names = ("judge", "mood")
    weights = (1.0, 0.0)

    @property
    def states(self) -> int:  # type: ignore[override]
        return (self.turns + 1) * MOODS * REACTIONS

    @property
    def observations(self) -> int:  # type: ignore[override]
        return (self.turns + 1) * REACTIONS

    def reset(self, chance: Tensor) -> Tensor:
        """Mood 1, 2 or 3."""
        return (1 + (3 * chance).long()) * REACTIONS

    def observe(self, state: Tensor) -> Tensor:
        """The turn and the last reaction."""
        return state // (MOODS * REACTIONS) * REACTIONS + state % REACTIONS

    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        """The mood moves by one at most."""
        turn, mood = state // (MOODS * REACTIONS), state // REACTIONS % MOODS
        rises, falls = RISES[action, mood], FALLS[action, mood]
        after = (mood + (chance < rises).long() - (chance > 1 - falls).long()).clamp(0, MOODS - 1)
        moved = after - mood
        sign = torch.where(chance * 1009 % 1 < 0.5, -1.0, 1.0)  # digits of the same number that the mood does not use
        judged = moved + self.noise * sign
        state = ((turn + 1) * MOODS + after) * REACTIONS + moved + 1
        return Step(state, torch.stack([judged.double(), moved.double()], dim=1), after == 0)


def by_hand(method: Any) -> Iterator[Check]:
    """One turn; then three turns, of which the last is reached once."""
    group = torch.tensor([0, 0, 0, 1, 1])
    reward = torch.tensor([1.0, 0.0, 0.0, 2.0, 5.0], dtype=torch.float64)
    dense, mask = reward.unsqueeze(1), torch.ones(5, 1, dtype=torch.bool)
    turn = torch.zeros(5, 1, dtype=torch.int64)
    of_turn = method(dense, group, turn, mask, alpha=1.0, eps=1e-4)[0]
    yield equal("one turn, turn-level alone: GRPO", of_turn, grpo(reward, group, mask))
    of_batch = method(dense, group, turn, mask, alpha=0.0, eps=0.0)[0][:, 0]
    yield equal(
        "one turn, batch-level alone: whitened over the batch", of_batch, (reward - reward.mean()) / reward.std()
    )

    turn = torch.tensor([[0, 1, -1], [0, 1, 2]])
    dense = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 5.0]], dtype=torch.float64)
    arguments = (dense, torch.zeros(2, dtype=torch.int64), turn, turn >= 0)
    alone = [method(*arguments, alpha=alpha, eps=0.0)[0][1, 2] for alpha in (1.0, 0.5, 0.0)]
    rescued = 0.6 / 3.3**0.5  # returns to go are 3, 2, 6, 6, 5
    yield equal(
        "a turn that one rollout reaches, at alpha 1, 0.5 and 0", torch.stack(alone), [0.0, rescued / 2, rescued]
    )
    value = torch.tensor([3.0, 2.0, 6.0, 6.0, 5.0], dtype=torch.float64)
    seen = method(*arguments, alpha=0.0, eps=0.0)[0][turn >= 0]
    yield equal("returns to go, whitened over the batch", seen, (value - value.mean()) / value.std())


def run(method: Any, seeds: int) -> Iterator[Check]:
    """Credit by hand; then the dialogues."""
    yield from by_hand(method)
    train = functools.partial(
        Episodes(Dialogue()).train, seeds=seeds, steps=60, group_size=8, groups=8, lr=20.0, episodes=512
    )
    mixed, of_turn, of_batch = (
        train(credit={"name": method, "alpha": alpha}, per_seed=True) for alpha in (0.5, 1.0, 0.0)
    )
    outcome = train(credit="grpo")
    moods = {"mapo": mixed, "turn alone": of_turn, "batch alone": of_batch, "grpo": outcome}
    curves = {name: history.means["mood"].T for name, history in moods.items()}
    final = {name: history.means["mood"][-1] for name, history in moods.items()}
    yield paired(
        "rise of the mood in the end, against GRPO on the outcome",
        final["mapo"],
        final["grpo"],
        curves=curves,
        axis="rise of the mood, every 5 updates",
    )
    for name in ("turn alone", "batch alone"):
        yield no_worse(f"rise of the mood in the end, mean over seeds, against {name}", final["mapo"], final[name])


def no_worse(what: str, ours: Tensor, theirs: Tensor) -> Check:
    """A mean over seeds that falls short of another by less than the other's standard error."""
    least = float(theirs.mean() - theirs.std() / len(theirs) ** 0.5)
    seen, holds = f"{ours.mean():.4g} against {theirs.mean():.4g}", bool(ours.mean() > least)
    lists = ours.tolist(), theirs.tolist()
    return Check(what, "learning", f"> {least:.4g}, one standard error below", seen, holds, *lists)


@functools.wraps(mapo)
def outcome_alone(dense: Tensor, group: Tensor, turn: Tensor, mask: Tensor, **options: Any) -> Any:
    """Give every turn the whole outcome in place of what is still to come."""
    positions = torch.arange(mask.shape[1])
    last = torch.where(mask, positions, -1).amax(dim=1, keepdim=True)
    total = torch.where(mask, dense, 0.0).sum(dim=1, keepdim=True)
    return mapo(torch.where(positions == last, total, 0.0), group, turn, mask, **options)


CLAIM = Claim(
    system="mapo",
    run=run,
    method=mapo,
    mutation=Mutation("every turn gets the whole outcome, not what it still led to", outcome_alone),
)
