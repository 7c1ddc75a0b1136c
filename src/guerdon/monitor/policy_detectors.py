"""What is wrong with what the policy writes and with how it is updated."""

from __future__ import annotations

import math
from collections.abc import Mapping

from guerdon.monitor.finding import Finding, Found, limit
from guerdon.monitor.history import History

# Entropy at a tenth of its start leaves hardly anything to explore; where the reward is near its top it has converged.
ENTROPY_SHARE, ENTROPY_RELEASE = 0.1, 0.2
ENTROPY_START_MINIMUM = 0.01  # nats; a policy that starts deterministic has nothing to lose
CONVERGED = 0.9
# Nats per action. PPO aims at 0.01 to 0.02 per update; tenfold is a broken trust region. One nat from the
# reference means that actions are, on average, e times as likely as they were.
KL_WINDOW = 3
UPDATE_KL, REFERENCE_KL = 0.1, 1.0
KL_RELEASE = 0.5
# Beyond one half, most trajectories are scored for what the limit let them say.
TRUNCATED_SHARE, TRUNCATED_RELEASE = 0.5, 0.4
# Of two answers that are equally often right, the commonest reaches one half, and 0.6 or 0.7 where one is right more
# often. At four fifths the question hardly matters any more.
CONCENTRATION, CONCENTRATION_RELEASE = 0.8, 0.7
# An answer that nineteen problems of twenty are given is constant, however much it earns.
CONSTANT_ANSWER = 0.95
# Lengths vary by tens of percent in training; a third, or twice, of the start is another behaviour.
LENGTH_COLLAPSE, LENGTH_EXPLOSION = 1 / 3, 2.0
# Two actions are an end and at most one word.
NEARLY_EMPTY = 2.0
# Correlation of credit with length within groups; at 0.5 length alone explains a quarter of the credit.
LENGTH_PAID = 0.5
# A tenth of its range that a reward has lost, and four standard errors, so that it is no luck.
FALLEN, ERRORS = 0.1, 4.0
# The mean ratio of now to then is 1 for actions that the old policy drew, whatever the update does.
RATIO_BIAS, RATIO_RELEASE = 0.1, 0.05
# PPO is usually tuned to cut 10 to 20 % of the actions, GSPO cuts 15 %. Beyond 30 % much of the batch teaches nothing.
CLIPPED, CLIPPED_RELEASE = 0.3, 0.2
# Asynchronous trainers report no loss up to about four updates of delay without corrections made for it.
STALE, STALE_RELEASE = 4.0, 3.0
# Credit off the mask beyond rounding, beside the mean size of an action's credit.
LEAK = 1e-5


def not_finite(history: History, now: Mapping[str, float]) -> Found:
    """Loss, gradient, reward or entropy is no number."""
    names = ("update/loss", "update/grad_norm", "reward/mean", "entropy/mean")
    bad: dict[str, float | str] = {n: str(now[n]) for n in names if not math.isfinite(now.get(n, 0.0))}
    if not bad:
        return {}
    seen = ", ".join(f"{name} is {value}" for name, value in bad.items()) + ": the weights are no longer trained"
    change = (
        "lower optimizer.lr, clip gradients (optimizer.grad_clip), and continue from the last checkpoint before this "
        "step"
    )
    return {"": Finding("critical", seen, change, bad)}


def entropy_collapse(history: History, now: Mapping[str, float]) -> Found:
    """Entropy is a small part of what it was, and the reward is not at its top."""
    mean, start = history.mean("entropy/mean"), history.start("entropy/mean")
    if mean is None or start is None or start < ENTROPY_START_MINIMUM:
        return {}
    if mean >= start * limit(history, "entropy-collapse", ENTROPY_SHARE, ENTROPY_RELEASE) or converged(history):
        return {}
    seen = (
        f"entropy fell from {start:.3g} to {mean:.3g} nats per action while the reward is not near its top, so there "
        "is hardly anything left to explore"
    )
    change = "raise clip_high of the objective, add an entropy term, lower optimizer.lr, or raise sampling.temperature"
    return {"": Finding("warning", seen, change, {"start": start, "now": mean})}


