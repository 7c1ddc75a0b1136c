"""A second phrasing of every problem, answered in the same batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator

from guerdon.curriculum.data import reformulate
from guerdon.errors import TaskError
from guerdon.registry import imported, register
from guerdon.rollouts import Rollouts
from guerdon.sampling.sources import Draw, Source
from guerdon.seeding import derive
from guerdon.tasks.base import Problem, Starts

Rewrite = Annotated[Callable[[str, int], str], BeforeValidator(imported)]


def in_a_story(question: str, seed: int) -> str:
    """Put a question behind background that has nothing to do with it; see ``reformulate``."""
    return reformulate(question, seed, aspects=["story"])[0]


@register("source", "paraphrase", paper="Zhang et al. 2025, arXiv 2508.00410")
class Paraphrase(Source):
    """Rollouts of a second phrasing of every problem of the batch, as groups of their own.

    The phrasing keeps the problem's ``task_id``, answer and metadata, so a reward such as ``co_reward`` can tell which
    groups ask the same. The batch doubles: halve ``sampling.prompts`` to keep its size.

    Args:
        key: key in the problems' metadata that holds the phrasing, written beforehand and checked.
        rewrite: from a prompt and a seed to another phrasing, a function or an import path to one, where ``key`` is
            null. By default a story without meaning is put before it, which provably leaves the answer alone.

    Source: Zhang et al. 2025, arXiv 2508.00410. (There a model of 32B parameters paraphrases.)
    """

    when = "sampling"

    def __init__(self, *, key: str | None = None, rewrite: Rewrite = in_a_story) -> None:
        self.key, self.rewrite = key, rewrite

    def draw(self, draw: Draw) -> Rollouts | None:
        """As many rollouts of each phrasing as there are of the problem.

        Raises:
            TaskError: when a problem's metadata lack the phrasing.
        """
        assert draw.starts is not None
        known = {
            group: replace(problem, prompt=self._other(problem, derive(draw.seed, group)))
            for group, problem in draw.starts.of_group.items()
        }
        group = draw.starts.group
        apart = group - group.min() + group.max() + 1
        starts = Starts([known[key] for key in group.tolist()], apart, draw.starts.version)
        return draw.policy.sample(starts, draw.sampling, seed=draw.seed)

    def _other(self, problem: Problem, seed: int) -> str:
        if self.key is None:
            return self.rewrite(problem.prompt, seed)
        metadata: Any = problem.metadata
        if not str(metadata.get(self.key, "")).strip():
            raise TaskError(
                f"source 'paraphrase': the metadata of problem {problem.prompt!r:.60} have no '{self.key}'; add the "
                "phrasing to the data, or leave 'key' out"
            )
        return str(metadata[self.key])
