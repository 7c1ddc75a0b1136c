import time

import pytest

from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.rewards.base import Scorer
from guerdon.training.folder import RunFolder
from guerdon.training.loop import resume, train
from guerdon.training.plan import make_plan

SLOW = """
import time


def slow(text):
    time.sleep(0.02)
    return float(len(text))
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "slow_reward.py").write_text(SLOW)
    return {
        "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3}},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {"prompts": 3, "group_size": 4, "max_new_tokens": 6},
        "rewards": [{"name": f"{tmp_path}/slow_reward.py:slow", "workers": 2, "timeout": 20}],
        "training": {"steps": 7, "mode": "async"},
        "checkpoint": {"every": 4},
        "evaluation": {"problems": 4},
        "logging": {"rollouts_every": 1},
        "runs_dir": str(tmp_path / "runs"),
    }


def metrics(result):
    return RunFolder.open(result.run).metrics()


def test_batches_are_one_update_old_but_for_the_first_after_a_checkpoint(recipe):
    result = train(recipe, progress=Progress(quiet=True))
    assert metrics(result)["staleness"] == [0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    versions = [set(RunFolder.open(result.run).rollouts(step)["version"].to_pylist()) for step in range(7)]
    assert versions == [{0}, {0}, {1}, {2}, {4}, {4}, {5}]


def test_an_interrupted_run_ends_with_the_same_bits(recipe, monkeypatch):
    whole = train(recipe | {"name": "whole"}, progress=Progress(quiet=True))
    from guerdon.training import loop

    taken = loop.training_step

    def dies(run, step):
        if step == 6:
            raise KeyboardInterrupt
        return taken(run, step)

    monkeypatch.setattr(loop, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(recipe | {"name": "cut"}, progress=Progress(quiet=True))
    monkeypatch.setattr(loop, "training_step", taken)
    cut = resume(f"{recipe['runs_dir']}/cut", progress=Progress(quiet=True))
    assert cut.weights_sha256 == whole.weights_sha256
    assert metrics(cut)["staleness"] == metrics(whole)["staleness"]


def test_the_ratio_corrects_for_the_age_of_the_samples(recipe):
    """The first batch is fresh, so its ratio is 1; in the second the policy has moved by one update."""
    recipe |= {"optimizer": {"lr": 0.05}, "objective": {"name": "ppo_clip", "clip_low": 0.01, "clip_high": 0.01}}
    clipped = metrics(train(recipe, progress=Progress(quiet=True)))["update/ppo_clip/clip_fraction"]
    assert clipped[0] == 0.0
    assert clipped[1] > 0.0


def test_an_objective_without_a_ratio_is_refused(recipe):
    with pytest.raises(RecipeError, match="'reinforce' does not read 'old_logp'"):
        make_plan(load_recipe(recipe | {"objective": "reinforce"}))


def test_trajectories_are_scored_while_others_are_still_written(recipe, monkeypatch):
    """Every row is handed over as it ends, and the scores are those of scoring at the end."""
    handed = []
    submit = Scorer.submit

    def watched(self, rollouts, rows):
        handed.append((time.monotonic(), list(rows)))
        submit(self, rollouts, rows)

    monkeypatch.setattr(Scorer, "submit", watched)
    recipe |= {"training": {"steps": 1}, "sampling": {"prompts": 6, "group_size": 4, "max_new_tokens": 12}}
    early = train(recipe | {"name": "early"}, progress=Progress(quiet=True))
    assert sorted(row for _, rows in handed for row in rows) == list(range(24))
    assert len(handed) > 1
    monkeypatch.setattr(Scorer, "eager", False)
    handed.clear()
    late = train(recipe | {"name": "late"}, progress=Progress(quiet=True))
    assert handed == []
    rewards = [RunFolder.open(result.run).rollouts(0)["reward"].to_pylist() for result in (early, late)]
    assert rewards[0] == rewards[1]
    assert early.weights_sha256 == late.weights_sha256
