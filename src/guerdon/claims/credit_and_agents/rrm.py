"""Who is paid for right answers alone learns to recall them, and writes a way that leads elsewhere. RRM pays for how
well the whole way follows the problem's rubric, by a judge who does not see the answer.

Policies in a table add three numbers: step by step, where an attempt at the first step fails in 15 % of the cases, or
by naming one of four answers at any time. In 30 % of 20 problems the right answer is known beforehand: it has 20 % of
the chance at first, as against 5 % elsewhere. Every text is scored by the registered reward with a scripted judge,
who gives the share of intermediate sums that are there and right. GRPO learns from that, or from the outcome.
Settings are the first that were tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import comb
from typing import Any

import torch
from torch import Tensor

from guerdon.claims.core import Check, Claim, Mutation, check, equal, every_seed, paired
from guerdon.claims.testbeds.stepwise import Lessons, Stepwise, Walks
from guerdon.reward_models.verified import answer_recall, false_positives, verified_pass_at_n
from guerdon.rewards.judges.questions import UnreadableVerdict
from guerdon.rewards.judges.scripted import ScriptedJudge
from guerdon.rewards.rubric_score import RubricScore

PROBLEMS, LEAKED, STATES, ACTIONS = 20, 6, 3, 6
STEP, SLIP, NAMED = 0, 1, 2  # a right step, a wrong one, and the first of four answers
BEGUN, WELL, ASTRAY = range(STATES)
RUBRIC = {"rubric": ["the first two numbers are added", "the third is added to their sum", "the answer is that sum"]}
SETTINGS: dict[str, Any] = {"steps": 80, "group_size": 8, "lr": 10.0}


def soundness(prompt: str, text: str, statement: str = "") -> float:
    """Share of the intermediate sums that are there and right."""
    numbers = [int(x) for x in prompt.split(" + ")]
    lines, total, right = text.splitlines(), numbers[0], 0
    for number in numbers[1:]:
        right += f"{total} + {number} = {total + number}" in lines
        total += number
    return right / (len(numbers) - 1)


class Muttering(ScriptedJudge):
    """A judge whose every other verdict can't be read."""

    def _answer(self, questions: Sequence[Any]) -> list[Any]:
        given = super()._answer(questions)
        return [UnreadableVerdict("no number") if i % 2 else answer for i, answer in enumerate(given)]


def numbers(problem: int) -> tuple[int, int, int]:
    """What a problem adds up."""
    return 11 + 3 * problem, 7 + problem, 20 + 5 * (problem % 4)


def text(problem: int, first: int, second_state: int, second: int) -> str:
    """What a policy writes for two actions."""
    a, b, c = numbers(problem)
    lines = []
    if first < NAMED:
        middle = a + b + 10 * (second_state == ASTRAY)
        lines.append(f"{a} + {b} = {middle}")
        if second < NAMED:
            lines.append(f"{middle} + {c} = {middle + c + 10 * (second == SLIP)}")
    named = (second if first < NAMED else first) - NAMED
    answer = a + b + c + 10 * (named - problem % 4) if named >= 0 else int(lines[-1].split()[-1])
    return "\n".join([*lines, f"answer {answer}"])


