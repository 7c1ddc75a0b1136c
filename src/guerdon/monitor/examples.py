"""Rollouts that show a finding: chosen by their numbers, and only then read from the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guerdon.monitor.sources import Log

PER_FINDING = 3
# Longer texts are cut; the log has them whole.
TEXT_LENGTH = 300

# A finding as far as its examples depend on it: code, steps, figures.
Subject = tuple[str, tuple[int, int], Mapping[str, Any]]

_TIED = "(step, grp) in (select (step, grp) from seen group by step, grp having count(*) > 1 and min(r) = max(r))"
_ALWAYS_EQUAL = "task in (select task from seen where scored group by task having count(*) > 1 and min(r) = max(r))"
# Of the rollouts that show a code, those to look at first: conditions and order over ``rollouts``, where ``r`` is the
# reward. What isn't listed is shown by its figures alone.
_CHOICE: Mapping[str, tuple[str, str]] = {
    "unsolvable-tasks": (_ALWAYS_EQUAL, "r, length desc"),
    "saturated-tasks": (_ALWAYS_EQUAL, "r desc, length"),
    "zero-variance-groups": (_TIED, "r"),
    "reward-outliers": ("scored", "abs(r - (select median(r) from seen)) desc"),
    "reward-faults": ("fault", "step"),
    "proxy-gold-divergence": ("scored", "r - {gold} desc"),
    "truncation": ("truncated > 0", "r desc"),
    "length-explosion": ("scored", "length desc"),
    "length-collapse": ("scored", "length"),
    "drowned-component": ("scored", "r desc"),
}
# And those whose texts must be counted first.
_COUNTED: Mapping[str, str] = {
    "duplicate-rollouts": (
        "select text, any_value(step), count(*) n, avg(r), null from seen group by step, grp, text having n > 1 "
        "order by n desc, text limit {limit}"
    ),
    "answer-concentration": (
        "select text, min(step), count(*), avg(r), null from seen where answer = (select answer from seen "
        "group by answer order by count(*) desc, answer limit 1) group by text order by 3 desc, text limit {limit}"
    ),
    "noisy-reward": (
        "select text, min(step), count(*), avg({component}), list(distinct {component} order by {component})[:4] "
        "from seen where {component} is not null group by task, text having max({component}) > min({component}) "
        "order by max({component}) - min({component}) desc, text limit {limit}"
    ),
}


def examples(log: Log, findings: Sequence[Subject]) -> list[list[dict[str, Any]]]:
    """For every finding up to three rollouts: ``step``, ``reward``, ``prompt``, ``text``, and
    ``times`` or ``scores`` where they are told together.

    The log is read once more, for the texts of all of them.
    """
    chosen = [_chosen(log, *finding) if log.rollouts else [] for finding in findings]
    wanted = {row["key"] for rows in chosen for row in rows if row["key"] is not None}
    texts = _texts(log, wanted)
    for rows in chosen:
        for row in rows:
            row["prompt"], row["text"] = texts.get(row.pop("key"), (None, None))
    return chosen


def _chosen(log: Log, code: str, steps: tuple[int, int], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    seen = (
        f"with seen as (select *, {log.reward_sql()} as r from rollouts where text is not null and "
        f"step between {steps[0]} and {steps[1]})"
    )
    if code in _COUNTED:
        names = log.components_named()
        component = f"c{names.index(figures['component'])}" if figures.get("component") in names else "r"
        query = _COUNTED[code].format(limit=PER_FINDING, component=component)
        found = log.rows(f"{seen} {query}")
        return [
            {"key": key, "step": step, "reward": reward, "times": times} | ({"scores": scores} if scores else {})
            for key, step, times, reward, scores in found
        ]
    if code not in _CHOICE:
        return []
    where, order = _CHOICE[code]
    gold = str(figures.get("gold", "")).removeprefix("watch/").removesuffix("/mean")
    order = order.format(gold=f"w{log.watch_named().index(gold)}" if gold in log.watch_named() else "0")
    found = log.rows(
        f"{seen} select text, step, r from seen where {where} "
        f"qualify row_number() over (partition by text order by step) = 1 order by {order}, text limit {PER_FINDING}"
    )
    return [{"key": key, "step": step, "reward": reward} for key, step, reward in found]


def _texts(log: Log, wanted: set[int]) -> dict[int, tuple[str | None, str]]:
    """Prompts and texts by the hash of the text."""
    if not wanted or log.scan is None:
        return {}
    keys = ", ".join(f"{key}::ubigint" for key in sorted(wanted))
    found = log.rows(
        f"select hash(_t), any_value(_p[:{TEXT_LENGTH + 1}]), any_value(_t[:{TEXT_LENGTH + 1}]) from ({log.scan}) "
        f"where hash(_t) in ({keys}) group by 1"
    )
    return {key: (_cut(prompt), _cut(text) or "") for key, prompt, text in found}


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= TEXT_LENGTH else text[:TEXT_LENGTH] + "…"
