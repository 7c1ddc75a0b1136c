"""A run in memory: everything built from a plan, saved to and restored from its folder."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from guerdon import registry
from guerdon.errors import RecipeError
from guerdon.monitor.alarms import Alarms
from guerdon.monitor.loggers import Logger
from guerdon.monitor.memory import PeakMemory
from guerdon.monitor.progress import Progress
from guerdon.policies.base import Policy, SamplingOptions
from guerdon.recipe import Recipe, load_recipe
from guerdon.registry import Bound
from guerdon.rewards.base import Reward, Scorer
from guerdon.rollouts import Rollouts
from guerdon.shaping.stages import Stages
from guerdon.tasks.base import Starts, Task
from guerdon.training.build import make_optimizer
from guerdon.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, weights_sha256
from guerdon.training.evaluate import evaluate_policy
from guerdon.training.folder import RunFolder
from guerdon.training.optim import Updates
from guerdon.training.plan import Parts, Plan, Remembers, build, make_plan, staged


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        run: the run's folder.
        kind: language, flow or control.
        steps: training steps that are behind it.
        seconds: wall time of training, over all restarts.
        eval: held-out metrics ``before`` and ``after``.
        alarms: what the monitor raised.
        weights_sha256: of the trainable weights; equal for equal runs.
        status: ``finished``, ``interrupted``, or ``stopped`` by an alarm of ``logging.stop_on``.
    """

    run: str
    kind: str
    steps: int
    seconds: float
    eval: dict[str, dict[str, float]]
    alarms: list[dict[str, Any]]
    weights_sha256: str
    status: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Drawn:
    """A batch that has been sampled, and whose rewards have begun to be computed where that happens elsewhere."""

    starts: Starts
    rollouts: Rollouts
    scorer: Scorer
    seconds: float


