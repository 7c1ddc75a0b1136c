"""The numbers of one step, from a batch in training or from the rows of a log: what alarms and diagnosis look at."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from guerdon.rollouts import Rollouts, total

Array = np.ndarray

# A group counts as failed or solved within this share of the reward's range from its end: scorers often give 0.01 for
# a wrong answer in the right format.
EDGE = 0.1
ROUNDING = 1e-6  # of a number that was single precision
# A reward is an outlier ten times as far from the median as nine tenths of its batch spread: of a normal distribution
# that is 33 deviations. A distance of 1 or less is none, for on the usual scale a first success is far from all others.
OUTLIER_SPREADS, OUTLIER_DISTANCE = 10.0, 1.0
# A value that comes exactly three times is a level of the reward, not an accident.
LEVEL_TIMES = 3
# Percentiles 5 and 95 of fewer rewards are just the ends.
OUTLIER_ROWS = 20
# With fewer problems in a batch, that they share their commonest answer says nothing.
CONCENTRATION_TASKS = 8
# An answer stands near the end of a text.
ANSWER_TAIL = 400
# Actions in which there is no room for more than an answer.
SHORT = 16
_FACTORS = np.random.default_rng(0).integers(-(2**62), 2**62, SHORT) | 1
ANSWER_FORMS = (r"\\boxed\{([^{}]*)\}", r"<answer>([^<]*)</answer>")
ANSWER_MARKS = ("boxed{", "</answer>")  # one of which is in every text with an answer of that form
_ANSWERS = [re.compile(form) for form in ANSWER_FORMS]


@dataclass(frozen=True)
class Columns:
    """N trajectories as columns of numbers, whoever reads them: the common ground of a batch and a log.

    Attributes:
        group: (N,) integer, which were drawn from one start.
        length: (N,) in actions or, in a log that has none, characters; NaN where unknown.
        components: raw rewards by name, (N,), NaN where one doesn't apply.
        watch: rewards that are scored and never optimised, (N,).
        reward: (N,) shaped; the sum of the components where there is none.
        credit: (N,) mean credit of an action.
        truncated: (N,) 1 where the trajectory was cut.
        task: (N,) integer key of the problem.
        text, answer: (N,) integer keys of what was written and of the answer in it; equal for equal ones.
        judges: names of components that a judge gives; by their names if None.
    """

    group: Array
    length: Array
    components: Mapping[str, Array]
    watch: Mapping[str, Array] = field(default_factory=dict)
    reward: Array | None = None
    credit: Array | None = None
    truncated: Array | None = None
    task: Array | None = None
    text: Array | None = None
    answer: Array | None = None
    judges: Sequence[str] | None = None


def batch_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Numbers of one batch, after shaping and credit: those of ``step_metrics``, and what only a batch knows.

    ``entropy/mean`` in nats per action; ``advantage/abs_mean`` per action, ``advantage/off_mask`` (largest credit where
    the policy did not act, 0 if all is well); ``actions``.
    """
    mask = rollouts.mask
    length = mask.sum(dim=1)
    out, credit = {}, None
    if rollouts.entropy is not None:
        out["entropy/mean"] = float(rollouts.entropy.masked_fill(~mask, 0.0).sum() / mask.sum())
    if rollouts.advantage is not None:
        advantage = rollouts.advantage.detach()
        acted = advantage * mask
        credit = acted.sum(dim=1) / length.clamp(min=1)
        out["advantage/abs_mean"] = float(acted.abs().sum() / mask.sum().clamp(min=1))
        out["advantage/off_mask"] = float(advantage.masked_fill(mask, 0.0).abs().max())
    texts, answers = _keys(rollouts)
    columns = Columns(
        group=rollouts.group.cpu().numpy(),
        length=_array(length),
        components={name: _array(total(x, mask)) for name, x in rollouts.rewards.items()},
        watch={name: _array(total(x, mask)) for name, x in rollouts.watch.items()},
        reward=_optional(rollouts.reward),
        credit=_optional(credit),
        truncated=_array(rollouts.truncated),
        task=rollouts.task_id.cpu().numpy(),
        text=texts,
        answer=answers,
    )
    return step_metrics(columns) | out | {"actions": float(length.sum())}


