"""Training in stages: which rewards count for how much, and which actions learn, until something is reached."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from guerdon.registry import import_object

Memory = Literal["optimizer", "shaping", "credit"]
OTHER = "other"  # the actions that lie in no segment


@dataclass(frozen=True)
class Until:
    """When a stage ends: after so many steps, or when a metric has arrived, whichever comes first.

    m = mean of the metric over the last ``window`` steps of the stage; m > above, m < below, or |m - m'| < flat, where
    m' is the mean over the ``window`` steps before those.

    Args:
        steps: the most steps that the stage takes.
        metric: name of a metric of the training steps, such as ``reward/task/mean``.
        above: the stage ends when the metric's mean is larger.
        below: the stage ends when it is smaller.
        flat: the stage ends when it changes by less.
        window: steps over which the metric is averaged.

    Raises:
        ValueError: when nothing would ever end the stage, or a bound has no metric.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1)] | None = None
    metric: str | None = None
    above: float | None = None
    below: float | None = None
    flat: Annotated[float, Field(gt=0)] | None = None
    window: Annotated[int, Field(ge=1)] = 10

    def __post_init__(self) -> None:
        bounds = [name for name in ("above", "below", "flat") if getattr(self, name) is not None]
        if bounds and self.metric is None:
            raise ValueError(f"'{bounds[0]}' is a bound of a metric, and no 'metric' is named; name one")
        if self.metric is not None and not bounds:
            raise ValueError(f"metric '{self.metric}' has no bound; set 'above', 'below' or 'flat'")
        if self.steps is None and self.metric is None:
            raise ValueError("neither 'steps' nor a 'metric' is given, so the stage would never end; give one")

    def reached(self, steps: int, seen: Sequence[float]) -> bool:
        """Whether a stage ends that has taken ``steps`` steps, with these values of the metric, the newest last."""
        if self.steps is not None and steps >= self.steps:
            return True
        if self.metric is None or len(seen) < self.window:
            return False
        mean = statistics.fmean(seen[-self.window :])
        if (self.above is not None and mean > self.above) or (self.below is not None and mean < self.below):
            return True
        if self.flat is None or len(seen) < 2 * self.window:
            return False
        return abs(mean - statistics.fmean(seen[-2 * self.window : -self.window])) < self.flat


@dataclass(frozen=True)
class Stage:
    """One part of a training run with rewards and trainable actions of its own.

    Args:
        name: what it is called in the metrics.
        rewards: changes by the rewards' names: a ``weight``, and options of the reward; what isn't named stays as the
            recipe has it.
        train: segments whose actions are learned from, ``other`` for those in none; every action by default.
        until: when the stage ends; a function of the steps it has taken and the last step's metrics will do as well, or
            its import path. Only the last stage of a run may go without.
        lr: factor of the learning rate.
        fresh: what starts without memory when the stage begins: the optimiser's moments, the methods of shaping or of
            credit, for a change of rewards changes their scale.

    Source: the schedules of GraphRAG-R1, Med-R^3, Context-Picker, Vision-R1 and ToolRL.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    name: str
    rewards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    train: Sequence[str] | None = None
    until: Until | str | Callable[[int, Mapping[str, float]], bool] | None = None
    lr: Annotated[float, Field(gt=0)] = 1.0
    fresh: Sequence[Memory] = ()


class Stages:
    """Which stage a run is in: a controller, told the metrics of every step.

    Args:
        stages: in the order in which they follow one another; the last goes on to the end of training.

    Raises:
        ValueError: when there is none, two are called the same, or one but the last never ends.
        RecipeError: when an import path of an ``until`` leads nowhere.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise ValueError("there is no stage; list at least one")
        names = [stage.name for stage in stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two stages are called '{twice}'; give one of them another name")
        endless = next((stage.name for stage in stages[:-1] if stage.until is None), None)
        if endless is not None:
            raise ValueError(f"stage '{endless}' has no 'until', so those after it would never begin; give it one")
        self.stages = [
            replace(stage, until=import_object(stage.until)) if isinstance(stage.until, str) else stage
            for stage in stages
        ]
        self.index, self.steps = 0, 0
        self._seen: deque[float] = deque(maxlen=self._memory)

    @property
    def current(self) -> Stage:
        """The stage that the next step belongs to."""
        return self.stages[self.index]

    def update(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Take the metrics of a step, and return the number of the ``stage`` that the next one belongs to, from 0."""
        self.steps += 1
        until = self.current.until
        if isinstance(until, Until) and until.metric is not None and until.metric in stats:
            self._seen.append(float(stats[until.metric]))
        ended = until.reached(self.steps, list(self._seen)) if isinstance(until, Until) else False
        if callable(until):
            ended = bool(until(self.steps, stats))
        if ended and self.index + 1 < len(self.stages):
            self.index, self.steps = self.index + 1, 0
            self._seen = deque(maxlen=self._memory)
        return {"stage": float(self.index)}

    def state_dict(self) -> dict[str, Any]:
        """The stage's number, the steps it has taken, and what it remembers of its metric."""
        return {"index": self.index, "steps": self.steps, "seen": list(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.index, self.steps = state["index"], state["steps"]
        self._seen = deque(state["seen"], maxlen=self._memory)

    @property
    def _memory(self) -> int:
        until = self.current.until
        return 2 * until.window if isinstance(until, Until) else 0


def mark_segments(
    token_text: Sequence[Sequence[str]], mask: Tensor, segments: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """Which actions lie between an opening and a closing mark that the policy wrote, the marks included.

    A segment that is not closed goes on to the end. An action belongs to a segment if any of its characters does.

    Args:
        token_text: for every trajectory the text of each of its actions.
        mask: (N,T) true where the policy acted.
        segments: for each name the opening and the closing mark.

    Returns:
        (N,T) bool by name, and ``other``: the actions in none.
    """
    marks = {name: torch.zeros_like(mask) for name in segments}
    for row, pieces in enumerate(token_text):
        text, ends = "".join(pieces), torch.tensor([len(piece) for piece in pieces]).cumsum(0)
        columns = mask[row].nonzero().flatten().cpu()
        for name, (opening, closing) in segments.items():
            for first, last in _spans(text, opening, closing):
                # Tokens that end after the span's first character and begin before its last.
                low, high = torch.searchsorted(ends, torch.tensor([first, last - 1]), right=True).tolist()
                marks[name][row, columns[low : high + 1]] = True
    inside = torch.stack(list(marks.values())).any(dim=0) if marks else torch.zeros_like(mask)
    return marks | {OTHER: mask & ~inside}


def _spans(text: str, opening: str, closing: str) -> list[tuple[int, int]]:
    spans, at = [], text.find(opening)
    while at >= 0:
        end = text.find(closing, at + len(opening))
        stop = len(text) if end < 0 else end + len(closing)
        spans.append((at, stop))
        at = text.find(opening, stop)
    return spans
