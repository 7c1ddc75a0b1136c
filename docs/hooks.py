"""What the site takes from the code when it is built: the methods, the batch's fields, the keys of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from mkdocs.structure.files import File, Files

STAGES = {
    "task": "Where problems come from.",
    "policy": "What acts.",
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
    for mark, build in {"fields": fields_table, "recipe-keys": recipe_tables}.items():
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
        parts += [f"## {stage}", sentence]
        parts.append(
            table(
                ("Name", "What it does", "Needs", "Options", "Source"),
                (
                    (
                        _names(row),
                        _cell(row["summary"]),
                        _codes(row["needs"]),
                        _codes(k if v is None else f"{k}={v}" for k, v in row["options"].items()),
                        _linked(_cell(row["paper"])),
                    )
                    for row in rows
                    if row["stage"] == stage
                ),
            )
        )
    return "\n\n".join(parts) + "\n"


def fields_table() -> str:
    """The canonical fields of the batch."""
    from guerdon.fields import FIELDS

    rows = ((f"`{name}`", f"`{f.shape}`", _cell(f.meaning), _cell(f.remedy)) for name, f in FIELDS.items())
    return table(("Field", "Shape", "Meaning", "How a recipe comes to have it"), rows)


def recipe_tables() -> str:
    """The keys of every section of a recipe, with types, defaults and meanings."""
    from guerdon.recipe import Recipe, _section_of

    parts = []
    for key, field in Recipe.model_fields.items():
        section = _section_of(Recipe, key) or getattr(field.annotation, "__name__", "") == "SamplingSpec" and field.annotation
        if section:
            parts += [f"### `{key}`", (section.__doc__ or "").strip(), _keys_table(section)]
    return "\n\n".join(parts)


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


def _names(row: dict[str, Any]) -> str:
    main = f"[`{row['name']}`][{row['home']}]"
    return ", ".join([main, *(f"`{alias}`" for alias in row["aliases"])])


def _codes(names: Iterable[str]) -> str:
    return " ".join(f"`{_cell(name)}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
