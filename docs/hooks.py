"""What the site takes from the code when it is built: methods, fields of the batch, keys of a recipe, recipes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from mkdocs.structure.files import File, Files

STAGES = {
    "task": "Where problems come from.",
    "policy": "What acts.",
    "curriculum": "Which of the problems that the task draws are practised.",
    "source": "What decides how many rollouts each problem gets, or adds answers that the policy did not just write.",
    "reward": "How behaviour is scored. The reward named `task` is the task's own scorer, or its environment's.",
    "shaping": "How raw components become one outcome.",
    "credit": "Who gets it: an advantage for every action.",
    "objective": "What is minimised.",
    "term": "What is added to the objective.",
    "logger": "Where metrics go besides the run's folder.",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the page of methods."""
    files.append(File.generated(config, "methods.md", content=methods_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put generated tables in the place of their marks."""
    tables = {
        "fields": fields_table,
        "recipe-keys": recipe_tables,
        "shipped-recipes": shipped_recipes,
        "attacks": attacks_table,
    }
    for mark, build in tables.items():
        place = f"<!-- generated: {mark} -->"
        if place in markdown:
            markdown = markdown.replace(place, build())
    return markdown


def methods_page() -> str:
    """Every registered method by stage."""
    from guerdon.cli.show import method_rows

    rows = method_rows()
    parts = [
        "# Methods",
        "This page is generated from the registry when the site is built; `guerdon methods` prints the same. "
        "*Needs* names the [fields](concepts.md#fields) that a method reads. Options stand beside the name in a "
        "recipe; one without a default is required.",
    ]
    for stage, sentence in STAGES.items():
        here = [_columns(row) for row in rows if row["stage"] == stage]
        shown = [title for title in here[0] if any(row[title] for row in here)]
        parts += [f"## {stage}", sentence, table(shown, ([row[title] for title in shown] for row in here))]
    return "\n\n".join(parts) + "\n"


def fields_table() -> str:
    """The canonical fields of the batch."""
    from guerdon.fields import FIELDS

    rows = ((f"`{name}`", f"`{f.shape}`", _cell(f.meaning), _cell(f.remedy)) for name, f in FIELDS.items())
    return table(("Field", "Shape", "Meaning", "How a recipe comes to have it"), rows)


def recipe_tables() -> str:
    """The keys of every section of a recipe, with defaults and meanings."""
    from pydantic import BaseModel

    from guerdon.recipe import MethodSpec, Recipe

    parts = []
    for key, field in Recipe.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, MethodSpec):
                parts += [f"### `{key}`", inspect.getdoc(kind) or "", _keys_table(kind)]
    return "\n\n".join(parts)


def shipped_recipes() -> str:
    """The files in ``recipes/``, as they are."""
    folder = Path(__file__).parent.parent / "recipes"
    return "\n\n".join(f"### {file.name}\n\n```yaml\n{file.read_text()}```" for file in sorted(folder.glob("*.yaml")))


def attacks_table() -> str:
    """What was tried against the sandbox, and what happened."""
    record = json.loads((Path(__file__).parent / "sandbox-attacks.json").read_text())
    rows = (
        (
            *(_cell(a[key]).replace("__", r"\_\_") for key in ("kind", "name", "tried")),
            f"{_code(a['happened'])} ({_verdict(a)})",
        )
        for a in record["attempts"]
    )
    head = ("Kind", "Attempt", "What was tried", f"What happened, at level `{record['level']}`")
    return table(head, rows)


def _verdict(attempt: dict[str, Any]) -> str:
    contained = "contained" if attempt["contained"] else "**not contained**"
    return f"{contained}, {'fail' if attempt['passed'] == 0 else '**pass**'}"


def _code(text: str) -> str:
    return f"`` {_cell(text)} ``"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _keys_table(section: Any) -> str:
    schema = section.model_json_schema()["properties"]
    rows = (
        (
            f"`{name}`",
            f"`{schema[name]['default']}`" if "default" in schema[name] else "",
            _cell(schema[name].get("description", "")),
        )
        for name in section.model_fields
    )
    return table(("Key", "Default", "Meaning"), rows)


def _columns(row: dict[str, Any]) -> dict[str, str]:
    options = (name if default is None else f"{name}={default}" for name, default in row["options"].items())
    names = [f"[`{row['name']}`][{row['home']}]", *(f"`{alias}`" for alias in row["aliases"])]
    return {
        "Name": ", ".join(names),
        "What it does": _cell(row["summary"]),
        "Needs": _codes(row["needs"]),
        "Options": _codes(options),
        "Source": _linked(_cell(row["paper"])),
    }


def _codes(names: Iterable[str]) -> str:
    return " ".join(f"`{_cell(name)}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