def _keys(rollouts: Rollouts) -> tuple[Array | None, Array | None]:
    """Keys of texts and of the answers in them.

    Equal tokens are equal texts, and much cheaper to compare; where trajectories are short, an answer is all there is.
    """
    tokens, mask = rollouts.tokens, rollouts.mask
    if tokens is not None and mask.shape[1] <= SHORT:
        acted = np.where(mask.cpu().numpy(), tokens.cpu().numpy() + 1, 0)
        keys = (acted * _FACTORS[: acted.shape[1]]).sum(axis=1)
        return keys, keys
    written = rollouts.text
    if written is None:
        return None, None
    texts = list(map(str, written))
    keys = np.fromiter(map(hash, texts), np.int64, len(texts))
    whole = "".join(texts)
    if not any(mark in whole for mark in ANSWER_MARKS):
        return keys, keys
    return keys, np.fromiter((hash(answer_of(text)) for text in texts), np.int64, len(texts))


def answer_of(text: str) -> str:
    """The last answer that a text marks near its end, or else the whole text."""
    tail = text[-ANSWER_TAIL:]
    for form, mark in zip(_ANSWERS, ANSWER_MARKS, strict=True):
        if mark in tail and (found := form.findall(tail)):
            return found[-1].strip()
    return text


def step_metrics(columns: Columns) -> dict[str, float]:
    """Numbers of one step; each is left out where the columns can't tell it.

    - ``reward/mean|std|min|max`` of the shaped reward; ``reward/NAME/mean|std`` and ``watch/NAME/mean`` of components,
      over the samples to which they apply; ``reward/outliers`` (share of rewards far from all others) and
      ``reward/outlier`` (the farthest).
    - ``groups/zero_variance`` (share of groups of two or more without a difference in reward), ``groups/all_min`` and
      ``groups/all_max`` (those of them at an end of the reward's range, which is taken to span [0, 1] and whatever the
      batch holds); ``groups/duplicates`` (share of trajectories that fail with a text of another in their group:
      below the mean of the group, or equal to all of it and below the top); ``groups/repeats`` (how many repeat
      any).
    - ``components/NAME/noise`` (deviation of a component between equal texts of a group).
    - Of two or more components, in groups in which several differ: ``components/NAME/share`` (how much of the credit a
      usual difference of this one moves, of all), ``components/NAME/contested`` (share of its groups that are such),
      ``components/A~B/correlation``.
    - ``advantage/length`` (correlation of credit, else reward, with length within groups); ``judge/NAME/length``, the
      same of judges, and ``judge/NAME/gold_length`` of watched rewards beside one.
    - ``text/commonest`` (share of trajectories with the commonest answer, over 8 problems or more) and
      ``text/commonest_reward`` (what these earn, as a place in the reward's range).
    - ``length/mean|max``; ``truncated``; ``trajectories``.
    """
    n = len(columns.group)
    groups = _Groups(columns.group)
    reward = _reward(columns)
    out: dict[str, float] = {}
    place = None
    if reward is not None:
        out |= _moments("reward", reward, ("mean", "std", "min", "max")) | _outliers(reward)
        place = _place(reward)
        out |= groups.shares(reward, place)
    for name, component in columns.components.items():
        out |= _moments(f"reward/{name}", component, ("mean", "std"))
    for name, component in columns.watch.items():
        out |= _moments(f"watch/{name}", component, ("mean",))
    known = columns.length[np.isfinite(columns.length)]
    if len(known):
        out |= {"length/mean": float(known.mean()), "length/max": float(known.max())}
    if columns.truncated is not None and n:
        out["truncated"] = float(columns.truncated.mean())
    if columns.text is not None and reward is not None and place is not None:
        out |= _repeats(columns, groups, reward, place)
    if columns.answer is not None and columns.task is not None and place is not None:
        out |= _commonest(columns.answer, columns.task, place)
    return out | _relations(columns, groups, reward) | {"trajectories": float(n)}


