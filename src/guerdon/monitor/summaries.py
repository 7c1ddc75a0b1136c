"""Numbers from a log that has been read: those of every step, and what only the whole log can tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from guerdon.monitor.batch import EDGE, ROUNDING, Columns, step_metrics
from guerdon.monitor.finding import Finding
from guerdon.monitor.policy_detectors import ERRORS
from guerdon.monitor.reward_detectors import NOISE_REPEATS, noise_finding
from guerdon.monitor.sources import Log

# Rows that are taken from DuckDB at a time.
CHUNK = 200_000
# A problem that has been tried less often may have had bad luck: 16 failures put its success rate below 17 % (95 %).
ATTEMPTS = 16
# Where more than half of the sampling goes to problems that were never solved, most compute finds nothing.
UNSOLVED_SHARE = 0.5
# Less than a twentieth of the sampling is not worth a word.
TASKS_SHARE = 0.05
# Problems that were solved every time from the first step on; runs that end well have many that became so.
SATURATED_SHARE = 0.75
# A difference of a fifth of a judge's deviation between places, and four standard errors.
POSITION_EFFECT = 0.2

# A finding with the share of the log that it concerns, and its steps.
Told = tuple[str, Finding, float, tuple[int, int]]


def step_rows(log: Log) -> Iterator[tuple[int, dict[str, float]]]:
    """Numbers of every step in order: what the trainer wrote down, and what the rollouts tell beyond it.

    Lengths are the trainer's in all steps if it has them in one, for those of rollouts may count characters.
    """
    read = _rollout_rows(log)
    upcoming = next(read, None)
    known = {name for row in log.metrics.values() for name in row if name.startswith("length/")}
    steps = {*log.metrics}
    if log.rollouts:
        steps |= {step for (step,) in log.rows("select distinct step from rollouts")}
    for step in sorted(steps):
        row: dict[str, float] = {}
        if upcoming is not None and upcoming[0] == step:
            row, upcoming = upcoming[1], next(read, None)
        yield step, {name: value for name, value in row.items() if name not in known} | log.metrics.get(step, {})


def _rollout_rows(log: Log) -> Iterator[tuple[int, dict[str, float]]]:
    if not log.rollouts:
        return
    counts = log.rows("select step, count(*) from rollouts group by step order by step")
    for first, last in _chunks(counts):
        query = "select * from rollouts where step between ? and ? order by step"
        table = log.connection.execute(query, [first, last]).fetchnumpy()
        steps = np.ma.filled(table["step"], 0)
        edges = np.flatnonzero(np.r_[True, steps[1:] != steps[:-1], True])
        for low, high in pairwise(edges):
            yield int(steps[low]), _row(log, {name: column[low:high] for name, column in table.items()})


def _chunks(counts: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """First and last steps of pieces of about ``CHUNK`` rows; a step is never cut."""
    first, rows = counts[0][0], 0
    for (step, count), following in zip(counts, [*counts[1:], None], strict=True):
        rows += count
        if following is None or rows + following[1] > CHUNK:
            yield first, step
            first, rows = following[0] if following else step, 0


def _row(log: Log, table: dict[str, Any]) -> dict[str, float]:
    """The numbers of one step from its rows."""
    scored = np.ma.filled(table["scored"], False).astype(bool)
    faults = int(np.ma.filled(table["fault"], False).sum())
    kept = {name: column[scored] for name, column in table.items()}

    def numbers(name: str) -> Any:
        return np.ma.filled(kept[name].astype(np.float64), np.nan)

    def optional(name: str) -> Any:
        values = numbers(name)
        return values if np.isfinite(values).any() else None

    def keys(name: str) -> Any:
        column = kept[name]
        return None if np.ma.getmaskarray(column).all() else np.ma.filled(column, 0)

    row: dict[str, float] = {}
    if scored.any():
        truncated, credit, leak, version = (optional(name) for name in ("truncated", "credit", "leak", "version"))
        columns = Columns(
            group=keys("grp"),
            length=numbers("length"),
            components={name: numbers(f"c{i}") for i, name in enumerate(log.components_named())},
            watch={name: numbers(f"w{i}") for i, name in enumerate(log.watch_named())},
            reward=optional("reward"),
            credit=credit,
            truncated=None if truncated is None else np.nan_to_num(truncated),
            task=keys("task"),
            text=keys("text"),
            answer=keys("answer"),
            judges=log.choices.judge,
        )
        row = step_metrics(columns)
        if leak is not None:
            row["advantage/off_mask"] = float(np.nanmax(leak))
        if credit is not None:
            row["advantage/abs_mean"] = float(np.nanmean(np.abs(credit)))
        if version is not None and log.source != "guerdon":
            row["staleness"] = float(np.nanmean(table["step"][scored] - version))
    return row | {"faults": float(faults)}


# What only the whole log tells ----------------------------------------------------------------------------


def whole_log(log: Log) -> tuple[list[Told], set[str]]:
    """Findings over all steps, and the codes that this could check."""
    told: list[Told] = []
    checked: set[str] = set()
    if not log.rollouts:
        return told, checked
    first, last = log.rows("select min(step), max(step) from rollouts")[0]
    for code, found in (("tasks", _tasks(log)), ("noisy-reward", _noise(log)), ("judge-bias", _positions(log))):
        if found is None:
            continue
        checked |= {"unsolvable-tasks", "saturated-tasks"} if code == "tasks" else {code}
        told += [(name, finding, share, (first, last)) for name, finding, share in found]
    return told, checked


def _tasks(log: Log) -> list[tuple[str, Finding, float]] | None:
    """Problems that were tried in several steps and never, or always, solved."""
    reward = log.reward_sql()
    low, high = log.rows(f"select min({reward}), max({reward}) from rollouts where scored")[0]
    if low is None:
        return None
    low, high = min(low, 0.0), max(high, 1.0)
    bottom, top = low + (EDGE + ROUNDING) * (high - low), high - (EDGE + ROUNDING) * (high - low)
    n, failed, failed_rows, solved, solved_rows = log.rows(
        f"""with tasks as (
            select count(*) n, count(distinct step) steps, max({reward}) best, min({reward}) worst
            from rollouts where scored group by task having n >= {ATTEMPTS} and steps > 1)
        select count(*),
            count(*) filter (best <= {bottom}), coalesce(sum(n) filter (best <= {bottom}), 0),
            count(*) filter (worst >= {top}), coalesce(sum(n) filter (worst >= {top}), 0) from tasks"""
    )[0]
    if not n:
        return None
    found = []
    for code, tasks, share, bound, what, change in (
        ("unsolvable-tasks", failed, failed_rows / log.rollouts, UNSOLVED_SHARE, "never solved",
         "leave them out until the policy is better, give hints or partial credit, or sample more per start"),
        ("saturated-tasks", solved, solved_rows / log.rollouts, SATURATED_SHARE, "solved every time",
         "leave them out (a curriculum over difficulty), or use harder problems"),
    ):  # fmt: skip
        if share >= TASKS_SHARE:
            seen = (
                f"{tasks} of {n} problems that were tried {ATTEMPTS} times or more were {what}; they take "
                f"{share:.1%} of all trajectories"
            )
            severity = "warning" if share > bound else "info"
            found.append((code, Finding(severity, seen, change, {"tasks": tasks, "of": n, "share": share}), share))
    return found


def _noise(log: Log) -> list[tuple[str, Finding, float]] | None:
    """Equal texts of one problem that are scored differently, in whichever steps."""
    found, checked = [], False
    for i, name in enumerate(log.components_named()):
        repeats, within, differing, rows = log.rows(
            f"""with sets as (
                select count(c{i}) n, var_pop(c{i}) * count(c{i}) squares, max(c{i}) > min(c{i}) differs
                from rollouts where text is not null and c{i} is not null group by task, text having n > 1)
            select coalesce(sum(n - 1), 0), sum(squares), count(*) filter (differs),
                coalesce(sum(n) filter (differs), 0) from sets"""
        )[0]
        variance, n = log.rows(f"select var_pop(c{i}), count(c{i}) from rollouts")[0]
        if repeats < NOISE_REPEATS:
            continue
        checked = True
        if differing and variance:
            share = min(1.0, within / repeats / variance)
            found.append(("noisy-reward", noise_finding(name, share, int(repeats)), rows / n))
    return found if checked else None


def _positions(log: Log) -> list[tuple[str, Finding, float]] | None:
    """Whether a judge's scores depend on the place at which it saw the answer."""
    if not log.choices.position:
        return None
    judges = log.choices.judge or log.components_named()
    found, checked = [], False
    for i, name in enumerate(log.components_named()):
        if name not in judges:
            continue
        places = log.rows(
            f"""select position, count(c{i}), avg(c{i}), var_samp(c{i}) from rollouts
            where position is not null and c{i} is not null group by position having count(c{i}) > 1 order by 3"""
        )
        if len(places) < 2:
            continue
        checked = True
        (low, n_low, mean_low, var_low), (high, n_high, mean_high, var_high) = places[0], places[-1]
        spread = math.sqrt(log.rows(f"select var_pop(c{i}) from rollouts")[0][0] or 0.0)
        difference, error = mean_high - mean_low, math.sqrt(var_low / n_low + var_high / n_high)
        if difference > max(POSITION_EFFECT * spread, ERRORS * error) and spread:
            seen = (
                f"judge '{name}' gives {mean_high:.3g} to what it sees at place '{high}' and {mean_low:.3g} at place "
                f"'{low}', a difference of {difference / spread:.2g} deviations"
            )
            change = "ask in both orders and average, or draw the order anew for every question"
            evidence: dict[str, float | str] = {"judge": name, "bias": "position", "difference": difference / spread}
            share = (n_low + n_high) / log.rollouts
            found.append(("judge-bias", Finding("warning", seen, change, evidence), share))
    return found if checked else None
