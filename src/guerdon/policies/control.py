"""An actor-critic for environments: a categorical or diagonal Gaussian policy, and a value function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from guerdon.errors import RecipeError
from guerdon.policies.base import Evaluation, Policy, SamplingOptions
from guerdon.policies.critic import SoftMinCritic, slow_critics
from guerdon.registry import register
from guerdon.rollouts import Rollouts, make_rollouts
from guerdon.seeding import torch_generator
from guerdon.tasks.base import Starts, Task
from guerdon.tasks.gymnasium import Act, Gymnasium

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
# Actions whose noise is drawn at once, and observations that go through the network at once after sampling.
NOISE_BLOCK = 128
NETWORK_BLOCK = 2048


class Image(nn.Module):
    """Images (R,H,W,C) or (R,C,H,W) to floats (R,C,H,W), bytes scaled to [0, 1]; C is the smaller outer axis."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.last = shape[2] <= shape[0]
        self.channels = shape[2] if self.last else shape[0]
        self.sides = tuple(shape[:2]) if self.last else tuple(shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Images (R,...) to (R,C,H,W)."""
        x = x.permute(0, 3, 1, 2) if self.last else x
        return x.float() / 255 if x.dtype == torch.uint8 else x


class OneHot(nn.Module):
    """Indices (R,) to indicator vectors (R,n)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """Indices (R,) to (R,n)."""
        return F.one_hot(x, self.n).float()


class Flat(nn.Module):
    """Observations (R,...) of any type and shape to floats (R,D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Observations (R,...) to (R,D)."""
        return x.flatten(1).float()


def build_body(
    space: gym.Space, hidden: Sequence[int], activation: Literal["tanh", "relu"], cnn: bool
) -> tuple[nn.Sequential, int]:
    """Build the layers before the heads, and say how wide they end.

    Images go through three 3x3 convolutions (32, 64, 64 channels; stride 2 while a side is longer than 12), then
    everything through the ``hidden`` dense layers. Weights are orthogonal with gain sqrt(2), biases 0
    (Huang et al. 2022, "The 37 Implementation Details of PPO").
    """
    layers: list[nn.Module] = []
    if isinstance(space, gym.spaces.Discrete):
        width = int(space.n)
        layers.append(OneHot(width))
    elif cnn:
        image = Image(space.shape or ())
        layers.append(image)
        channels, (height, length) = image.channels, image.sides
        for out in (32, 64, 64):
            stride = 2 if max(height, length) > 12 else 1
            layers += [_orthogonal(nn.Conv2d(channels, out, 3, stride, padding=1)), nn.ReLU()]
            channels, height, length = out, -(-height // stride), -(-length // stride)
        layers.append(nn.Flatten())
        width = channels * height * length
    else:
        shape = space.shape or ()
        width = math.prod(shape)
        if len(shape) != 1 or space.dtype == np.uint8:
            layers.append(Flat())
    for size in hidden:
        layers += [_orthogonal(nn.Linear(width, size)), ACTIVATIONS[activation]()]
        width = size
    return nn.Sequential(*layers), width


def _orthogonal(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> nn.Linear | nn.Conv2d:
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class ActorCritic(nn.Module):
    """Two heads, on bodies of their own or on a shared one: action logits or means, and the value.

    The last layer of the actor starts with gain 0.01, so that the first policy is close to uniform.
    """

    def __init__(
        self,
        space: gym.Space,
        outputs: int,
        *,
        hidden: Sequence[int],
        activation: Literal["tanh", "relu"],
        cnn: bool,
        shared: bool,
        log_std: float | None,
        critic: Literal["linear", "soft_min"] = "linear",
    ) -> None:
        super().__init__()
        self.shared = shared
        self.body, width = build_body(space, hidden, activation, cnn)
        self.critic_body = None if shared else build_body(space, hidden, activation, cnn)[0]
        self.actor = _orthogonal(nn.Linear(width, outputs), 0.01)
        self.critic = SoftMinCritic(width) if critic == "soft_min" else _orthogonal(nn.Linear(width, 1), 1.0)
        self.log_std = None if log_std is None else nn.Parameter(torch.full((outputs,), log_std))

    def act(self, observation: Tensor) -> Tensor:
        """Observations (R,...) to action logits or means (R,A)."""
        return self.actor(self.body(observation))

    def value(self, observation: Tensor) -> Tensor:
        """Observations (R,...) to values (R,)."""
        body = self.body if self.critic_body is None else self.critic_body
        return self.critic(body(observation)).squeeze(1)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (R,...) to action logits or means (R,A), and values (R,)."""
        if self.critic_body is not None:
            return self.act(observation), self.value(observation)
        features = self.body(observation)
        return self.actor(features), self.critic(features).squeeze(1)


class ControlSampling(SamplingOptions):
    """How a control policy draws trajectories.

    Attributes:
        horizon: actions taken per start and step in environments that stay open between steps; null plays one
            whole episode per start. Evaluation and greedy play are always whole episodes.
    """

    horizon: int | None = pydantic.Field(default=None, ge=1)


@register("policy", "control")
class ControlPolicy(Policy):
    """A small actor-critic network that acts in a ``gymnasium`` task.

    Discrete actions are categorical. ``Box`` actions are Gaussian with a log standard deviation that does not
    depend on the state; the environment gets them clipped to its bounds, and the log-probability is that of the
    action before clipping.

    Args:
        task: the environment.
        hidden: widths of the dense layers.
        activation: of the dense layers.
        network: ``cnn`` for images, ``mlp`` for anything else; ``auto`` takes a Box of three axes for an image.
        shared: whether actor and critic share all layers but their last.
        log_std_init: initial log standard deviation of continuous actions.
        critic: a ``linear`` head, or ``soft_min`` (``SoftMinCritic``), whose slow copy values sampled batches.

    Raises:
        RecipeError: when the task is no environment, or ``cnn`` is asked for observations that are no images.
    """

    kind = "control"
    Sampling = ControlSampling

    def __init__(
        self,
        task: Task,
        *,
        hidden: tuple[int, ...] = (64, 64),
        activation: Literal["tanh", "relu"] = "tanh",
        network: Literal["mlp", "cnn", "auto"] = "auto",
        shared: bool = False,
        log_std_init: float = 0.0,
        critic: Literal["linear", "soft_min"] = "linear",
    ) -> None:
        super().__init__()
        if not isinstance(task, Gymnasium):
            raise RecipeError(
                f"policy 'control' acts in environments, and task '{type(task).__name__}' is none; "
                "use task 'gymnasium', or a policy of kind '" + task.kind + "'"
            )
        self.task = task
        space, actions = task.observation_space, task.action_space
        image = isinstance(space, gym.spaces.Box) and len(space.shape) == 3
        if network == "cnn" and not image:
            raise RecipeError(f"policy 'control': network 'cnn' needs images, a Box of three axes, not {space}")
        self.discrete = isinstance(actions, gym.spaces.Discrete)
        outputs = int(actions.n) if isinstance(actions, gym.spaces.Discrete) else math.prod(actions.shape or ())
        self.network = ActorCritic(
            space,
            outputs,
            hidden=hidden,
            activation=activation,
            cnn=image and network != "mlp",
            shared=shared,
            log_std=None if self.discrete else log_std_init,
            critic=critic,
        )
        self.module = self.network

    @classmethod
    def supplied_fields(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """A critic comes with the policy."""
        return frozenset({"values", "bootstrap", "value_prediction"})

    # Sampling ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, starts: Starts, options: ControlSampling, *, seed: int, greedy: bool = False) -> Rollouts:
        """Draw trajectories: one episode per start, or what ``options.horizon`` actions per start cut into.

        ``done`` is true where the environment terminated and ``truncated`` where a time limit ended the episode;
        neither where the horizon cut it. ``bootstrap`` is the critic's value of the observation after the last
        action unless ``done``. Under a horizon each trajectory is a group of its own, its ``task_id`` is the reset
        seed of its episode, and the draw also depends on where the task's open episodes stand.

        Raises:
            RecipeError: when a horizon is combined with groups of several trajectories.
        """
        act = self._chooser(seed, len(starts), greedy)
        seeds = [problem.start for problem in starts.problems]
        if options.horizon is None or greedy:
            played = self.task.play_episodes(seeds, act)
            group, task_id = starts.group, starts.task_id
            metadata = [dict(problem.metadata) for problem in starts.problems]
        else:
            if len(starts.group.unique()) < len(starts):
                raise RecipeError(
                    "sampling.horizon cuts episodes, so trajectories of one group do not start from one state; "
                    "set sampling.group_size: 1, or sampling.horizon: null"
                )
            played, task_id = self.task.play_horizon(seeds, act, options.horizon)
            group = torch.arange(len(task_id))
            metadata = [{} for _ in task_id]
        mask = played.mask
        with slow_critics(self.network):
            flat = [self._judge(o, a) for o, a in _blocks(played.observation[mask], played.action[mask])]
            after = torch.cat([self.network.value(o) for (o,) in _blocks(played.final_observation)])
        logp, entropy, values, _ = (torch.cat(parts) for parts in zip(*flat, strict=True))
        return make_rollouts(
            group=group,
            task_id=task_id,
            mask=mask,
            old_logp=_spread(logp, mask),
            done=played.done,
            truncated=played.truncated,
            payload={
                "observation": played.observation,
                "action": played.action,
                "final_observation": played.final_observation,
            },
            version=starts.version,
            entropy=_spread(entropy, mask),
            values=_spread(values, mask),
            bootstrap=after.masked_fill(played.done, 0.0),
            rewards=TensorDict({"task": played.reward}, [len(mask)]),
            metadata=metadata,
        )

    def evaluation_options(self, options: ControlSampling) -> ControlSampling:
        """Whole episodes."""
        return options.model_copy(update={"horizon": None})

    def _chooser(self, seed: int, n: int, greedy: bool) -> Act:
        """How actions are chosen: from noise drawn for all rows, so it does not matter which are still playing."""
        network = self.network
        # Calling a module costs more than the arithmetic of a few rows.
        layers = [layer.forward for layer in (*network.body, network.actor)]
        std = None if network.log_std is None else network.log_std.exp()
        noise: tuple[Tensor, ...] = ()

        def choose(observation: Tensor, rows: np.ndarray, t: int) -> Tensor:
            nonlocal noise
            output = observation
            for layer in layers:
                output = layer(output)
            if greedy:
                return output if std is not None else output.argmax(dim=1)
            if t % NOISE_BLOCK == 0:
                generator = torch_generator(seed, "actions", t // NOISE_BLOCK)
                block = torch.empty(NOISE_BLOCK, n, output.shape[1])
                # argmax(logits + Gumbel noise) is a categorical draw; minus log of an exponential is Gumbel.
                noise = (
                    block.exponential_(generator=generator).log_().neg_()
                    if self.discrete
                    else block.normal_(generator=generator)
                ).unbind()
            drawn = noise[t % NOISE_BLOCK]
            drawn = drawn if len(rows) == n else drawn[torch.from_numpy(rows)]
            return (output + drawn).argmax(dim=1) if std is None else output + std * drawn

        return choose

    # Evaluation -------------------------------------------------------------------------------------------

    def evaluate(self, rollouts: Rollouts, *, logits: bool = False) -> Evaluation:
        """Log-probability, entropy and value of the actions in ``rollouts`` now; padding is never computed.

        ``logits`` (N,T,A) are given for discrete actions only.
        """
        mask = rollouts.mask
        full = bool(mask.all())
        observation, action = rollouts.payload["observation"], rollouts.payload["action"]
        observation, action = (x.flatten(0, 1) if full else x[mask] for x in (observation, action))
        logp, entropy, value, output = self._judge(observation, action)
        logp, entropy, value = (x.view_as(mask) if full else _spread(x, mask) for x in (logp, entropy, value))
        wanted = None
        if logits and self.discrete:
            wanted = output.new_zeros(*mask.shape, output.shape[1]).masked_scatter(mask.unsqueeze(2), output)
        return Evaluation(logp, entropy, value, wanted)

    def _judge(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Per observation (R,...) and action: log-probability, entropy and value (R,), and the actor's output (R,A)."""
        output, value = self.network(observation)
        log_std = self.network.log_std
        if log_std is None:
            logps = output.log_softmax(dim=1)
            logp = -F.nll_loss(logps, action, reduction="none")
            entropy = -(logps.exp() * logps).sum(dim=1)
        else:
            deviation = (action - output) * (-log_std).exp()
            constant = 0.5 * math.log(2 * math.pi)
            logp = (-0.5 * deviation**2 - log_std - constant).sum(dim=1)
            entropy = (log_std + constant + 0.5).sum().expand(len(output))
        return logp, entropy, value, output

    def flatten(self, rollouts: Rollouts) -> Rollouts:
        """Give every action a row of its own, (N,T) to (number of actions, 1), so that minibatches can split them.

        Legal because ``evaluate`` looks at no action but its own. To be called after credit: fields of a trajectory
        (N,) are handed to each of its actions, and ``bootstrap``, the final observation and what is not a tensor
        are left behind.
        """
        mask = rollouts.mask
        row = mask.nonzero()[:, 0]

        def split(x: Tensor) -> Tensor:
            return x[mask].unsqueeze(1) if x.shape[:2] == mask.shape else x[row]

        fields: dict[str, Any] = {}
        for name in Rollouts.__annotations__:
            value = getattr(rollouts, name)
            if isinstance(value, Tensor) and name != "bootstrap":
                fields[name] = split(value)
            elif isinstance(value, TensorDict):
                kept = {key: split(x) for key, x in value.to_dict().items() if key != "final_observation"}
                fields[name] = TensorDict(kept, [len(row)])
        return Rollouts(**fields, batch_size=[len(row)])  # pyright: ignore[reportCallIssue]


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Put one number per action (R,) where the policy acted: (N,T), 0 elsewhere."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def _blocks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Split tensors of R rows alike into blocks that fit in memory."""
    return list(zip(*(x.split(NETWORK_BLOCK) for x in tensors), strict=True))
