"""guerdon view: runs in the browser while they train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guerdon.cli.options import console, fail, plain_errors


@plain_errors
def view(
    runs_dir: Annotated[Path, typer.Argument(help="Folder that holds runs, or the folder of one run.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="Address to listen on; other machines reach 0.0.0.0.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free. By default 8321 or the next.")
    ] = None,
    token: Annotated[
        bool, typer.Option("--token/--no-token", help="Ask readers for the token in the printed address.")
    ] = True,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the address in this machine's browser.")
    ] = False,
) -> None:
    """Show runs in the browser while they train: list, curves, alarms, rollouts, comparison."""
    try:
        from guerdon.monitor.live.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "anyio"):
            raise
        fail(f'view needs the package {error.name}; pip install "guerdon[ui]"')

    def tell(address: str) -> None:
        typer.echo(address)
        console.print(f"showing the runs in '{runs_dir}'; press Ctrl-C to stop", markup=False)

    serve(runs_dir, host=host, port=port, token=token, open_browser=open_browser, tell=tell)
