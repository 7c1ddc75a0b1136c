"""A price on the length of whole answers takes credit from steps that were needed, and rewards useless ones in answers
that are short all the same. DECS pays for length only after the necessary prefix of a right answer, and compares
actions with those at the same position of the group.

Policies solve a step, look again or answer. A problem needs two steps or six, which the policy can't see, and it is cut
after 16. A policy begins by answering often after two steps, so six are rarely reached. The baselines are GRPO on right
and wrong, and GRPO on that minus half the used share of the 16 steps. Redundant is every action but the answer once the
problem is solved; the environment says so in place of the judge.

Settings were looked for on seeds 100 to 109. What the penalty does depends on how rarely six steps are reached at
first. With needs of two and four steps it was as good as DECS. With the present needs it ends in answering at once on
two or three seeds of ten if a policy begins by answering in 30 % of the cases after two steps, and on all of them at 40
%. The claim was first run at 30 %, found from five seeds: on the default seeds the penalty did not collapse, success
was 0.880 for DECS and 0.878 for the penalty, and that check failed. So it is now at 40 %. DECS reached the same success
from both starts, and so did GRPO, with five times as many looks. What keeps the needed steps is that wrong answers pay
for nothing: the mutation, which pays for length everywhere in right answers, keeps them too, and leaves half as many
looks again. The curriculum plays no part in the learning; its arithmetic alone is checked.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.length_policy import DONE, Solving, summary, trained
from guerdon.credit.necessary_prefix import decs_advantage, necessary_prefix
from guerdon.curriculum.easy_share import EasyShare

LONGEST, PENALTY = 16, 0.5
BED = Solving((2, 6), longest=LONGEST, best=0.9)
# Solve, look again, answer: by the number of solved steps.
START = torch.tensor([[0.8, 0.15, 0.05]] * 2 + [[0.3, 0.3, 0.4]] * 4 + [[0.1, 0.6, 0.3]]).log()


@functools.wraps(decs_advantage)
def whole_answers(right: Tensor, redundant: Tensor, group: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """Pay for length everywhere in a right answer."""
    return decs_advantage(right, torch.ones_like(mask, dtype=torch.bool), group, mask, **options)


def shortened(reward: Tensor, length: Tensor) -> Tensor:
    """The outcome minus a share of the budget that was used."""
    return reward - PENALTY * length / LONGEST


def by_hand(method: Any) -> Iterator[Check]:
    """Two right answers, of which the first needed two of its four actions; a text; kappa."""
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    redundant = mask & torch.tensor([[False] * 2 + [True] * 4, [False] * 6])
    right, one = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    credit = method(right, redundant, one, mask, longest=10)
    yield equal("credit at position 0", credit[:, 0], [0.0, 0.0])
    yield equal("credit at position 2: 1.06 against 1.10", credit[:, 2], [-0.707107, 0.707107], tol=1e-4)
    yield equal("credit at position 5, where the first is over", credit[:, 5], [0.0, 0.0])
    lost = method(torch.tensor([True, False]), redundant & False, one, mask, longest=10)
    yield equal("a wrong answer beside a right one that is over", lost[1], [-0.707107] * 6, tol=1e-4)

    text = "<think>try 3\n\nso 42\n\ncheck\n\nagain</think>It is 42"
    found = necessary_prefix(text, 42)
    yield equal("redundant characters of a text, and nu", [*found], [len("<think>try 3\n\nso 42\n\n"), 33, 0.5])
    share = EasyShare()
    kappa = [share.update(nu) for nu in (0.5, 0.75, 0.5, 0.25)]
    yield equal("kappa as nu is 0.5, 0.75, 0.5, 0.25", kappa, [0.0, 0.05, 0.0, 0.0])
    yield equal("solved problems admitted beside 64 mixed ones at kappa 0.2", EasyShare(kappa=0.2).admitted(64), 16)


def run(method: Any, seeds: int) -> Iterator[Check]:
    """By hand; then policies that solve, look again or answer."""
    yield from by_hand(method)

    def credit(reward: Tensor, group: Tensor, mask: Tensor, state_key: Tensor, tokens: Tensor) -> Tensor:
        solved = BED.missing(state_key)[:, : mask.shape[1]] == 0
        return method(reward >= 0.5, mask & solved & (tokens != DONE), group, mask, longest=LONGEST)

    settings: dict[str, Any] = {"seeds": seeds, "steps": 120, "groups": 8, "group_size": 16, "lr": 5.0}
    train = functools.partial(trained, BED, START, episodes=512, **settings)
    arms = {"decs": train(credit=credit), "grpo": train(), "penalty": train(shaping=["weighted_sum", shortened])}
    last = {name: summary(history, ("right", "rechecks", "solved")) for name, history in arms.items()}
    ours = last["decs"]
    looks = {name: history.means["rechecks"].T for name, history in arms.items()}
    yield every_seed("looks after the solution, over GRPO's", ours["rechecks"] / last["grpo"]["rechecks"], below=0.5)
    yield paired(
        "looks after the solution, against half of those at the start",
        ours["rechecks"],
        arms["decs"].means["rechecks"][0] / 2,
        better="lower",
        curves=looks,
        axis="looks after the solution, every 5 updates",
    )
    yield paired("needed steps that were done, against GRPO", ours["solved"], last["grpo"]["solved"], margin=-0.02)
    yield paired("the same, against the penalty", ours["solved"], last["penalty"]["solved"])
    yield paired(
        "success, against the penalty",
        ours["right"],
        last["penalty"]["right"],
        curves={name: history.means["right"].T for name, history in arms.items()},
        axis="success, every 5 updates",
    )


CLAIM = Claim(
    system="decs",
    run=run,
    method=decs_advantage,
    mutation=Mutation("all of a right answer pays for its length", whole_answers),
    recipe="""
credit: {name: decs, longest: 8, separator: " "}
""",
)
