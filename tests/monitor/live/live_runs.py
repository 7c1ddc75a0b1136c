"""Runs to look at, and a server that shows them, for the tests of the live page."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from guerdon.monitor.live.server import Server
from guerdon.rewards.base import Fault
from guerdon.rollouts import Rollouts, make_rollouts
from guerdon.training.folder import RunFolder

HOSTILE = "</pre><script>window.hacked = 1</script>\"><img src=x onerror='window.hacked = 1'>&amp;\x07\x1b[31m"
GROUPS, MEMBERS = 5, 4


def recipe(task: str = "spell", steps: int = 40, credit: str = "grpo") -> str:
    return (
        f"name: demo\nseed: 0\ntask:\n  name: {task}\n  config:\n    name: inner\npolicy:\n  name: tiny_lm\n"
        f"credit:\n- name: {credit}\n  eps: 0.1\n- name: other\ntraining:\n  steps: {steps}\n"
    )


def rollouts_of(step: int, text: str | None = None) -> Rollouts:
    """Five groups of four, whose rewards differ the more the later the group."""
    n = GROUPS * MEMBERS
    group = torch.arange(GROUPS).repeat_interleave(MEMBERS)
    rollouts = make_rollouts(
        group,
        group + 100,
        torch.ones(n, 3).bool(),
        torch.zeros(n, 3),
        done=torch.ones(n).bool(),
        truncated=torch.zeros(n).bool(),
        payload={},
        prompt=[text or f"question {int(g)}" for g in group],
        text=[text or f"answer {row} of step {step}" for row in range(n)],
        answer=[text or "right"] * n,
        entropy=torch.ones(n, 3),
    )
    rollouts.rewards["task"] = torch.arange(n) % MEMBERS * (group + 1) / 20
    rollouts.reward = rollouts.rewards["task"] + step / 100
    rollouts.advantage = (rollouts.reward - 0.3).unsqueeze(1).expand(n, 3).clone()
    return rollouts


def log_steps(folder: RunFolder, first: int, count: int, *, saved: bool = True, text: str | None = None) -> None:
    """Let a run make some steps, and save the rollouts of the last of them."""
    for step in range(first, first + count):
        rollouts = rollouts_of(step, text)
        reward = rollouts.reward
        metrics = {"reward/mean": reward.mean(), "reward/std": reward.std(), "reward/max": reward.max()}
        metrics |= {"groups/zero_variance": 0.2 + 0.01 * step, "length/mean": 3.0, "entropy/mean": 2 / (step + 1)}
        metrics |= {"update/loss": 1 / (step + 1), "update/grad_norm": 1.0 + step % 3, "trajectories": len(reward)}
        folder.log(step, metrics | ({"eval/greedy": step / 100} if step % 5 == 0 else {}))
    folder.flush()
    if saved:
        folder.write_rollouts(first + count - 1, rollouts_of(first + count - 1, text))


def write_run(
    path: Path, *, steps: int = 6, end: str | None = "finished", text: str | None = None, **facts
) -> RunFolder:
    """A run as it lies on disk; ``end`` of None leaves it going on."""
    folder = RunFolder.create(path, recipe(**facts) + (f"note: {text!r}\n" if text else ""))
    if steps:
        log_steps(folder, 0, steps, text=text)
    if end:
        folder.write_summary(
            {
                **{"run": str(path), "kind": "language", "steps": steps, "seconds": 12.5, "status": end, "alarms": []},
                **{"eval": {"before": {"greedy": 0.1}, "after": {"greedy": 0.7}}, "weights_sha256": "ab" * 32},
            }
        )
    return folder


def raise_alarm(folder: RunFolder, step: int, severity: str = "warning", message: str = "something is odd") -> None:
    folder.add_alarm({"step": step, "code": "odd", "severity": severity, "message": message, "evidence": {}})


def add_fault(folder: RunFolder, step: int, message: str, text: str | None = None) -> None:
    folder.add_faults(step, [Fault("task", 0, "exception", message)], rollouts_of(step, text))


@contextmanager
def served(runs: Path, **options):
    """A real server in a thread, at a port that is free."""
    server = Server(runs, **({"port": 0} | options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def until(condition, seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
