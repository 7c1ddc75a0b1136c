"""Environment steps per second of PPO on CartPole-v1, beside stable-baselines3 and beside what cannot be saved.

    python benchmarks/control_step.py [--json]

Both sides train with the settings below: the same networks and initialisation, optimiser, minibatches and number of
steps, on one thread each. Guerdon standardises advantages over the batch and stable-baselines3 over the minibatch; that
is each one's own way and costs about the same. A step's time holds all that a run does between two steps, which for
guerdon includes metrics, saved rollouts and checkpoints. Evaluation is outside, and the same for both: 100 held-out
episodes, sampled and greedy.

The floor has two parts: the same number of random actions in the same environments, in a bare loop; and the matrix
products and hyperbolic tangents that sampling and the gradient need, without automatic differentiation, loss or
optimiser.

Each side is a process of its own. They take turns of one batch (2,048 environment steps), so that drifts of the machine
meet all of them alike. Rates and ratios are of a seed's total time; the median over seeds is printed, with its range.
The ratio is also given in processor time, which says the same on an idle machine and can be trusted on a busy one.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

SEEDS = range(3)
STEPS, ENVIRONMENTS, HORIZON, EPOCHS, MINIBATCHES, EPISODES = 50, 8, 256, 10, 8, 100
BATCH = ENVIRONMENTS * HORIZON
LEARNING_RATE, GAMMA, LAMBDA, CLIP, VALUE, GRADIENT_NORM, EPS = 1e-3, 0.99, 0.95, 0.2, 0.5, 0.5, 1e-5
HIDDEN, OBSERVED, ACTIONS = 64, 4, 2
INSTALL = "stable-baselines3 is not installed, so guerdon stands alone; pip install 'guerdon[bench]'"


class Turns:
    """One side's end of the alternation."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._began: tuple[float, float] | None = None

    def next(self) -> None:
        """End a turn, tell what it took by the clock and of the processor, and wait until the next one may begin."""
        if self._began is not None:
            now = time.perf_counter(), time.process_time()
            self._connection.send((now[0] - self._began[0], now[1] - self._began[1]))
        self._connection.recv()
        self._began = time.perf_counter(), time.process_time()


def guerdon(turns: Turns, seed: int) -> dict[str, float]:
    """Train by a recipe; a turn is a training step."""
    from guerdon.monitor.progress import Progress
    from guerdon.training.loop import train

    class Stepwise(Progress):
        def start(self, total: int, description: str, *, done: int = 0) -> None:
            turns.next()

        def step(self, step: int, metrics: Any) -> None:
            turns.next()

    with tempfile.TemporaryDirectory() as folder:
        recipe = {
            "name": "control-step",
            "runs_dir": folder,
            "seed": seed,
            "task": {"name": "gymnasium", "env": "CartPole-v1"},
            "policy": {"name": "control", "hidden": [HIDDEN, HIDDEN], "activation": "tanh"},
            "sampling": {"prompts": ENVIRONMENTS, "group_size": 1, "horizon": HORIZON},
            "rewards": ["task"],
            "credit": {"name": "gae", "gamma": GAMMA, "lam": LAMBDA},
            "objective": {"name": "ppo_clip", "clip_low": CLIP, "clip_high": CLIP},
            "terms": [{"name": "value", "coef": 2 * VALUE}],  # of half the squared error
            "optimizer": {"lr": LEARNING_RATE, "grad_clip": GRADIENT_NORM, "eps": EPS, "schedule": "linear"},
            "training": {"steps": STEPS, "epochs": EPOCHS, "minibatches": MINIBATCHES, "minibatch_by": "action"},
            "evaluation": {"problems": EPISODES},
        }
        return train(recipe, progress=Stepwise(quiet=True)).eval["after"]


def sb3(turns: Turns, seed: int) -> dict[str, float]:
    """Train with stable-baselines3; a turn is a rollout and the update that follows."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Stepwise(BaseCallback):
        def _on_rollout_start(self) -> None:
            turns.next()

        def _on_step(self) -> bool:
            return True

        def _on_training_end(self) -> None:
            turns.next()

    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", ENVIRONMENTS, seed=seed, env_kwargs={"disable_env_checker": True}),
        learning_rate=lambda left: LEARNING_RATE * (left + 1 / STEPS),  # counts the batch that was just sampled
        n_steps=HORIZON,
        batch_size=BATCH // MINIBATCHES,
        n_epochs=EPOCHS,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_range=CLIP,
        ent_coef=0.0,
        vf_coef=VALUE,
        max_grad_norm=GRADIENT_NORM,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN], "optimizer_kwargs": {"eps": EPS}},
        seed=seed,
        device="cpu",
    )
    model.learn(STEPS * BATCH, callback=Stepwise())
    return {mode: _play(model.policy, mode == "greedy") for mode in ("sampled", "greedy")}


def _play(policy: Any, greedy: bool) -> float:
    """Mean return of a stable-baselines3 policy over the episodes on which guerdon evaluates."""
    import torch

    from guerdon.tasks.gymnasium import Gymnasium

    task = Gymnasium(env="CartPole-v1")
    seeds = [problem.start for problem in task.eval_problems(EPISODES)]
    with torch.no_grad():
        played = task.play_episodes(seeds, lambda seen, rows, t: policy._predict(seen, deterministic=greedy))
    return float(played.reward.sum() / EPISODES)


def environments(turns: Turns, seed: int) -> dict[str, float]:
    """Random actions; the mean return of their episodes."""
    import gymnasium as gym
    import numpy as np

    envs = [gym.make("CartPole-v1", disable_env_checker=True) for _ in range(ENVIRONMENTS)]
    for i, env in enumerate(envs):
        env.reset(seed=seed + i)
    ended = 0
    for _ in range(STEPS):
        turns.next()
        for actions in np.random.default_rng(seed).integers(ACTIONS, size=(HORIZON, ENVIRONMENTS)).tolist():
            for env, action in zip(envs, actions, strict=True):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    ended += 1
                    env.reset()
    turns.next()
    return {"sampled": STEPS * BATCH / max(ended, 1)}


def network(turns: Turns, seed: int) -> dict[str, float]:
    """The products and tangents of a training step: one row per environment to act, then every minibatch."""
    import torch

    torch.manual_seed(seed)
    nets = []
    for outputs in (ACTIONS, 1):
        sizes = (OBSERVED, HIDDEN, HIDDEN, outputs)
        nets.append([(torch.randn(m, n) / n**0.5, torch.zeros(m)) for n, m in itertools.pairwise(sizes)])
    few, many, all_ = (torch.randn(rows, OBSERVED) for rows in (ENVIRONMENTS, BATCH // MINIBATCHES, BATCH))
    for _ in range(STEPS):
        turns.next()
        for _ in range(HORIZON):
            _forward(nets[0], few)
        for net in nets:
            _forward(net, all_)
        for _ in range(EPOCHS * MINIBATCHES):
            for net in nets:
                _backward(net, _forward(net, many))
    turns.next()
    return {}


def _forward(net: list[Any], x: Any) -> list[Any]:
    """The layers' inputs, and the output."""
    import torch

    (first, a), (second, b), (last, c) = net
    h = torch.addmm(a, x, first.t()).tanh_()
    g = torch.addmm(b, h, second.t()).tanh_()
    return [x, h, g, torch.addmm(c, g, last.t())]


