"""Runs of several turns, whole: what is recorded, what is refused, and what happens when environments break."""

import json

import numpy as np
import pytest

import guerdon
from guerdon.errors import MissingField
from guerdon.monitor.progress import Progress
from guerdon.tasks.gridtext import GridText, KeyDoor
from guerdon.tasks.textworld import Adventure, TextWorld
from guerdon.training.folder import RunFolder

RECIPE = {
    "task": {"name": "gridtext", "size": 3, "max_turns": 5},
    "policy": {"name": "tiny_lm", "width": 32, "layers": 1, "heads": 2, "tokenizer": "word"},
    "warm_start": {"steps": 3, "batch": 8},
    "sampling": {"prompts": 4, "group_size": 4, "max_new_tokens": 3},
    "rewards": ["task"],
    "credit": "gigpo",
    "training": {"steps": 2},
    "evaluation": {"problems": 4},
    "logging": {"rollouts_every": 1},
}


def train(tmp_path, **changes):
    return guerdon.train(RECIPE | {"runs_dir": str(tmp_path)} | changes, progress=Progress(quiet=True))


class Crash(KeyDoor):
    """Breaks at a turn that follows from the layout."""

    def reset(self, problem, seed):
        self.left = np.random.default_rng(seed).integers(1, 8)
        return super().reset(problem, seed)

    def step(self, action):
        self.left -= 1
        if not self.left:
            raise RuntimeError("out of order")
        return super().step(action)


class Crashing(GridText):
    def environment(self):
        return lambda: Crash(self.size)


def test_a_run_goes_on_when_environments_break(tmp_path):
    result = train(tmp_path, task={"name": f"{__name__}:Crashing", "size": 3, "max_turns": 5})
    folder = RunFolder.open(result.run)
    metrics, faults = folder.metrics(), folder.faults()
    assert result.steps == 2
    assert 0 < len(faults) < 32
    assert {(fault["reward"], fault["kind"]) for fault in faults} == {("task", "exception")}
    assert all("out of order" in fault["message"] for fault in faults)
    assert sum(metrics["faults"]) == len(faults)
    kept = [16 - sum(fault["step"] == step for fault in faults) for step in (0, 1)]
    assert metrics["trajectories"] == kept


def test_the_rollouts_of_a_run_show_their_turns(tmp_path):
    result = train(tmp_path)
    import duckdb

    rows = duckdb.sql(f"select text, turn, prompt from '{result.run}/rollouts/*.parquet'").fetchall()
    assert len(rows) >= 32
    assert max(max(x for x in turn if x is not None) for _, turn, _ in rows) == 4
    assert all(prompt.startswith("key ") for _, _, prompt in rows)


@pytest.mark.parametrize("credit", ["gigpo", "igpo"])
def test_credit_of_turns_is_refused_where_there_are_none(tmp_path, credit):
    task = {"name": "reasoning_gym", "dataset": "basic_arithmetic"}
    with pytest.raises(MissingField, match="multi-turn task"):
        train(tmp_path, task=task, credit=credit)
    assert not list(tmp_path.iterdir())


def test_information_gain_is_refused_where_no_answer_is_known(tmp_path):
    with pytest.raises(MissingField, match="answer_logp"):
        train(tmp_path, credit="igpo")


def test_information_gain_runs_on_questions(tmp_path):
    pytest.importorskip("bm25s")
    task = {"name": "search", "hops": [2], "entities": 8}
    result = train(tmp_path, task=task, credit="igpo", sampling=RECIPE["sampling"] | {"max_new_tokens": 5})
    metrics = RunFolder.open(result.run).metrics()
    assert all(np.isfinite(metrics["credit/igpo/gain"]))


class LongCrash(Adventure):
    def reset(self, problem, seed):
        self.left = np.random.default_rng(seed).integers(1, 60)
        return super().reset(problem, seed)

    def step(self, action):
        self.left -= 1
        if not self.left:
            raise RuntimeError("the lights went out")
        return super().step(action)


class LongGames(TextWorld):
    def environment(self):
        return LongCrash


def test_thirty_turns_of_textworld_with_crashes(tmp_path):
    pytest.importorskip("textworld", reason="the agents extra is not installed")
    task = {"name": f"{__name__}:LongGames", "rooms": 1, "objects": 1, "quest": 2, "games": 1, "eval_games": 0}
    task |= {"max_turns": 30, "commands": False}
    result = train(tmp_path, task=task, warm_start=None, evaluation={"problems": 1})
    folder = RunFolder.open(result.run)
    faults = folder.faults()
    assert result.steps == 2
    assert 0 < len(faults) < 32
    assert all("the lights went out" in fault["message"] for fault in faults)
    assert sum(folder.metrics()["trajectories"]) == 32 - len(faults)
    assert json.loads((folder.path / "summary.json").read_text())["steps"] == 2
