"""A step is worth what it adds to the chance of the right answer, and what comes after the answer was found counts for
less: so models that keep checking, and sometimes overturn what was right, learn to stop.

A table writes answers of at most 20 actions: solve (succeeds in 0.6 of tries), check, and stop. Every action after the
answer is found, except stopping, overturns it with probability 0.1. The potential follows from an accuracy and a
confidence that are given for each state; stopping is no step of its own and belongs to the last one, as in the source.
Trained on the same random numbers are the outcome against its group, SPAE, and SPAE with alpha 0. Settings were found
on seeds 100 to 109, where it was also seen that at half the rate SPAE left 0.55 of the group's checks in place of 0.34,
and that with stopping as a step of its own it left as many as the group: f then shrinks the credit of stopping most.
Most of the gain comes from g: that alpha 0 loses it is not reproduced. An answer has 2.91 actions with SPAE and 2.92
with alpha 0, a difference of the same sign on every seed, and no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.stepwise import Stepwise, Walks
from guerdon.credit.grouping import center, whiten
from guerdon.credit.step_potential import Potentials, spae, spae_advantage, step_potential
from guerdon.engine.reading import read
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import TinyLM
from guerdon.sampling.sources import Draw
from guerdon.sampling.step_probe import StepProbe, probe_confidence
from guerdon.tasks.base import Starts
from guerdon.tasks.reasoning_gym import ReasoningGym

SOLVE, CHECK, STOP = range(3)
OPEN, FOUND, LOST = range(3)
SUCCEEDS, OVERTURNS, LENGTH, GROUP, STEPS, RATE = 0.6, 0.1, 20, 16, 100, 0.1
ACCURACY = torch.tensor([0.1, 0.98, 0.1], dtype=torch.float64)
CONFIDENCE = torch.tensor([0.2, 0.98, 0.8], dtype=torch.float64)


class Parts(NamedTuple):
    """What is under test: the credit on steps that are known, and the credit of recipes."""

    advantage: Callable[..., Tensor]
    credit: Callable[..., Any]


def outcome_alone(reward: Tensor, group: Tensor, mask: Tensor, steps: Any, **options: Any) -> Tensor:
    """The outcome against its group, whatever the steps are."""
    return whiten(center(reward, group).unsqueeze(1).expand(mask.shape), None, mask, eps=1e-8)


class Answers:
    """The table, and the steps of the answers that it wrote last."""

    def __init__(self) -> None:
        following = [[FOUND, OPEN, -1], [FOUND, FOUND, -1], [LOST, LOST, -1]]
        otherwise = [[OPEN, OPEN, -1], [LOST, LOST, -1], [LOST, LOST, -1]]
        slip = [[1 - SUCCEEDS, 0.0, 0.0], [OVERTURNS, OVERTURNS, 0.0], [0.0, 0.0, 0.0]]
        initial = torch.tensor([[0.4, 0.4, 0.2]] * 3)
        self.bed = Stepwise(
            torch.tensor(following),
            initial,
            LENGTH,
            self.score,
            slip=torch.tensor(slip),
            otherwise=torch.tensor(otherwise),
        )

    def score(self, walks: Walks) -> Mapping[str, Tensor]:
        """Whether answers are right; what the probes say of their steps is kept."""
        mask, last = walks.mask, walks.mask & ~torch.nn.functional.pad(walks.mask, (0, 1))[:, 1:]
        after = torch.where(last, walks.states, torch.nn.functional.pad(walks.states, (0, 1))[:, 1:])
        acts = mask & (walks.actions != STOP)
        count, place = acts.sum(dim=1, keepdim=True).clamp(min=1), torch.arange(LENGTH)
        value = torch.where(acts, step_potential(ACCURACY, CONFIDENCE)[after], 0.0)
        step = torch.minimum(place.expand(mask.shape), count - 1).masked_fill(~mask, 0)
        self.steps = Potentials(value, place < count, step, acts)
        return {"success": walks.took(FOUND, STOP).any(dim=1).double()}

    def credit(self, method: Parts, **options: float) -> Callable[..., Tensor]:
        """A credit that is told the steps."""

        def credit(reward: Tensor, group: Tensor, mask: Tensor) -> Tensor:
            return method.advantage(reward, group, mask, self.steps, **options)

        return credit


def by_hand(method: Parts) -> Iterator[Check]:
    """Corners of the potential; f and g of answers of four steps, whole credit of a batch."""
    right, sure = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    yield equal(
        "potential of right and sure, wrong and sure, neither, right and unsure",
        step_potential(right, sure),
        [1, -1, 0, 0.5],
    )

    group, mask = torch.zeros(2, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
    reward, ends = torch.tensor([1.0, 0.0], dtype=torch.float64), [0, 1, 2, 3]
    known = [{"step_probe": {"ends": ends, "accuracy": [1.0] * 4, "confidence": [1.0] * 4}} for _ in range(2)]
    flat, _ = method.credit(reward, group, mask, known)
    # All potentials are 1, so no change differs from another and g is 0: credit is in proportion to +f and -f.
    yield equal(
        "f after 0, 1 and 2 steps that had the answer", flat[0, :3] / flat[0, 0], [1.0, 0.68394, 0.56767], tol=1e-5
    )
    yield equal("the same of the wrong answer, whose blame shrinks too", flat[1], -flat[0], tol=1e-6)

    accuracy = torch.tensor([[0.2, 0.9, 1.0, 0.5], [0.1, 0.1, 0.3, 0.2]], dtype=torch.float64)
    confidence = torch.tensor([[0.5, 0.9, 1.0, 0.8], [0.9, 0.5, 0.2, 0.2]], dtype=torch.float64)
    columns = zip(accuracy.tolist(), confidence.tolist(), strict=True)
    known = [{"step_probe": {"ends": ends, "accuracy": a, "confidence": c}} for a, c in columns]
    credit, _ = method.credit(reward, group, mask, known)
    phi = 1.5 * accuracy * confidence + 0.5 * accuracy - confidence
    change = phi.diff(dim=1, prepend=phi[:, :1])
    raised = ((change - change.min()) / (change.max() - change.min())).exp()
    f = torch.ones(2, 4, dtype=torch.float64)
    f[0, 3] = 1 - 0.5 * (1 - torch.tensor(-1.0).exp())
    whole = (reward - 0.5).unsqueeze(1) * f + 0.5 * (raised - raised.mean())
    yield equal("credit of two answers", credit, (whole - whole.mean()) / whole.std(), tol=1e-6)
    tried = torch.tensor([[[0.2, 0.4, 9.0], [0.0, 0.0, 0.6]]], dtype=torch.float64)
    valid = torch.tensor([[[True, True, False], [True, True, True]]])
    wanted = (torch.tensor(-0.3).exp() + torch.tensor(-0.2).exp()) / 2
    yield equal("confidence of answers of entropies 0.2, 0.4 and 0, 0, 0.6", probe_confidence(tried, valid), [wanted])


def probed_apart() -> tuple[Tensor, Tensor]:
    """Accuracies at the steps of a transformer's completions, together and by one forward pass each."""
    torch.manual_seed(0)
    task = ReasoningGym(dataset="spell_backward", config={"min_word_len": 3, "max_word_len": 6})
    policy = TinyLM(task, width=32, layers=2)
    starts = Starts.repeat(task.train_batch(4, 0), 2)
    draw = Draw(policy, task, [], LanguageSampling(max_new_tokens=40), starts, None, None, 0, 0, 0)
    source = StepProbe(delimiter="e", until=None, ask=" is ", samples=2, tokens=3)
    together, apart = [], []
    rollouts = source.draw(draw)
    assert rollouts.tokens is not None
    for row, problem in enumerate(starts.problems):
        probe = (rollouts.metadata or [])[row]["step_probe"]
        together += probe["accuracy"]
        written, answer = rollouts.tokens[row][rollouts.mask[row]].tolist(), policy.encode(str(problem.answer))
        for end in probe["ends"]:
            before = [*policy.encode_prompt(problem.prompt), *written[: end + 1], *policy.encode(" is ")]
            ids = torch.tensor([[*before, *answer]])
            there = torch.ones_like(ids, dtype=torch.bool)
            with torch.no_grad():
                probs = policy.model.project(read(policy.model, ids, there, there)).softmax(dim=-1)
            apart.append(float(probs[torch.arange(len(answer)) + len(before) - 1, torch.tensor(answer)].mean()))
    return torch.tensor(together), torch.tensor(apart)


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Numbers by hand and probes of a transformer; then solving, checking and stopping."""
    yield from by_hand(method)
    together, apart = probed_apart()
    yield equal(f"accuracy at {len(apart)} steps of completions, against one pass each", together, apart, tol=1e-6)

    answers = Answers()
    settings: dict[str, Any] = {
        "seeds": seeds,
        "steps": STEPS,
        "group_size": GROUP,
        "lr": RATE * LENGTH,
        "per_seed": True,
    }
    plain = Parts(outcome_alone, spae)
    seen = {}
    for name, made, options in (("group", plain, {}), ("spae", method, {}), ("alpha 0", method, {"alpha": 0.0})):
        seen[name] = answers.bed.visits(answers.bed.train(credit=answers.credit(made, **options), **settings).probs)
    checks = {name: x[..., FOUND:, :STOP].sum(dim=(-1, -2)) for name, x in seen.items()}
    lost = {name: x[..., LOST, STOP] for name, x in seen.items()}
    right = {name: x[..., FOUND, STOP] for name, x in seen.items()}
    length = {name: x.sum(dim=(-1, -2)) for name, x in seen.items()}
    kept = checks["spae"][-1] / checks["group"][-1]
    yield every_seed("actions after the answer was found, as a share of the group's", kept, below=0.6)
    yield paired(
        "actions after the answer was found",
        checks["spae"][-1],
        checks["group"][-1],
        better="lower",
        curves={name: x.T for name, x in checks.items()},
        axis="actions after the answer was found",
    )
    yield paired("right answers overturned", lost["spae"][-1], lost["group"][-1], better="lower")
    yield paired("right answers", right["spae"][-1], right["group"][-1])
    saved = length["group"][-1] - length["spae"][-1]
    by_f = (length["alpha 0"][-1] - length["spae"][-1]) / saved
    yield every_seed("share of the saved actions that alpha 0 does not save", by_f, above=0.5)


CLAIM = Claim(
    system="spae",
    run=run,
    method=Parts(spae_advantage, spae),
    mutation=Mutation(
        "the outcome alone, whatever the steps are",
        Parts(outcome_alone, lambda reward, group, mask, known: (outcome_alone(reward, group, mask, known), {})),
    ),
    recipe="""
sampling: {prompts: 64, group_size: 8, max_new_tokens: 8, sources: [{name: step_probe, delimiter: e, ask: "="}]}
credit: spae
objective: dapo
""",
)
