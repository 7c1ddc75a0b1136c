"""How a language policy draws what it writes."""

from __future__ import annotations

from pydantic import Field, PrivateAttr

from guerdon.engine.tools import Tool
from guerdon.engine.turns import Truncation
from guerdon.errors import RecipeError
from guerdon.policies.base import SamplingOptions
from guerdon.tasks.base import Task
from guerdon.tasks.environments import EnvironmentTask


class LanguageSampling(SamplingOptions):
    """How a language policy draws its completions.

    Attributes:
        max_new_tokens: budget of a completion; one that uses it up without an end token is truncated.
        temperature: divides the logits, when sampling and when log-probabilities are evaluated.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose mass reaches p.
        min_p: keep tokens at least p times as likely as the likeliest; 0 keeps all.
        stop: a completion ends once it holds one of these strings, which stays a part of it.
        tool: what a completion may ask while it is written.
        context: in tasks of several turns, most tokens of prompt, history and turn that are read at a time; any number
            by default. There, ``max_new_tokens`` is the budget of a turn.
        truncation: what happens to an episode that needs more: ``stop`` cuts it, ``drop_oldest`` leaves out its oldest
            turns, ``discard_all`` everything but the prompt and the last observation.
    """

    max_new_tokens: int = Field(default=32, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, lt=1)
    stop: list[str] = Field(default=[])
    tool: Tool | None = None
    context: int | None = Field(default=None, ge=1)
    truncation: Truncation = "stop"
    _environments: EnvironmentTask | None = PrivateAttr(default=None)

    def bound_to(self, task: Task) -> LanguageSampling:
        """The options with the function of the tool, if there is one, or the task whose environments answer.

        Raises:
            RecipeError: when both a tool and environments would answer.
        """
        bound = self if self.tool is None else self.model_copy(update={"tool": self.tool.bound_to(task)})
        if isinstance(task, EnvironmentTask):
            if self.tool is not None:
                raise RecipeError("sampling.tool: the environments of this task answer already; remove it")
            bound = self.model_copy()
            bound._environments = task
        return bound

    @property
    def environments(self) -> EnvironmentTask | None:
        """The task whose environments answer, if it is one of several turns."""
        return self._environments
