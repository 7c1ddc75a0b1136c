import json
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError
from guerdon.policies.control import ControlPolicy, ControlSampling, Image
from guerdon.rollouts import Fields, Rollouts, pad_actions
from guerdon.tasks.base import Problem, Starts, Task
from guerdon.tasks.gymnasium import Gymnasium

EPISODES = ControlSampling()


class Camera(gym.Env):
    """Bytes of noise as images; ends after three steps."""

    action_space = gym.spaces.Discrete(3)

    def __init__(self, shape: tuple[int, ...] = (7, 9, 3)) -> None:
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed=None, options=None):
        self.generator, self.t = np.random.default_rng(seed), 0
        return self._image(), {}

    def step(self, action):
        self.t += 1
        return self._image(), 1.0, self.t == 3, False, {}

    def _image(self):
        return self.generator.integers(256, size=self.observation_space.shape, dtype=np.uint8)


class Silent(Task):
    kind = "language"

    def train_batch(self, n, seed):
        return []

    def eval_problems(self, n):
        return []


def make(env: str = "CartPole-v1", *, max_steps: int | None = None, seed: int = 0, **options) -> ControlPolicy:
    task = Gymnasium(env=env, max_steps=max_steps)
    torch.manual_seed(seed)
    return ControlPolicy(task, **options)


def camera(shape: tuple[int, ...] = (7, 9, 3), **options) -> ControlPolicy:
    torch.manual_seed(0)
    return ControlPolicy(Gymnasium(env=f"{__name__}:Camera", kwargs={"shape": shape}), **options)


def starts(policy: ControlPolicy, n: int, group_size: int = 1, seed: int = 0) -> Starts:
    return Starts.repeat(policy.task.train_batch(n, seed=seed), group_size, version=7)


def stir(policy: ControlPolicy, scale: float = 0.3) -> ControlPolicy:
    """Move all weights, so that the policy is far from uniform and biases are not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return policy


def distribution(policy: ControlPolicy, observation: torch.Tensor) -> torch.distributions.Distribution:
    """The same policy by torch's own distributions."""
    output = policy.network.act(observation)
    if policy.discrete:
        return torch.distributions.Categorical(logits=output)
    normal = torch.distributions.Normal(output, policy.network.log_std.exp().expand_as(output))
    return torch.distributions.Independent(normal, 1)


def fields_equal(left: Rollouts, right: Rollouts) -> bool:
    names = ("group", "task_id", "mask", "old_logp", "entropy", "values", "bootstrap", "done", "truncated")
    pairs = [(getattr(left, name), getattr(right, name)) for name in names]
    pairs += [(left.payload[k], right.payload[k]) for k in left.payload.keys()]  # noqa: SIM118 - iterates rows
    pairs.append((left.rewards["task"], right.rewards["task"]))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
