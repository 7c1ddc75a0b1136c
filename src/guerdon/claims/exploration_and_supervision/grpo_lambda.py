"""A price on length everywhere makes a policy give up the problems that it does not solve yet: for those, a short wrong
answer costs nothing. GRPO-lambda pays for brevity only in the most accurate groups of a batch, and for being right
everywhere else.

One policy, which does not see what it is asked, thinks about problems that need about 2, 5, 8 and 11 steps, and is cut
after 16; 20 groups of 8 make a batch. The baselines are GRPO on right and wrong, and the same price for all groups.
The price is the 0.6 of a third-party version. Brevity has a price here as well: GRPO alone is right more often than
GRPO-lambda, for one policy has to do for all problems, and that of the easy ones is shortened.

The setting is that of a small simulation written down beside the method; here it was run once on seeds 100 to 104
(accuracy and steps: GRPO 0.97 and 13.2, GRPO-lambda 0.81 and 10.3, all groups 0.26 and 3.9) and left so. At the lower
price of 0.2 the order is the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, paired
from guerdon.claims.testbeds.length_policy import Thinking, hesitant, summary, trained
from guerdon.shaping.length_schedule import grpo_lambda

BED = Thinking((2, 5, 8, 11), longest=16, width=0.7, shared=True)
PRICE = 0.6


@functools.wraps(grpo_lambda)
def everywhere(reward: Tensor, length: Tensor, group: Tensor, seed: int, **options: Any) -> Any:
    """The same price for all groups."""
    return grpo_lambda(reward, length, group, seed, **{**options, "share": 1.0})


def run(method: Any, seeds: int) -> Iterator[Check]:
    """One group by hand, two groups, then training."""
    reward, length = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([10, 20, 1])
    one = torch.zeros(3, dtype=torch.int64)
    paid, _ = method(reward, length, one, 0)
    yield equal("right after 10 and after 20 steps, wrong after one", paid, [0.946212, 0.853788, 0.0])
    paid, _ = method(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([7, 7, 7]), one, 0)
    yield equal("right ones of one length", paid, [0.9, 0.9, 0.0])
    both = torch.tensor([0, 0, 1, 1, 1])
    reward, length = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]), torch.tensor([10, 20, 10, 20, 1])
    paid, _ = method(reward, length, both, 0, share=0.5)
    yield equal("a solved group and one that is not", paid, [0.946212, 0.853788, 1.0, 1.0, 0.0])
    paid, _ = method(torch.zeros(4), torch.tensor([1, 2, 3, 4]), torch.tensor([0, 0, 1, 1]), 0)
    yield equal("nothing solved", paid, [0.0] * 4)

    train = functools.partial(
        trained, BED, hesitant(BED, 0.1), seeds=seeds, steps=120, groups=20, group_size=8, lr=20.0, episodes=256
    )
    ours = train(shaping=["weighted_sum", {"name": method, "alpha": PRICE}])
    all_groups = train(shaping=["weighted_sum", {"name": everywhere, "alpha": PRICE}])
    outcome = train()
    curves = {"grpo-lambda": ours, "price in all groups": all_groups, "grpo": outcome}
    last = {name: summary(history) for name, history in curves.items()}
    yield paired(
        "accuracy, against the price in all groups",
        last["grpo-lambda"]["right"],
        last["price in all groups"]["right"],
        margin=0.2,
        curves={name: history.means["right"].T for name, history in curves.items()},
        axis="accuracy, every 5 updates",
    )
    yield paired(
        "steps of thought, against GRPO on right and wrong",
        last["grpo-lambda"]["turns"],
        last["grpo"]["turns"],
        better="lower",
        margin=1.0,
        curves={name: history.means["turns"].T for name, history in curves.items()},
        axis="steps of thought, every 5 updates",
    )
    yield paired(
        "accuracy of GRPO on right and wrong, against GRPO-lambda", last["grpo"]["right"], last["grpo-lambda"]["right"]
    )


CLAIM = Claim(
    system="grpo-lambda",
    run=run,
    method=grpo_lambda,
    mutation=Mutation("all groups pay for length", everywhere),
    recipe="""
shaping: [weighted_sum, {name: grpo_lambda, share: 0.2, alpha: 0.2}]
""",
)
