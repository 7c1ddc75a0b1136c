"""Early warnings from the numbers of each batch: named codes, raised once per episode, with evidence and remedies."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.credit.grouping import grouped
from guerdon.rollouts import Rollouts, total
from guerdon.tasks.base import Kind

Severity = Literal["info", "warning", "critical"]

# Steps that a share or a mean is taken over: long enough to outlast an unlucky batch.
WINDOW = 10
# A component that is constant for fewer steps than this may still be waiting for its first success.
CONSTANT_WINDOW = 20
# After this many steps and trajectories without any difference in reward the success rate is below 3 % (95 %
# confidence, rule of three), and waiting costs more than looking.
NO_SIGNAL_STEPS = 5
NO_SIGNAL_TRAJECTORIES = 100
# Nine groups of ten without a difference waste nine tenths of the sampling. Below the release it is over.
ZERO_VARIANCE_SHARE, ZERO_VARIANCE_RELEASE = 0.9, 0.75
# A tied group counts as failed or solved within this share of the reward's range from its end: scorers often give
# 0.01 for a wrong answer in the right format.
EDGE = 0.1
# A verifier that fails on one sample of twenty biases what is learned; on every second one it is broken.
FAULT_SHARE, FAULT_SHARE_CRITICAL = 0.05, 0.5
# Entropy at a tenth of its start leaves hardly anything to explore; where the reward is near its top it has converged.
ENTROPY_SHARE, ENTROPY_RELEASE = 0.1, 0.2
ENTROPY_START_STEPS = 5
ENTROPY_START_MINIMUM = 0.01  # nats; a policy that starts deterministic has nothing to lose
CONVERGED = 0.9
# Nats per action. PPO aims at 0.01 to 0.02 per update; tenfold is a broken trust region. One nat from the
# reference means that actions are, on average, e times as likely as they were.
KL_WINDOW = 3
UPDATE_KL, REFERENCE_KL = 0.1, 1.0
KL_RELEASE = 0.5
# Beyond one half, most trajectories are scored for what the limit let them say.
TRUNCATED_SHARE, TRUNCATED_RELEASE = 0.5, 0.4

_RANK = {"info": 1, "warning": 2, "critical": 3}


@dataclass(frozen=True)
class Alarm:
    """Something that keeps a run from learning.

    Attributes:
        code: stable name of the pathology.
        severity: ``info`` (good to know), ``warning`` (compute is wasted), ``critical`` (nothing is learned).
        message: what was seen and what to do.
        step: when it was raised.
        evidence: the numbers behind it.
    """

    code: str
    severity: Severity
    message: str
    step: int
    evidence: dict[str, float | str] = field(default_factory=dict)


def batch_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Numbers of one batch, after shaping and credit: rewards, groups, lengths, entropy, credit.

    ``reward/mean|std|min|max`` of the shaped reward; ``reward/NAME/mean|std`` and ``watch/NAME/mean`` of components,
    over the samples to which they apply; ``groups/zero_variance`` (share of groups of two or more without a
    difference in reward), ``groups/all_min`` and ``groups/all_max`` (those of them at an end of the reward's range,
    which is taken to span [0, 1] and whatever the batch holds); ``length/mean|max`` in actions; ``truncated``;
    ``entropy/mean`` in nats per action; ``advantage/abs_mean`` per action, ``advantage/off_mask`` (largest credit where
    the policy did not act, 0 if all is well); ``trajectories`` and ``actions``.
    """
    mask, out = rollouts.mask, {}
    length = mask.sum(dim=1).float()
    reward = rollouts.reward
    if reward is None and len(rollouts.rewards.keys()):
        reward = torch.stack([total(c, mask) for c in rollouts.rewards.values()]).nansum(dim=0)
    if reward is not None:
        out |= _moments("reward", reward, ("mean", "std", "min", "max")) | _groups(reward.float(), rollouts.group)
    for name, component in rollouts.rewards.items():
        out |= _moments(f"reward/{name}", total(component, mask), ("mean", "std"))
    for name, component in rollouts.watch.items():
        out |= _moments(f"watch/{name}", total(component, mask), ("mean",))
    out |= {"length/mean": length.mean(), "length/max": length.max(), "truncated": rollouts.truncated.float().mean()}
    if rollouts.entropy is not None:
        out["entropy/mean"] = rollouts.entropy[mask].mean()
    if rollouts.advantage is not None:
        out["advantage/abs_mean"] = rollouts.advantage[mask].abs().mean()
        out["advantage/off_mask"] = rollouts.advantage.masked_fill(mask, 0.0).abs().max()
    out |= {"trajectories": length.new_tensor(len(mask)), "actions": length.sum()}
    values = torch.stack([x.detach().double().cpu() for x in out.values()]).tolist()
    return dict(zip(out, values, strict=True))