@pytest.mark.parametrize("shared", [False, True])
def test_evaluation_agrees_with_torch_distributions(env, shared):
    policy = stir(make(env, max_steps=40, shared=shared))
    rollouts = policy.sample(starts(policy, 6), EPISODES, seed=0)
    mask = rollouts.mask
    evaluation = policy.evaluate(rollouts, logits=True)
    expected = distribution(policy, rollouts.payload["observation"][mask])
    actions = rollouts.payload["action"][mask]
    torch.testing.assert_close(evaluation.logp[mask], expected.log_prob(actions), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(evaluation.entropy[mask], expected.entropy(), rtol=1e-5, atol=1e-5)
    value = policy.network.value(rollouts.payload["observation"][mask])
    torch.testing.assert_close(evaluation.value_prediction[mask], value, rtol=1e-5, atol=1e-5)
    for x in (evaluation.logp, evaluation.entropy, evaluation.value_prediction):
        assert x.shape == mask.shape
        assert not x[~mask].any()
    if policy.discrete:
        torch.testing.assert_close(evaluation.logits[mask].softmax(-1), expected.probs, rtol=1e-5, atol=1e-5)
        assert not evaluation.logits[~mask].any()
    else:
        assert evaluation.logits is None


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_what_was_sampled_is_what_evaluation_says(env):
    policy = stir(make(env, max_steps=40))
    problems = starts(policy, 5, group_size=2)
    rollouts = policy.sample(problems, EPISODES, seed=0)
    evaluation = policy.evaluate(rollouts)
    torch.testing.assert_close(rollouts.old_logp, evaluation.logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rollouts.entropy, evaluation.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rollouts.values, evaluation.value_prediction, rtol=1e-5, atol=1e-5)
    assert not rollouts.old_logp.requires_grad
    assert rollouts.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert rollouts.task_id.tolist() == problems.task_id.tolist()
    assert rollouts.version.tolist() == [7] * 10
    assert Fields(rollouts)["components"].shape == (10, 1)
    if env == "CartPole-v1":
        torch.testing.assert_close(Fields(rollouts)["components"][:, 0], rollouts.mask.sum(dim=1).float())


def test_bootstrap_is_the_value_of_the_final_observation_unless_done():
    policy = stir(make(max_steps=12))
    rollouts = policy.sample(starts(policy, 12), EPISODES, seed=0)
    assert rollouts.done.any()
    assert rollouts.truncated.any()
    value = policy.network.value(rollouts.payload["final_observation"])
    torch.testing.assert_close(rollouts.bootstrap[~rollouts.done], value[~rollouts.done])
    assert not rollouts.bootstrap[rollouts.done].any()
    cut = policy.sample(starts(policy, 4), ControlSampling(horizon=3), seed=0)
    value = policy.network.value(cut.payload["final_observation"])
    torch.testing.assert_close(cut.bootstrap, value)
    assert cut.bootstrap.abs().min() > 0
    assert not cut.done.any()
    assert not cut.truncated.any()


def test_categorical_actions_come_with_their_probabilities():
    policy = camera(network="mlp", hidden=(8,))
    p = torch.tensor([0.1, 0.6, 0.3])
    with torch.no_grad():
        policy.network.actor.weight.zero_()
        policy.network.actor.bias.copy_(p.log())
    rollouts = policy.sample(starts(policy, 2000), EPISODES, seed=0)
    counts = torch.bincount(rollouts.payload["action"].flatten(), minlength=3)
    assert counts.sum() == 6000
    chi_square = ((counts - 6000 * p) ** 2 / (6000 * p)).sum()
    assert chi_square < 20, "p < 5e-5 with two degrees of freedom"
    first, second = rollouts.payload["action"][:, 0], rollouts.payload["action"][:, 1]
    joint = torch.bincount(first * 3 + second, minlength=9).reshape(3, 3)
    expected = 2000 * p[:, None] * p
    assert ((joint - expected) ** 2 / expected).sum() < 35, "successive draws are independent (8 degrees of freedom)"


def test_gaussian_actions_come_with_mean_and_deviation():
    policy = make("Pendulum-v1", max_steps=2, log_std_init=math.log(0.5))
    with torch.no_grad():
        policy.network.actor.weight.zero_()
        policy.network.actor.bias.fill_(3.0)
    actions = policy.sample(starts(policy, 2000), EPISODES, seed=0).payload["action"].flatten()
    assert abs(float(actions.mean()) - 3.0) < 5 * 0.5 / math.sqrt(4000)
    assert abs(float(actions.std()) - 0.5) < 5 * 0.5 / math.sqrt(8000)
    assert actions.max() > 3.5, "recorded before clipping to the torque limit of 2"


def test_sampling_is_a_function_of_its_seed():
    policy = make()
    draw = [policy.sample(starts(policy, 3), EPISODES, seed=s) for s in (5, 5, 6)]
    assert fields_equal(draw[0], draw[1])
    assert draw[0].payload["action"].shape != draw[2].payload["action"].shape or not torch.equal(
        draw[0].payload["action"], draw[2].payload["action"]
    )
    torch.manual_seed(99)
    assert fields_equal(draw[0], policy.sample(starts(policy, 3), EPISODES, seed=5)), "reads a global generator"


def test_a_trajectory_does_not_depend_on_who_else_still_plays():
    policy = make()
    problems = policy.task.train_batch(4, seed=0)
    others = policy.task.train_batch(4, seed=1)
    one = policy.sample(Starts.repeat(problems, 1), EPISODES, seed=3)
    two = policy.sample(Starts.repeat([*others[:3], problems[3]], 1), EPISODES, seed=3)
    length = int(one.mask[3].sum())
    assert int(two.mask[3].sum()) == length
    assert torch.equal(one.payload["action"][3, :length], two.payload["action"][3, :length])


def test_group_members_share_the_start_and_draw_apart():
    policy = make()
    rollouts = policy.sample(starts(policy, 2, group_size=3), EPISODES, seed=0)
    first = rollouts.payload["observation"][:, 0]
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[3])
    assert len({tuple(row) for row in rollouts.payload["action"][:3].tolist()}) == 3


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_greedy_takes_the_mode_and_leaves_open_episodes_alone(env):
    policy = stir(make(env, max_steps=30))
    policy.sample(starts(policy, 2), ControlSampling(horizon=5), seed=0)
    before = policy.task.state_dict()
    greedy = policy.sample(starts(policy, 4), ControlSampling(horizon=5), seed=1, greedy=True)
    assert policy.task.state_dict() == before
    assert (greedy.done | greedy.truncated).all()
    expected = distribution(policy, greedy.payload["observation"][greedy.mask]).mode
    torch.testing.assert_close(greedy.payload["action"][greedy.mask], expected)


