"""Supervised steps on the task's own answers, before RL."""

from __future__ import annotations

import torch

from guerdon.monitor.progress import Progress
from guerdon.policies.base import Policy
from guerdon.recipe import WarmStart
from guerdon.seeding import derive
from guerdon.tasks.base import Task
from guerdon.training.optim import Updates, scheduled


def warm_start(
    policy: Policy, task: Task, optimizer: Updates, settings: WarmStart, *, seed: int, progress: Progress
) -> float:
    """Imitate the answers of training problems; return the mean loss of the last tenth of the steps.

    The learning rate warms up linearly and falls as a cosine to a tenth of its peak. The optimiser's moments stay
    for RL unless ``carry_over`` is off: a cold second moment makes the first RL steps far too large.
    """
    last: list[float] = []
    progress.start(settings.steps, "warm start")
    for step in range(settings.steps):
        problems = task.train_batch(settings.batch, derive(seed, "warm start", step))
        torch.manual_seed(derive(seed, "warm start", step, "update"))
        loss = policy.supervised_loss(problems, derive(seed, "warm start", step, "loss"))
        loss.backward()
        lr = scheduled(settings.lr, step, settings.steps, warmup=settings.warmup, schedule="cosine", floor=0.1)
        optimizer.step(lr)
        if step >= settings.steps - max(1, settings.steps // 10):
            last.append(float(loss.detach()))
        progress.step(step, {"loss": float(loss.detach())})
    progress.stop()
    if not settings.carry_over:
        optimizer.forget()
    return sum(last) / len(last)
