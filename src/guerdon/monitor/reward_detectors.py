"""What is wrong with the reward: whether it tells trajectories apart, and whether it measures what is meant."""

from __future__ import annotations

import math
from collections.abc import Mapping

from guerdon.monitor.batch import EDGE, LEVEL_TIMES
from guerdon.monitor.finding import Finding, Found, Severity, limit
from guerdon.monitor.history import History
from guerdon.monitor.policy_detectors import CONVERGED, ERRORS, FALLEN

# After this many steps and trajectories without any difference in reward the success rate is below 3 % (95 %
# confidence, rule of three), and waiting costs more than looking.
NO_SIGNAL_STEPS = 5
NO_SIGNAL_TRAJECTORIES = 100
# Nine groups of ten without a difference waste nine tenths of the sampling. Below the release it is over.
ZERO_VARIANCE_SHARE, ZERO_VARIANCE_RELEASE = 0.9, 0.75
# A verifier that fails on one sample of twenty biases what is learned; on every second one it is broken.
FAULT_SHARE, FAULT_SHARE_CRITICAL = 0.05, 0.5
# Failing copies teach what one of them would; at a third of the batch, sampling explores less than it costs.
DUPLICATES, DUPLICATES_RELEASE = 1 / 3, 0.25
# Share of a component's variance that is noise. At a twentieth a group of 8 still ranks nearly as without; at a half
# the score says as much about the scorer as about the answer. Twenty repeated texts show it within a quarter.
NOISE_SHARE, NOISE_SHARE_CRITICAL, NOISE_REPEATS = 0.05, 0.5, 20
# A component of which a usual difference moves the credit less than a tenth as much as one of the largest, an order of
# magnitude, is lost in the latter's variation, if the two meet in at least a quarter of the groups in which it differs.
DROWNED, DROWNED_RELEASE, CONTESTED = 0.1, 0.15, 0.25
# A strong component can wipe out another in ten steps; after five it shows.
RECENT = 5
# Beyond a correlation of -0.5 a quarter of what one component gains the other loses.
CONFLICT, CONFLICT_RELEASE = -0.5, -0.4
# A fifth of its range is a form that has been learned; a content that has not gained a twentieth has not.
FORM_LEARNED, CONTENT_LEARNED = 0.2, 0.05
# Against a gold score, 0.3 more correlation with length is the judge's own taste; without one only a correlation at
# which length explains more than a third of the score is told, for longer answers may be better.
JUDGE_BEYOND_GOLD, JUDGE_ALONE = 0.3, 0.6


def silent(history: History) -> tuple[float, int] | None:
    """The only reward that was ever seen, and how often; None if rewards differ or there are too few."""
    few = history.steps < min(NO_SIGNAL_STEPS, history.window) or history.trajectories < NO_SIGNAL_TRAJECTORIES
    ends = history.ends()
    return None if few or ends is None or ends[1] > ends[0] else (ends[0], int(history.trajectories))


def unsolvable_tasks(history: History, now: Mapping[str, float]) -> Found:
    """No trajectory has ever earned more than the minimum."""
    only = silent(history)
    if only is None or only[0] >= 1 - EDGE:
        return {}
    low, n = only
    seen = (
        f"nothing can be learned: in the first {history.steps} steps no trajectory of {n} earned a reward above "
        f"the minimum {low:g} (the success rate is below {max(3 / n, 0.001):.1%} with 95% confidence)"
    )
    change = (
        "check the reward on an answer known to be right, use easier problems, warm-start the policy (warm_start), "
        "sample more per start (sampling.group_size), or add a reward with partial credit"
    )
    return {"": Finding("critical", seen, change, {"reward": low, "trajectories": n, "steps": history.steps})}


def saturated_tasks(history: History, now: Mapping[str, float]) -> Found:
    """Every trajectory has always earned the top."""
    only = silent(history)
    if only is None or only[0] < 1 - EDGE:
        return {}
    high, n = only
    seen = (
        f"nothing can be learned: all {n} trajectories of the first {history.steps} steps earned the same reward "
        f"{high:g}, so the task is already solved"
    )
    change = "use harder problems, or a reward that tells good from better"
    return {"": Finding("critical", seen, change, {"reward": high, "trajectories": n, "steps": history.steps})}