def test_evaluation_plays_whole_episodes():
    policy = make()
    assert policy.evaluation_options(ControlSampling(horizon=5)) == ControlSampling(horizon=None)


def test_a_horizon_gives_each_cut_a_group_of_its_own():
    policy = make()
    rollouts = policy.sample(starts(policy, 3), ControlSampling(horizon=64), seed=0)
    assert rollouts.mask.sum() == 3 * 64
    assert len(rollouts) > 3
    assert rollouts.group.tolist() == list(range(len(rollouts)))
    assert len(rollouts.task_id.unique()) == len(rollouts)
    with pytest.raises(RecipeError, match=r"group_size: 1, or sampling.horizon: null"):
        policy.sample(starts(policy, 3, group_size=2), ControlSampling(horizon=64), seed=0)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_a_killed_run_draws_the_same_rollouts(env):
    options = ControlSampling(horizon=50)
    steady, killed = (stir(make(env, max_steps=70)) for _ in range(2))
    for step in range(4):
        left = steady.sample(starts(steady, 3, seed=step), options, seed=step)
        right = killed.sample(starts(killed, 3, seed=step), options, seed=step)
        assert fields_equal(left, right)
        state = json.loads(json.dumps(killed.task.state_dict()))
        weights = killed.state_dict()
        killed = make(env, max_steps=70, seed=1 + step)
        killed.load_state_dict(weights)
        killed.task.load_state_dict(state)


@given(extra=st.integers(0, 5), junk=st.floats(-1e6, 1e6), order=st.permutations(range(4)))
@settings(max_examples=25, deadline=None)
def test_padding_and_order_do_not_matter(extra, junk, order):
    policy = stir(make(max_steps=15))
    rollouts = policy.sample(starts(policy, 4), EPISODES, seed=0)
    plain = policy.evaluate(rollouts)
    actions = rollouts.mask.shape[1] + extra
    mask = pad_actions(rollouts.mask, actions, False)[order]
    padded = rollouts[order]
    observation = pad_actions(rollouts.payload["observation"], actions)[order]
    observation[~mask] = junk
    padded.mask = mask
    padded.payload = {
        "observation": observation,
        "action": pad_actions(rollouts.payload["action"], actions, 1)[order],
    }
    evaluation = policy.evaluate(padded)
    for name in ("logp", "entropy", "value_prediction"):
        expected = pad_actions(getattr(plain, name), actions)[order]
        torch.testing.assert_close(getattr(evaluation, name), expected, rtol=1e-5, atol=1e-5)


