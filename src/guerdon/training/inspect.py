"""Looking at a run after the fact, without changing its folder."""

from __future__ import annotations

from pathlib import Path

from guerdon.errors import CheckpointError
from guerdon.recipe import load_recipe
from guerdon.training.checkpoint import load_checkpoint
from guerdon.training.evaluate import evaluate_policy
from guerdon.training.folder import RunFolder
from guerdon.training.plan import build, make_plan


def evaluate_run(path: str | Path, *, problems: int | None = None) -> tuple[dict[str, float], int]:
    """Held-out metrics of a run's newest checkpoint, and the step it was written at.

    Raises:
        CheckpointError: when the run has no checkpoint that verifies.
    """
    folder = RunFolder.open(path)
    recipe = load_recipe(folder.recipe_path)
    parts = build(make_plan(recipe))
    checkpoint = load_checkpoint(folder.checkpoints_path)
    if checkpoint is None:
        raise CheckpointError(f"'{path}' has no checkpoint to evaluate; train it first: guerdon train --resume {path}")
    parts.policy.load_state_dict(checkpoint.policy)
    metrics = evaluate_policy(
        parts.policy,
        parts.task,
        parts.rewards,
        parts.sampling,
        problems=problems or recipe.evaluation.problems,
        batch=recipe.evaluation.batch,
        seed=recipe.seed,
    )
    return metrics, checkpoint.step
