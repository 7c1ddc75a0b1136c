"""Parts that need no labels, or bear noisy ones, train under their names in a recipe."""

import json
from pathlib import Path

import pytest
import yaml

from guerdon.monitor.progress import Progress
from guerdon.training.loop import train

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
SMALL = {
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "warm_start": {"steps": 1, "batch": 8},
    "sampling": {"prompts": 4, "group_size": 4, "max_new_tokens": 5},
    "training": {"steps": 2},
    "evaluation": {"problems": 8},
    "logging": {"rollouts_every": 0},
}


def backwards(prompt, seed):
    """A second phrasing in letters that the policy knows."""
    return prompt[::-1]


RUNS = {
    "evol_rl": {"rewards": [{"name": "evol_rl", "pattern": "[a-z]"}, {"name": "task", "watch": True}]},
    "co_reward": {
        "sampling": SMALL["sampling"] | {"sources": [{"name": "paraphrase", "rewrite": f"{__file__}:backwards"}]},
        "rewards": ["co_reward", {"name": "task", "watch": True}],
    },
    "noisy": {
        "rewards": ["task", {"name": "reasoning_pattern", "weight": 0.0}],
        "shaping": [
            {"name": "flip_noise", "p": 0.5, "reward": "task"},
            {"name": "calibrate_low", "score": "task", "pattern": "reasoning_pattern"},
            "weighted_sum",
        ],
    },
    "majority_vote": {"rewards": [{"name": "majority_vote", "ties": "random"}, "log_probability"]},
}


def test_trust_by_pass_rates(tmp_path):
    """Half of the rows have a label; what is trusted is in the checkpoint."""
    rows = [{"prompt": f"{a}+1", "answer": str(a + 1), "labelled": a % 2 == 0} for a in range(12)]
    data = tmp_path / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    changes = {
        "task": {"name": "dataset", "path": str(data), "eval_fraction": 0.25},
        "evaluation": {"problems": 2},
        "rewards": [{"name": "task", "when": {"labelled": [True]}}, "majority_vote"],
        "shaping": [{"name": "trapo", "labelled": "task", "vote": "majority_vote", "warmup": 2}, "weighted_sum"],
        "training": {"steps": 4},
        "runs_dir": str(tmp_path),
    }
    recipe = yaml.safe_load(QUICKSTART.read_text()) | SMALL | changes
    assert train(recipe, progress=Progress(quiet=True)).steps == 4


def test_answers_of_other_models(tmp_path):
    rows = [{"prompt": f"{a}+1", "answer": str(a + 1), "peers": [[str(a + 1)] * 2, ["1"]]} for a in range(12)]
    data = tmp_path / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    changes = {
        "task": {"name": "dataset", "path": str(data), "eval_fraction": 0.25},
        "evaluation": {"problems": 2},
        "rewards": [{"name": "rlccf", "pattern": "[0-9]+"}, {"name": "task", "watch": True}],
        "runs_dir": str(tmp_path),
    }
    recipe = yaml.safe_load(QUICKSTART.read_text()) | SMALL | changes
    assert train(recipe, progress=Progress(quiet=True)).steps == 2


@pytest.mark.parametrize("name", RUNS)
def test_two_steps(name, tmp_path):
    recipe = yaml.safe_load(QUICKSTART.read_text()) | SMALL | {"runs_dir": str(tmp_path)} | RUNS[name]
    assert train(recipe, progress=Progress(quiet=True)).steps == 2