def test_flat_rollouts_hold_the_same_actions():
    policy = stir(make(max_steps=20))
    rollouts = policy.sample(starts(policy, 5), EPISODES, seed=0)
    rollouts.reward = torch.arange(5.0)
    rollouts.advantage = torch.randn(rollouts.mask.shape, generator=torch.Generator().manual_seed(0))
    flat, mask = policy.flatten(rollouts), rollouts.mask
    count = int(mask.sum())
    assert flat.mask.shape == (count, 1)
    assert flat.mask.all()
    assert torch.equal(flat.advantage[:, 0], rollouts.advantage[mask])
    assert torch.equal(flat.rewards["task"][:, 0], rollouts.rewards["task"][mask])
    assert torch.equal(flat.payload["observation"][:, 0], rollouts.payload["observation"][mask])
    lengths = mask.sum(dim=1)
    assert torch.equal(flat.reward, torch.arange(5.0).repeat_interleave(lengths))
    assert torch.equal(flat.task_id, rollouts.task_id.repeat_interleave(lengths))
    assert torch.equal(flat.done, rollouts.done.repeat_interleave(lengths))
    assert flat.bootstrap is None
    shuffled = flat[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    for batch in (flat, shuffled):
        torch.testing.assert_close(policy.evaluate(batch).logp, batch.old_logp, rtol=1e-5, atol=1e-5)


def test_flat_rollouts_give_the_same_gradient():
    policy = stir(make(max_steps=20))
    rollouts = policy.sample(starts(policy, 5), EPISODES, seed=0)
    gradients = []
    for batch in (rollouts, policy.flatten(rollouts)):
        evaluation = policy.evaluate(batch)
        total = evaluation.logp.sum() + evaluation.entropy.sum() + evaluation.value_prediction.square().sum()
        gradients.append(torch.autograd.grad(total, list(policy.module.parameters())))
    for a, b in zip(*gradients, strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(7, 9, 3), (3, 20, 14), (33, 40, 1)])
@pytest.mark.parametrize("shared", [False, True])
def test_images_go_through_convolutions(shape, shared):
    policy = camera(shape, shared=shared)
    assert any(isinstance(m, torch.nn.Conv2d) for m in policy.module.modules())
    rollouts = policy.sample(starts(policy, 2), EPISODES, seed=0)
    assert rollouts.payload["observation"].dtype == torch.uint8
    evaluation = policy.evaluate(rollouts)
    total = evaluation.logp.sum() + evaluation.value_prediction.sum()
    for gradient in torch.autograd.grad(total, list(policy.module.parameters())):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


def test_channels_are_found_first_or_last():
    image = torch.arange(2 * 5 * 6 * 3, dtype=torch.uint8).reshape(2, 5, 6, 3)
    last, first = Image((5, 6, 3)), Image((3, 5, 6))
    assert last.channels == first.channels == 3
    assert last.sides == first.sides == (5, 6)
    torch.testing.assert_close(last(image), first(image.permute(0, 3, 1, 2)))
    torch.testing.assert_close(last(image)[1, 2, 3, 4], image[1, 3, 4, 2] / 255)


def test_a_shared_body_serves_both_heads():
    apart, shared = make(), make(shared=True)
    assert shared.network.critic_body is None
    value = shared.network.value(torch.ones(1, 4)).sum()
    assert torch.autograd.grad(value, shared.network.body[0].weight)[0].abs().sum() > 0
    value = apart.network.value(torch.ones(1, 4)).sum()
    assert torch.autograd.grad(value, apart.network.body[0].weight, allow_unused=True)[0] is None


def test_initial_weights_are_orthogonal():
    network = make("Acrobot-v1", hidden=(32, 32)).network
    square = network.body[2].weight
    torch.testing.assert_close(square @ square.T, 2 * torch.eye(32), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network.actor.weight @ network.actor.weight.T, 1e-4 * torch.eye(3), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(network.critic.weight.norm(), torch.tensor(1.0))
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_options_shape_the_network():
    policy = make("Pendulum-v1", hidden=(5, 6, 7), activation="relu", log_std_init=-1.5)
    assert [p.shape[0] for name, p in policy.network.body.named_parameters() if "weight" in name] == [5, 6, 7]
    assert sum(isinstance(m, torch.nn.ReLU) for m in policy.module.modules()) == 6
    assert policy.network.log_std.tolist() == [-1.5]
    assert "log_std" in policy.trainable()
    flat = camera(network="mlp")
    assert not any(isinstance(m, torch.nn.Conv2d) for m in flat.module.modules())


def test_misuse_is_refused():
    with pytest.raises(RecipeError, match="'cnn' needs images"):
        make(network="cnn")
    with pytest.raises(RecipeError, match=r"task 'Silent' is none.*policy of kind 'language'"):
        ControlPolicy(Silent())
    policy = make()
    with pytest.raises(RecipeError, match="warm_start"):
        policy.supervised_loss([Problem(0)], seed=0)
    assert ControlPolicy.supplied_fields({}) == {"values", "bootstrap", "value_prediction"}