def zero_variance_groups(history: History, now: Mapping[str, float]) -> Found:
    """Almost no group has a difference in reward."""
    share = history.mean("groups/zero_variance")
    bound = limit(history, "zero-variance-groups", ZERO_VARIANCE_SHARE, ZERO_VARIANCE_RELEASE)
    if share is None or share <= bound or silent(history):
        return {}
    failed, solved = history.mean("groups/all_min") or 0.0, history.mean("groups/all_max") or 0.0
    seen = f"{share:.0%} of the groups of the last {history.window} steps have equal rewards and teach nothing"
    evidence: dict[str, float | str] = {"share": share, "all_min": failed, "all_max": solved}
    if solved >= share / 2:
        change = "stop here or use harder problems"
        return {"": Finding("info", f"{seen}, most because all succeed", change, evidence | {"cause": "saturated"})}
    if failed >= share / 2:
        change = (
            "use easier problems, a longer warm start, larger groups (sampling.group_size), or a reward with partial "
            "credit"
        )
        return {"": Finding("warning", f"{seen}, most because all fail", change, evidence | {"cause": "unsolvable"})}
    change = "raise sampling.temperature, or use a reward that tells trajectories apart"
    seen = f"{seen}, and lie between failure and success"
    return {"": Finding("warning", seen, change, evidence | {"cause": "alike"})}


def duplicate_rollouts(history: History, now: Mapping[str, float]) -> Found:
    """Groups repeat their wrong answers."""
    share = history.mean("groups/duplicates")
    bound = limit(history, "duplicate-rollouts", DUPLICATES, DUPLICATES_RELEASE)
    if share is None or share <= bound or silent(history):  # a reward that never differs can't say what fails
        return {}
    seen = (
        f"{share:.0%} of the trajectories of the last {history.window} steps fail with a text that another of their "
        "group has too"
    )
    change = "raise sampling.temperature, add an entropy term or a reward of novelty, or sample fewer per start"
    return {"": Finding("warning", seen, change, {"share": share})}


def reward_faults(history: History, now: Mapping[str, float]) -> Found:
    """Reward calls fail."""
    faults = sum(history.last("faults"))
    if not faults:
        return {}
    share = faults / (faults + sum(history.last("trajectories")))
    severity: Severity = "info"
    if share >= FAULT_SHARE:
        severity = "critical" if share >= FAULT_SHARE_CRITICAL else "warning"
    seen = f"failed reward calls in the last {history.window} steps: {int(faults)} ({share:.2%} of the samples)"
    change = "the errors are in faults.jsonl; fix the reward, or choose what such samples count (on_fault)"
    return {"": Finding(severity, seen, change, {"faults": faults, "share": share})}


def constant_component(history: History, now: Mapping[str, float]) -> Found:
    """One of several components never differs."""
    found: Found = {}
    components = history.components()
    for name in components if len(components) > 1 else ():
        spread, means = (history.last(f"reward/{name}/{moment}", history.long) for moment in ("std", "mean"))
        if len(spread) < history.long or any(spread) or len(set(means)) > 1:
            continue
        seen = f"component '{name}' is {means[-1]:g} for every trajectory of the last {history.long} steps"
        evidence: dict[str, float | str] = {"component": name, "value": means[-1]}
        if f"reward/{name}" in history.varied:
            start, (low, high) = history.start(f"reward/{name}/mean"), history.width(f"reward/{name}")
            if start is not None and start - means[-1] > FALLEN * (high - low):
                change = (
                    "go back to before it was lost, and give it more of the credit (weights, credit 'gdpo', a gate)"
                )
                found[f"reward/{name}"] = Finding("warning", f"{seen} and was {start:.3g} at first", change, evidence)
            else:
                found[f"reward/{name}"] = Finding("info", seen, "it has nothing more to teach", evidence)
        else:
            change = "check its function, or remove it from 'rewards'"
            found[f"reward/{name}"] = Finding("warning", f"{seen} and never differed", change, evidence)
    return found


