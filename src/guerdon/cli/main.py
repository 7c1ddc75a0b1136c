"""guerdon train · eval · methods · schema · init · report · claims · systems."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from guerdon import __version__
from guerdon.cli import claims, diagnose
from guerdon.cli.options import Json, Quiet, RunFolderPath, Set, console, fail, plain_errors
from guerdon.cli.view import view

app = typer.Typer(
    name="guerdon",
    help="Train language, flow and control policies with RL when the reward is sparse, noisy, multi-part or hackable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(claims.app, name="claims")
app.command("systems")(claims.systems)
app.command("view")(view)
app.command("diagnose")(diagnose.diagnose)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Train language, flow and control policies with RL when the reward is sparse, noisy, multi-part or hackable."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
@plain_errors
def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe in YAML.")] = None,
    set_: Set = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run of the same name.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train by a recipe, or continue a run exactly where its last checkpoint left it."""
    from guerdon.cli.show import show_result
    from guerdon.monitor.progress import Progress
    from guerdon.training import loop

    if (recipe is None) == (resume is None):
        fail("give a recipe to train, or --resume and a run's folder to continue")
    progress = Progress(quiet=quiet)
    if resume is not None:
        if set_:
            fail("--set cannot change a run that is resumed; its recipe is in its folder")
        result = loop.resume(resume, progress=progress)
    else:
        assert recipe is not None
        result = loop.train(recipe, set_ or [], overwrite=overwrite, progress=progress)
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
    if not quiet:
        show_result(result, console)
    if result.status != "finished":
        raise typer.Exit(130 if result.status == "interrupted" else 3)


@app.command("eval")
@plain_errors
def evaluate(
    run: RunFolderPath,
    problems: Annotated[int | None, typer.Option(help="Held-out problems; the recipe's number by default.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run's newest checkpoint on held-out problems."""
    from guerdon.cli.show import show_metrics
    from guerdon.training.inspect import evaluate_run

    metrics, step = evaluate_run(run, problems=problems)
    if as_json:
        typer.echo(json.dumps({"run": str(run), "steps": step, "eval": metrics}))
    else:
        show_metrics(f"{run} after {step} steps", metrics)


@app.command()
@plain_errors
def methods(
    stage: Annotated[str | None, typer.Argument(help="Only this stage, such as credit.")] = None,
    symptom: Annotated[str | None, typer.Option("--for", help="What goes wrong, such as 'entropy collapse'.")] = None,
    as_json: Json = False,
) -> None:
    """List every registered method by stage, or the systems that answer a symptom, with the evidence."""
    from guerdon.cli.show import method_rows, show_methods

    if symptom is not None:
        if stage is not None:
            fail("give a stage or --for a symptom, not both: a symptom is answered at several stages")
        claims.show_answers(symptom, as_json=as_json)
        return

    rows = method_rows(stage)
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        show_methods(rows)


@app.command()
@plain_errors
def schema() -> None:
    """Print the JSON schema of recipes, for editors to complete and check."""
    from guerdon.recipe_schema import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


@app.command()
@plain_errors
def init(
    kind: Annotated[str, typer.Argument(help="language, dataset, flow or control")],
    path: Annotated[Path | None, typer.Argument(help="File to write; KIND.yaml by default.")] = None,
) -> None:
    """Write a commented recipe to start from."""
    from guerdon.cli.starters import write_starter

    written = write_starter(kind, path or Path(f"{kind}.yaml"))
    typer.echo(f"wrote {written}; train it with: guerdon train {written}")


@app.command()
@plain_errors
def report(
    runs: Annotated[list[Path], typer.Argument(help="The folder of a run, or of several to be compared.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; report.html in the run's folder, or compare.html for several, by default."),
    ] = None,
) -> None:
    """Write a run's report, or the comparison of several runs: one self-contained HTML file."""
    from guerdon.monitor.report import write_comparison, write_report

    if len(runs) == 1:
        typer.echo(str(write_report(runs[0], out)))
    else:
        typer.echo(str(write_comparison(runs, out or Path("compare.html"))))


@app.command()
@plain_errors
def merge(
    models: Annotated[list[Path], typer.Argument(help="Safetensors files, model folders or run folders.")],
    out: Annotated[Path, typer.Option(help="What to write; it must not exist.")],
    weights: Annotated[str | None, typer.Option(help="One per model, as in 0.4,0.4,0.2; equal by default.")] = None,
    bai: Annotated[
        str | None, typer.Option(help="Ratios a,b for an instruction-tuned, a distilled and a pretrained model.")
    ] = None,
) -> None:
    """Average the weights of models that share an ancestor."""
    from guerdon.training.merge import bai_coefficients, merge_files

    if bai and weights:
        fail("give --weights or --bai, not both")
    if bai and len(models) != 3:
        fail(f"--bai takes three models (instruct, distilled, pretrained), got {len(models)}")
    if bai:
        shares = bai_coefficients(*_numbers("--bai", bai, 2))
    else:
        shares = _numbers("--weights", weights, len(models)) if weights else [1 / len(models)] * len(models)
    typer.echo(str(merge_files(models, shares, out)))


def _numbers(option: str, text: str, wanted: int) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != wanted:
        fail(f"{option} is '{text}', wanted {wanted} numbers with commas between them")
    return found


def run_app() -> None:
    """Entry point that keeps the working directory importable, so that recipes can name the user's own modules."""
    sys.path.insert(0, "")
    app()
