import json
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
import torch

from guerdon.errors import CheckpointError, RecipeError, TaskError
from guerdon.tasks import gymnasium as module
from guerdon.tasks.gymnasium import HELD_OUT, Environments, Gymnasium, Trajectories


class Staircase(gym.Env):
    """Ends after ``length`` steps; shows (reset seed, step), pays the step's number plus the action."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(3, start=5)

    def __init__(self, length: int = 3, drift: bool = False) -> None:
        self.length, self.drift, self.resets = length, drift, 0

    def reset(self, *, seed=None, options=None):
        self.seed, self.t = seed, 0
        self.resets += 1
        return np.array([seed, self.resets if self.drift else 0.0]), {}

    def step(self, action):
        assert action in self.action_space
        self.t += 1
        return np.array([self.seed, self.t]), self.t + action / 10, self.t == self.length, False, {}


class Thermostat(gym.Env):
    """Shows the action it was given; never ends."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2, 1), np.float64)
    action_space = gym.spaces.Box(np.array([[-1.0], [-2.0]]), np.array([[1.0], [0.5]]), dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 1)), {}

    def step(self, action):
        assert action in self.action_space
        return action, 0.0, False, False, {}


class Numbered(gym.Env):
    """Shows a number from 7 upwards; ends when it was asked to (action 1)."""

    observation_space = gym.spaces.Discrete(4, start=7)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return 7, {}

    def step(self, action):
        return 9, 1.0, action == 1, False, {}


class Unsupported(gym.Env):
    action_space = gym.spaces.MultiDiscrete([2, 2])

    def __init__(self, observation: str = "box") -> None:
        box = gym.spaces.Box(0, 1, (1,))
        self.observation_space = gym.spaces.Dict(a=box) if observation == "dict" else box


def staircase(length: int = 3, drift: bool = False, max_steps: int | None = None) -> Gymnasium:
    return Gymnasium(env=f"{__name__}:Staircase", kwargs={"length": length, "drift": drift}, max_steps=max_steps)


def always(value: int) -> Callable[..., torch.Tensor]:
    return lambda observation, rows, t: torch.full((len(rows),), value)


def cycling(space: gym.Space, salt: int = 0) -> Callable[..., torch.Tensor]:
    """A policy that depends on what it sees, the row and the time, without any randomness."""

    def act(observation: torch.Tensor, rows: np.ndarray, t: int) -> torch.Tensor:
        signal = observation.flatten(1).sum(dim=1) * 7 + torch.from_numpy(rows) + salt
        if isinstance(space, gym.spaces.Discrete):
            return signal.long() % int(space.n)
        return signal.sin().unsqueeze(1).expand(-1, space.shape[0]) * 3

    return act


def same(left: Trajectories, right: Trajectories) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_training_and_held_out_seeds_are_disjoint_and_reproducible():
    task = Gymnasium(env="CartPole-v1", seed=3)
    train = [p.start for p in task.train_batch(500, seed=1)]
    held_out = [p.start for p in task.eval_problems(500)]
    assert all(0 <= s < HELD_OUT for s in train)
    assert all(HELD_OUT <= s < 2 * HELD_OUT for s in held_out)
    assert len(set(held_out)) == 500
    assert train == [p.start for p in Gymnasium(env="CartPole-v1", seed=3).train_batch(500, seed=1)]
    assert train != [p.start for p in task.train_batch(500, seed=2)]
    assert train != [p.start for p in Gymnasium(env="CartPole-v1", seed=4).train_batch(500, seed=1)]
    assert held_out[:5] == [p.start for p in task.eval_problems(5)]
    assert [p.task_id for p in task.train_batch(3, seed=1)] == train[:3]


def test_environments_step_like_the_environment_itself():
    space = gym.spaces.Box(-1, 1, (4,))
    envs = Environments(lambda: gym.make("CartPole-v1"), space)
    single = gym.make("CartPole-v1")
    first = envs.reset([0, 2], [11, 12])
    np.testing.assert_array_equal(first[1], single.reset(seed=12)[0])
    for action in (0, 1, 1, 0):
        observations, rewards, terminated, truncated = envs.step([2], [action])
        expected = single.step(action)
        np.testing.assert_array_equal(observations[0], expected[0])
        assert (rewards[0], terminated[0], truncated[0]) == expected[1:4]