def _moments(name: str, x: Tensor, which: tuple[str, ...]) -> dict[str, Tensor]:
    """Moments of the finite entries of ``x``; the std of equal values is exactly 0."""
    x = x[x.isfinite()].double()
    if not x.numel():
        return {}
    tied = x.min() == x.max()
    moments = {
        "mean": torch.where(tied, x.min(), x.mean()),
        "std": torch.where(tied, 0.0, x.std(correction=0)),
        "min": x.min(),
        "max": x.max(),
    }
    return {f"{name}/{key}": moments[key] for key in which}


def _groups(reward: Tensor, group: Tensor) -> dict[str, Tensor]:
    """Shares of groups without a difference in reward; empty if no group has two members."""
    stats = grouped(reward, group, reward.isfinite())
    size = stats.count()
    share = torch.where(size > 1, 1 / size.clamp(min=1), 0.0)
    if not share.any():
        return {}
    tied = stats.tied()
    finite = reward[stats.valid]
    low, high = finite.min().clamp(max=0.0), finite.max().clamp(min=1.0)
    place = (reward - low) / (high - low)
    kinds = {"zero_variance": tied, "all_min": tied & (place <= EDGE), "all_max": tied & (place >= 1 - EDGE)}
    return {f"groups/{name}": share[kind].sum() / share.sum() for name, kind in kinds.items()}


@dataclass(frozen=True)
class _Finding:
    severity: Severity
    message: str
    evidence: dict[str, float | str]


