"""A budget for all problems is too tight for some and too wide for others. HAPO remembers for each problem how short
its right answers have been, and pays right answers for being shorter than that.

Policies think about problems that need 2, 4, 8 and 14 steps, each with a table of its own; who answers sooner is wrong,
and who has not answered after 20 steps is cut. The baselines are GRPO on right and wrong; GRPO with one budget for all,
which is either that of the middle problems (7 steps) or that of the longest (14); and HAPO with one history for all.

The setting was chosen on seeds 100 to 104. With needs of 3, 5, 8 and 12 steps the budget of 12 came to 1.19 times the
needed steps after 120 updates, HAPO to 0.98; so the needs were spread. Even so, a wide budget is not as bad as one may
expect: a policy that learns not to be cut learns to stop sooner everywhere, and after 150 updates it is at 1.23 times
the needed steps. Answers cannot be guessed here; a lucky guess would set the least length for good.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.length_policy import Thinking, hesitant, summary, trained
from guerdon.shaping.length_history import HapoReward

BED = Thinking((2, 4, 8, 14), longest=20, width=0.0)


class OneHistory(HapoReward):
    """HAPO with one history for all problems."""

    def __call__(self, reward: Tensor, length: Tensor, task_id: Tensor) -> Any:
        return super().__call__(reward, length, torch.zeros_like(task_id))


def by_hand(method: Any) -> Iterator[Check]:
    """Rewards at a least length of 100, of a problem beside one of 3, and of a problem without any."""
    reward = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64)
    length, seven = torch.tensor([50, 100, 150, 50, 150, 250]), torch.full((6,), 7)
    hapo = method()
    hapo(torch.ones(2, dtype=torch.float64), torch.tensor([100, 130]), seven[:2])
    seen, _ = hapo(reward, length, seven)
    wanted = [1.707107, 1.0, 0.3, 0.0, -0.707107, -1.0]
    yield equal("right after 50, 100, 150; wrong after 50, 150, 250", seen, wanted)
    again, _ = hapo(reward[1:2], length[1:2], seven[:1])
    yield equal("the history has moved after the batch: right after 100", again, [0.3])

    hapo = method()
    first, _ = hapo(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([100, 3, 2]), torch.tensor([7, 8, 9]))
    yield equal("without a history the outcome alone", first, [1.0, 1.0, 0.0])
    second, _ = hapo(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([100, 3, 200]), torch.tensor([7, 8, 9]))
    yield equal("two problems at their own least length, and one never solved", second, [1.0, 1.0, 0.0])
    hapo(torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.tensor([8]))
    after, _ = hapo(torch.ones(1), torch.tensor([3]), torch.tensor([8]))
    yield equal("an empty answer leaves no history", after, [1.0])


def run(method: Any, seeds: int) -> Iterator[Check]:
    """By hand; then policies that choose how long they think."""
    yield from by_hand(method)
    settings: dict[str, Any] = {"seeds": seeds, "steps": 100, "groups": 16, "group_size": 8, "lr": 20.0}
    train = functools.partial(trained, BED, hesitant(BED, 0.05), episodes=256, **settings)

    def budget(limit: int) -> list[Any]:
        return ["weighted_sum", {"name": "truncation_reward", "limits": [limit]}]

    arms = {
        "hapo": train(shaping=["weighted_sum", method]),
        "grpo": train(),
        "budget of 7": train(shaping=budget(7)),
        "budget of 14": train(shaping=budget(14)),
        "one history": train(shaping=["weighted_sum", OneHistory]),
    }
    last = {name: summary(history, ("right", "ratio")) for name, history in arms.items()}
    ratio = {name: history.means["ratio"].T for name, history in arms.items()}
    ours = last["hapo"]
    yield every_seed("steps of thought over those needed", ours["ratio"], above=0.9, below=1.3)
    yield paired("accuracy, against GRPO", ours["right"], last["grpo"]["right"], margin=-0.05)
    yield paired(
        "steps over those needed, against GRPO",
        ours["ratio"],
        last["grpo"]["ratio"],
        better="lower",
        margin=0.3,
        curves=ratio,
        axis="steps over those needed, every 5 updates",
    )
    yield paired(
        "the same, against a budget of 14", ours["ratio"], last["budget of 14"]["ratio"], better="lower", margin=0.1
    )
    yield paired("accuracy, against a budget of 7", ours["right"], last["budget of 7"]["right"], margin=0.2)
    yield paired(
        "steps over those needed, against one history", ours["ratio"], last["one history"]["ratio"], better="lower"
    )


CLAIM = Claim(
    system="hapo",
    run=run,
    method=HapoReward,
    mutation=Mutation("all problems share one history", OneHistory),
    recipe="""
shaping: [weighted_sum, hapo]
""",
)