@dataclass
class Run:
    """Task, policy, optimiser, folder and monitors of one run, and where it stands.

    A context manager: inside it Ctrl-C and SIGTERM only set ``interrupted``, so that a step is never cut in two; a
    second Ctrl-C stops at once.
    """

    plan: Plan
    folder: RunFolder
    task: Task
    policy: Policy
    sampling: SamplingOptions
    rewards: list[Reward]
    optimizer: Updates
    progress: Progress
    alarms: Alarms
    loggers: list[Logger]
    step: int = 0
    restored: bool = False
    interrupted: bool = False
    stopped: str | None = None
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    ahead: Drawn | None = None
    memory: PeakMemory = field(default_factory=PeakMemory)
    stages: Stages | None = None
    staged: list[list[Reward]] = field(default_factory=list)
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    _handlers: dict[signal.Signals, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @property
    def seconds(self) -> float:
        """Wall time of the run, over all restarts."""
        return self.seconds_before + time.monotonic() - self.started

    @classmethod
    def start(cls, recipe: Recipe, *, overwrite: bool = False, progress: Progress | None = None) -> Run:
        """Check a recipe, build everything it names and make its folder."""
        plan = make_plan(recipe)
        parts = build(plan)
        folder = RunFolder.create(Path(recipe.runs_dir) / recipe.name, recipe.to_yaml(), overwrite=overwrite)
        return cls._assemble(plan, parts, folder, progress)

    @classmethod
    def resume(cls, path: str | Path, *, recipe: Recipe | None = None, progress: Progress | None = None) -> Run:
        """Rebuild a run from its folder and restore its newest checkpoint that verifies.

        Args:
            recipe: the recipe, if it holds callables that its YAML cannot name; the folder's own by default.
        """
        folder = RunFolder.open(path)
        plan = make_plan(recipe or load_recipe(folder.recipe_path))
        run = cls._assemble(plan, build(plan), folder, progress)
        checkpoint = load_checkpoint(folder.checkpoints_path)
        if checkpoint is None:
            folder.truncate(-1)
        else:
            run.restore(checkpoint)
        return run

    @classmethod
    def _assemble(cls, plan: Plan, parts: Parts, folder: RunFolder, progress: Progress | None) -> Run:
        trainable = parts.policy.trainable()
        if not trainable:
            raise RecipeError(f"policy '{plan.policy.name}' has no trainable weights")
        loggers = []
        for logger in plan.recipe.logging.loggers:
            method = registry.get("logger", logger.name)
            options = method.validate(logger.options)
            loggers.append(method.target(str(folder.path), plan.recipe.name, plan.recipe.to_dict(), **options))
        run = cls(
            plan=plan,
            folder=folder,
            task=parts.task,
            policy=parts.policy,
            sampling=parts.sampling,
            rewards=parts.rewards,
            optimizer=make_optimizer(plan.recipe.optimizer, trainable),
            progress=progress or Progress(),
            alarms=Alarms(parts.policy.kind),
            loggers=loggers,
            stages=Stages(plan.recipe.stages) if plan.recipe.stages else None,
            staged=[parts.rewards, *(staged(parts.rewards, stage) for stage in plan.recipe.stages)],
        )
        run._enter()
        return run

    # Stages -----------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Let the rewards and the plan be those of the present stage."""
        if self.stages is not None:
            self.rewards = self.staged[1 + self.stages.index]
            weights = {reward.name: reward.weight for reward in self.rewards}
            rewards = [replace(reward, weight=weights[reward.name]) for reward in self.plan.rewards]
            self.plan = replace(self.plan, rewards=rewards, stage=self.stages.current)

    def advance(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Tell the stages the metrics of a step, and begin the next stage if they end the present one.

        Returns:
            the number of the stage that the step belonged to.
        """
        if self.stages is None:
            return {}
        before, number = self.stages.current, float(self.stages.index)
        self.stages.update(metrics)
        stage = self.stages.current
        if stage is not before:
            self._enter()
            if "optimizer" in stage.fresh:
                self.optimizer.forget()
            for kind in ("shaping", "credit"):
                if kind in stage.fresh:
                    anew = [bound.method.bind(bound.options) for bound in getattr(self.plan, kind)]
                    self.plan = replace(self.plan, **{kind: anew})
            self.progress.note(f"stage '{before.name}' ends with step {self.step}, and '{stage.name}' begins")
        return {"stage": number}

    # Checkpoints ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of the step the run stands at, after everything that precedes it is on disk."""
        self.folder.flush()
        state = {
            "evaluations": self.evaluations,
            "alarms": self.alarms.state_dict(),
            "methods": {key: bound.state_dict() for key, bound in self._methods()},
            "stages": None if self.stages is None else self.stages.state_dict(),
            "task": self.task.state_dict(),
            "threads": torch.get_num_threads(),
            "seconds": self.seconds,
        }
        with self.optimizer.settled():
            checkpoint = Checkpoint(self.step, self.policy.state_dict(), self.optimizer.state_dict(), state)
            save_checkpoint(self.folder.checkpoints_path, checkpoint, keep=self.recipe.checkpoint.keep)

    def _methods(self) -> list[tuple[str, Remembers]]:
        """Every bound method that may remember something, rewards included, by a key that is stable."""
        known: dict[str, Bound] = {}
        for place, rewards in enumerate(self.staged):
            for r in rewards:
                if r.method is not None and not r.pooled and r.bound not in known.values():
                    known[f"rewards/{r.name}/{place}"] = r.bound
        return [*known.items(), *self.plan.methods]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up where a checkpoint was written; what the folder holds of later steps is forgotten."""
        state = checkpoint.state
        self.policy.load_state_dict(checkpoint.policy)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.alarms.load_state_dict(state["alarms"])
        self.task.load_state_dict(state["task"])
        for key, bound in self._methods():
            bound.load_state_dict(state["methods"][key])
        if self.stages is not None:
            self.stages.load_state_dict(state["stages"])
            self._enter()
        if state["threads"] != torch.get_num_threads():
            warnings.warn(
                f"this run used {state['threads']} threads and goes on with as many (not "
                f"{torch.get_num_threads()}), for sums depend on how they are split",
                stacklevel=2,
            )
            torch.set_num_threads(state["threads"])
        self.evaluations, self.seconds_before = state["evaluations"], state["seconds"]
        self.step, self.restored = checkpoint.step, True
        self.folder.truncate(checkpoint.step - 1)

    # Telling ----------------------------------------------------------------------------------------------

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a step's metrics in the folder, the loggers and the alarms, and show them."""
        raised = self.alarms.observe(step, dict(metrics))
        for alarm in raised:
            self.folder.add_alarm(asdict(alarm))
            self.progress.alarm(alarm)
            wanted = alarm.code in self.recipe.logging.stop_on and alarm.severity != "info"
            drawn = 1 if self.ahead is None else 2  # what is sampled already is still learned from
            if wanted and step + drawn < self.recipe.training.steps:
                self.stopped = alarm.code
                self.progress.note(f"'{alarm.code}' stops the run (logging.stop_on), which is saved first")
        self.folder.log(step, metrics)
        for logger in list(self.loggers):
            try:
                logger.log(step, metrics)
            except Exception as error:  # someone else's server must not end the run; its files hold every number
                self.loggers.remove(logger)
                self.progress.note(f"{type(logger).__name__} failed and is left out from here on: {error}")

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics of the policy as it is, by the rewards as the recipe lists them, whatever the stage."""
        spec = self.recipe.evaluation
        with self.optimizer.settled():
            return evaluate_policy(
                self.policy,
                self.task,
                self.staged[0],
                self.sampling,
                problems=spec.problems,
                batch=spec.batch,
                seed=self.recipe.seed,
            )

    def result(self) -> Result:
        """How the run stands."""
        with self.optimizer.settled():
            digest = weights_sha256(self.policy.trainable())
        return Result(
            run=str(self.folder.path),
            kind=self.policy.kind,
            steps=self.step,
            seconds=round(self.seconds, 3),
            eval=self.evaluations,
            alarms=self.folder.alarms(),
            weights_sha256=digest,
            status="interrupted" if self.interrupted else "stopped" if self.stopped else "finished",
        )

    def close(self) -> None:
        """End what works for the run in other processes."""
        if self.ahead is not None:
            self.ahead.scorer.cancel()
        for rewards in self.staged:
            for reward in rewards:
                reward.close()

    # Interruption -----------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        self.progress.stop()
        for logger in self.loggers:
            logger.close()
        if error is None:
            self.folder.flush()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.progress.note("finishing this step, then saving; press Ctrl-C again to stop at once")
