import gymnasium as gym
import numpy as np
import pytest

from guerdon.errors import TaskError
from guerdon.tasks.gym_text import GymText, describe_numbers

LAKE = {"env": "FrozenLake-v1", "kwargs": {"is_slippery": False}, "actions": ["left", "down", "right", "up"]}


def describe(observation):
    return f"row {observation // 4} column {observation % 4}"


def test_numbers_are_put_in_a_row():
    assert describe_numbers(3) == "3"
    assert describe_numbers(np.array([[0.123, -1], [2, 0]])) == "0.12 -1.00 2.00 0.00"
    assert describe_numbers({"place": np.array([1, 2]), "time": 3}) == "place 1 2 time 3"


def test_an_environment_is_played_by_the_names_of_its_actions():
    task = GymText(**LAKE, describe=f"{__name__}:describe", penalty=-0.5)
    session = task.begin(task.train_batch(2, 0), [0, 1])
    assert [heard.observation for heard in session.reset()] == ["row 0 column 0"] * 2
    one, two = session.step([0, 1], ["right", "sideways"])
    assert (one.observation, one.reward) == ("row 0 column 1", 0.0)
    assert (two.observation, two.reward) == ("row 0 column 0", -0.5)
    for action in ("right", "down", "down", "down"):
        heard = session.step([0], [action])[0]
    assert heard.observation == "row 3 column 2"
    heard = session.step([0], ["right"])[0]
    assert (heard.reward, heard.terminated, heard.truncated) == (1.0, True, False)


def test_equal_states_have_equal_keys():
    task = GymText(**LAKE)
    session = task.begin(task.train_batch(2, 0), [0, 1])
    here, there = session.reset()
    assert here.info["state_key"] == there.info["state_key"]
    moved = session.step([0], ["right"])[0]
    assert moved.info["state_key"] != here.info["state_key"]
    assert session.step([0], ["left"])[0].info["state_key"] == here.info["state_key"]


def test_demonstrations_are_what_happens():
    task = GymText(env="CartPole-v1", actions=["left", "right"], max_turns=20)
    problem = task.train_batch(1, 5)[0]
    session = task.begin([problem], [0])
    assert session.reset()[0].observation == problem.prompt
    assert len(problem.episode) % 2
    for action, said in zip(problem.episode[::2], problem.episode[1::2], strict=False):
        assert session.step([0], [action])[0].observation == said


def test_what_cannot_be_played_is_refused():
    with pytest.raises(TaskError, match="want a Discrete one"):
        GymText(env="MountainCarContinuous-v0")
    with pytest.raises(TaskError, match="2 names for the 4 actions"):
        GymText(env="FrozenLake-v1", actions=["a", "b"])
    with pytest.raises(TaskError, match="no env|cannot build"):
        GymText(env="Nowhere-v0")


def test_module_functions_build_environments():
    task = GymText(env=f"{__name__}:lake", kwargs={"size": 4})
    assert task.actions == ["0", "1", "2", "3"]


def lake(size):
    return gym.make("FrozenLake-v1", map_name=f"{size}x{size}")
