import os
import time

import numpy as np
import pytest

from guerdon.tasks.base import Problem
from guerdon.tasks.environments import EnvironmentTask, Failure, Step, state_key


class Walk:
    """Counts its steps; some words do harm."""

    def reset(self, problem, seed):
        self.path = [f"{problem.task_id}/{seed}"]
        return self.path[0]

    def step(self, action):
        if action == "hang":
            time.sleep(60)
        if action == "die":
            os._exit(3)
        if action == "raise":
            raise KeyError("no such door")
        if action == "nan":
            return Step("?", float("nan"))
        if action == "none":
            return None
        self.path.append(action)
        return Step(" ".join(self.path), len(self.path), info={"state": len(self.path), "odd": {1, 2}})


class Walks(EnvironmentTask):
    def environment(self):
        return Walk

    def train_batch(self, n, seed):
        return [Problem(i) for i in range(n)]

    eval_problems = train_batch


@pytest.fixture(params=[0, 2])
def session(request):
    task = Walks(workers=request.param, timeout=1.0)
    yield task.begin(task.train_batch(4, 0), [10, 11, 12, 13])
    task.close()


def test_episodes_are_apart(session):
    assert [heard.observation for heard in session.reset()] == ["0/10", "1/11", "2/12", "3/13"]
    heard = session.step([2, 0], ["left", "right"])
    assert [(step.observation, step.reward) for step in heard] == [("2/12 left", 2.0), ("0/10 right", 2.0)]
    assert session.step([2], ["up"])[0].observation == "2/12 left up"
    assert session.step([1], ["on"])[0].observation == "1/11 on"


@pytest.mark.parametrize(
    ("word", "kind", "message"),
    [
        ("raise", "exception", "no such door"),
        ("nan", "exception", "want a finite number"),
        ("none", "exception", "want text or a Step"),
    ],
)
def test_what_an_environment_does_wrong_is_its_own_failure(session, word, kind, message):
    session.reset()
    heard = session.step([0, 1, 2], ["go", word, "go"])
    assert isinstance(heard[1], Failure)
    assert heard[1].kind == kind
    assert message in heard[1].message
    assert [heard[0].observation, heard[2].observation] == ["0/10 go", "2/12 go"]
    assert session.step([0], ["on"])[0].observation == "0/10 go on"


@pytest.mark.parametrize(("word", "kind"), [("hang", "timeout"), ("die", "killed")])
def test_an_environment_that_takes_its_worker_along_does_not_take_the_others(word, kind):
    task = Walks(workers=2, timeout=1.0)
    try:
        session = task.begin(task.train_batch(6, 0), list(range(6)))
        session.reset()
        session.step(range(6), ["first"] * 6)
        heard = session.step(range(6), ["a", "b", word, "d", "e", "f"])
        assert isinstance(heard[2], Failure)
        assert heard[2].kind == kind
        assert [step.observation for step in heard if isinstance(step, Step)] == [
            f"{row}/{row} first {'abcdef'[row]}" for row in (0, 1, 3, 4, 5)
        ]
        later = session.step([0, 4], ["x", "y"])
        assert [step.observation for step in later] == ["0/0 first a x", "4/4 first e y"]
    finally:
        task.close()


def test_two_sessions_share_workers_and_nothing_else():
    task = Walks(workers=1)
    try:
        one, two = (task.begin(task.train_batch(1, 0), [seed]) for seed in (1, 2))
        one.reset(), two.reset()
        one.step([0], ["left"])
        assert two.step([0], ["right"])[0].observation == "0/2 right"
        one.close()
        assert two.step([0], ["on"])[0].observation == "0/2 right on"
    finally:
        task.close()


def test_an_episode_with_a_past_comes_back_to_where_it_stood(session):
    session.reset()
    session.step([0, 1, 2, 3], ["a", "b", "c", "d"])
    again = session.reset()
    assert [heard.observation for heard in again] == ["0/10 a", "1/11 b", "2/12 c", "3/13 d"]


def test_a_state_is_what_it_holds():
    def key(state):
        return state_key(Step("seen", info={"state": state}))

    assert key({"a": 1, "b": [1, 2]}) == key({"b": (1, 2), "a": 1})
    assert key(np.zeros(3)) == key(np.zeros(3))
    different = [np.zeros(3), np.zeros(4), np.zeros(3, dtype=int), "x", ("x",), ["x", "y"], 1, "1", {"a": 1}]
    assert len({key(state) for state in different}) == len(different)
    assert state_key(Step("x")) == key("x")
    assert -(2**63) <= key("x") < 2**63
