"""A hand in a plane that has to fetch something and bring it elsewhere, for many seeds at once.

Each step takes three action tokens: two for the move and one for the gripper. Policies are small networks, one per
seed, computed side by side; environments are reset where their episode ends and go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from guerdon.control.vla import ActionBins
from guerdon.seeding import torch_generator

TOKENS, FEATURES, NEAR = 3, 8, 0.16
BINS = ActionBins(low=torch.tensor([-0.25, -0.25, -1.0]), high=torch.tensor([0.25, 0.25, 1.0]), bins=5)


class Scene(NamedTuple):
    """State of B hands: places (B,2), whether the gripper is closed and holds the thing, and the steps so far (B,)."""

    hand: Tensor
    thing: Tensor
    goal: Tensor
    closed: Tensor
    held: Tensor
    age: Tensor

    def features(self) -> Tensor:
        """(B,8) what is seen."""
        flags = torch.stack([self.closed, self.held], dim=-1).to(self.hand) * 2 - 1
        return torch.cat([self.hand, 2 * (self.thing - self.hand), 2 * (self.goal - self.hand), flags], dim=-1)


def begin(chance: Tensor) -> Scene:
    """A scene from uniform numbers (B,6): everything lies somewhere in the square from -1 to 1."""
    place = 2 * chance - 1
    no = torch.zeros_like(chance[:, 0], dtype=torch.bool)
    return Scene(place[:, :2], 0.8 * place[:, 2:4], 0.8 * place[:, 4:], no, no, torch.zeros_like(no, dtype=torch.int64))


def step(scene: Scene, action: Tensor) -> tuple[Scene, Tensor]:
    """Move and grip by actions (B,3); the last opens (< 0) or closes. Success (B,): the thing is let go at the goal."""
    hand = (scene.hand + action[:, :2]).clamp(-1, 1)
    closes = torch.where(action[:, 2].abs() < 0.1, scene.closed, action[:, 2] > 0)
    grips = closes & ~scene.closed & ((hand - scene.thing).norm(dim=1) < NEAR)
    held = (scene.held & closes) | grips
    thing = torch.where((held | scene.held).unsqueeze(1), hand, scene.thing)
    success = scene.held & ~closes & ((thing - scene.goal).norm(dim=1) < NEAR)
    return Scene(hand, thing, scene.goal, closes, held, scene.age + 1), success


def expert(scene: Scene) -> Tensor:
    """(B,3) the action that leads on: to the thing, close, to the goal, open."""
    target = torch.where(scene.held.unsqueeze(1), scene.goal, scene.thing)
    away = target - scene.hand
    move = torch.nn.functional.pad(away, (0, 1))
    move = BINS.decode(BINS.encode(move)).action[:, :2]
    near = (away - move).norm(dim=1) < 0.7 * NEAR
    grip = torch.where(scene.held, torch.where(near, -1.0, 1.0), torch.where(near & ~scene.closed, 1.0, -1.0))
    return torch.cat([move, grip.unsqueeze(1)], dim=1)


class Networks:
    """One network of two hidden layers per seed: features (S,B,D) to (S,B,outputs).

    Args:
        seeds: numbers of the seeds, which the first weights come from.
        outputs: width of the last layer.
        hidden: width of the hidden layers.
        name: sets networks of the same seed apart.
        gain: of the last layer.
    """

    def __init__(self, seeds: Sequence[int], outputs: int, hidden: int, name: str, gain: float = 1.0) -> None:
        sizes = [FEATURES, hidden, hidden, outputs]
        self.parameters: list[Tensor] = []
        generators = [torch_generator(seed, "network", name) for seed in seeds]
        for layer, (i, o) in enumerate(pairwise(sizes)):
            scale = (gain if layer == 2 else 1.0) * i**-0.5
            weight = torch.stack([torch.randn(i, o, generator=g) * scale for g in generators])
            self.parameters += [weight.requires_grad_(True), torch.zeros(len(seeds), 1, o, requires_grad=True)]

    def __call__(self, x: Tensor) -> Tensor:
        """Features (S,B,D) to (S,B,outputs)."""
        w = self.parameters
        x = torch.tanh(torch.baddbmm(w[1], x, w[0]))
        x = torch.tanh(torch.baddbmm(w[3], x, w[2]))
        return torch.baddbmm(w[5], x, w[4])

    def copy(self) -> Networks:
        """Networks with the same weights."""
        twin = object.__new__(Networks)
        twin.parameters = [p.detach().clone().requires_grad_(True) for p in self.parameters]
        return twin


def token_logits(policy: Networks, features: Tensor) -> Tensor:
    """(S,B,K,bins) logits of the tokens of each dimension."""
    return policy(features).unflatten(-1, (TOKENS, BINS.bins))


@dataclass(frozen=True)
class Demonstrations:
    """Scripted episodes of one seed.

    Attributes:
        features: (N,T,8) what was seen before each step, and after the last.
        token: (N,T,3).
        exists: (N,T) frames there are; the last of an episode has no action.
        closed: (N,T).
        speed: (N,T) length of the move that led to the frame; the first frame is not at rest.
    """

    features: Tensor
    token: Tensor
    exists: Tensor
    closed: Tensor
    speed: Tensor


def demonstrate(seed: int, episodes: int, limit: int) -> Demonstrations:
    """Episodes of the script until success; those that are cut end as they are."""
    scene = begin(torch.rand(episodes, 6, generator=torch_generator(seed, "demonstrations")))
    alive = torch.ones(episodes, dtype=torch.bool)
    columns: list[tuple[Tensor, ...]] = []
    speed = torch.ones(episodes)
    for _ in range(limit):
        token = BINS.encode(expert(scene))
        columns.append((scene.features(), token, alive, scene.closed, speed))
        after, success = step(scene, BINS.decode(token).action)
        speed = (after.hand - scene.hand).norm(dim=1)
        scene, alive = after, alive & ~success
        if not alive.any():
            break
    columns.append((scene.features(), torch.zeros_like(columns[0][1]), torch.zeros_like(alive), scene.closed, speed))
    features, token, exists, closed, speeds = (torch.stack(c, dim=1) for c in zip(*columns, strict=True))
    # The frame after the last action is seen too.
    seen = exists | torch.cat([torch.ones_like(exists[:, :1]), exists[:, :-1]], dim=1)
    return Demonstrations(features, token, seen, closed, speeds)


class Stream(NamedTuple):
    """What S * E environments did in H steps, auto-reset included; (R,H,...) with R = S * E.

    ``features`` before each step, ``following`` after it and before any reset, ``ended`` where an episode is over,
    ``success`` where it was for that reason.
    """

    features: Tensor
    following: Tensor
    token: Tensor
    logp: Tensor
    success: Tensor
    ended: Tensor


class Hands:
    """E environments per seed that stay open between rollouts.

    Args:
        seeds: numbers of the seeds.
        environments: E.
        limit: most steps of an episode.
        name: sets draws of the same seed apart.
    """

    def __init__(self, seeds: Sequence[int], environments: int, limit: int, name: str) -> None:
        self.seeds, self.environments, self.limit = seeds, environments, limit
        self.generators = [torch_generator(seed, "hands", name) for seed in seeds]
        self.scene = begin(self._draw(6))

    def _draw(self, *shape: int) -> Tensor:
        return torch.cat([torch.rand(self.environments, *shape, generator=g) for g in self.generators])

    @torch.no_grad()
    def play(self, policy: Networks, horizon: int) -> Stream:
        """Take ``horizon`` steps in each environment."""
        chance, resets = self._draw(horizon, TOKENS), self._draw(horizon, 6)
        columns: list[tuple[Tensor, ...]] = []
        for t in range(horizon):
            seen = self.scene.features()
            logps = token_logits(policy, seen.view(len(self.seeds), -1, FEATURES)).log_softmax(dim=-1).flatten(0, 1)
            token = (chance[:, t].unsqueeze(-1) > logps.exp().cumsum(dim=-1)[..., :-1]).sum(dim=-1)
            logp = logps.gather(2, token.unsqueeze(2)).squeeze(2)
            after, success = step(self.scene, BINS.decode(token).action)
            ended = success | (after.age >= self.limit)
            columns.append((seen, after.features(), token, logp, success, ended))
            fresh = begin(resets[:, t])
            self.scene = Scene(*(_where(ended, new, old) for new, old in zip(fresh, after, strict=True)))
        return Stream(*(torch.stack(column, dim=1) for column in zip(*columns, strict=True)))


def success_rate(policy: Networks, seeds: Sequence[int], episodes: int, limit: int) -> Tensor:
    """(S,) share of fresh episodes that succeed, the same ones at each call."""
    hands = Hands(seeds, episodes, limit, "measure")
    stream = hands.play(policy, limit)
    first = ~(torch.cat([torch.zeros_like(stream.ended[:, :1]), stream.ended[:, :-1]], dim=1).cummax(dim=1).values)
    return (stream.success & first).any(dim=1).float().view(len(seeds), -1).mean(dim=1)


def _where(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(condition.view(-1, *[1] * (new.ndim - 1)), new, old)


class Cut(NamedTuple):
    """Where each step of a stream stands among trajectories that end where their episode does.

    Attributes:
        row, position: (R * H,) trajectory of each step and its place in it.
        last: (N,) step with which each trajectory ends, counted through the flattened stream.
        shape: N and the most steps of a trajectory.
    """

    row: Tensor
    position: Tensor
    last: Tensor
    shape: tuple[int, int]

    def pad(self, x: Tensor) -> Tensor:
        """(R,H,...) of steps to (N,M,...) of trajectories, 0 where there is none."""
        flat = x.flatten(0, 1)
        return flat.new_zeros(*self.shape, *flat.shape[1:]).index_put((self.row, self.position), flat)


def cut(ended: Tensor) -> Cut:
    """Trajectories of a stream, from where its episodes ended (R,H)."""
    final = ended.clone()
    final[:, -1] = True
    last = final.flatten().nonzero().flatten()
    flat = final.flatten().long()
    row = flat.cumsum(dim=0) - flat
    begins = torch.cat([last.new_zeros(1), last[:-1] + 1])
    position = torch.arange(len(row)) - begins[row]
    return Cut(row, position, last, (len(last), int(position.max()) + 1))