def _backward(net: list[Any], inputs: list[Any]) -> list[Any]:
    """The gradients of half the squared output."""
    import torch

    gradients, upstream = [], inputs[3]
    for layer in (2, 1, 0):
        gradients += [upstream.t() @ inputs[layer], upstream.sum(dim=0)]
        if layer:
            upstream = torch.ops.aten.tanh_backward(upstream @ net[layer][0], inputs[layer])
    return gradients


def run(side: Callable[[Turns, int], dict[str, float]], seed: int, connection: Connection) -> None:
    """What the process of a side does."""
    import torch

    torch.set_num_threads(1)
    connection.send(side(Turns(connection), seed))


class Measured(NamedTuple):
    """What a side took to train, in seconds by the clock and of the processor, and its final returns."""

    seconds: float
    processor: float
    returns: dict[str, float]


def measure(sides: list[Callable[..., Any]], seed: int) -> dict[str, Measured]:
    """Let the sides take turns until they have trained."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for side in sides:
        ours, theirs = context.Pipe()
        context.Process(target=run, args=(side, seed, theirs), daemon=True).start()
        theirs.close()  # so that the end of a process that failed is seen
        ends[side.__name__] = ours
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in ends}
    for _ in range(STEPS):
        for name, end in ends.items():
            end.send(None)
            turns[name].append(end.recv())
    measured = {}
    for name, end in ends.items():
        end.send(None)
        seconds, processor = (sum(x) for x in zip(*turns[name], strict=True))
        measured[name] = Measured(seconds, processor, end.recv())
    return measured


def main() -> None:
    """Measure and print."""
    sides = [guerdon, sb3, environments, network]
    if importlib.util.find_spec("stable_baselines3") is None:
        print(INSTALL, file=sys.stderr)
        sides.remove(sb3)
    seeds = [measure(sides, seed) for seed in SEEDS]
    rates = {side.__name__: [STEPS * BATCH / seed[side.__name__].seconds for seed in seeds] for side in sides}
    learners = [side.__name__ for side in sides[:-2]]
    returns = {
        name: {mode: [seed[name].returns[mode] for seed in seeds] for mode in ("sampled", "greedy")}
        for name in learners
    }
    floor = {name: statistics.median(rates[name]) for name in ("environments", "network")}
    floor["together"] = 1 / sum(1 / rate for rate in floor.values())
    result: dict[str, Any] = {name: statistics.median(rates[name]) for name in learners}
    ratios: dict[str, list[float]] = {}
    if "sb3" in rates:
        ratios["ratio"] = [seed["sb3"].seconds / seed["guerdon"].seconds for seed in seeds]
        ratios["processor_ratio"] = [seed["sb3"].processor / seed["guerdon"].processor for seed in seeds]
    result |= {name: statistics.median(values) for name, values in ratios.items()}
    result |= {"returns": returns, "floor": floor, "by_seed": rates | ratios}
    if "--json" in sys.argv:
        print(json.dumps(result))
        return
    print(f"CartPole-v1, {ENVIRONMENTS} environments, {STEPS * BATCH:,} steps, {len(SEEDS)} seeds, 1 thread")
    for name, rate in (floor | {name: result[name] for name in learners}).items():
        spread = f" ({min(rates[name]):,.0f} to {max(rates[name]):,.0f})" if name in rates else ""
        print(f"{name:13s} {rate:9,.0f} steps/s   {rate / floor['together']:6.2f} x floor{spread}")
    for name in learners:
        listed = {mode: ", ".join(f"{x:.1f}" for x in xs) for mode, xs in returns[name].items()}
        print(f"{name:13s} final return sampled {listed['sampled']}; greedy {listed['greedy']}")
    for name, values in ratios.items():
        print(f"{name:15s} guerdon / sb3 {result[name]:.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