def test_episodes_are_those_of_a_plain_loop():
    task = Gymnasium(env="CartPole-v1")
    act, seeds = cycling(task.action_space), [5, 6, 7, 8, 9]
    played = task.play_episodes(seeds, act)
    assert len(set(played.mask.sum(dim=1).tolist())) > 1, "episodes of equal length would not test the padding"
    env = gym.make("CartPole-v1")
    for row, seed in enumerate(seeds):
        observation, t, ended = env.reset(seed=seed)[0], 0, False
        while not ended:
            assert played.mask[row, t]
            np.testing.assert_array_equal(played.observation[row, t], observation)
            action = int(act(torch.tensor(observation)[None], np.array([row]), t))
            assert played.action[row, t] == action
            observation, reward, ended, _, _ = env.step(action)
            assert played.reward[row, t] == reward
            t += 1
        assert not played.mask[row, t:].any()
        assert not played.observation[row, t:].any()
        assert played.done[row]
        assert not played.truncated[row]
        np.testing.assert_array_equal(played.final_observation[row], observation)


def test_rewards_stand_with_the_row_that_earned_them():
    played = staircase().play_episodes([1, 2, 3], lambda o, rows, t: torch.from_numpy(rows))
    torch.testing.assert_close(played.reward, torch.tensor([[1.5, 2.5, 3.5], [1.6, 2.6, 3.6], [1.7, 2.7, 3.7]]))


def test_a_time_limit_truncates_and_termination_does_not():
    played = Gymnasium(env="Pendulum-v1", max_steps=7).play_episodes([1, 2], lambda o, rows, t: o[:, :1])
    assert played.mask.shape == (2, 7)
    assert played.truncated.all()
    assert not played.done.any()
    both = staircase(max_steps=3).play_episodes([1], always(0))
    assert both.done.all()
    assert both.truncated.all(), "an episode may terminate on its last allowed step; the flags are never merged"


def test_a_horizon_cuts_open_episodes_and_later_calls_go_on():
    task = staircase()
    first, seeds = task.play_horizon([40, 50], always(0), horizon=4)
    assert first.row.tolist() == [0, 0, 1, 1]
    assert first.mask.sum(dim=1).tolist() == [3, 1, 3, 1]
    assert first.done.tolist() == [True, False, True, False]
    assert not first.truncated.any(), "a cut by the horizon is neither an end nor a time limit"
    torch.testing.assert_close(first.reward[0], torch.tensor([1.5, 2.5, 3.5]))
    assert first.reward[1].tolist() == [1.5, 0, 0]
    assert first.observation[0, :, 1].tolist() == [0, 1, 2]
    assert first.final_observation[:, 1].tolist() == [3, 1, 3, 1], "the end of an episode, not the next one's start"
    shown = first.observation[:, 0, 0].long()
    assert shown.tolist() == seeds.to(torch.float32).long().tolist()
    assert len(set(seeds.tolist())) == 4
    assert (seeds < HELD_OUT).all()

    second, later = task.play_horizon([1, 2], always(0), horizon=2)
    assert second.mask.sum(dim=1).tolist() == [2, 2]
    assert second.observation[:, 0, 1].tolist() == [1, 1], "goes on after the one action of the second episode"
    assert later.tolist() == [seeds[1], seeds[3]]
    assert second.done.all()
    third, fresh = task.play_horizon([1, 2], always(0), horizon=1)
    assert third.observation[:, 0, 1].tolist() == [0, 0]
    assert not set(fresh.tolist()) & set(seeds.tolist())


def test_reset_seeds_of_open_episodes_follow_from_start_environment_and_episode():
    _, seeds = staircase().play_horizon([40, 40], always(0), horizon=9)
    _, again = staircase().play_horizon([40, 40], always(1), horizon=9)
    _, other = staircase().play_horizon([41, 40], always(0), horizon=9)
    assert seeds.tolist() == again.tolist()
    assert len(set(seeds.tolist())) == 6, "environments opened with one start still differ"
    assert seeds[3:].tolist() == other[3:].tolist()
    assert not set(seeds[:3].tolist()) & set(other[:3].tolist())


def test_more_starts_open_more_environments_and_fewer_leave_the_rest_alone():
    task = staircase(length=100)
    task.play_horizon([1, 2], always(0), horizon=3)
    assert task.play_horizon([1, 2, 3], always(0), horizon=2)[0].observation[:, 0, 1].tolist() == [3, 3, 0]
    assert task.play_horizon([1], always(0), horizon=2)[0].observation[:, 0, 1].tolist() == [5]
    assert task.play_horizon([1, 2], always(0), horizon=1)[0].observation[:, 0, 1].tolist() == [7, 5]


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_open_episodes_survive_a_restart_bit_for_bit(env):
    options = {"env": env, "max_steps": 37}
    steady, killed = Gymnasium(**options), Gymnasium(**options)
    for salt in range(3):
        starts = [p.start for p in steady.train_batch(3, seed=salt)]
        act = cycling(steady.action_space, salt)
        left, left_seeds = steady.play_horizon(starts, act, horizon=25)
        right, right_seeds = killed.play_horizon(starts, act, horizon=25)
        assert same(left, right)
        assert torch.equal(left_seeds, right_seeds)
        state = json.loads(json.dumps(killed.state_dict()))
        assert any(entry["actions"] for entry in state["open"]), "no episode is open, so nothing is tested"
        killed = Gymnasium(**options)
        killed.load_state_dict(state)
        assert killed.state_dict() == state


