"""A reward for conciseness that is added to the outcome can be had without being right, and a policy that is often
wrong takes it. Multiplied with the outcome it is there for right answers alone; it fades over training, and more so on
hard problems.

Policies solve a step, look again or answer; a problem needs two steps or six, which the policy can't see, and it is cut
after 30. A policy begins by answering in 40 % of the cases after two steps, and by looking again and again once six are
solved. The score of conciseness is the mean of how much of the budget is left and of the share of steps that were not
looks, rounded up to tenths; no reward model is trained here. The baselines are GRPO on right and wrong, the same score
added with weight 0.75 (about what it weighs in the product at first), and a plain reward of length in its place in the
product.

Settings were looked for on seeds 100 to 109. Where six steps are reached more often at first, adding the score does no
harm (success 0.88 with 30 %), or harms half of the seeds. The score against plain length in the product makes little
difference, 0.88 both: what protects the outcome is the product. (In one setting plain length ended in answering at once
on one seed of ten.) How far length falls depends on how much of it was useless: a policy that can't tell the problems
apart needs 7 steps.

The claim was first run with a start of 45 %, a limit of 24 and 90 updates, and one check failed: measured on 256
episodes, CRF was at 0.861 and GRPO at 0.858, but on 7 seeds only was it above GRPO less 0.02; measured on 2048, on 9
seeds (0.849 and 0.854), for one seed had not yet learned to go on. So the claim now begins at 40 % and has 120 updates.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.episodes import Step
from guerdon.claims.testbeds.length_policy import Solving, summary, trained
from guerdon.reward_models.conciseness import conciseness
from guerdon.shaping.conciseness import conciseness_reward

LONGEST, STEPS, ADDED = 30, 120, 0.75
# Solve, look again, answer: by the number of solved steps.
START = torch.tensor([[0.8, 0.15, 0.05]] * 2 + [[0.3, 0.3, 0.4]] * 4 + [[0.02, 0.9, 0.08]]).log()


@dataclass(frozen=True)
class Judged(Solving):
    """``Solving`` with two more numbers at the end: a score of conciseness, and the part of the budget that is left."""

    added: float = 0.0

    names = ("right", "rechecks", "solved", "judge", "brevity")
    outcomes = frozenset(names)

    @property
    def weights(self) -> tuple[float, ...]:  # type: ignore[override]
        return (1.0, 0.0, 0.0, self.added, 0.0)

    def step(self, state: Tensor, action: Tensor, chance: Tensor) -> Step:
        """As ``Solving``; steps that were looks are those that the solved ones don't account for."""
        out = super().step(state, action, chance)
        length = state % self.longest + 1
        over = out.done | (length == self.longest)
        looks = (length - 1 - self.observe(state)).clamp(min=0)
        brevity = 1 - length / self.longest
        judge = (((brevity + 1 - looks / length) / 2 * 10).ceil() / 10).clamp(0.1, 1.0)
        extra = torch.where(over.unsqueeze(1), torch.stack([judge, brevity], dim=1), 0.0)
        return Step(out.state, torch.cat([out.reward, extra.double()], dim=1), out.done)


@functools.wraps(conciseness_reward)
def added(
    reward: Tensor,
    components: Tensor,
    component_names: Sequence[str],
    group: Tensor,
    step: int,
    *,
    score: str = "conciseness",
    **options: Any,
) -> Any:
    """Add the score to the outcome."""
    return reward + ADDED * components[:, list(component_names).index(score)], {}


def by_hand(method: Any) -> Iterator[Check]:
    """Two right and two wrong answers, at the start and later; scores of texts."""
    reward, score = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0.2, 1.0, 1.0, 0.1])
    columns, names, one = torch.stack([reward, score], dim=1), ("task", "conciseness"), torch.zeros(4).long()
    first, _ = method(reward, columns, names, one, 0, anneal=100)
    yield equal("right at 0.2 and 1.0, wrong at 1.0 and 0.1; step 0", first, [1.15, 1.75, 0.0, 0.0])
    later, _ = method(reward, columns, names, one, 100, anneal=100)
    yield equal("the same once s is 0", later, [1.05, 1.25, 0.0, 0.0])
    graded = torch.linspace(0, 1, 11)
    columns = torch.stack([torch.zeros(11), graded], dim=1)
    wrong, _ = method(torch.zeros(11), columns, names, torch.zeros(11).long(), 0)
    yield equal("wrong, at any score", wrong, torch.zeros(11))

    said = "add three and four then double what you have"
    scores = conciseness([said, (said + " ") * 50], ["", ""])
    yield equal("a text, and the same text fifty times", scores, [1.0, 0.1])


def run(method: Any, seeds: int) -> Iterator[Check]:
    """By hand; then policies that solve, look again or answer."""
    yield from by_hand(method)
    settings: dict[str, Any] = {"seeds": seeds, "steps": STEPS, "groups": 8, "group_size": 16, "lr": 5.0}
    bed = functools.partial(Judged, (2, 6), longest=LONGEST, best=0.9)

    def train(added: float = 0.0, **changes: Any) -> Any:
        return trained(bed(added=added), START, episodes=1024, measure=20, **settings, **changes)

    def product(score: str) -> list[Any]:
        return ["weighted_sum", {"name": method, "score": score, "anneal": STEPS}]

    arms = {
        "crf": train(shaping=product("judge")),
        "grpo": train(),
        "added": train(added=ADDED),
        "plain length": train(shaping=product("brevity")),
    }
    last = {name: summary(history) for name, history in arms.items()}
    ours, outcome = last["crf"], last["grpo"]
    curves = {name: history.means["right"].T for name, history in arms.items()}
    yield paired(
        "success, against the score added to the outcome",
        ours["right"],
        last["added"]["right"],
        margin=0.2,
        curves=curves,
        axis="success, every 20 updates",
    )
    yield paired("success, against GRPO", ours["right"], outcome["right"], margin=-0.02)
    yield every_seed("steps, over GRPO's", ours["turns"] / outcome["turns"], below=0.85, share=0.8)
    yield every_seed("steps of the score added to the outcome", last["added"]["turns"], below=4.0, share=0.8)
    yield paired("success, against plain length", ours["right"], last["plain length"]["right"], margin=-0.02)


CLAIM = Claim(
    system="crm",
    run=run,
    method=conciseness_reward,
    mutation=Mutation("the score is added to the outcome", added),
    recipe="""
rewards: [task, {name: conciseness, weight: 0.0}]
shaping: [weighted_sum, {name: conciseness_reward, anneal: 400}]
""",
)