class _Groups:
    """Sums over groups of rows, from a single sort."""

    def __init__(self, key: Array) -> None:
        # Members of a group usually stand together, and nothing has to be moved.
        sorted_already = bool((key[1:] >= key[:-1]).all())
        self.order: Array | slice = slice(None) if sorted_already else np.argsort(key, kind="stable")
        ordered = key[self.order]
        first = np.ones(len(key), dtype=bool)
        first[1:] = ordered[1:] != ordered[:-1]
        self.starts = np.flatnonzero(first)
        self.index = np.empty(len(key), dtype=np.int64)
        self.index[self.order] = np.cumsum(first) - 1

    def total(self, x: Array) -> Array:
        """Sum of each group."""
        return np.add.reduceat(x[self.order], self.starts) if len(x) else x

    def ends(self, x: Array, valid: Array) -> tuple[Array, Array]:
        """Smallest and largest valid value of each group."""
        if not len(x):
            return x, x
        low = np.minimum.reduceat(np.where(valid, x, np.inf)[self.order], self.starts)
        return low, np.maximum.reduceat(np.where(valid, x, -np.inf)[self.order], self.starts)

    def deviation(self, x: Array) -> tuple[Array, Array]:
        """How far each row lies from its group's mean (exactly 0 where all are equal), and which groups differ."""
        valid = np.isfinite(x)
        low, high = self.ends(x, valid)
        differs = high > low
        above = np.where(valid, x - low[self.index], 0.0)
        mean = self.total(above) / np.maximum(self.total(valid.astype(float)), 1)
        return np.where(valid & differs[self.index], above - mean[self.index], 0.0), differs

    def shares(self, reward: Array, place: Array) -> dict[str, float]:
        """Shares of groups without a difference in reward; empty if no group has two members."""
        valid = np.isfinite(reward)
        several = self.total(valid.astype(float)) > 1
        if not several.any():
            return {}
        low, high = self.ends(reward, valid)
        tied = several & (low == high)
        lowest, _ = self.ends(place, valid)
        bottom, top = lowest <= EDGE + ROUNDING, lowest >= 1 - EDGE - ROUNDING
        kinds = {"zero_variance": tied, "all_min": tied & bottom, "all_max": tied & top}
        return {f"groups/{name}": float(kind.sum() / several.sum()) for name, kind in kinds.items()}


def _reward(columns: Columns) -> Array | None:
    if columns.reward is not None:
        return columns.reward
    if not columns.components:
        return None
    values = np.stack(list(columns.components.values()))
    known = np.isfinite(values)
    return np.where(known.any(axis=0), np.where(known, values, 0.0).sum(axis=0), np.nan)


def _moments(name: str, x: Array, which: tuple[str, ...]) -> dict[str, float]:
    """Moments of the finite entries of ``x``; the std of equal values is exactly 0."""
    x = x[np.isfinite(x)]
    if not len(x):
        return {}
    low, high = x.min(), x.max()
    tied = low == high
    moments = {"mean": low if tied else x.mean(), "std": 0.0 if tied else x.std(), "min": low, "max": high}
    return {f"{name}/{key}": float(moments[key]) for key in which}


def _place(reward: Array) -> Array:
    """Where each reward lies in the range, which spans [0, 1] and whatever the batch holds; NaN stays."""
    finite = reward[np.isfinite(reward)]
    low, high = min(0.0, finite.min(initial=0.0)), max(1.0, finite.max(initial=1.0))
    return (reward - low) / (high - low)


def _outliers(reward: Array) -> dict[str, float]:
    x = reward[np.isfinite(reward)]
    if len(x) < OUTLIER_ROWS:
        return {}
    ordered = np.sort(x)
    low, middle, high = (ordered[int(q * (len(x) - 1))] for q in (0.05, 0.5, 0.95))
    distance = np.abs(x - middle)
    far = distance > max(OUTLIER_SPREADS * (high - low), OUTLIER_DISTANCE) if high > low else np.zeros(len(x), bool)
    if not far.any():
        return {"reward/outliers": 0.0}
    _, place, times = np.unique(x, return_inverse=True, return_counts=True)
    far &= times[place] < LEVEL_TIMES
    out = {"reward/outliers": float(far.mean())}
    return out | ({"reward/outlier": float(x[np.where(far, distance, -1.0).argmax()])} if far.any() else {})


