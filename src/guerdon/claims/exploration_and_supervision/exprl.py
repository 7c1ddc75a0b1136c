"""On problems that are never solved, a judge that holds the attempt against a hidden reference pays for partial
progress; what is learned so gives the sparse reward something to start from.

Exactly: gains of series of scores by hand, and cuts of a text judged once each. Then a chain of four sums in a table,
each of twelve results equally likely at first. One result is right, and another is the leap that the reference takes,
which succeeds half of the time for whoever takes it. A scripted judge rates how many sums are right from the first on;
success is all four, one attempt in 4000 at first. Compared at equal steps are the sparse reward alone, imitation of
the reference and then the sparse reward, and two forms of ExpRL and then the sparse reward: the judge's score of the
whole by GRPO, and the gain over each sum. Imitation stays low because the leaps do; that is how the table was made.
Settings were found on seeds 100 to 104. Gains are not normalised, so they took eight times GRPO's rate; at four times
they reached 0.73 in the first half. With twenty results and a rate of 16,
gains learned no more than the first sum in as many steps.

As published, the first gain is s_1 - s_T. What a right first sum adds to s_1 it adds to s_T too, so it is not paid, and
what follows it is held against it; the claim shows that the first sum then stays unlearned, and trains with s_1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, equal, every_seed, paired
from guerdon.claims.testbeds.tabular import History, Tabular
from guerdon.credit.telescoped import telescoped_process
from guerdon.rewards.judges.scripted import ScriptedJudge
from guerdon.rewards.reference_judge import ReferenceJudge

SUMS, RESULTS, PROMPTS, GROUP = 4, 12, 4, 8
RIGHT, LEAP, LANDS = 0, 1, 0.5
FIRST_STEPS, THEN_STEPS, RATE, GAINS_RATE = 150, 150, 8.0, 64.0
NAMES = tuple(f"after sum {k + 1}" for k in range(SUMS))


class Parts(NamedTuple):
    """What is under test: the credit, and the judge's reward."""

    credit: Callable[..., Any]
    reward: Callable[..., Any]


def last_score(dense: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, dict[str, float]]:
    """The same credit everywhere: the score of the whole text."""
    return ((dense[:, -1:] - 1) / 4).expand(mask.shape) * mask, {}


