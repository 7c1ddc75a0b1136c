"""Take the pictures of the live page that the docs show, with a headless browser.

Run it by hand from the repository root, on runs of your own:

    python docs/screenshots_view.py runs --run quickstart
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import sync_playwright

from guerdon.monitor.live.server import Server

IMAGES = Path(__file__).parent / "images"
FLAGS = ["--no-sandbox", "--disable-gpu"]


def main(
    runs_dir: Annotated[Path, typer.Argument(help="Folder that holds runs.")],
    run: Annotated[str, typer.Option(help="The run whose page is shown.")],
    chromium: Annotated[Path, typer.Option(help="The browser.")] = Path("/usr/bin/chromium"),
    images: Annotated[Path, typer.Option(help="Where the pictures go.")] = IMAGES,
) -> None:
    """Write the pictures."""
    images.mkdir(parents=True, exist_ok=True)
    server = Server(runs_dir, port=0, token=False)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=FLAGS)
        for picture, path in (("view.png", ""), ("view-run.png", f"run/{run}")):
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            page.goto(server.address + path)
            page.wait_for_selector("#live.on")
            page.screenshot(path=images / picture)
            page.close()
        browser.close()
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    typer.run(main)