def _repeats(columns: Columns, groups: _Groups, reward: Array, place: Array) -> dict[str, float]:
    """Equal texts in a group: wasted where they fail, and a test of the reward where they are scored differently.

    What fails earns less than the mean of its group, or as much as all of it without being at the top.
    """
    assert columns.text is not None
    if len(groups.starts) == len(place):
        return {}
    mixed = columns.text.astype(np.uint64) + groups.index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    sets = _Groups(mixed)
    deviation, differs = groups.deviation(reward)
    failing = np.where(differs[groups.index], deviation < 0, place < 1 - EDGE - ROUNDING)
    copies = np.maximum(sets.total(failing.astype(float)) - 1, 0).sum()
    repeats = len(place) - len(sets.starts)
    out = {"groups/duplicates": float(copies / len(place)), "groups/repeats": float(repeats)}
    for name, x in columns.components.items() if repeats else ():
        freedom = np.maximum(sets.total(np.isfinite(x).astype(float)) - 1, 0).sum()
        if freedom:
            out[f"components/{name}/noise"] = float(np.sqrt((sets.deviation(x)[0] ** 2).sum() / freedom))
    return out


def _commonest(answer: Array, task: Array, place: Array) -> dict[str, float]:
    if len(set(task.tolist())) < CONCENTRATION_TASKS:
        return {}
    keys, counts = np.unique(answer, return_counts=True)
    most = counts.argmax()
    earned = place[(answer == keys[most]) & np.isfinite(place)]
    if not len(earned):
        return {}
    return {"text/commonest": float(counts[most] / len(answer)), "text/commonest_reward": float(earned.mean())}


def _relations(columns: Columns, groups: _Groups, reward: Array | None) -> dict[str, float]:
    """What moves together within groups: length, components, credit."""
    out: dict[str, float] = {}
    target = columns.credit if columns.credit is not None else reward
    if target is None or len(groups.starts) == len(target):
        return out
    length, _ = groups.deviation(columns.length)
    paid, _ = groups.deviation(target)
    _correlate(out, "advantage/length", paid, length)
    names, watched = list(columns.components), list(columns.watch)
    judges = columns.judges if columns.judges is not None else [n for n in (*names, *watched) if "judge" in n.lower()]
    deviations = {name: groups.deviation(x) for name, x in columns.components.items()} if len(names) > 1 else {}
    for name, x in {**columns.watch, **columns.components}.items() if judges else ():
        kind = "length" if name in judges else "gold_length" if name in columns.watch else None
        if kind:
            _correlate(out, f"judge/{name}/{kind}", groups.deviation(x)[0], length)
    if len(names) > 1:
        out |= _components(groups, deviations, paid)
    return out


def _components(groups: _Groups, deviations: Mapping[str, tuple[Array, Array]], paid: Array) -> dict[str, float]:
    """Shares of the credit and correlations of components, over groups in which at least two of them differ.

    Where one differs alone, a group estimator that divides by the group's deviation gives it all of the credit,
    whatever its scale; whether it drowns shows only where another differs too.
    """
    out: dict[str, float] = {}
    names = list(deviations)
    for a, b in combinations(names, 2):
        both = (deviations[a][1] & deviations[b][1])[groups.index]
        _correlate(out, f"components/{a}~{b}/correlation", deviations[a][0][both], deviations[b][0][both])
    differs = np.stack([deviations[name][1] for name in names])
    contested = differs.sum(axis=0) > 1
    if contested.sum() < 2:
        return out
    rows = contested[groups.index]
    d = np.stack([deviations[name][0][rows] for name in names], axis=1)
    gram = d.T @ d
    scale = np.sqrt(np.diag(gram))
    scale[scale == 0] = 1.0
    # The ridge splits the credit evenly between components that always agree.
    unit = gram / np.outer(scale, scale) + 1e-6 * np.eye(len(names))
    slope = np.linalg.solve(unit, d.T @ paid[rows] / scale) / scale
    varying = differs[:, groups.index[rows]].sum(axis=1)
    moved = np.abs(slope) * np.sqrt(np.diag(gram) / np.maximum(varying, 1))
    if not moved.sum() > 0:
        return out
    for name, part, own in zip(names, moved / moved.sum(), differs, strict=True):
        if (own & contested).sum() > 1:
            out[f"components/{name}/share"] = float(part)
            out[f"components/{name}/contested"] = float((own & contested).sum() / own.sum())
    return out


def _correlate(out: dict[str, float], name: str, a: Array, b: Array) -> None:
    """Add the correlation of two columns of deviations, where both are known and differ."""
    size = (a @ a) * (b @ b)
    if size > 0:
        out[name] = float(np.clip(a @ b / np.sqrt(size), -1.0, 1.0))


def _array(x: Tensor) -> Array:
    return x.detach().to("cpu", torch.float64).numpy()


def _optional(x: Tensor | None) -> Array | None:
    return None if x is None else _array(x)
