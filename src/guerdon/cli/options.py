"""What the commands share: options, and how an error reaches the user."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from guerdon.errors import GuerdonError

console = Console(stderr=True, soft_wrap=True, highlight=False)

Set = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: --set training.steps=10")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
RunFolderPath = Annotated[Path, typer.Argument(help="A run's folder, such as runs/quickstart.")]


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print guerdon's own errors and warnings without a traceback; exit 1, or 130 when interrupted."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        warnings.showwarning = _show_warning
        try:
            command(*args, **kwargs)
        except GuerdonError as error:
            fail(str(error))
        except KeyboardInterrupt:
            console.print("interrupted")
            raise typer.Exit(130) from None

    return guarded


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **kwargs: Any) -> None:
    if issubclass(category, UserWarning):
        console.print(f"warning: {message}", markup=False, style="yellow")


def fail(message: str) -> NoReturn:
    """Print an error and exit 1."""
    console.print(f"error: {message}", markup=False, style="bold red")
    raise typer.Exit(1)
