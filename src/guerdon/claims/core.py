"""What a claim is made of: exact checks, comparisons over seeds, and a mutation under which it must fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from guerdon.catalog.checks import Check, Curves

Better = Literal["higher", "lower"]
Values = Sequence[float] | Tensor | np.ndarray

CONFIDENCE, RESAMPLES, CURVE_POINTS = 0.95, 4999, 60


@dataclass(frozen=True)
class Mutation:
    """The mechanism, broken on purpose.

    Attributes:
        what: what is broken, in words.
        method: stands in for the method under test, with the same interface.
    """

    what: str
    method: Any


@dataclass(frozen=True)
class Claim:
    """A small experiment that a published system must pass.

    Attributes:
        system: its name in the catalog.
        run: takes the method under test and the number of seeds, and yields checks as it comes to them.
        method: what is under test: a function, a class, or a NamedTuple of several.
        mutation: the method with its mechanism broken; the claim must fail with it.
        recipe: YAML that changes a few keys of the quickstart's recipe, to show the system in use.
        seeds: how many seeds a learning check takes by default.
        quick: whether the whole claim takes 3 s at most, so that the test suite runs it.
    """

    system: str
    run: Callable[[Any, int], Iterator[Check]]
    method: Any
    mutation: Mutation
    recipe: str = ""
    seeds: int = 10
    quick: bool = False


def equal(what: str, seen: Any, wanted: Any, tol: float = 1e-6) -> Check:
    """Numbers, sequences or tensors that must agree to within ``tol``, absolutely."""
    left, right = (np.asarray(torch.as_tensor(x).detach().cpu(), dtype=np.float64) for x in (seen, wanted))
    holds = left.shape == right.shape and bool(np.all(np.abs(left - right) <= tol))
    return Check(what, "exact", f"{_show(right)} ± {tol:g}", _show(left), holds)


def above(what: str, seen: float | Tensor, bound: float) -> Check:
    """A number that must exceed ``bound``."""
    return Check(what, "exact", f"> {bound:g}", f"{float(seen):.5g}", float(seen) > bound)


def below(what: str, seen: float | Tensor, bound: float) -> Check:
    """A number that must stay below ``bound``."""
    return Check(what, "exact", f"< {bound:g}", f"{float(seen):.5g}", float(seen) < bound)


def check(what: str, holds: bool | Tensor, *, expected: str, seen: object) -> Check:
    """Anything else that must hold exactly."""
    return Check(what, "exact", expected, str(seen), bool(holds))


def every_seed(
    what: str, values: Values, *, above: float | None = None, below: float | None = None, share: float = 1.0
) -> Check:
    """One number per seed against a bound, which at least ``share`` of the seeds must keep."""
    seen = _numbers(values)
    low, high = -math.inf if above is None else above, math.inf if below is None else below
    kept = [low < value < high for value in seen]
    bounds = " and ".join(f"{sign} {bound:g}" for sign, bound in ((">", above), ("<", below)) if bound is not None)
    return Check(
        what,
        "learning",
        f"{bounds} on {_needed(share, len(seen))} of {len(seen)} seeds",
        f"{np.mean(seen):.4g} on average, {sum(kept)} of {len(seen)} seeds",
        sum(kept) >= _needed(share, len(seen)),
        method=seen,
    )


def paired(
    what: str,
    method: Values,
    baseline: Values,
    *,
    better: Better = "higher",
    margin: float = 0.0,
    share: float = 0.8,
    curves: Mapping[str, Tensor] | None = None,
    axis: str = "",
) -> Check:
    """Method against baseline on common random numbers, seed by seed.

    gain = method - baseline where higher is better, baseline - method where lower is. The check holds if the bootstrap
    interval of the mean gain lies above ``margin`` and at least ``share`` of the seeds gain more than it.

    Args:
        what: what the numbers are.
        method, baseline: one number per seed.
        better: whether a larger number is better.
        margin: least gain; negative where the method only must not lose more than that.
        share: part of the seeds that must gain more than the margin.
        curves: (S,T) for every name: what happened on the way, for a plot.
        axis: what the curves show.
    """
    ours, theirs = _numbers(method), _numbers(baseline)
    gain = (np.asarray(ours) - np.asarray(theirs)) * (1 if better == "higher" else -1)
    low, high = bootstrap(gain)
    wins = int((gain > margin).sum())
    return Check(
        what,
        "learning",
        f"gain > {margin:g} on {_needed(share, len(gain))} of {len(gain)} seeds ({better} is better)",
        f"{np.mean(ours):.4g} against {np.mean(theirs):.4g}, gain {gain.mean():.3g} [{low:.3g}, {high:.3g}], "
        f"{wins} of {len(gain)} seeds",
        bool(low > margin) and wins >= _needed(share, len(gain)),
        method=ours,
        baseline=theirs,
        interval=(low, high),
        curves=_curves(axis or what, curves) if curves else None,
    )


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; a single value is its own interval."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float(np.mean(values)), float(np.mean(values))
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _needed(share: float, seeds: int) -> int:
    return math.ceil(share * seeds - 1e-9)


def _numbers(values: Values) -> list[float]:
    numbers = values.detach() if isinstance(values, Tensor) else np.asarray(values, dtype=np.float64)
    return [float(x) for x in numbers.reshape(-1).tolist()]


def _curves(axis: str, curves: Mapping[str, Tensor]) -> Curves:
    """At most ``CURVE_POINTS`` points of each line."""
    length = min(x.shape[1] for x in curves.values())
    steps = sorted({round(i) for i in np.linspace(0, length - 1, min(length, CURVE_POINTS))})
    lines = {}
    for name, x in curves.items():
        points = torch.as_tensor(x).detach().double()[:, steps]
        summary = torch.stack([points.mean(0), points.amin(0), points.amax(0)], dim=1)
        lines[name] = [tuple(float(f"{v:.5g}") for v in point) for point in summary.tolist()]
    return Curves(axis, steps, lines)


def _show(x: np.ndarray) -> str:
    shown = [f"{v:.5g}" for v in x.reshape(-1)[:8]]
    return shown[0] if x.ndim == 0 else f"[{', '.join(shown)}{', ...' if x.size > len(shown) else ''}]"