class Alarms:
    """Watches the metrics of every step and raises each alarm once per episode.

    An alarm that was raised is raised again only after its condition has been over for good (its release threshold
    lies below the one that raised it), or when it becomes more severe. Its memory is in the checkpoint.

    Args:
        kind: of policy; only a language policy is better off when it is not cut.
    """

    def __init__(self, kind: Kind = "language") -> None:
        self.kind = kind
        self._recent: dict[str, deque[float]] = {}
        self._active: dict[str, int] = {}
        self._varied: set[str] = set()
        self._entropy_start: list[float] = []
        self._steps = 0
        self._trajectories = 0.0
        self._range: list[float] = []

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Take in the metrics of a step (those of ``batch_metrics`` and of the loop); return the alarms it raises."""
        self._remember(metrics)
        found: dict[str, _Finding | None] = {
            "not-finite": self._not_finite(metrics),
            "no-signal": self._no_signal(),
            "reward-faults": self._reward_faults(),
            "entropy-collapse": self._entropy_collapse(),
            "truncation": self._truncation(),
        }
        found["zero-variance-groups"] = None if found["no-signal"] else self._zero_variance()
        for name in self._recent:
            if name.rpartition("/")[2] in ("kl", "approx_kl"):
                found[f"kl-blowup:{name}"] = self._kl_blowup(name)
        spreads = [name for name in self._recent if name.startswith("reward/") and name.endswith("/std")]
        components = [name.removesuffix("/std") for name in spreads if name.count("/") == 2]
        if len(components) > 1:
            found |= {f"constant-component:{c}": self._constant(c) for c in components}
        raised = []
        for key, finding in found.items():
            if finding is None:
                self._active.pop(key, None)
            elif _RANK[finding.severity] > self._active.get(key, 0):
                self._active[key] = _RANK[finding.severity]
                code = key.partition(":")[0]
                raised.append(Alarm(code, finding.severity, finding.message, step, finding.evidence))
        return raised

    def state_dict(self) -> dict[str, Any]:
        """What has been seen and raised; JSON-serialisable."""
        return {
            "recent": {name: list(values) for name, values in self._recent.items()},
            "active": dict(self._active),
            "varied": sorted(self._varied),
            "entropy_start": list(self._entropy_start),
            "steps": self._steps,
            "trajectories": self._trajectories,
            "range": list(self._range),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self._recent = {name: deque(values, CONSTANT_WINDOW) for name, values in state["recent"].items()}
        self._active = dict(state["active"])
        self._varied = set(state["varied"])
        self._entropy_start = list(state["entropy_start"])
        self._steps, self._trajectories = state["steps"], state["trajectories"]
        self._range = list(state["range"])

    # Memory -----------------------------------------------------------------------------------------------

    def _remember(self, metrics: Mapping[str, float]) -> None:
        self._steps += 1
        self._trajectories += metrics.get("trajectories", 0.0)
        seen = [metrics[key] for key in ("reward/min", "reward/max") if key in metrics]
        if seen:
            self._range = [min(seen + self._range[:1]), max(seen + self._range[1:])]
        for name, value in metrics.items():
            if _watched(name) and math.isfinite(value):
                self._recent.setdefault(name, deque(maxlen=CONSTANT_WINDOW)).append(float(value))
                if name.endswith("/std") and value > 0:
                    self._varied.add(name.removesuffix("/std"))
        if "entropy/mean" in metrics and len(self._entropy_start) < ENTROPY_START_STEPS:
            self._entropy_start.append(float(metrics["entropy/mean"]))

    def _mean(self, name: str, window: int = WINDOW) -> float | None:
        """Mean over the last ``window`` steps, None before there are as many."""
        values = self._recent.get(name, ())
        return sum(list(values)[-window:]) / window if len(values) >= window else None

    # Detectors: what is wrong now, or None ----------------------------------------------------------------

    def _not_finite(self, metrics: Mapping[str, float]) -> _Finding | None:
        names = ("update/loss", "update/grad_norm", "reward/mean", "entropy/mean")
        bad = {name: str(metrics[name]) for name in names if not math.isfinite(metrics.get(name, 0.0))}
        if not bad:
            return None
        seen = ", ".join(f"{name} is {value}" for name, value in bad.items())
        message = (
            f"{seen}: the weights are no longer trained; lower optimizer.lr, clip gradients (optimizer.grad_clip), "
            "and continue from the last checkpoint before this step"
        )
        return _Finding("critical", message, dict(bad))

    def _no_signal(self) -> _Finding | None:
        if self._steps < NO_SIGNAL_STEPS or self._trajectories < NO_SIGNAL_TRAJECTORIES or not self._range:
            return None
        low, high = self._range
        if high > low:
            return None
        n = int(self._trajectories)
        evidence: dict[str, float | str] = {"reward": low, "trajectories": n, "steps": self._steps}
        if low >= 1 - EDGE:
            message = (
                f"nothing can be learned: all {n} trajectories of the first {self._steps} steps earned the same reward "
                f"{low:g}, so the task is already solved; use harder problems, or a reward that tells good from better"
            )
        else:
            message = (
                f"nothing can be learned: in the first {self._steps} steps no trajectory of {n} earned a reward above "
                f"the minimum {low:g} (the success rate is below {3 / n:.1%} with 95% confidence); check the reward "
                "on an answer known to be right, use easier problems, warm-start the policy (warm_start), sample more "
                "per start (sampling.group_size), or add a reward with partial credit"
            )
        return _Finding("critical", message, evidence)

    def _zero_variance(self) -> _Finding | None:
        limit = ZERO_VARIANCE_RELEASE if "zero-variance-groups" in self._active else ZERO_VARIANCE_SHARE
        share = self._mean("groups/zero_variance")
        if share is None or share <= limit:
            return None
        failed, solved = self._mean("groups/all_min") or 0.0, self._mean("groups/all_max") or 0.0
        seen = f"{share:.0%} of the groups of the last {WINDOW} steps have equal rewards and teach nothing"
        evidence: dict[str, float | str] = {"share": share, "all_min": failed, "all_max": solved}
        if solved >= share / 2:
            evidence["cause"] = "saturated"
            return _Finding("info", f"{seen}, most because all succeed: stop here or use harder problems", evidence)
        if failed >= share / 2:
            evidence["cause"] = "unsolvable"
            remedy = (
                "most because all fail: use easier problems, a longer warm start, larger groups (sampling.group_size), "
                "or a reward with partial credit"
            )
            return _Finding("warning", f"{seen}, {remedy}", evidence)
        evidence["cause"] = "alike"
        remedy = (
            "and lie between failure and success: raise sampling.temperature, or use a reward that tells "
            "trajectories apart"
        )
        return _Finding("warning", f"{seen}, {remedy}", evidence)

    def _reward_faults(self) -> _Finding | None:
        faults = sum(list(self._recent.get("faults", ()))[-WINDOW:])
        if not faults:
            return None
        scored = sum(list(self._recent.get("trajectories", ()))[-WINDOW:])
        share = faults / (faults + scored)
        severity: Severity = "info"
        if share >= FAULT_SHARE:
            severity = "critical" if share >= FAULT_SHARE_CRITICAL else "warning"
        message = (
            f"failed reward calls in the last {WINDOW} steps: {int(faults)} ({share:.2%} of the samples); the errors "
            "are in faults.jsonl; fix the reward, or choose what such samples count (on_fault)"
        )
        return _Finding(severity, message, {"faults": faults, "share": share})

    def _entropy_collapse(self) -> _Finding | None:
        now = self._mean("entropy/mean")
        if now is None or len(self._entropy_start) < ENTROPY_START_STEPS:
            return None
        start = sum(self._entropy_start) / len(self._entropy_start)
        limit = ENTROPY_RELEASE if "entropy-collapse" in self._active else ENTROPY_SHARE
        if start < ENTROPY_START_MINIMUM or now >= limit * start or self._converged():
            return None
        message = (
            f"entropy fell from {start:.3g} to {now:.3g} nats per action while the reward is not near its top, so "
            "there is hardly anything left to explore; raise clip_high of the objective, add an entropy term, lower "
            "optimizer.lr, or raise sampling.temperature"
        )
        return _Finding("warning", message, {"start": start, "now": now})

    def _converged(self) -> bool:
        reward = self._mean("reward/mean")
        if reward is None or not self._range or self._range[1] <= self._range[0]:
            return False
        low, high = self._range
        return (reward - low) / (high - low) >= CONVERGED

    def _kl_blowup(self, name: str) -> _Finding | None:
        value = self._mean(name, KL_WINDOW)
        of_update = name.endswith("approx_kl")
        limit = UPDATE_KL if of_update else REFERENCE_KL
        if value is None or value <= limit * (KL_RELEASE if f"kl-blowup:{name}" in self._active else 1.0):
            return None
        if of_update:
            what = "each update moves the policy too far from the one that sampled"
            remedy = "lower optimizer.lr, training.epochs or training.minibatches"
        else:
            what = "the policy has left its reference far behind"
            remedy = "raise beta of the term 'kl', lower optimizer.lr, or check watch-only rewards for reward hacking"
        message = f"{what}: {name} is {value:.3g} nats per action, above {limit:g}; {remedy}"
        return _Finding("warning", message, {"metric": name, "kl": value, "limit": limit})

    def _truncation(self) -> _Finding | None:
        limit = TRUNCATED_RELEASE if "truncation" in self._active else TRUNCATED_SHARE
        share = self._mean("truncated")
        if self.kind != "language" or share is None or share <= limit:
            return None
        message = (
            f"{share:.0%} of the trajectories of the last {WINDOW} steps were cut at the length limit; raise "
            "sampling.max_new_tokens (task.max_turns where turns are cut), or reward finishing"
        )
        return _Finding("warning", message, {"share": share})

    def _constant(self, component: str) -> _Finding | None:
        spread, means = self._recent[f"{component}/std"], self._recent.get(f"{component}/mean", deque())
        if len(spread) < CONSTANT_WINDOW or any(spread) or len(set(means)) > 1:
            return None
        name, value = component.removeprefix("reward/"), means[-1]
        evidence: dict[str, float | str] = {"component": name, "value": value}
        seen = f"component '{name}' is {value:g} for every trajectory of the last {CONSTANT_WINDOW} steps"
        if component in self._varied:
            return _Finding("info", f"{seen}: it has nothing more to teach", evidence)
        message = f"{seen} and never differed: check its function, or remove it from 'rewards'"
        return _Finding("warning", message, evidence)


def _watched(name: str) -> bool:
    """Whether a metric is kept for the detectors."""
    if name.startswith("reward/"):
        return name == "reward/mean" or name.count("/") == 2
    return (
        name in ("faults", "trajectories", "truncated", "entropy/mean")
        or name.startswith("groups/")
        or (name.startswith("update/") and name.rpartition("/")[2] in ("kl", "approx_kl"))
    )
