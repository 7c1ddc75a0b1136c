"""The report of a run, or of several: one HTML file that needs nothing else, readable while the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from guerdon import __version__
from guerdon.monitor import views
from guerdon.training.folder import RunFolder, atomic_write


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run, whatever the run has got to, and return its path.

    Args:
        out: the file; ``report.html`` in the run's folder by default.

    Raises:
        GuerdonError: when there is no run at ``run_dir``, or the file cannot be written.
    """
    folder = RunFolder.open(run_dir)
    return _write(render_report(folder), folder.report_path if out is None else Path(out))


def write_comparison(run_dirs: Sequence[str | Path], out: str | Path = "compare.html") -> Path:
    """Write the comparison of several runs and return its path.

    Raises:
        GuerdonError: when one of them is not a run, or the file cannot be written.
    """
    return _write(render_comparison([RunFolder.open(path) for path in run_dirs]), Path(out))


def render_report(folder: RunFolder) -> str:
    """The report as HTML; everything the policy or the user wrote is escaped."""
    saved = folder.rollout_steps()
    scopes = [views.microscope(folder, step=step) for step in sorted({*saved[:1], *saved[-1:]})]
    parts = [
        views.header(folder),
        views.alarms(folder),
        views.faults(folder),
        views.curves(folder),
        *(scopes or [views.microscope(folder)]),
        views.recipe(folder),
    ]
    return _page(folder.name, parts, weights=(folder.summary() or {}).get("weights_sha256"))


def render_comparison(folders: Sequence[RunFolder]) -> str:
    """The comparison of several runs as HTML."""
    title = f"{len(folders)} runs"
    return _page(title, [Markup("<header><h1>{}</h1></header>").format(title), views.comparison(folders)])


def _page(title: str, parts: Sequence[Markup], *, weights: str | None = None) -> str:
    template = views.environment().get_template("report.html.j2")
    style = Markup(views.stylesheet())
    return template.render(title=views.visible(title), style=style, parts=parts, weights=weights, version=__version__)


def _write(page: str, path: Path) -> Path:
    atomic_write(path, lambda file: file.write(page.encode("utf-8", "replace")))
    return path
