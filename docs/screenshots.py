"""Take the pictures of the report that README and docs show, with a headless browser.

Run it by hand from the repository root, on runs of your own:

    python docs/screenshots.py --language runs/textworld-0 --flow runs/flow-digits --control runs/cartpole \\
        --compare runs/a-0 --compare runs/a-1 --compare runs/b-0 --compare runs/b-1
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from playwright.sync_api import Browser, Page, sync_playwright

from guerdon.monitor.report import write_comparison, write_report

IMAGES = Path(__file__).parent / "images"
DESKTOP, PHONE = (1180, 860), (390, 760)
GROUP = ".group"

Theme = Literal["light", "dark"]
Run = Annotated[Path | None, typer.Option(help="A run's folder.")]


def main(
    language: Run = None,
    flow: Run = None,
    control: Run = None,
    compare: Annotated[list[Path] | None, typer.Option(help="Folders of runs, once for each.")] = None,
    chromium: Annotated[Path, typer.Option(help="The browser.")] = Path("/usr/bin/chromium"),
    images: Annotated[Path, typer.Option(help="Where the pictures go.")] = IMAGES,
) -> None:
    """Write the pictures for which runs are given."""
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, _browser(chromium) as browser:
        place = Path(scratch)
        if language is not None:
            page = write_report(language, place / "language.html")
            _top(browser, page, images / "report.png")
            _top(browser, page, images / "report-dark.png", theme="dark")
            _top(browser, page, images / "report-phone.png", size=PHONE)
            _part(browser, page, images / "microscope.png", [".scale", GROUP])
            _part(browser, page, images / "microscope-dark.png", [".scale", GROUP], theme="dark")
        if flow is not None:
            page = write_report(flow, place / "flow.html")
            _top(browser, page, images / "report-flow.png")
            _part(browser, page, images / "microscope-flow.png", [".scale", GROUP])
        if control is not None:
            page = write_report(control, place / "control.html")
            _part(browser, page, images / "microscope-control.png", [GROUP])
        if compare:
            _top(browser, write_comparison(compare, place / "compare.html"), images / "comparison.png")
    for picture in sorted(images.glob("*.png")):
        typer.echo(f"{picture} {picture.stat().st_size // 1024} kB")


@contextmanager
def _browser(executable: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def _opened(browser: Browser, file: Path, size: tuple[int, int], theme: Theme) -> Page:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
    page.goto(file.resolve().as_uri())
    return page


def _top(browser: Browser, file: Path, out: Path, *, size: tuple[int, int] = DESKTOP, theme: Theme = "light") -> None:
    """What is seen first."""
    page = _opened(browser, file, size, theme)
    page.screenshot(path=out)
    page.close()


def _part(browser: Browser, file: Path, out: Path, selectors: Sequence[str], *, theme: Theme = "light") -> None:
    """The first places that the selectors name in the last section that has groups, with some room around them."""
    page = _opened(browser, file, DESKTOP, theme)
    section = page.locator("section:has(.group)").last
    boxes = [section.locator(selector.rpartition(" ")[2]).first.bounding_box() for selector in selectors]
    known = [box for box in boxes if box is not None]
    left, top = min(box["x"] for box in known) - 12, min(box["y"] for box in known) - 12
    right, bottom = (max(box[at] + box[size] for box in known) + 12 for at, size in (("x", "width"), ("y", "height")))
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    page.screenshot(path=out, full_page=True, clip=clip)  # type: ignore[arg-type]
    page.close()


if __name__ == "__main__":
    typer.run(main)
