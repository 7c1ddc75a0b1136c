"""guerdon diagnose: what is wrong with a run, from its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from guerdon.cli.options import Json, Quiet, console, fail, plain_errors


def column(flag: str, what: str) -> Any:
    """An option that names a column."""
    return typer.Option(flag, metavar="COLUMN", help=f"{what}; guessed where its name is usual.")


@plain_errors
def diagnose(
    path: Annotated[Path, typer.Argument(help="A run's folder, TRL's output_dir, verl's rollout dumps, or a file.")],
    reward: Annotated[list[str] | None, column("--reward", "A reward or a component of it, repeatable")] = None,
    gold: Annotated[
        list[str] | None,
        typer.Option("--gold", metavar="COLUMN", help="A score of what is meant, not trained on; repeatable."),
    ] = None,
    prompt: Annotated[str | None, column("--prompt", "What was asked")] = None,
    text: Annotated[str | None, column("--text", "What was written")] = None,
    group: Annotated[str | None, column("--group", "What was drawn from one start; by the prompt without one")] = None,
    step: Annotated[str | None, column("--step", "The training step")] = None,
    task: Annotated[str | None, column("--task", "The problem; by the prompt without one")] = None,
    length: Annotated[str | None, column("--length", "Length in actions; characters without one")] = None,
    truncated: Annotated[str | None, column("--truncated", "Whether the text was cut")] = None,
    credit: Annotated[str | None, column("--credit", "Advantage, a number or a list over actions")] = None,
    version: Annotated[str | None, column("--version-column", "Which step's weights sampled")] = None,
    position: Annotated[
        str | None, typer.Option("--position", metavar="COLUMN", help="The place at which a judge saw the answer.")
    ] = None,
    judge: Annotated[
        list[str] | None, typer.Option("--judge", metavar="REWARD", help="A reward that a judge gives, repeatable.")
    ] = None,
    form: Annotated[
        list[str] | None, typer.Option("--format", metavar="REWARD", help="A reward that measures form, repeatable.")
    ] = None,
    max_length: Annotated[
        float | None, typer.Option("--max-length", help="Trajectories of this length and beyond were cut.")
    ] = None,
    examples: Annotated[bool, typer.Option("--examples", help="Show rollouts beneath the table.")] = False,
    fail_on: Annotated[
        str | None, typer.Option("--fail-on", metavar="SEVERITY", help="Exit 1 from info, warning or critical on.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find and rank what is wrong with a run, from its log: guerdon's, TRL's, verl's, or any table of rollouts."""
    from guerdon.cli.show_diagnosis import Patience, show_diagnosis
    from guerdon.monitor.columns import Choices
    from guerdon.monitor.diagnose import diagnose as find
    from guerdon.monitor.finding import RANK

    if fail_on is not None and fail_on not in RANK:
        fail(f"--fail-on '{fail_on}' is none of {', '.join(RANK)}")
    choices = Choices(
        **{"prompt": prompt, "text": text, "group": group, "step": step, "task": task, "length": length},
        **{"truncated": truncated, "credit": credit, "version": version, "position": position},
        reward=reward or (),
        gold=gold or (),
        judge=judge,
        format=form,
        max_length=max_length,
    )
    with Patience(console, quiet=quiet) as patience:
        found = find(path, choices, progress=patience.tell)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        show_diagnosis(found, examples=examples)
    worst = found.worst()
    if fail_on is not None and worst is not None and RANK[worst] >= RANK[fail_on]:
        raise typer.Exit(1)
