"""Time of every group-level credit on a large batch, beside the cost of writing its result once.

    python benchmarks/credit.py [--json]

The floor is one memory-bound pass, ``where(mask, a.unsqueeze(1), 0)``: no credit that hands out (N,T) numbers can be
faster. (``oreal`` trains a token reward model on the way, here on 8 features per action.)
Rounds alternate between the methods, so that drifts of the machine meet all of them; medians are printed.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from guerdon import registry

TRAJECTORIES, ACTIONS, GROUP, ROUNDS = 8192, 1024, 16, 9
OPTIONS = {"dynamic_scale": {"coverage": None}}  # whose default names a reward of its own


def batch() -> dict[str, object]:
    """Every field that a credit may name."""
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(ACTIONS // 2, ACTIONS + 1, (TRAJECTORIES,), generator=generator)
    mask = torch.arange(ACTIONS) < length.unsqueeze(1)
    group = torch.arange(TRAJECTORIES) // GROUP
    dense = torch.rand(TRAJECTORIES, ACTIONS, generator=generator)
    return {
        "reward": torch.rand(TRAJECTORIES, generator=generator),
        "greedy_reward": torch.rand(TRAJECTORIES, generator=generator),
        "components": torch.rand(TRAJECTORIES, 2, generator=generator),
        "component_names": ("first", "second"),
        "component_weights": torch.ones(2),
        "group": group,
        "task_id": group,
        "length": length,
        "mask": mask,
        "turn": torch.where(mask, 0, -1),
        "dense": dense,
        "values": torch.rand(TRAJECTORIES, ACTIONS, generator=generator),
        "bootstrap": torch.zeros(TRAJECTORIES),
        "done": torch.ones(TRAJECTORIES, dtype=torch.bool),
        "old_logp": -dense,
        "advantage": torch.randn(TRAJECTORIES, ACTIONS, generator=generator),
        "features": torch.randn(TRAJECTORIES, ACTIONS, 8, generator=generator),
        "prompt_logp": -torch.rand(TRAJECTORIES, 64, generator=generator),
        "tokens": torch.randint(0, 64, (TRAJECTORIES, ACTIONS), generator=generator),
        "text": [f"answer {i % 5}" for i in range(TRAJECTORIES)],
        "metadata": [{} for _ in range(TRAJECTORIES)],
        "step": 0,
        "seed": 0,
    }


def main() -> None:
    """Measure and print."""
    fields = batch()
    reward, mask = fields["reward"], fields["mask"]
    assert isinstance(reward, torch.Tensor)
    assert isinstance(mask, torch.Tensor)
    calls: dict[str, Callable[[], object]] = {"floor": lambda: torch.where(mask, reward.unsqueeze(1), 0.0)}
    for method in registry.methods("credit"):
        calls[method.name] = functools.partial(method.bind(OPTIONS.get(method.name)), fields)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(ROUNDS + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if round_:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if "--json" in sys.argv:
        print(json.dumps({name: {"seconds": s, "ratio": s / medians["floor"]} for name, s in medians.items()}))
        return
    print(f"{TRAJECTORIES} x {ACTIONS} actions, groups of {GROUP}, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        print(f"{name:22s} {1e3 * median:8.1f} ms   {median / medians['floor']:6.2f} x floor")


if __name__ == "__main__":
    main()
