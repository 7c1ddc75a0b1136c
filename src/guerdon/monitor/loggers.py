"""Metrics to the trackers people already use: TensorBoard, Weights & Biases, MLflow; all off by default.

A logger is built as ``logger(run_dir, name, config, **options)``; what it keeps on disk lies under
``RUN/loggers/``, so that a resumed run goes on in the same curve.
"""

from __future__ import annotations

import importlib
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from guerdon.errors import GuerdonError
from guerdon.registry import register

# What MLflow takes in the names of metrics and parameters, and how long a parameter may be.
_MLFLOW_REFUSES = re.compile(r"[^A-Za-z0-9_\-. /:]")
_MLFLOW_PARAM_LENGTH = 500
_MLFLOW_PARAMS_AT_ONCE = 100


@runtime_checkable
class Logger(Protocol):
    """Something that is told the metrics of every step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step."""
        ...

    def close(self) -> None:
        """Hand over what is still waiting; nothing is logged afterwards."""
        ...


@register("logger", "tensorboard")
class TensorBoardLogger:
    """Event files for TensorBoard, under ``RUN/loggers/tensorboard``.

    A resumed run hides what an interrupted one had logged beyond its checkpoint.

    Args:
        run_dir, name, config: the run.
        flush_seconds: how long events may wait in memory.

    Raises:
        GuerdonError: when the package is missing.
    """

    def __init__(self, run_dir: str, name: str, config: Mapping[str, Any], *, flush_seconds: int = 30) -> None:
        self._make = _require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._directory = str(Path(run_dir) / "loggers" / "tensorboard")
        self._flush_seconds = flush_seconds
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar per metric."""
        if self._writer is None:
            self._writer = self._make(self._directory, flush_secs=self._flush_seconds, purge_step=step)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Write what is still waiting."""
        if self._writer is not None:
            self._writer.close()


@register("logger", "wandb")
class WandbLogger:
    """A run at Weights & Biases, with the recipe as its config.

    Args:
        run_dir, name, config: the run.
        project, entity, group, tags: where it is filed.
        mode: ``offline`` keeps it on disk until ``wandb sync``.

    Raises:
        GuerdonError: when the package is missing, or refuses to start.
    """

    def __init__(
        self,
        run_dir: str,
        name: str,
        config: Mapping[str, Any],
        *,
        project: str = "guerdon",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        mode: Literal["online", "offline", "disabled"] = "online",
    ) -> None:
        wandb = _require("wandb", "wandb")
        directory = Path(run_dir) / "loggers" / "wandb"
        with _starting("wandb", "run `wandb login`, or set mode: offline"):
            self._run = wandb.init(
                id=_remembered(directory / "run-id", uuid.uuid4().hex),
                resume="allow",
                project=project,
                entity=entity,
                group=group,
                tags=tags,
                mode=mode,
                name=name,
                config=dict(config),
                dir=str(directory),
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics; steps that a resumed run repeats are already there."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Send what is still waiting and end the run."""
        self._run.finish()


@register("logger", "mlflow")
class MlflowLogger:
    """A run in MLflow, with the recipe as its parameters.

    Args:
        run_dir, name, config: the run.
        tracking_uri: of the server or store; MLflow's own default if none is given.
        experiment: name of the experiment, made if there is none.

    Raises:
        GuerdonError: when the package is missing, or refuses to start.
    """

    def __init__(
        self,
        run_dir: str,
        name: str,
        config: Mapping[str, Any],
        *,
        tracking_uri: str | None = None,
        experiment: str = "guerdon",
    ) -> None:
        self._mlflow = _require("mlflow", "mlflow")
        remembered = Path(run_dir) / "loggers" / "mlflow" / "run-id"
        with _starting(
            "mlflow", "set tracking_uri to a server, or install the full package 'mlflow' for a local store"
        ):
            if tracking_uri is not None:
                self._mlflow.set_tracking_uri(tracking_uri)
            self._mlflow.set_experiment(experiment)
            if remembered.is_file():
                self._mlflow.start_run(run_id=remembered.read_text())
                return
            run = self._mlflow.start_run(run_name=name)
            params = list(_flat(config).items())
            for first in range(0, len(params), _MLFLOW_PARAMS_AT_ONCE):
                self._mlflow.log_params(dict(params[first : first + _MLFLOW_PARAMS_AT_ONCE]))
        _remembered(remembered, run.info.run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics under names that MLflow takes."""
        self._mlflow.log_metrics({_MLFLOW_REFUSES.sub("_", k): float(v) for k, v in metrics.items()}, step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


def _require(module: str, extra: str) -> Any:
    """Import a tracker's package, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise GuerdonError(
            f"logger '{extra}' needs a package that cannot be imported ({error}); run: pip install \"guerdon[{extra}]\""
        ) from error


@contextmanager
def _starting(logger: str, remedy: str) -> Iterator[None]:
    """Turn whatever a tracker raises at its start into one message."""
    try:
        yield
    except Exception as error:
        raise GuerdonError(
            f"logger '{logger}' does not start: {type(error).__name__}: {error}; {remedy}, or take it out of "
            "logging.loggers"
        ) from error


def _remembered(path: Path, fresh: str) -> str:
    """What an earlier start of this run wrote to ``path``, or ``fresh``, written now."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(fresh)
    return path.read_text()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names, values as short text."""
    out: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            out |= _flat(value, f"{name}.")
        else:
            out[_MLFLOW_REFUSES.sub("_", name)] = str(value)[:_MLFLOW_PARAM_LENGTH]
    return out
