"""Which column of a log is what, and the SQL that makes one narrow table of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from guerdon.errors import GuerdonError, nearest
from guerdon.monitor.batch import ANSWER_FORMS, ANSWER_MARKS, ANSWER_TAIL

# What a column is usually called, likeliest first.
USUAL: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "input", "query", "problem", "instruction", "messages"),
    "text": ("completion", "response", "output", "text", "generation", "prediction", "answer"),
    "group": ("group", "group_id", "uid", "prompt_id"),
    "step": ("step", "global_step", "training_step", "iteration"),
    "task": ("task_id", "task", "problem_id"),
    "length": ("length", "response_length", "completion_length", "num_tokens"),
    "truncated": ("truncated", "clipped", "is_truncated"),
    "credit": ("advantage", "advantages", "credit"),
    "version": ("version", "policy_version", "weights_version"),
    "mask": ("mask", "response_mask", "action_mask"),
    "fault": ("fault", "error"),
}
REWARDS = ("reward", "score", "total_reward")
_SCORES = ("reward", "score")

Source = Literal["guerdon", "trl", "verl", "table"]


@dataclass(frozen=True)
class Choices:
    """Which column is what, as far as the user says so; the rest is guessed.

    Attributes:
        reward: components of the reward, in their order.
        gold: scores of what is meant, that training doesn't see.
        position: the place at which a judge saw the answer.
        judge, format: names of components that a judge gives, and of those that measure form.
        max_length: trajectories of this length and beyond count as cut.
    """

    prompt: str | None = None
    text: str | None = None
    group: str | None = None
    step: str | None = None
    task: str | None = None
    length: str | None = None
    truncated: str | None = None
    credit: str | None = None
    version: str | None = None
    position: str | None = None
    reward: Sequence[str] = ()
    gold: Sequence[str] = ()
    judge: Sequence[str] | None = None
    format: Sequence[str] | None = None
    max_length: float | None = None


@dataclass
class Layout:
    """Which column of a log is what.

    Attributes:
        source: who wrote it.
        roles: columns by what they are.
        components, watch: names of rewards, in the order of the narrow table's columns.
    """

    source: Source
    roles: dict[str, str]
    components: list[str]
    watch: list[str]
    choices: Choices

    def components_named(self) -> list[str]:
        """Names of the components as metrics have them."""
        return [name.removeprefix("reward/") for name in self.components]

    def watch_named(self) -> list[str]:
        """Names of the watched rewards as metrics have them."""
        return [name.removeprefix("watch/") for name in self.watch]

    def reward_sql(self) -> str:
        """The shaped reward, or else the sum of the components, of a row of ``rollouts``."""
        total = " + ".join(f"coalesce(c{i}, 0)" for i in range(len(self.components))) or "null::double"
        return f"coalesce(reward, case when scored then {total} end)"


# Which column is what -------------------------------------------------------------------------------------


def assign_roles(
    path: Path, source: Source, types: Mapping[str, str], choices: Choices
) -> tuple[dict[str, str], list[str], list[str]]:
    """Columns by what they are, the components and the watched rewards.

    Raises:
        GuerdonError: for a column that is not there, or where no reward can be guessed.
    """
    known = [name for name in types if name != "_file"]
    asked = {f.name: getattr(choices, f.name) for f in fields(Choices) if isinstance(getattr(choices, f.name), str)}
    for flag, name in [*asked.items(), *(("reward", n) for n in choices.reward), *(("gold", n) for n in choices.gold)]:
        if name not in known:
            raise GuerdonError(f"'{path}' has no column '{name}' for --{flag}; it has {', '.join(known)}")
    roles = {role: next((n for n in names if n in known), None) for role, names in USUAL.items()}
    roles = {role: name for role, name in roles.items() if name} | asked
    if source != "guerdon":  # the table of others: a sentence called 'error' or a dict called 'answer' is no role
        roles = {role: name for role, name in roles.items() if role in asked or _fits(role, types[name])}
    if source == "guerdon":
        watch = [n for n in known if n.startswith("watch/")]
        components = [n for n in known if n.startswith("reward/")]
        return roles | {"reward": "reward"}, list(choices.reward) or components, watch + list(choices.gold)
    taken = {*roles.values(), *choices.gold}
    numeric = [n for n in known if n not in taken and _is_number(types[n])]
    components = list(choices.reward)
    if not components and source == "trl":
        components = numeric
    if not components:
        total = next((name for name in REWARDS if name in numeric), None)
        components = [n for n in numeric if n != total and (n.startswith(_SCORES) or n.endswith(_SCORES))]
        if total and components:
            roles["reward"] = total
        components = components or ([total] if total else [])
    if not components:
        raise GuerdonError(
            f"'{path}' has no column that is plainly a reward; name one or several with --reward; columns of numbers: "
            f"{', '.join(numeric) or 'none'}; all: {', '.join(known)}"
        )
    for flag, names in (("judge", choices.judge), ("format", choices.format)):
        for name in names or ():
            if name not in [*components, *choices.gold]:
                raise GuerdonError(f"--{flag} '{name}' is none of the rewards{nearest(name, components)}")
    roles = {role: name for role, name in roles.items() if name not in components}
    return roles, components, list(choices.gold)


def _fits(role: str, kind: str) -> bool:
    if role in ("step", "version", "length", "truncated"):
        return _is_number(kind)
    if role == "credit":
        return _is_number(kind.removesuffix("[]"))
    return not kind.startswith("STRUCT(") or kind.endswith("[]")


def _is_number(kind: str) -> bool:
    return kind.startswith(("DECIMAL", "DOUBLE", "FLOAT", "BOOLEAN")) or kind.endswith(("INT", "INTEGER"))


# The narrow table -----------------------------------------------------------------------------------------


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _number(name: str, kind: str) -> str:
    """A column as a finite number or null; a list, per turn or action, by its sum."""
    column = _quoted(name)
    value = f"list_sum({column})" if kind.endswith("[]") else column
    if kind == "BOOLEAN":  # of a CSV file, where it is text
        value = f"try_cast({column} as boolean)"
    return f"(case when isfinite(try_cast({value} as double)) then try_cast({value} as double) end)"


def _text(name: str | None, kind: str) -> str:
    """A column as text; of messages, what they say."""
    if name is None:
        return "null::varchar"
    column = _quoted(name)
    if kind == "VARCHAR":
        return column
    if kind.startswith("STRUCT(") and kind.endswith("[]") and re.search(r'\b"?content"?\s', kind):
        return f"array_to_string(list_transform({column}, lambda m: m.content::varchar), chr(10))"
    return f"{column}::varchar"


def scan(raw: str, log: Layout, types: Mapping[str, str]) -> str:
    """SQL of the raw rows with the whole prompt and text beside them, as ``_p`` and ``_t``.

    Args:
        raw: the table function that reads the files.
        types: DuckDB's type of every column.
    """
    prompt, text = (log.roles.get(role) for role in ("prompt", "text"))
    return (
        f"select *, {_text(prompt, types.get(prompt or '', ''))} as _p, {_text(text, types.get(text or '', ''))} as _t "
        f"from {raw}"
    )


def narrow(log: Layout, scanned: str, types: Mapping[str, str], files: Sequence[Path]) -> str:
    """SQL of the narrow table: numbers, and hashes of texts; its columns are those of ``Log``.

    Without a step column the step is the number that the file's name ends in, or 0.

    Args:
        scanned: what ``scan`` gave.
    """
    roles, source = log.roles, log.source

    def number(role: str) -> str:
        return _number(roles[role], types[roles[role]]) if role in roles else "null::double"

    step = f"coalesce({number('step')}::bigint, 0)" if "step" in roles else "0::bigint"
    if "step" not in roles and all(file.stem.isdigit() for file in files):
        step = "try_cast(regexp_extract(_file, '(\\d+)\\.[a-z]+$', 1) as bigint)"
    key = f"hash({_quoted(roles['group'])})" if "group" in roles else "hash(_p)" if "prompt" in roles else "hash(_file)"
    task = f"hash({_quoted(roles['task'])})" if "task" in roles else "hash(_p)" if "prompt" in roles else key
    length = number("length") if "length" in roles else "length(_t)::double"
    truncated = number("truncated")
    if log.choices.max_length is not None:
        truncated = f"({length} >= {log.choices.max_length})::int::double"
    components = [_number(name, types[name]) for name in log.components]
    reward = number("reward")
    any_component = " or ".join(f"{c} is not null" for c in (reward, *components))
    scored = f"({reward} is not null)" if source == "guerdon" else f"({any_component})"
    fault = f"({_quoted(roles['fault'])} is not null)" if source == "guerdon" else f"(not {scored})"
    credit, leak = number("credit"), "null::double"
    if "credit" in roles and types[roles["credit"]].endswith("[]"):
        column = _quoted(roles["credit"])
        credit = f"list_avg({column})::double"
        if "mask" in roles and types[roles["mask"]].endswith("[]"):
            mask = _quoted(roles["mask"])
            pairs = f"list_zip({column}, {mask})"
            leak = (
                f"coalesce(list_max(list_transform(list_filter({pairs}, lambda x: x[2]::int = 0), "
                "lambda x: abs(x[1]::double))), 0)"
            )
    position = f"{_quoted(log.choices.position)}::varchar" if log.choices.position else "null::varchar"
    columns = {
        "step": step, "grp": key, "task": task,
        "prompt": "case when _p is null then null else hash(_p) end",
        "text": "case when _t is null then null else hash(_t) end",
        "answer": f"case when _t is null then null else hash({_answer()}) end",
        "length": length, "reward": reward, "credit": credit, "leak": leak, "truncated": truncated,
        "version": number("version"), "position": position, "fault": fault, "scored": scored,
        **{f"c{i}": c for i, c in enumerate(components)},
        **{f"w{i}": _number(name, types[name]) for i, name in enumerate(log.watch)},
    }  # fmt: skip
    return f"select {', '.join(f'{expression} as {name}' for name, expression in columns.items())} from ({scanned})"


def _answer() -> str:
    """What ``answer_of`` finds in a text, in SQL."""
    tail = f"right(_t, {ANSWER_TAIL})"
    cases = [
        f"case when contains({tail}, '{mark}') then trim(list_last(regexp_extract_all({tail}, '{form}', 1))) end"
        for form, mark in zip(ANSWER_FORMS, ANSWER_MARKS, strict=True)
    ]
    return f"coalesce({', '.join(cases)}, _t)"
