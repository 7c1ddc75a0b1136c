from pathlib import Path

import pytest
from typer.testing import CliRunner

from guerdon.cli.main import app
from guerdon.training.folder import RunFolder


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a-0", 0), ("a-1", 1)):
        folder = RunFolder.create(tmp_path / "runs" / name, f"name: {name}\nseed: {seed}\n")
        folder.log(0, {"reward/mean": float(seed)})
        folder.flush()
    return tmp_path


def report(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["report", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_one_run_gets_its_report_into_its_folder_or_elsewhere(home):
    assert report("runs/a-0") == "runs/a-0/report.html"
    assert report("runs/a-0", "--out", "there.html") == "there.html"
    assert "a-0" in (home / "there.html").read_text()


def test_several_runs_are_compared(home):
    assert report("runs/a-0", "runs/a-1") == "compare.html"
    assert "2 runs" in (home / "compare.html").read_text()
    assert report("runs/a-0", "runs/a-1", "--out", "c.html") == "c.html"
    assert not (home / "runs/a-0/report.html").exists()


def test_a_folder_that_is_no_run_is_one_line(home):
    result = CliRunner().invoke(app, ["report", "runs/a-0", "nowhere"])
    assert result.exit_code == 1
    assert "'nowhere' is not a run" in result.output