def drowned_component(history: History, now: Mapping[str, float]) -> Found:
    """Credit hardly depends on one of several components where another differs too."""
    shares = {name: history.mean(f"components/{name}/share", RECENT) for name in history.components()}
    known = {name: share for name, share in shares.items() if share is not None}
    found: Found = {}
    for name, share in known.items() if len(known) > 1 else ():
        largest = max(known, key=lambda other: known[other])
        contested = history.mean(f"components/{name}/contested", RECENT) or 0.0
        bound = limit(history, f"drowned-component:{name}", DROWNED, DROWNED_RELEASE)
        gain, mean = (f(history, f"reward/{name}") for f in (_gain, _recently))
        if share >= bound * known[largest] or contested < CONTESTED or gain is None or mean is None:
            continue
        learned = gain >= CONTENT_LEARNED or history.place(f"reward/{name}", mean) >= CONVERGED
        if not learned and gain > -FALLEN and history.steps < history.long:
            continue  # it may rise yet
        seen = (
            f"where component '{name}' and another differ, a usual difference in '{name}' moves the credit "
            f"{share / known[largest]:.2g} times as much as one in '{largest}'"
        )
        change = (
            "bring the components to one scale (weights, or shaping that normalises each), or credit each on its own "
            "(credit 'gdpo')"
        )
        evidence: dict[str, float | str] = {"component": name, "by": largest, "share": share, "contested": contested}
        severity: Severity = "info" if learned else "warning"
        how = f"is learned all the same ({gain:+.0%} of its range)" if learned else f"is not learned ({gain:+.0%})"
        found[name] = Finding(severity, f"{seen}, and '{name}' {how}", change, evidence)
    return found


def _recently(history: History, name: str) -> float | None:
    return history.mean(f"{name}/mean", RECENT)


def conflicting_components(history: History, now: Mapping[str, float]) -> Found:
    """What one component gains another loses."""
    found: Found = {}
    for pair in history.middles("components/", "/correlation"):
        value = history.mean(f"components/{pair}/correlation")
        if value is None or value >= limit(history, f"conflicting-components:{pair}", CONFLICT, CONFLICT_RELEASE):
            continue
        a, _, b = pair.partition("~")
        seen = f"within groups '{a}' and '{b}' oppose each other (correlation {value:.2f})"
        change = (
            "decide which comes first: gate one by the other (shaping 'conditioned_reward'), lower a weight, or drop "
            "one"
        )
        found[pair] = Finding("warning", seen, change, {"components": f"{a}, {b}", "correlation": value})
    return found


def reward_outliers(history: History, now: Mapping[str, float]) -> Found:
    """Single rewards are far from all others."""
    seen_far, shares = history.last("reward/outlier", history.long), history.last("reward/outliers")
    mean = history.mean("reward/mean")
    farthest = [x for x in seen_far if seen_far.count(x) < LEVEL_TIMES]
    if not any(shares) or not farthest or mean is None:
        return {}
    worst = max(farthest, key=lambda x: abs(x - mean))
    share, steps = sum(shares) / len(shares), sum(x > 0 for x in shares)
    seen = f"{share:.2%} of the rewards of the last {len(shares)} steps are far from all others, such as {worst:g}"
    change = "check the reward on those texts, and bound it (shaping 'clip', 'tanh') or use a credit by rank"
    accidents = len(set(farthest)) >= LEVEL_TIMES or history.window == 1
    severity: Severity = "warning" if accidents else "info"
    return {"": Finding(severity, seen, change, {"share": share, "farthest": worst, "steps": steps})}


def noisy_reward(history: History, now: Mapping[str, float]) -> Found:
    """Equal texts are scored differently."""
    found: Found = {}
    repeats = history.last("groups/repeats", history.long)
    for name in history.middles("components/", "/noise"):
        noise, spread = history.last(f"components/{name}/noise", history.long), history.last(f"reward/{name}/std")
        variance = sum(x**2 for x in spread) / len(spread) if spread else 0.0
        if sum(repeats) < NOISE_REPEATS or not any(noise) or not variance:
            continue
        share = min(1.0, sum(x**2 for x in noise) / len(noise) / variance)
        found |= {name: noise_finding(name, share, int(sum(repeats)))}
    return found


def noise_finding(name: str, share: float, repeats: int) -> Finding:
    """What to say of a component whose scores of equal texts differ."""
    severity: Severity = "info"
    if share >= NOISE_SHARE:
        severity = "critical" if share >= NOISE_SHARE_CRITICAL else "warning"
    seen = (
        f"component '{name}' scores equal texts differently: {share:.1%} of its variance is noise, by {repeats} texts "
        "that were written more than once"
    )
    change = (
        "make the scorer deterministic (temperature 0, a seed, a cache), average several scores, or credit by "
        "estimated uncertainty"
    )
    return Finding(severity, seen, change, {"component": name, "noise": share, "repeats": repeats})


