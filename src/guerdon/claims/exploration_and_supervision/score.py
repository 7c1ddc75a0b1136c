"""Reward for two attempts teaches "answer well, then copy". SCoRe first lets only the second attempt count, with the
first held near the base policy, and then pays the second for what it improves, alpha (r2 - r1).

Tables answer, then a gate copies the answer or revises it. Problems of a kind look alike, so no first attempt is right
in more than 60 %; a check that is right in 75 % says whether the first answer looks right, and a revision, which at
first is a blind guess among thirteen, can learn what else it may be. The best there is: a fix rate of 0.75, a
gain of 0.15. Plain two-turn RL is REINFORCE on r1 + r2. The spec's model (gain -0.01, revise rate 0.08) was not
given; here plain RL stops revising altogether. That the bonus credits the first attempt as well (``both``) is the
spec's pitfall, and the mutation.

On seeds 100 to 104: with eight answers and a check that is right in 85 % plain RL learned to correct too (gain 0.25);
with 16, or where revisions began as fresh attempts, both collapsed or neither. With twelve, in batches of 8 problems, a
hold of beta_2 = 1 gave SCoRe a fix rate of 0.52, beta_2 = 3 one of 0.71, for the first attempt was at 0.33 and 0.28 at
the end of stage I (0.26 at first); without a hold it was 0.08. On the default seeds SCoRe then fixed 0.68, and all its
comparisons held, but plain RL stopped revising on 7 seeds of 10 where 8 were wanted (mean gain 0.03, revise rate 0.12).
A second search, on seeds 100 to 109, gave thirteen answers and batches of 16 problems, which are less noisy; those are
the settings. Without the bonus, stage I alone did about as well (0.49 against 0.52 at beta_2 = 1): here the hold
works, and the bonus costs nothing. (The source's beta_2 of 0.1 counts sums over the tokens of a large model.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.correcting import Attempts, Correcting
from guerdon.credit.turn_rloo import turn_rloo
from guerdon.monitor.self_correction import edit_ratio, self_correction
from guerdon.objectives.first_turn import first_turn_kl
from guerdon.rewards.likelihood import TokenReward
from guerdon.shaping.progress_bonus import progress_bonus

STEPS, STAGE, ALPHA, HOLD = 600, 300, 10.0, 3.0
CONSTANT: dict[str, Any] = {"aggregate": "sum_over_max_length", "max_length": 3}


class Parts(NamedTuple):
    """What is under test."""

    bonus: Callable[..., tuple[TokenReward, dict[str, float]]]
    credit: Callable[..., Tensor]
    hold: Callable[..., tuple[Tensor, dict[str, float]]]


def returns(method: Parts, rewards: Tensor, **options: Any) -> Tensor:
    """(N,2) what each of two turns of one action is credited with, before any baseline."""
    n = len(rewards)
    mask, turn = torch.ones(n, 2, dtype=torch.bool), torch.arange(2).expand(n, 2)
    (dense, _), _ = method.bonus(rewards, turn, mask, options.pop("step", 0), **options)
    return dense.flip(1).cumsum(dim=1).flip(1)


def by_hand(method: Parts) -> Iterator[Check]:
    """Bonuses, who is credited with them, who is held, and the metrics."""
    four = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    own = returns(method, four)
    yield equal(
        "what the bonus adds to the second attempt: better, worse, the same", own[:, 1] - four[:, 1], [10, -10, 0, 0]
    )
    yield equal("what the first attempt is credited with: r1 + r2", own[:, 0], four.sum(dim=1))
    both = returns(method, four, bonus_to="both")[:, 0]
    yield equal(
        "with the bonus to both: 11 r2 - 9 r1, so wrong first answers pay", both, 11 * four[:, 1] - 9 * four[:, 0]
    )
    early = returns(method, four, first_stage=5, step=4)
    yield equal("in stage I only the second attempt counts", early, four[:, 1:].expand(4, 2))
    mask, turn, group = torch.ones(4, 2, dtype=torch.bool), torch.arange(2).expand(4, 2), torch.tensor([0, 0, 1, 1])
    dense = torch.tensor([[0.0, 11.0], [1.0, -10.0], [1.0, 1.0], [0.0, 0.0]])
    credit = method.credit(dense, group, turn, mask)
    yield equal("credit of turns in groups of two", credit, [[20, 21], [-20, -21], [2, 1], [-2, -1]])
    logp, reference = torch.full((1, 2), -1.0, requires_grad=True), torch.full((1, 2), -2.0)
    for step, pull in ((0, 1.0), (5, 0.0)):
        loss, _ = method.hold(logp, reference, mask[:1], turn[:1], step, beta=1.0, first_stage=5)
        (gradient,) = torch.autograd.grad(loss, logp)
        yield equal(f"hold of the first turn and of the second in step {step}", gradient, [[pull, 0.0]])
    seen = self_correction(four, [("ab", "ab"), ("ab", "cd"), ("", ""), ("ab", "ac")])
    numbers = [seen.first, seen.second, seen.gain, seen.fixed, seen.spoiled, seen.fix_rate, seen.copied]
    yield equal(
        "metrics: accuracies, gain, fixed, spoiled, fix rate, copied", numbers, [0.5, 0.5, 0, 0.25, 0.25, 0.5, 0.5]
    )
    edits = [edit_ratio("ab", "ab"), edit_ratio("ab", "cd"), edit_ratio("ab", "ac")]
    yield equal("edit ratio of a copy, of another text, and of half", edits, [0, 1, 0.5])


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """By hand; then plain RL, SCoRe, SCoRe without its hold, and the bonus to both."""
    yield from by_hand(method)
    bed = Correcting()

    def train(hold: float = HOLD, **options: Any) -> list[Attempts]:
        stage = options.get("first_stage", 0)
        term = {"name": method.hold, "beta": hold, "first_stage": stage, **CONSTANT}
        shaping = {"name": method.bonus, **options}
        return bed.train(seeds=seeds, steps=STEPS, shaping=shaping, credit={"name": method.credit}, terms=[term])

    plain, ours = train(alpha=0.0), train(alpha=ALPHA, first_stage=STAGE)
    loose, both = train(0.0, alpha=ALPHA, first_stage=STAGE), train(alpha=ALPHA, first_stage=STAGE, bonus_to="both")
    yield every_seed("plain RL: gain of the second attempt", plain[-1].gain, below=0.02, share=0.8)
    yield every_seed("plain RL: how often it revises", plain[-1].revised, below=0.1, share=0.8)
    yield every_seed("SCoRe: share of wrong first answers that it fixes", ours[-1].fixed, above=0.5, share=0.8)
    curves = {"score": torch.stack([x.fixed for x in ours]).T, "plain": torch.stack([x.fixed for x in plain]).T}
    axis = "share of wrong first answers put right, by step"
    yield paired("share fixed, SCoRe against plain RL", ours[-1].fixed, plain[-1].fixed, curves=curves, axis=axis)
    yield paired("second attempt right, SCoRe against plain RL", ours[-1].second, plain[-1].second)
    name = "first attempt right, SCoRe against plain RL: no more than 0.05 lost"
    yield paired(name, ours[-1].first, plain[-1].first, margin=-0.05)
    yield paired("share fixed, SCoRe against stage I without a hold", ours[-1].fixed, loose[-1].fixed)
    name = "first attempt right, bonus to the second attempt against bonus to both"
    yield paired(name, ours[-1].first, both[-1].first, margin=0.05)


def to_both(
    turn_reward: Tensor,
    turn: Tensor,
    mask: Tensor,
    step: int,
    *,
    alpha: float = 10.0,
    bonus_to: str = "second",
    first_stage: int = 0,
) -> tuple[TokenReward, dict[str, float]]:
    """Credit the first attempt with the bonus as well."""
    return progress_bonus(turn_reward, turn, mask, step, alpha=alpha, bonus_to="both", first_stage=first_stage)


CLAIM = Claim(
    system="score",
    run=run,
    method=Parts(progress_bonus, turn_rloo, first_turn_kl),
    mutation=Mutation("the bonus also credits the first attempt", Parts(to_both, turn_rloo, first_turn_kl)),
    recipe="""
task:
  name: self_correct
  of: {name: reasoning_gym, dataset: spell_backward, config: {min_word_len: 3, max_word_len: 6}}
  instruction: " again "
shaping: [{name: progress_bonus, alpha: 10.0, first_stage: 100}]
credit: turn_rloo
terms:
  - {name: first_turn_kl, beta: 0.1, first_stage: 100}
  - {name: kl, beta: 0.01, estimator: k2}
""",
)