def converged(history: History) -> bool:
    """Whether the reward is near the top of what was seen of it."""
    reward, ends = history.mean("reward/mean"), history.ends()
    return bool(reward is not None and ends and ends[1] > ends[0]) and _within(reward, ends) >= CONVERGED


def _within(value: float | None, ends: tuple[float, float] | None) -> float:
    assert value is not None
    assert ends is not None
    return (value - ends[0]) / (ends[1] - ends[0])


def kl_blowup(history: History, now: Mapping[str, float]) -> Found:
    """An update, or the whole run, has moved the policy too far."""
    found: Found = {}
    for name in history.names("update/"):
        last = name.rpartition("/")[2]
        if last not in ("kl", "approx_kl"):
            continue
        value, bound = history.mean(name, KL_WINDOW), UPDATE_KL if last == "approx_kl" else REFERENCE_KL
        if value is None or value <= limit(history, f"kl-blowup:{name}", bound, bound * KL_RELEASE):
            continue
        if last == "approx_kl":
            what = "each update moves the policy too far from the one that sampled"
            change = "lower optimizer.lr, training.epochs or training.minibatches"
        else:
            what = "the policy has left its reference far behind"
            change = "raise beta of the term 'kl', lower optimizer.lr, or check watch-only rewards for reward hacking"
        seen = f"{what}: {name} is {value:.3g} nats per action, above {bound:g}"
        found[name] = Finding("warning", seen, change, {"metric": name, "kl": value, "limit": bound})
    return found


def truncation(history: History, now: Mapping[str, float]) -> Found:
    """Most trajectories end at the limit."""
    share = history.mean("truncated")
    if share is None or share <= limit(history, "truncation", TRUNCATED_SHARE, TRUNCATED_RELEASE):
        return {}
    seen = f"{share:.0%} of the trajectories of the last {history.window} steps were cut at the length limit"
    change = "raise sampling.max_new_tokens (task.max_turns where turns are cut), or reward finishing"
    return {"": Finding("warning", seen, change, {"share": share})}


def fallen(history: History) -> dict[str, tuple[float, float]]:
    """Rewards that tell how good answers are and have lost a tenth of their range since the start: before and now.

    Watched rewards where there are some, else the components.
    """
    names = list(history.names("watch/", "/mean")) or [n for n in history.names("reward/", "/mean") if n.count("/") > 1]
    lost = {}
    for name in names or ["reward/mean"]:
        start, now = history.start(name), history.mean(name)
        if start is None or now is None:
            continue
        low, high = history.width(name.removesuffix("/mean"))
        if start - now > max(FALLEN * (high - low), ERRORS * history.error(name)):
            lost[name.removesuffix("/mean")] = (start, now)
    return lost


def length_collapse(history: History, now: Mapping[str, float]) -> Found:
    """Trajectories are much shorter than at the start."""
    start, mean = history.start("length/mean"), history.mean("length/mean")
    if start is None or mean is None or mean >= LENGTH_COLLAPSE * start:
        return {}
    seen = f"the mean length fell from {start:.3g} to {mean:.3g}"
    evidence: dict[str, float | str] = {"start": start, "now": mean}
    if lost := fallen(history):
        return {"": Finding("warning", f"{seen}, and {_told(lost)}", _SHORTER, evidence)}
    if mean <= NEARLY_EMPTY and not converged(history):
        return {"": Finding("warning", f"{seen}: answers are nearly empty", _SHORTER, evidence)}
    return {"": Finding("info", f"{seen} while no reward fell", "see whether shorter answers are meant", evidence)}


def length_explosion(history: History, now: Mapping[str, float]) -> Found:
    """Trajectories are much longer than at the start."""
    start, mean = history.start("length/mean"), history.mean("length/mean")
    if start is None or mean is None or mean <= LENGTH_EXPLOSION * start:
        return {}
    seen = f"the mean length grew from {start:.3g} to {mean:.3g}"
    evidence: dict[str, float | str] = {"start": start, "now": mean}
    pay = history.last("advantage/length")
    if pay and (paid := sum(pay) / len(pay)) > LENGTH_PAID:
        seen = f"{seen}, and the credit pays for length itself (correlation {paid:.2f} within groups)"
        return {"": Finding("warning", seen, _LONGER, evidence | {"credit_length": paid})}
    if lost := fallen(history):
        return {"": Finding("warning", f"{seen}, and {_told(lost)}", _LONGER, evidence)}
    return {"": Finding("info", f"{seen} while no reward fell", "see whether longer answers are meant", evidence)}