def progress(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
    """(N,K) share of the sums that are right from the first on, up to each; leaps land together or not at all."""
    leaps = (actions == LEAP).cumsum(dim=1)
    right = (actions == RIGHT) | ((actions == LEAP) & (uniform.unsqueeze(1) < LANDS**leaps))
    return right.long().cumprod(dim=1).cumsum(dim=1) / SUMS


def solved(actions: Tensor, prompt: Tensor, uniform: Tensor) -> Tensor:
    """1 where all sums are right."""
    return (progress(actions, prompt, uniform)[:, -1] == 1).double()


def gains(method: Parts, first: str) -> Callable[..., Tensor]:
    """The credit on the table's attempts, of one action per sum."""

    def credit(components: Tensor, mask: Tensor) -> Tensor:
        return method.credit(1 + 4 * components, mask, first=first)[0]

    return credit


def success(history: History) -> Tensor:
    """(steps + 1, S) exact chance of solving, mean over prompts."""
    right, leap = history.probs[..., RIGHT], history.probs[..., LEAP]
    return (right + LANDS * leap).prod(dim=-1).mean(dim=-1)


def imitated(seeds: int) -> Tensor:
    """(S,P,T,A) probabilities after as many steps of imitating the reference, which leaps at every sum."""
    logits = torch.zeros(PROMPTS, SUMS, RESULTS, dtype=torch.float64, requires_grad=True)
    update = torch.optim.SGD([logits], lr=RATE)
    for _ in range(FIRST_STEPS):
        update.zero_grad()
        (-logits.log_softmax(dim=-1)[..., LEAP].mean()).backward()
        update.step()
    return logits.detach().softmax(dim=-1).expand(seeds, -1, -1, -1)


def sparse_from(probs: Tensor) -> Tensor:
    """(steps + 1, S) success while the sparse reward trains what is there; the prompts of all seeds are one batch."""
    seeds = len(probs)
    settings: dict[str, Any] = {"seeds": 1, "steps": THEN_STEPS, "group_size": GROUP, "lr": RATE * seeds}
    run = Tabular(probs.flatten(0, 1), solved).train(**settings)
    return success(History(run.probs.squeeze(1).unflatten(1, (seeds, PROMPTS))))


def by_hand(method: Parts) -> Iterator[Check]:
    """Series of scores, and what the judge is asked."""
    mask = torch.ones(4, 4, dtype=torch.bool)
    series = torch.tensor([[1, 3, 5, 5], [3, 3, 3, 3], [2, 4, 3, 1], [5, 2, 1, 4]], dtype=torch.float64)
    out, _ = method.credit(series, mask)
    wanted = [[-1, 0.5, 0.5, 0], [0, 0, 0, 0], [0.25, 0.5, -0.25, -0.5], [0.25, -0.75, -0.25, 0.75]]
    yield equal("gains of four series of scores", out, wanted)
    yield equal("their sums", out.sum(dim=1), [0.0] * 4)
    judge = ScriptedJudge(truth=lambda prompt, text, statement: text.count("7") / 4)
    rule = method.reward(judge=judge, prefixes=2)
    scores, stats = rule(["q"] * 2, ["7\n7777", "7\n7700"], ["r"] * 2, torch.ones(2, 6).bool())
    yield equal("scores of beginnings and of wholes", scores, [[0, 2, 0, 0, 0, 5], [0, 2, 0, 0, 0, 4]])
    yield equal("questions, of four cuts of which two are the same", [stats["questions"], stats["reused"]], [3, 1])


def run(method: Parts, seeds: int) -> Iterator[Check]:
    """Numbers by hand; then a sparse reward after each of four beginnings."""
    yield from by_hand(method)
    start = torch.full((PROMPTS, SUMS, RESULTS), 1 / RESULTS, dtype=torch.float64)
    settings: dict[str, Any] = {"seeds": seeds, "steps": FIRST_STEPS, "group_size": GROUP, "lr": RATE}
    judged = Tabular(start, progress, names=NAMES, weights=[0.0] * (SUMS - 1) + [1.0])
    first = {
        "sparse": Tabular(start, solved).train(**settings),
        "outcome": judged.train(**settings),
        "gains": judged.train(credit=gains(method, "score"), **{**settings, "lr": GAINS_RATE}),
    }
    centred = judged.train(credit=gains(method, "centred"), **{**settings, "lr": GAINS_RATE})
    before = {name: success(history) for name, history in first.items()}
    probs = {name: history.probs[-1] for name, history in first.items()} | {"imitation": imitated(seeds)}
    after = {name: sparse_from(p) for name, p in probs.items()}
    yield every_seed("success of the sparse reward alone", after["sparse"][-1], below=0.5)
    yield every_seed("success of imitation, then the sparse reward", after["imitation"][-1], below=0.5)
    for name in ("outcome", "gains"):
        yield every_seed(f"success of the judge's {name}, then the sparse reward", after[name][-1], above=0.5)
    curves = {name: torch.cat([before[name], after[name][1:]]).T for name in ("sparse", "outcome", "gains")}
    for other, words in (("sparse", "the sparse reward alone"), ("imitation", "imitation first")):
        yield paired(
            f"success of gains, then the sparse reward, against {words}",
            after["gains"][-1],
            after[other][-1],
            margin=0.3,
            curves=curves if other == "sparse" else None,
            axis="success by step",
        )
    right = centred.probs[-1, ..., RIGHT].mean(dim=1)
    yield every_seed("right first sum with s_1 - s_T, 0.083 at first", right[:, 0], below=0.1)


CLAIM = Claim(
    system="exprl",
    run=run,
    method=Parts(telescoped_process, ReferenceJudge),
    mutation=Mutation("every part gets the score of the whole", Parts(last_score, ReferenceJudge)),
    recipe="""
rewards:
  - {name: reference_judge, judge: {backend: openai, model: judge, api_key_env: null}, prefixes: 8}
  - {name: task, watch: true}
credit: {name: telescoped_process, first: score}
objective: {name: reinforce}
""",
)
