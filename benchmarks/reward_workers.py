"""Time to score 64 samples with a grader that takes 3 seconds, by the number of workers.

    python benchmarks/reward_workers.py [--workers 2 4 8 16] [--seconds 3] [--samples 64] [--json]

With K workers the floor is ceil(samples / K) times the grader's seconds. Workers are started by a batch of K samples
that is not timed; ``start`` is what it took beyond one call. The grader waits, as one that asks a service does: what
computes can't go faster than the machine has cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch

from guerdon.registry import describe
from guerdon.rewards.base import Calls, Reward, score
from guerdon.rollouts import Rollouts, make_rollouts


def grader(text: str, *, seconds: float = 3.0) -> float:
    """Length of the text, after a while."""
    import time

    time.sleep(seconds)
    return float(len(text))


def batch(n: int) -> Rollouts:
    """Trajectories with texts of different length."""
    whole = torch.ones(n, 1, dtype=torch.bool)
    rows = torch.arange(n)
    texts = ["x" * i for i in range(n)]
    ended = {"done": whole[:, 0], "truncated": ~whole[:, 0]}
    return make_rollouts(rows, rows, whole, torch.zeros(n, 1), **ended, payload={}, text=texts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    method = describe("reward", grader)
    found = {}
    for workers in arguments.workers:
        reward = Reward("grader", method, {"seconds": arguments.seconds}, calls=Calls(workers=workers))
        began = time.perf_counter()
        score(batch(workers), [reward])
        start = time.perf_counter() - began - arguments.seconds
        began = time.perf_counter()
        rollouts, faults = score(batch(arguments.samples), [reward])
        took = time.perf_counter() - began
        reward.close()
        assert not faults
        assert rollouts.rewards["grader"].tolist() == list(map(float, range(arguments.samples)))
        floor = math.ceil(arguments.samples / workers) * arguments.seconds
        found[workers] = {"seconds": took, "floor": floor, "start": start}
    if arguments.json:
        print(json.dumps(found))
        return
    in_turn = arguments.samples * arguments.seconds
    print(f"{arguments.samples} samples, {arguments.seconds:g} s each; one after the other {in_turn:g} s")
    for workers, row in found.items():
        print(
            f"{workers:3d} workers {row['seconds']:7.2f} s   floor {row['floor']:6.1f} s   start {row['start']:5.2f} s"
        )


if __name__ == "__main__":
    main()
