"""Sources of trajectories that the present policy did not sample: demonstrations, and what it once knew."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from guerdon.errors import RecipeError
from guerdon.registry import register
from guerdon.rewards.base import score
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source, raw_reward
from guerdon.seeding import derive, torch_generator
from guerdon.tasks.base import Problem, Starts

PROBLEMS_AT_ONCE = 64  # of a rehearsal buffer's first look: bounds memory, and is how often progress is shown


@register("source", "demonstrations", paper="Dong et al. 2025, arXiv 2508.00222")
class Demonstrations(Source):
    """Right answers from outside, one more trajectory in the group of every problem.

    They are scored and credited like the policy's own. ``old_logp`` is the present policy's, for who wrote them is
    unknown. To have 8 trajectories in a group of which 1 is a demonstration, set ``sampling.group_size`` to 7.

    Args:
        key: entry of a problem's metadata that holds its demonstration, or a list of them; by default the reference
            answer is the demonstration.
        share: probability with which a problem of a batch gets one.

    Raises:
        RecipeError: when a problem has nothing to show.

    Source: Dong et al. 2025, arXiv 2508.00222.
    """

    when = "sampling"
    external = True

    def __init__(self, *, key: str | None = None, share: Annotated[float, Field(gt=0, le=1)] = 1.0) -> None:
        self.key, self.share = key, share

    def draw(self, draw: Draw) -> Rollouts | None:
        """One demonstration for every chosen problem."""
        assert draw.starts is not None
        of_group = draw.starts.of_group
        generator = torch_generator(draw.seed, "demonstrations")
        keys = torch.tensor(list(of_group))
        chosen = keys[torch.rand(len(keys), generator=generator) < self.share]
        if not len(chosen):
            return None
        problems = [of_group[group] for group in chosen.tolist()]
        texts = [self._text(problem, generator) for problem in problems]
        actions = [draw.policy.encode_answer(text) for text in texts]  # type: ignore[attr-defined]  # it replays
        return draw.policy.replay(Starts(problems, chosen, draw.step), actions, draw.sampling)

    def _text(self, problem: Problem, generator: torch.Generator) -> str:
        known = problem.answer if self.key is None else problem.metadata.get(self.key)
        if isinstance(known, list):
            known = known[int(torch.randint(len(known), (), generator=generator))] if known else None
        if known is None:
            where = "no answer" if self.key is None else f"no '{self.key}' in its metadata"
            raise RecipeError(
                f"source 'demonstrations': the problem with task_id {problem.task_id} has {where}, so there is nothing "
                "to show; name another 'key', or remove the source"
            )
        return str(known)


@register("source", "rehearsal", paper="Li et al. 2025, arXiv 2509.07430")
class RehearsalBuffer(Source):
    """Answers that the policy gave rightly before training, kept so that it does not unlearn them.

    Before training the policy answers every problem ``samples`` times. Of each problem that it solves nearly always,
    one right answer is stored, with its log-probability. In every step some of them join the batch, without reward or
    credit; ``old_logp`` and ``ref_logp`` are what they were when they were written, so a divergence from the policy
    before training (term ``f_divergence``) needs no second model.

    The problems stay in the task too, where they may come up for reward: a group that is solved throughout has no
    credit.

    Args:
        problems: training problems to look at.
        samples: answers to each.
        threshold: share of right answers from which on a problem counts as known.
        correct: raw weighted reward from which on an answer counts as right.
        rows: stored answers that join each batch.

    Source: Li et al. 2025, arXiv 2509.07430. (That all 8 of 8 answers must be right is ours.)
    """

    when = "credit"
    external = True

    def __init__(
        self,
        *,
        problems: Annotated[int, Field(ge=1)] = 512,
        samples: Annotated[int, Field(ge=1)] = 8,
        threshold: Annotated[float, Field(gt=0, le=1)] = 1.0,
        correct: float = 1.0,
        rows: Annotated[int, Field(ge=1)] = 64,
    ) -> None:
        self.problems, self.samples, self.threshold = problems, samples, threshold
        self.correct, self.rows = correct, rows
        self.known: list[Problem] = []
        self.actions: list[list[int]] = []
        self.logp: list[list[float]] = []

    def prepare(self, draw: Draw) -> None:
        """Answer the problems, and keep a right answer to each that is known.

        Raises:
            RecipeError: when none is known.
        """
        drawn = {p.task_id: p for p in draw.task.train_batch(self.problems, derive(draw.seed, "problems"))}
        problems, best = list(drawn.values()), 0.0
        parts = [problems[i : i + PROBLEMS_AT_ONCE] for i in range(0, len(problems), PROBLEMS_AT_ONCE)]
        for part, few in enumerate(draw.track(parts)):
            starts = Starts.repeat(few, self.samples)
            rollouts = draw.policy.sample(starts, draw.sampling, seed=derive(draw.seed, part))
            rewards = [spec for spec in draw.rewards if not spec.watch]
            rollouts, faults = score(rollouts, rewards)
            right = (raw_reward(rollouts, rewards, faults) >= self.correct).reshape(len(few), self.samples)
            best = max(best, float(right.float().mean(dim=1).max()))
            for place in (right.float().mean(dim=1) >= self.threshold).nonzero().flatten().tolist():
                self._keep(few[place], rollouts[place * self.samples + int(right[place].int().argmax())])
        if not self.known:
            raise RecipeError(
                f"source 'rehearsal': of {len(problems)} problems the policy solves none in {self.threshold:.0%} of "
                f"{self.samples} answers (at best {best:.0%}), so there is nothing to rehearse; lower 'threshold', "
                "warm-start longer, or remove the source"
            )

    def draw(self, draw: Draw) -> Rollouts:
        """Some stored answers."""
        assert draw.rollouts is not None
        order = torch.randperm(len(self.known), generator=torch_generator(draw.seed, "rehearsal"))
        chosen = order[: self.rows].tolist()
        group = int(draw.rollouts.group.max()) + 1 + torch.arange(len(chosen))
        starts = Starts([self.known[i] for i in chosen], group)
        actions, logp = [self.actions[i] for i in chosen], [self.logp[i] for i in chosen]
        rollouts = draw.policy.replay(starts, actions, draw.sampling, logp=logp)
        rollouts.ref_logp = rollouts.old_logp.clone()
        return rollouts

    def state_dict(self) -> dict[str, Any]:
        """The stored answers."""
        problems = [[problem.task_id, problem.prompt] for problem in self.known]
        return {"problems": problems, "actions": self.actions, "logp": self.logp}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.known = [Problem(task_id, prompt) for task_id, prompt in state["problems"]]
        self.actions, self.logp = state["actions"], state["logp"]

    def _keep(self, problem: Problem, row: Rollouts) -> None:
        """Store one trajectory: what was asked, what was answered, and how likely that was."""
        assert row.tokens is not None
        self.known.append(Problem(problem.task_id, problem.prompt))
        self.actions.append(row.tokens[row.mask].tolist())
        self.logp.append(row.old_logp[row.mask].tolist())
