"""guerdon claims list · run, guerdon systems, and the answers of guerdon methods --for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from guerdon.cli.options import Json, console, plain_errors

app = typer.Typer(
    help="Small experiments, one per published system: does it do here what it is said to do?", no_args_is_help=True
)

Names = Annotated[list[str] | None, typer.Argument(help="Claims, by name or by their system's name.")]
Family = Annotated[str | None, typer.Option("--family", help="Only this family, such as policy_optimization.")]
Quick = Annotated[bool, typer.Option("--quick", help="Only claims of 3 s at most.")]


@app.command("list")
@plain_errors
def list_claims(family: Family = None, quick: Quick = False, as_json: Json = False) -> None:
    """List the claims: what each shows, and how it is broken on purpose."""
    from guerdon.cli import show_claims as show

    rows = [show.claim_row(path) for path in show.chosen([], everything=True, family=family, quick=quick)]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        show.show_claims(rows)


@app.command("run")
@plain_errors
def run_claims(
    names: Names = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds; each claim's own number by default.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Claims to run at a time.")] = 1,
    broken: Annotated[bool, typer.Option("--break", help="Break the mechanism on purpose; claims must fail.")] = False,
    as_json: Json = False,
    everything: Annotated[bool, typer.Option("--all", help="Every claim.")] = False,
    quick: Quick = False,
    family: Family = None,
    out: Annotated[Path, typer.Option(help="Where results are written, a file each.")] = Path("runs/claims"),
) -> None:
    """Run claims; exit 0 only if every one of them holds."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from guerdon.catalog.results import save_result
    from guerdon.claims.runner import run_all
    from guerdon.cli import show_claims as show

    paths = show.chosen(names or [], everything=everything, family=family, quick=quick)
    results = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{len(paths)} claims" if len(paths) > 1 else paths[0], total=len(paths))
        for result in run_all(paths, seeds=seeds, broken=broken, jobs=min(jobs, len(paths))):
            save_result(result, out)
            results.append(result)
            progress.advance(task)
            progress.console.print(show.line(result))
    results.sort(key=lambda result: result.claim)
    if as_json:
        typer.echo(json.dumps([result.to_dict() for result in results]))
    elif len(results) == 1:
        show.show_checks(results[0])
    else:
        show.show_results(results)
    if any(result.verdict != "works" for result in results):
        raise typer.Exit(1)


@plain_errors
def systems(
    family: Family = None,
    status: Annotated[
        str | None, typer.Option("--status", help="Only works, not-reproduced, fails, stale or open.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the published systems with the status that their claims give them."""
    from guerdon.catalog.entries import system_rows
    from guerdon.cli.show_claims import show_systems

    rows = system_rows(family, status)
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        show_systems(rows)


def show_answers(symptom: str, *, as_json: bool) -> None:
    """The systems that answer a symptom, for ``guerdon methods --for``."""
    from guerdon.cli import show_claims as show

    rows = show.answer_rows(symptom)
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        show.show_answers(symptom, rows)