def proxy_gold_divergence(history: History, now: Mapping[str, float]) -> Found:
    """The optimised reward rises while a watched one falls."""
    found: Found = {}
    reward = history.mean("reward/mean")
    for name in history.names("watch/", "/mean"):
        gold, best = history.mean(name), history.peak(name)
        if reward is None or gold is None or best is None:
            continue
        lost = _moved(best["gold"], (gold, history.error(name)), history.width(name.removesuffix("/mean")))
        won = _moved((reward, history.error("reward/mean")), best["reward"], history.width("reward"))
        if not lost or not won:
            continue
        seen = (
            f"'{name.split('/')[1]}' fell from {best['gold'][0]:.3g} to {gold:.3g} while the reward rose from "
            f"{best['reward'][0]:.3g} to {reward:.3g}: the policy has found what the reward pays and nobody meant"
        )
        change = (
            "read the texts with the highest reward, close what they exploit, stop earlier, or bound the distance from "
            "the reference (term 'kl')"
        )
        evidence: dict[str, float | str] = {
            **{"gold": name, "gold_best": best["gold"][0], "gold_now": gold},
            **{"reward_then": best["reward"][0], "reward_now": reward},
        }
        found[name] = Finding("warning", seen, change, evidence)
    return found


def _moved(high: tuple[float, float], low: tuple[float, float], width: tuple[float, float]) -> bool:
    """Whether one mean with its error exceeds another by more than luck and by a tenth of the range."""
    return high[0] - low[0] > max(FALLEN * (width[1] - width[0]), ERRORS * math.hypot(high[1], low[1]))


def format_only_learning(history: History, now: Mapping[str, float]) -> Found:
    """The form has been learned, and nothing else."""
    components = history.components()
    forms = [f"reward/{name}" for name in components if history.measures_form(name)]
    contents = [f"watch/{name}" for name in history.middles("watch/", "/mean")]
    contents = contents or [f"reward/{name}" for name in components if not history.measures_form(name)]
    if history.steps < 2 * history.long:
        return {}
    gains = {name: _gain(history, name) for name in (*forms, *contents)}
    learned = [name for name in forms if (gains[name] or 0.0) >= FORM_LEARNED]
    if not learned or not contents or any(gains[name] is None for name in contents):
        return {}
    for name in contents:
        mean = history.mean(f"{name}/mean")
        if (gains[name] or 0.0) >= CONTENT_LEARNED or mean is None or history.place(name, mean) >= CONVERGED:
            return {}
    form = learned[0].removeprefix("reward/")
    named = ", ".join(f"'{name.partition('/')[2]}'" for name in contents)
    seen = f"'{form}' gained {gains[learned[0]]:.0%} of its range in {history.steps} steps, and {named} nothing"
    change = "lower the weight of form once it is learned, gate it by content, or give partial credit for content"
    return {"": Finding("warning", seen, change, {"form": form, "gain": gains[learned[0]] or 0.0})}


def _gain(history: History, name: str) -> float | None:
    """What a reward has gained since the start, as a share of its range."""
    start, now = history.start(f"{name}/mean"), _recently(history, name)
    if start is None or now is None:
        return None
    low, high = history.width(name)
    return (now - start) / (high - low)


def judge_bias(history: History, now: Mapping[str, float]) -> Found:
    """A judge pays for length."""
    found: Found = {}
    golds = [history.mean(name) for name in history.names("judge/", "/gold_length")]
    known = [gold for gold in golds if gold is not None]
    for name in history.middles("judge/", "/length"):
        value = history.mean(f"judge/{name}/length")
        fair = max(known) if known else 0.0
        if value is None or value - fair <= (JUDGE_BEYOND_GOLD if known else JUDGE_ALONE):
            continue
        beside = f", and with what was meant {fair:.2f}" if known else ""
        seen = f"scores of judge '{name}' go with length: correlation {value:.2f} within groups{beside}"
        change = "ask the judge to disregard length, compare answers of like length, or price length"
        found[name] = Finding("warning", seen, change, {"judge": name, "bias": "length", "correlation": value})
    return found
