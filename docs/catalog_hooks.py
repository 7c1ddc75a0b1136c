"""The pages of the site that come from the catalog: one per family of systems, and the guide that chooses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from mkdocs.structure.files import File, Files

MARKS = {"works": "✓ works", "not-reproduced": "≈ not reproduced", "fails": "✗ fails", "stale": "stale", "open": "open"}
WIDTH = 88


def on_files(files: Files, config: Any) -> Files:
    """Add the overview and a page per family."""
    from guerdon.catalog import FAMILIES

    files.append(File.generated(config, "systems/index.md", content=overview_page()))
    for family in FAMILIES:
        files.append(File.generated(config, f"systems/{family}.md", content=family_page(family)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put the answers to every symptom, and the table of pathologies, in the places of their marks."""
    for mark, build in {"symptoms": symptoms_guide, "pathologies": pathologies_table}.items():
        place = f"<!-- generated: {mark} -->"
        if place in markdown:
            markdown = markdown.replace(place, build())
    return markdown


def overview_page() -> str:
    """How many systems each family has, by status."""
    from guerdon.catalog import FAMILIES, STATUSES, systems

    rows = []
    for family, title in FAMILIES.items():
        members = [system for system in systems() if system.family == family]
        counts = [sum(system.status == status for system in members) for status in STATUSES]
        rows.append([f"[{title}]({family}.md)", str(len(members)), *(str(count or "") for count in counts)])
    return "\n\n".join(
        [
            "# Systems",
            "Published systems that repair a reward, a credit, an objective or what surrounds them. A system *works* "
            "when its claim, a small experiment that ships with guerdon, held the last time it ran; *not reproduced* "
            "when the implementation passes its exact checks and the published effect did not appear, *stale* when the "
            "code has changed since, and *open* while it is not implemented. `guerdon systems` prints the same, and "
            "`guerdon claims run NAME` repeats an experiment.",
            _table(["Family", "Systems", *STATUSES], rows),
        ]
    )


def family_page(family: str) -> str:
    """Every system of a family: what it does, how it is called, what its claim saw."""
    from guerdon.catalog import FAMILIES, systems

    members = [system for system in systems() if system.family == family]
    parts = [f"# {FAMILIES[family]}"]
    rows = []
    for system in members:
        name = f"[{system.name}](#{_anchor(system)})" if system.claim else system.name
        rows.append([name, _cell(system.title), MARKS[system.status]])
    parts.append(_table(["System", "Title", "Claim"], rows))
    for system in members:
        if system.claim:
            parts += _system(system)
    return "\n\n".join(parts) + "\n"


def symptoms_guide() -> str:
    """For every symptom, the systems that answer it, with the evidence that their claims gave."""
    from guerdon.catalog import symptoms, systems_for
    from guerdon.cli.show_claims import evidence

    parts = []
    for symptom in symptoms():
        rows = []
        for system in systems_for(symptom.name):
            page = f"systems/{system.family}.md#{_anchor(system)}"
            rows.append([f"[{system.name}]({page})", _homes(system), _cell(evidence(system)), MARKS[system.status]])
        parts += [f"### {symptom.name.capitalize()}", symptom.meaning, f"How a run shows it: {symptom.seen}."]
        if rows:
            parts.append(_table(["System", "Where", "What its claim saw", "Claim"], rows))
    return "\n\n".join(parts)


def pathologies_table() -> str:
    """Every code of a diagnosis: why it hurts, when it is told, and the systems that answer it."""
    from guerdon.catalog import find_system
    from guerdon.monitor.pathologies import PATHOLOGIES, remedies

    rows = []
    for row in PATHOLOGIES:
        systems = [find_system(remedy["system"]) for remedy in remedies(row.code)]
        answers = [f"[{s.name}](systems/{s.family}.md#{_anchor(s)}) {MARKS[s.status]}" for s in systems]
        more = [f"[{symptom}](choose.md#{symptom.replace(' ', '-')})" for symptom in row.symptoms]
        named = "<br>".join([*answers, *([f"more: {', '.join(more)}"] if more else [])])
        rows.append([f"`{row.code}`", _cell(row.why), _cell(row.threshold), named])
    return _table(["Code", "Why it hurts", "Told when", "What answers it"], rows)


