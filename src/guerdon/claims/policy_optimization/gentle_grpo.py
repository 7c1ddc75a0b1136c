"""A penalty that is large beside what can be earned makes refusing everything the best policy, and training finds it.
An audit asks beforehand what constant policies earn, and how far penalties must shrink until the starting policy beats
them; training then goes gently, with half of that, a tenth of the learning rate, few steps, and a pull to the
start.

Candidates have eight skills, and about 30 % are fit; of those with five skills or more three in four are. The policy
is a table over all 256 profiles that starts as an uncertain judge of the skills. What else a report is rewarded for
(its score, sections and format) does not depend on the decision, and varies with a standard deviation of 1.5. It
matters: GRPO divides by the spread of the group, to which a penalty adds, so that without the rest harsh training ends
at about 70 % rejected; where a group is about a single candidate, the size of the penalty cancels altogether.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.judges import noise
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.group import grpo
from guerdon.shaping.audit import Audit, audit_constant_policies

SKILLS = torch.tensor(list(product((0.0, 1.0), repeat=8)))
SCORE = SKILLS.sum(dim=1)
FIT = 0.03 + 0.72 * torch.sigmoid(6.0 * (SCORE - 4.5))
START = torch.sigmoid(2.0 * (SCORE - 4.5))
HARSH, OTHER = 3.0, 1.5


def expected_rewards() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What rejecting and accepting earn and cost for every profile, fit and unfit, and how the start decides."""
    fit = torch.tensor([1.0, 0.0]).repeat_interleave(len(FIT))
    positive = torch.stack([1 - fit, fit], dim=1)
    penalty = torch.stack([torch.zeros_like(fit), -(1 - fit)], dim=1)
    start = torch.stack([1 - START, START], dim=1).repeat(2, 1)
    return positive, penalty, fit.long(), start


def audited(audit: Any, factor: float) -> Audit:
    """The audit of penalties times ``factor``, on as many candidates of each profile and fitness as there are."""
    positive, penalty, label, start = expected_rewards()
    counts = torch.cat([FIT, 1 - FIT]).mul(100).round().long()
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    return audit(positive[rows], factor * penalty[rows], label[rows], start[rows], names=("reject", "accept"))


def unaware(positive: Tensor, penalty: Tensor, label: Tensor, start: Tensor, **options: Any) -> Audit:
    """An audit that does not see the penalties."""
    return audit_constant_policies(positive, torch.zeros_like(penalty), label, start, **options)


def trained(penalty: float, *, lr: float, beta: float, seeds: int, steps: int) -> History:
    """GRPO from the start, with false acceptances costing ``penalty``."""

    def reward(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
        fit, accepted = uniform < FIT[prompt], actions[:, 0] == 1
        rest = OTHER * noise(uniform)
        return (fit == accepted).double() - penalty * (accepted & ~fit).double() + rest

    bed = Tabular(torch.stack([1 - START, START], dim=1), reward)
    terms = [{"name": "kl", "beta": beta}] if beta else []
    return bed.train(seeds=seeds, steps=steps, group_size=8, lr=lr, credit="grpo", terms=terms)


def quality(history: History) -> dict[str, Tensor]:
    """(steps + 1, S) by the true chances; the balanced accuracy weighs the fit and the unfit alike."""
    accept = history.probs[:, :, :, 0, 1]
    hit, false = (accept * FIT).sum(-1), (accept * (1 - FIT)).sum(-1)
    recall, specificity = hit / FIT.sum(), 1 - false / (1 - FIT).sum()
    return {
        "accuracy": (hit + ((1 - accept) * (1 - FIT)).sum(-1)) / len(FIT),
        "balanced": (recall + specificity) / 2,
        "recall": recall,
        "precision": hit / (hit + false),
        "rejected": 1 - accept.mean(-1),
    }


def run(method: Any, seeds: int) -> Iterator[Check]:
    """The audit of harsh penalties, training with them, and training gently with what the audit allows."""
    decisions, mask = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.ones(4, 1, dtype=torch.bool)
    one = torch.zeros(4, dtype=torch.int64)
    small, large = (grpo(decisions - p * (1 - decisions), one, mask, eps=0.0)[:, 0] for p in (0.1, HARSH))
    yield equal("credit in a group about one unfit candidate, under a harsh penalty and a small one", large, small)
    harsh = audited(method, HARSH)
    yield check("the audit of harsh penalties", not harsh.passes, expected="does not pass", seen=harsh.messages)
    allowed = min(HARSH * harsh.largest_penalty / 2, HARSH)
    half = audited(method, allowed)
    yield check("half of the largest penalty that passes", half.passes, expected="passes", seen=f"{allowed:.3g}")
    yield equal("share of candidates that are fit", FIT.mean(), 0.3, tol=0.02)

    collapsed = quality(trained(HARSH, lr=300.0, beta=0.0, seeds=seeds, steps=2500))
    yield every_seed("rejected after training with harsh penalties", collapsed["rejected"][-1], above=0.95)
    gentle = quality(trained(allowed, lr=30.0, beta=0.01, seeds=seeds, steps=150))
    stop = gentle["balanced"].argmax(dim=0, keepdim=True)
    after = {name: curve.gather(0, stop)[0] for name, curve in gentle.items()}
    yield every_seed("recall after gentle training", after["recall"], above=0.8)
    for name in ("accuracy", "precision"):
        yield paired(
            f"{name} after gentle training and before it",
            after[name],
            gentle[name][0],
            share=1.0,
            curves={"gentle": gentle["recall"].T, "harsh": collapsed["recall"].T} if name == "accuracy" else None,
            axis="recall by step",
        )


CLAIM = Claim(
    system="gentle-grpo",
    run=run,
    method=audit_constant_policies,
    mutation=Mutation("the audit does not see the penalties", unaware),
    seeds=6,
    recipe="""
credit: grpo
terms: [{name: kl, beta: 0.02}]
optimizer: {lr: 3.0e-4}
training: {steps: 60}
""",
)