def test_an_environment_that_does_not_replay_is_refused():
    drifting = staircase(length=2, drift=True)
    drifting.play_horizon([1], always(0), horizon=4)
    with pytest.raises(CheckpointError, match=r"not deterministic.*horizon: null"):
        staircase(length=2, drift=True).load_state_dict(drifting.state_dict())


def test_loading_replaces_what_was_open():
    task = staircase(length=100)
    task.play_horizon([1, 2], always(0), horizon=3)
    state = task.state_dict()
    task.play_horizon([1, 2], always(1), horizon=5)
    task.load_state_dict(state)
    assert task.play_horizon([8, 9], always(0), horizon=1)[0].observation[:, 0, 1].tolist() == [3, 3]
    task.load_state_dict({})
    assert task.state_dict() == {}


def test_episodes_leave_open_environments_alone():
    task = staircase(length=100)
    task.play_horizon([1], always(0), horizon=3)
    before = task.state_dict()
    task.play_episodes([HELD_OUT + 1, HELD_OUT + 2], always(0))
    assert task.state_dict() == before
    assert task.play_horizon([1], always(0), horizon=2)[0].observation[0, :, 1].tolist() == [3, 4]


def test_continuous_actions_are_clipped_for_the_environment_and_recorded_as_chosen():
    task = Gymnasium(env=f"{__name__}:Thermostat", max_steps=1)
    chosen = torch.tensor([[0.25, 3.0], [-7.0, -7.0]])
    played = task.play_episodes([1, 2], lambda o, rows, t: chosen)
    assert torch.equal(played.action[:, 0], chosen)
    assert played.final_observation.dtype == torch.float32
    assert played.final_observation[..., 0].tolist() == [[0.25, 0.5], [-1.0, -2.0]]


def test_discrete_observations_count_from_zero():
    played = Gymnasium(env=f"{__name__}:Numbered").play_episodes(
        [1, 2], lambda o, rows, t: torch.from_numpy((rows < t).astype(np.int64))
    )
    assert played.observation.dtype == torch.int64
    assert played.observation.tolist() == [[0, 2, 0], [0, 2, 2]]
    assert played.final_observation.tolist() == [2, 2]
    assert played.mask.sum(dim=1).tolist() == [2, 3]


def test_registered_ids_with_a_module_are_imported():
    assert isinstance(Gymnasium(env="gymnasium.envs:FrozenLake-v1").observation_space, gym.spaces.Discrete)


def test_an_unknown_id_names_the_nearest():
    with pytest.raises(TaskError, match=r"no env 'CartPol-v1'.*CartPole-v1"):
        Gymnasium(env="CartPol-v1")
    with pytest.raises(RecipeError, match=r"has no 'Stair'.*did you mean 'Staircase'"):
        Gymnasium(env=f"{__name__}:Stair")


def test_wrong_arguments_name_the_environment():
    with pytest.raises(TaskError, match=r"cannot build env 'CartPole-v1' with {'speed': 2}"):
        Gymnasium(env="CartPole-v1", kwargs={"speed": 2})
    with pytest.raises(TaskError, match="max_steps is 0"):
        Gymnasium(env="CartPole-v1", max_steps=0)


def test_spaces_that_are_not_supported_are_named():
    with pytest.raises(TaskError, match=r"action space MultiDiscrete.*Discrete and Box of floats.*wrapper"):
        Gymnasium(env=f"{__name__}:Unsupported")
    with pytest.raises(TaskError, match=r"observation space Dict.*Discrete and Box;"):
        Gymnasium(env=f"{__name__}:Unsupported", kwargs={"observation": "dict"})


def test_an_episode_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_EPISODE", 50)
    with pytest.raises(TaskError, match=r"still running after 50 actions; set task.max_steps"):
        Gymnasium(env=f"{__name__}:Thermostat").play_episodes([1], lambda o, rows, t: o[:, :, 0])
    played = staircase(length=50).play_episodes([1], always(0))
    assert played.mask.sum() == 50
