"""Recipes train with the parts that reward or credit length."""

import copy

import pytest
import torch
from small_recipes import LANGUAGE

from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.training.loop import training_step
from guerdon.training.run import Run

CHANGES = {
    "dler": {
        "shaping": [
            "weighted_sum",
            {"name": "truncation_reward", "limits": [5, 3], "thresholds": [0.5]},
            "grpo_lambda",
        ],
        "credit": "batch_scaled",
        "objective": {"name": "dapo", "aggregate": "valid_token_mean"},
    },
    "hapo and decs": {"shaping": ["weighted_sum", "hapo"], "credit": {"name": "decs", "longest": 5, "separator": "a"}},
    "crm": {
        "rewards": ["task", {"name": "conciseness", "weight": 0.0}],
        "shaping": ["weighted_sum", {"name": "conciseness_reward", "anneal": 2}],
    },
}


def started(tmp_path, changes):
    recipe = copy.deepcopy(LANGUAGE) | {"runs_dir": str(tmp_path), "rewards": ["task"], "terms": []}
    recipe |= {"objective": "ppo_clip", "warm_start": None, "evaluation": {"problems": 2}, "training": {"steps": 2}}
    return Run.start(load_recipe(recipe | changes), progress=Progress(quiet=True))


@pytest.mark.parametrize("name", CHANGES)
def test_two_steps(tmp_path, name):
    run = started(tmp_path, CHANGES[name])
    for step in range(2):
        metrics = training_step(run, step)
        assert torch.isfinite(torch.tensor(metrics["reward/mean"]))
    run.close()
