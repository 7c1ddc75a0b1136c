"""The tiny language model on a procedural task, through the real training loop: seconds per seed, not minutes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guerdon.monitor.progress import Progress
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train
from guerdon.training.run import Result

# Spelling three- and four-letter words backwards, with a model of some 15,000 weights that imitation has made right
# about half the time; how often varies from seed to seed.
RECIPE: dict[str, Any] = {
    "task": {
        "name": "reasoning_gym",
        "dataset": "spell_backward",
        "config": {"min_word_len": 3, "max_word_len": 4},
        "strip": "Spell this word backward (example: sun -> nus): ",
    },
    "policy": {"name": "tiny_lm", "width": 32, "layers": 1},
    "warm_start": {"steps": 350, "batch": 64, "lr": 5e-3},
    "sampling": {"prompts": 32, "group_size": 8, "max_new_tokens": 6},
    "optimizer": {"lr": 3e-3, "warmup": 5, "schedule": "linear"},
    "training": {"steps": 60},
    "evaluation": {"problems": 128},
    "checkpoint": {"every": 1000},
    "logging": {"rollouts_every": 0},
}


def train_tiny(
    changes: Mapping[str, Any] | None = None, *, seeds: int, first_seed: int = 0
) -> list[tuple[Result, dict[str, list[float]]]]:
    """Train ``RECIPE`` with whole sections replaced by those of ``changes``, once per seed.

    Returns:
        For every seed its result and its metrics by step. The run folders are gone.
    """
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first_seed, first_seed + seeds):
            recipe = {**RECIPE, **(changes or {}), "name": f"seed-{seed}", "seed": seed, "runs_dir": folder}
            result = train(recipe, progress=Progress(quiet=True))
            out.append((result, RunFolder.open(Path(result.run)).metrics()))
    return out
