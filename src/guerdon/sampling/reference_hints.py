"""Own solutions of hard problems, found with part of a reference solution in view, to be imitated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from guerdon.errors import RecipeError
from guerdon.registry import register
from guerdon.rewards.base import score
from guerdon.rollouts import Rollouts
from guerdon.sampling.hint_rejection import Hint, as_hint, hinted
from guerdon.sampling.sources import Draw, Source, raw_reward
from guerdon.seeding import derive, torch_generator
from guerdon.tasks.base import Problem, Starts

Share = Annotated[float, Field(gt=0, le=1)]
PROBLEMS_AT_ONCE = 64
GUIDE = "{prompt}\nThis is how a solution begins:\n{hint}\nWrite your own full solution from the start.\n"
_ENDS = re.compile(r"\n+|(?<=[.!?;])\s+")


def partial_reference(text: str, answer: str | None = None, *, fraction: float = 0.8) -> str:
    """The beginning of a reference solution, cut where a line or sentence ends and before it gives the answer away.

    Args:
        text: the solution.
        answer: its final answer; the part that is kept does not have it as a word of its own.
        fraction: largest share of the characters that is kept.

    Returns:
        The part that is kept; empty where not even the first sentence may be shown.

    Source: Learn Hard Problems During RL with Reference Guided Fine-tuning. (Where to cut, and that the answer is kept
    out, are ours.)
    """
    ends = [match.start() for match in _ENDS.finditer(text)] + ([len(text)] if fraction >= 1 else [])
    limit = fraction * len(text)
    if answer:
        given = re.search(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", text)
        limit = min(limit, given.start()) if given else limit
    kept = max((end for end in ends if end <= limit), default=0)
    return text[:kept].rstrip()


def without_copy(response: str, hint: str) -> str:
    """A response without the hint, should it begin by repeating it, whatever the white space."""
    words = [re.escape(word) for word in hint.split()]
    found = re.match(r"\s*" + r"\s+".join(words) + r"\s*", response) if words else None
    return response[found.end() :] if found else response


def hard_rows(right: Tensor, *, below: float = 0.25) -> Tensor:
    """Which problems (P,) are hard: right (P,n), whether each of n answers is right, holds in less than that share."""
    return right.double().mean(dim=1) < below


def spread_evenly(kept: Sequence[Sequence[Any]], most: int) -> list[tuple[int, Any]]:
    """At most ``most`` different answers of each problem, so that the easiest of the hard ones do not dominate.

    Args:
        kept: right answers of each problem, in any order, hashable.
        most: of each.

    Returns:
        Pairs of the problem's place and an answer, those that came first.
    """
    return [(place, one) for place, answers in enumerate(kept) for one in list(dict.fromkeys(answers))[:most]]


@register("source", "reference_guided")
class ReferenceGuided(Source):
    """Right answers to hard problems, the policy's own, sampled with part of a reference solution and without.

    Before training the policy answers every problem ``samples`` times. Those that it solves in less than ``hard`` of
    these are asked again as often, with the first ``fraction`` of their reference before their eyes. What is right, of
    both kinds, is kept as an answer to the plain prompt. In the first ``steps`` steps some of it joins the batch,
    without reward or credit; term ``guided_thought`` imitates it.

    (The source fine-tunes first and then begins RL. A run of today's loop does both in its first steps; give
    ``optimizer.lr`` and ``guided_thought``'s beta with that in mind.)

    Args:
        reference: the solution: an entry of a problem's metadata, or ``package.module:function`` of the problem.
        fraction: share that is shown, see ``partial_reference``.
        problems: training problems to look at.
        samples: answers to each, plain, and again guided if it is hard.
        hard: accuracy below which a problem is hard.
        correct: raw weighted reward from which on an answer counts as right.
        most: different answers kept of each problem.
        rows: kept answers that join each batch.
        steps: in how many of the first steps they do.
        form: how question and hint are written.

    Raises:
        RecipeError: when no hard problem has a right answer.

    Source: Learn Hard Problems During RL with Reference Guided Fine-tuning (summary).
    """

    when = "credit"
    external = True

    def __init__(
        self,
        *,
        reference: str | Hint = "solution",
        fraction: Share = 0.8,
        problems: Annotated[int, Field(ge=1)] = 512,
        samples: Annotated[int, Field(ge=1)] = 16,
        hard: Share = 0.25,
        correct: float = 1.0,
        most: Annotated[int, Field(ge=1)] = 4,
        rows: Annotated[int, Field(ge=1)] = 64,
        steps: Annotated[int, Field(ge=0)] = 50,
        form: str = GUIDE,
    ) -> None:
        self.reference, self.fraction, self.form = as_hint(reference), fraction, form
        self.problems, self.samples, self.hard, self.correct = problems, samples, hard, correct
        self.most, self.rows, self.steps = most, rows, steps
        self.known: list[tuple[int, str, list[int]]] = []
        self.solved = {"plain": 0, "guided": 0, "hard": 0}

    def prepare(self, draw: Draw) -> None:
        """Look for hard problems, and for right answers to them."""
        drawn = {p.task_id: p for p in draw.task.train_batch(self.problems, derive(draw.seed, "problems"))}
        problems = list(drawn.values())
        found: dict[int, list[str]] = {}
        parts = [problems[i : i + PROBLEMS_AT_ONCE] for i in range(0, len(problems), PROBLEMS_AT_ONCE)]
        for part, few in enumerate(draw.track(parts)):
            right, texts = self._answers(draw, few, derive(draw.seed, part, "plain"))
            places = hard_rows(right, below=self.hard).nonzero().flatten().tolist()
            self.solved["hard"] += len(places)
            for place in places:
                own = [text for text, good in zip(texts[place], right[place].tolist(), strict=True) if good]
                self.solved["plain"] += bool(own)
                found[few[place].task_id] = own
            self._guided(draw, [few[place] for place in places], found, derive(draw.seed, part, "guided"))
        for place, text in spread_evenly(list(found.values()), self.most):
            problem = drawn[list(found)[place]]
            tokens = list(draw.policy.encode_answer(text))  # type: ignore[attr-defined]  # it replays
            self.known.append((problem.task_id, problem.prompt, tokens))
        if not self.known:
            raise RecipeError(
                f"source 'reference_guided': of {len(problems)} problems {self.solved['hard']} are hard, and none of "
                "these was solved, with a hint or without; show more by 'fraction', raise 'samples' or 'hard', or "
                "warm-start longer"
            )

    def draw(self, draw: Draw) -> Rollouts | None:
        """Some kept answers, as answers to the plain prompts."""
        assert draw.rollouts is not None
        if draw.step >= self.steps:
            return None
        order = torch.randperm(len(self.known), generator=torch_generator(draw.seed, "reference_guided"))
        chosen = [self.known[i] for i in order[: self.rows].tolist()]
        group = int(draw.rollouts.group.max()) + 1 + torch.arange(len(chosen))
        starts = Starts([Problem(task_id, prompt) for task_id, prompt, _ in chosen], group, draw.step)
        return draw.policy.replay(starts, [tokens for _, _, tokens in chosen], draw.sampling)

    def state_dict(self) -> dict[str, Any]:
        """The kept answers."""
        return {"known": [list(item) for item in self.known], "solved": self.solved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.known = [(task_id, prompt, tokens) for task_id, prompt, tokens in state["known"]]
        self.solved = dict(state["solved"])

    def _guided(self, draw: Draw, hard: list[Problem], found: dict[int, list[str]], seed: int) -> None:
        """Add right answers that were sampled with part of the reference in view."""
        shown = {p.task_id: self._hint(p) for p in hard}
        asked = [(p, hinted(p, lambda q: shown[q.task_id] or None, self.form)) for p in hard]
        pairs = [(plain, guided) for plain, guided in asked if guided is not None]
        if not pairs:
            return
        right, texts = self._answers(draw, [guided for _, guided in pairs], seed)
        for place, (plain, _) in enumerate(pairs):
            hint = shown[plain.task_id]
            good = [without_copy(t, hint) for t, ok in zip(texts[place], right[place].tolist(), strict=True) if ok]
            good = [text for text in good if text.strip()]
            self.solved["guided"] += bool(good)
            found[plain.task_id] += good

    def _hint(self, problem: Problem) -> str:
        whole = self.reference(problem)
        answer = None if problem.answer is None else str(problem.answer)
        return partial_reference(whole, answer, fraction=self.fraction) if whole else ""

    def _answers(self, draw: Draw, problems: Sequence[Problem], seed: int) -> tuple[Tensor, list[list[str]]]:
        """Whether each of n answers to each of P problems is right (P,n), and their texts."""
        rollouts = draw.policy.sample(Starts.repeat(problems, self.samples), draw.sampling, seed=seed)
        rewards = [spec for spec in draw.rewards if not spec.watch]
        rollouts, faults = score(rollouts, rewards)
        right = (raw_reward(rollouts, rewards, faults) >= self.correct).reshape(len(problems), self.samples)
        assert rollouts.text is not None
        texts = list(rollouts.text)
        return right, [texts[i * self.samples : (i + 1) * self.samples] for i in range(len(problems))]