def table(reward: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(P,A,S,A) of every text: its score, and whether its answer is right and its way sound."""
    places = [
        (p, i, s, j) for p in range(PROBLEMS) for i in range(ACTIONS) for s in range(STATES) for j in range(ACTIONS)
    ]
    texts = [text(*place) for place in places]
    prompts = [" + ".join(map(str, numbers(p))) for p, *_ in places]
    scores, _ = reward(prompts, texts, [RUBRIC] * len(texts))
    right = [t.rpartition(" ")[2] == str(sum(numbers(p))) for (p, *_), t in zip(places, texts, strict=True)]
    sound = [soundness(prompt, t) == 1 for prompt, t in zip(prompts, texts, strict=True)]
    shape = (PROBLEMS, ACTIONS, STATES, ACTIONS)
    value = torch.tensor([score.value for score in scores], dtype=torch.float64)
    return value.view(shape), torch.tensor(right).view(shape), torch.tensor(sound).view(shape)


def bed(values: Tensor) -> Stepwise:
    """Policies that are paid by a table of texts."""
    onward = torch.full((PROBLEMS, STATES, ACTIONS), -1)
    first = STATES * torch.arange(PROBLEMS)
    onward[:, BEGUN, STEP], onward[:, BEGUN, SLIP] = first + WELL, first + ASTRAY
    slip, otherwise = torch.zeros(PROBLEMS, STATES, ACTIONS), onward.clone()
    slip[:, BEGUN, STEP], otherwise[:, BEGUN, STEP] = 0.15, first + ASTRAY
    initial = torch.empty(PROBLEMS, STATES, ACTIONS)
    for problem in range(PROBLEMS):
        known = 0.2 if problem < LEAKED else 0.05
        initial[problem] = torch.tensor([0.5 - known / 2, 0.35 - known / 2, 0.05, 0.05, 0.05, 0.05])
        initial[problem, :, NAMED + problem % 4] = known
    initial = initial / initial.sum(dim=-1, keepdim=True)

    def score(walks: Walks) -> dict[str, Tensor]:
        second = torch.where(walks.mask[:, 1], walks.states[:, 1] % STATES, 0)
        action = torch.where(walks.mask[:, 1], walks.actions[:, 1], 0)
        return {"paid": values[walks.prompt, walks.actions[:, 0], second, action]}

    flat = (PROBLEMS * STATES, ACTIONS)
    return Stepwise(
        onward.view(flat), initial.view(flat), 2, score, first, slip=slip.view(flat), otherwise=otherwise.view(flat)
    )


def shares(of: Stepwise, probs: Tensor) -> tuple[Tensor, Tensor]:
    """(..., P) exact chances of a right answer, and of one by a sound way."""
    taken = of.visits(probs).unflatten(-2, (PROBLEMS, STATES)) * PROBLEMS
    own = NAMED + torch.arange(PROBLEMS) % 4
    named = taken.sum(dim=-2)[..., torch.arange(PROBLEMS), own]
    sound = taken[..., WELL, STEP]
    return sound + named, sound


def recalled(lessons: Lessons, step: int) -> Tensor:
    """(S,) share of problems whose right answer is the likeliest of those named at once."""
    named = lessons.probs[step].unflatten(1, (PROBLEMS, STATES))[:, :, BEGUN, NAMED:]
    own = torch.arange(PROBLEMS) % 4
    return torch.stack([answer_recall(row.argsort(dim=-1, descending=True, stable=True), own, 1) for row in named])


def by_hand(reward: Callable[..., Any]) -> Iterator[Check]:
    """Scores, unreadable verdicts, and the metrics."""
    a, b, c = numbers(0)
    prompt, total = f"{a} + {b} + {c}", a + b + c
    ways = [
        f"{a} + {b} = {a + b}\n{a + b} + {c} = {total}\nanswer {total}",
        f"{a} + {b} = {a + b}\nanswer {total}",
        f"{a} + {b} = 1\nanswer {total}",
        f"answer {total}",
        f"{a} + {b} = {a + b}\n{a + b} + {c} = {total}\nanswer 0",
    ]
    scores, _ = reward(judge=ScriptedJudge(truth=soundness))([prompt] * 5, ways, [RUBRIC] * 5)
    yield equal(
        "scores of a way, of miracle steps, and of a slip at the end", [s.value for s in scores], [1, 0.5, 0, 0, 1]
    )
    scores, stats = reward(judge=Muttering(truth=soundness))([prompt] * 4, ways[:1] * 4, [RUBRIC] * 4)
    yield equal(
        "unreadable verdicts are worth nothing, and counted", [scores[1].value, stats["unreadable"]], [0.0, 0.5]
    )
    right = torch.tensor([[True] * 3 + [False] * 7, [True] * 6 + [False] * 4])
    sound = torch.tensor([[True] * 2 + [False] * 8, [False] * 6 + [True] * 4])
    wanted = [1 - comb(8, n) / comb(10, n) for n in (1, 4, 8)]
    seen = [float(verified_pass_at_n(right, sound, n)) for n in (1, 4, 8)]
    yield equal("verified pass@N of two problems, one never sound", seen, [w / 2 for w in wanted])
    value, answers, ways_ok = table(reward(judge=ScriptedJudge(truth=soundness)))
    found = false_positives(value.flatten(), answers.flatten(), ways_ok.flatten(), threshold=0.9)
    yield equal("F1 on false positives of a judge who sees the truth", found.f1, 1.0)
    known = found.share[found.share.isfinite()]
    falling = bool((known.diff() <= 0).all())
    yield check("false positives fall with the score", falling, expected="falling", seen=known.tolist())


def run(reward: Any, seeds: int, first_seed: int = 0) -> Iterator[Check]:
    """The reward and the metrics by hand; then a table of answers that leaked."""
    yield from by_hand(reward)
    value, right, _ = table(reward(judge=ScriptedJudge(truth=soundness)))
    settings: dict[str, Any] = SETTINGS | {"seeds": seeds, "first_seed": first_seed}
    rubric, outcome = bed(value), bed(right.double())
    ours, theirs = rubric.train(**settings), outcome.train(**settings)
    (a_pass, a_sound), (b_pass, b_sound) = (shares(rubric, lessons.probs) for lessons in (ours, theirs))
    leaked = slice(0, LEAKED)
    start, end = (b_pass[t][:, leaked].mean(dim=1) for t in (0, -1))
    yield paired("pass@1 of leaked problems under the outcome, in the end against the start", end, start)
    gained = (b_sound[-1] - b_sound[0])[:, leaked].mean(dim=1)
    yield every_seed("verified pass@1 of leaked problems gained under the outcome", gained, below=0.1)
    yield paired(
        "recalled answers under the outcome, in the end against the start", recalled(theirs, -1), recalled(theirs, 0)
    )
    yield paired(
        "verified pass@1, rubric against outcome",
        a_sound[-1].mean(dim=-1),
        b_sound[-1].mean(dim=-1),
        curves={"rubric": a_sound.mean(dim=-1).T, "outcome": b_sound.mean(dim=-1).T},
        axis="verified pass@1 by update",
    )
    miracles = [(p - s)[-1].mean(dim=-1) for p, s in ((a_pass, a_sound), (b_pass, b_sound))]
    yield every_seed("miracle steps under the rubric, of those under the outcome", miracles[0] / miracles[1], below=0.5)


def end_alone(**options: Any) -> Callable[..., Any]:
    """Show the judge the end of an answer alone."""
    whole = RubricScore(**options)
    return lambda prompt, text, metadata: whole(prompt, [t.rpartition("\n")[2] for t in text], metadata)


CLAIM = Claim(
    system="rrm",
    run=run,
    method=RubricScore,
    mutation=Mutation("the judge is shown the end of an answer alone", end_alone),
    recipe="""\
rewards:
  - name: rubric_score
    judge: {backend: scripted, truth: "guerdon.claims.credit_and_agents.rrm:soundness"}
    rubric: Each intermediate value is there and right.
""",
)
