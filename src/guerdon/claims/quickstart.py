"""The quickstart's claim: RL from a 0/1 verifier lifts a warm-started policy on problems it has never seen.

    python -m guerdon.claims.quickstart [--seeds 5] [--recipe recipes/quickstart.yaml]

It holds if, on at least four of five seeds (in that proportion), sampled accuracy on the held-out problems rises by
20 points or more and greedy accuracy does not fall. Prints every seed; exits 1 if it does not hold.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from guerdon.monitor.progress import Progress, table
from guerdon.recipe import load_recipe
from guerdon.training.loop import train
from guerdon.training.run import Result

RISE, SHARE = 0.20, 0.8


def improved(result: Result) -> bool:
    """Whether sampled accuracy rose by ``RISE`` and greedy accuracy did not fall."""
    before, after = result.eval["before"], result.eval["after"]
    return after["sampled"] - before["sampled"] >= RISE and after["greedy"] >= before["greedy"]


def holds(results: Sequence[Result]) -> bool:
    """Whether enough seeds improved."""
    return sum(improved(result) for result in results) >= math.ceil(SHARE * len(results))


def main(
    recipe: Annotated[Path, typer.Option(help="The recipe to run.")] = Path("recipes/quickstart.yaml"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... to run, one after the other.")] = 5,
) -> None:
    """Train the quickstart with several seeds and say whether its claim holds."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            changes = [f"seed={seed}", f"name=seed-{seed}", f"runs_dir={folder}"]
            results.append(train(load_recipe(recipe, changes), progress=Progress()))
    rows = [
        (
            seed,
            *(f"{result.eval[when][how]:.3f}" for how in ("sampled", "greedy") for when in ("before", "after")),
            f"{result.seconds:.0f}",
            "yes" if improved(result) else "no",
        )
        for seed, result in enumerate(results)
    ]
    columns = ("seed", "sampled before", "after", "greedy before", "after", "seconds", "improved")
    verdict = "works" if holds(results) else "fails"
    table(
        f"quickstart on {load_recipe(recipe).evaluation.problems} held-out problems: {verdict}", rows, columns=columns
    )
    raise typer.Exit(0 if verdict == "works" else 1)


if __name__ == "__main__":
    typer.run(main)