def _system(system: Any) -> list[str]:
    from guerdon.catalog import load_result
    from guerdon.claims.runner import load

    entry = load(system.claim)
    parts = [
        f"## {system.name} {{ #{_anchor(system)} }}",
        f"*{system.title}*{_source(system.paper)}",
        entry.description,
    ]
    parts.append("```text\n" + "\n".join(_signatures(system.home)) + "\n```")
    parts.append(f"Reference: {_homes(system)}")
    if entry.claim.recipe:
        parts += ["In a recipe:", f"```yaml\n{entry.claim.recipe.strip()}\n```"]
    result, broken = load_result(system.claim), load_result(system.claim, broken=True)
    if result is None:
        return [*parts, "Its claim has not been run."]
    learned = any(check.kind == "learning" for check in result.checks)
    parts.append(
        f"**Claim: {MARKS[system.status]}** (`guerdon claims run {system.name}`, "
        + (f"{result.seeds} seeds, " if learned else "")
        + f"{result.seconds:.1f} s)"
    )
    rows = [[_cell(c.what), _cell(c.expected), _cell(c.seen), "yes" if c.holds else "**no**"] for c in result.checks]
    parts.append(_table(["Check", "Expected", "Seen", "Holds"], rows))
    parts += [_figure(check) for check in result.checks if check.curves]
    if broken is not None:
        caught = [check.what for check in broken.checks if not check.holds]
        ending = f"{broken.verdict}; {len(caught)} of {len(broken.checks)} checks notice it"
        parts.append(f"Broken on purpose ({broken.mutation}): {ending}.")
    return parts


def _figure(check: Any) -> str:
    """The curves of a check as an SVG with its legend: means over the seeds, shaded from lowest to highest."""
    from guerdon.monitor.charts import Series, line_chart

    lines = [
        Series(name, check.curves.steps, [p[0] for p in points], color, [(p[1], p[2]) for p in points])
        for color, (name, points) in enumerate(check.curves.lines.items())
    ]
    legend = "".join(f'<span class="{line.style}">{line.name}</span>' for line in lines)
    caption = f"{check.curves.axis}: mean over seeds, shaded from the lowest to the highest"
    chart = line_chart(lines, label=caption)
    return f'<figure class="claim"><div class="legend">{legend}</div>{chart}<figcaption>{caption}</figcaption></figure>'


def _signatures(home: Iterable[str]) -> list[str]:
    """How every part is called, one below the other."""
    from guerdon.registry import import_object

    shown = []
    for path in home:
        name = path.rpartition(":")[2]
        parameters = inspect.signature(import_object(path)).parameters.values()
        words = [_parameter(p) for p in parameters if p.name != "self"]
        for index, p in enumerate(parameters):
            if p.kind is p.KEYWORD_ONLY:
                words.insert(index, "*")
                break
        line = f"{name}({', '.join(words)})"
        shown.append(line if len(line) <= WIDTH else f"{name}(\n    {_wrapped(words)}\n)")
    return shown


def _wrapped(words: list[str]) -> str:
    lines, current = [], ""
    for word in words:
        if current and len(current) + len(word) + 2 > WIDTH - 4:
            lines.append(current)
            current = ""
        current += f"{word}, "
    return "\n    ".join([*(line.rstrip() for line in lines), current.rstrip(", ")])


def _parameter(p: inspect.Parameter) -> str:
    stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
    default = p.default
    if default is p.empty:
        return stars + p.name
    shown = getattr(default, "__name__", None) if callable(default) else repr(default)
    return f"{p.name}={shown}"


def _homes(system: Any) -> str:
    return ", ".join(f"[`{path.rpartition(':')[2]}`][{path.replace(':', '.')}]" for path in system.home)


def _anchor(system: Any) -> str:
    return re.sub(r"[^a-z0-9]+", "-", system.name.lower())


def _source(paper: str) -> str:
    return "" if not paper else f" ({_linked(paper)})"


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("[", "\\[").replace("*", "\\*").replace("<", "&lt;")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