_SHORTER = "check what the reward gives an empty answer, lower any price of length, and watch a reward of correctness"
_LONGER = (
    "take length out of the reward or price it (shaping 'cosine_length', an overlong penalty), aggregate the loss over "
    "tokens, and watch a reward of correctness"
)


def _told(lost: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} fell from {start:.3g} to {now:.3g}" for name, (start, now) in lost.items())


def answer_concentration(history: History, now: Mapping[str, float]) -> Found:
    """One answer is given whatever is asked, and it is not right."""
    share, earned = history.mean("text/commonest"), history.mean("text/commonest_reward")
    bound = limit(history, "answer-concentration", CONCENTRATION, CONCENTRATION_RELEASE)
    if share is None or earned is None or share <= bound or (earned >= CONVERGED and share < CONSTANT_ANSWER):
        return {}
    seen = (
        f"{share:.0%} of the trajectories of the last {history.window} steps give the same answer to different "
        f"problems, and it earns {earned:.0%} of what can be earned"
    )
    change = (
        "check the reward on a constant answer, balance the problems, raise sampling.temperature or add an entropy term"
    )
    return {"": Finding("warning", seen, change, {"share": share, "earned": earned})}


def ratio_bias(history: History, now: Mapping[str, float]) -> Found:
    """The policy that learns scores the samples differently from the one that drew them."""
    found: Found = {}
    for name in history.names("update/", "/ratio"):
        value = history.mean(name)
        if value is None or abs(value - 1) <= limit(history, f"ratio-bias:{name}", RATIO_BIAS, RATIO_RELEASE):
            continue
        seen = (
            f"the mean ratio {name} is {value:.3g} over the last {history.window} steps, and would be 1 if the policy "
            "that sampled were the one whose probabilities are divided by"
        )
        change = (
            "take the log-probabilities of the trainer for both, sample with its precision and temperature, or correct "
            "by a truncated importance weight"
        )
        found[name] = Finding("warning", seen, change, {"metric": name, "ratio": value})
    return found


def clip_saturation(history: History, now: Mapping[str, float]) -> Found:
    """The objective cuts so many ratios that much of the batch teaches nothing."""
    found: Found = {}
    for name in history.names("update/", "/clip_fraction"):
        share = history.mean(name)
        if share is None or share <= limit(history, f"clip-saturation:{name}", CLIPPED, CLIPPED_RELEASE):
            continue
        seen = f"{name}: {share:.0%} of the actions of the last {history.window} steps are cut and teach nothing"
        change = "lower optimizer.lr, training.epochs or training.minibatches, or widen clip_low and clip_high"
        found[name] = Finding("warning", seen, change, {"metric": name, "share": share})
    return found


def stale_policy(history: History, now: Mapping[str, float]) -> Found:
    """Samples are many updates old."""
    age = history.mean("staleness")
    if age is None or age <= limit(history, "stale-policy", STALE, STALE_RELEASE):
        return {}
    seen = f"batches of the last {history.window} steps were sampled {age:.3g} updates before they are learned from"
    change = "synchronise weights more often, queue fewer batches, or use an objective that corrects for old samples"
    return {"": Finding("warning", seen, change, {"updates": age})}


def advantage_leak(history: History, now: Mapping[str, float]) -> Found:
    """Positions where the policy did not act have credit."""
    leak, usual = now.get("advantage/off_mask", 0.0), now.get("advantage/abs_mean", 0.0)
    if not leak > LEAK * max(usual, LEAK):
        return {}
    seen = f"positions where the policy did not act (prompt, tool output, padding) have credit of up to {leak:.3g}"
    change = "multiply the advantage by the mask of actions before the loss"
    return {"": Finding("critical", seen, change, {"largest": leak, "usual": usual})}
