import math
import os
import shutil

import pytest
from live_runs import raise_alarm, recipe, write_run

from guerdon.errors import GuerdonError
from guerdon.monitor.live import store as store_module
from guerdon.monitor.live.store import PATIENCE_SECONDS, NoSuchRun, RunStore
from guerdon.training.folder import RunFolder


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def _always_look_again(monkeypatch):
    monkeypatch.setattr(store_module, "FRESH_SECONDS", 0.0)


def bare(path):
    """A folder that holds a recipe and nothing else."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(recipe())
    return path


# Finding ------------------------------------------------------------------------------------------------------


def test_runs_are_found_by_their_names_below_the_folder(runs):
    for name in ("a", "sweep/one", "sweep/two", "d1/d2/d3/run", "d1/d2/d3/d4/too-deep", ".hidden/run"):
        bare(runs / name)
    bare(runs / "a" / "rollouts" / "not-a-run-of-its-own")
    bare(runs / "line\nbreak")
    bare(runs / os.fsdecode(b"not-\xff-unicode"))
    (runs / "empty").mkdir()
    assert sorted(RunStore(runs).rows()) == ["a", "d1/d2/d3/run", "sweep/one", "sweep/two"]


def test_a_name_with_any_character_is_one_segment_of_an_address(runs):
    bare(runs / "a b" / "50%?#&+é")
    (row,) = RunStore(runs).rows().values()
    assert row.id == "a%20b%2F50%25%3F%23%26%2B%C3%A9"


def test_the_folder_of_one_run_shows_this_run_alone(runs):
    bare(runs / "a")
    bare(runs / "b")
    store = RunStore(runs / "a")
    assert list(store.rows()) == ["a"]
    assert store.folder("a").path == runs / "a"
    with pytest.raises(NoSuchRun):
        store.folder("b")


def test_without_a_folder_there_is_nothing_to_show(tmp_path):
    with pytest.raises(GuerdonError, match="no folder '.*nowhere' to look for runs in"):
        RunStore(tmp_path / "nowhere")


def test_a_run_is_found_in_the_moment_it_begins(runs, monkeypatch):
    store = RunStore(runs)
    monkeypatch.setattr(store_module, "FRESH_SECONDS", 1000.0)
    assert store.rows() == {}
    bare(runs / "a")
    assert store.rows() == {}
    assert store.row("a").name == "a"


def test_runs_that_come_and_go_are_noticed(runs):
    store = RunStore(runs)
    assert store.rows() == {}
    bare(runs / "a")
    assert list(store.rows()) == ["a"]
    shutil.rmtree(runs / "a")
    assert store.rows() == {}


# What is not below the folder ---------------------------------------------------------------------------------

NAMES = ["", ".", "..", "../out", "a/../../out", "/etc", "a/", "./a", "a\x00", "A", "..%2Fout", "a\\..\\..\\out"]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_name_of_a_run_opens_it(runs, name):
    bare(runs / "a")
    bare(runs.parent / "out")
    store = RunStore(runs)
    assert store.folder("a").name == "a"
    with pytest.raises(NoSuchRun):
        store.folder(name)


@pytest.mark.parametrize("what", ["run", "recipe.yaml", "metrics.parquet", "alarms.jsonl", "rollouts", "rollouts/step"])
def test_a_link_out_of_the_folder_hides_the_run(runs, what):
    write_run(runs / "good")
    outside = write_run(runs.parent / "outside").path
    inner = runs / "bad"
    if what == "run":
        inner.symlink_to(outside)
    else:
        write_run(inner)
        target = "rollouts/step-000005.parquet" if what == "rollouts/step" else what
        if (inner / target).is_dir():
            shutil.rmtree(inner / target)
        else:
            (inner / target).unlink(missing_ok=True)
        (outside / "alarms.jsonl").touch()
        (inner / target).symlink_to(outside / target)
    store = RunStore(runs)
    assert list(store.rows()) == ["good"]
    with pytest.raises(NoSuchRun):
        store.folder("bad")


def test_a_link_that_appears_between_two_looks_is_not_followed(runs, monkeypatch):
    write_run(runs / "a")
    secret = runs.parent / "secret"
    secret.write_text("password\n")
    store = RunStore(runs)
    row = store.row("a")
    (runs / "a" / "recipe.yaml").unlink()
    (runs / "a" / "recipe.yaml").symlink_to(secret)
    monkeypatch.setattr(store, "row", lambda name: row)
    with pytest.raises(NoSuchRun, match="reaches out of the folder"):
        store.folder("a")


def test_links_within_the_folder_are_read(runs):
    write_run(runs / "a")
    write_run(runs / "b")
    (runs / "a" / "alarms.jsonl").symlink_to(runs / "b" / "alarms.jsonl")
    raise_alarm(RunFolder.open(runs / "b"), 1)
    (runs / "latest").symlink_to(runs / "b")
    rows = RunStore(runs).rows()
    assert sorted(rows) == ["a", "b"]
    assert rows["a"].alarms == 1


# How a run stands ---------------------------------------------------------------------------------------------


def test_a_row_says_how_a_run_stands(runs):
    folder = write_run(runs / "a", steps=6, task="countdown", credit="rloo")
    for severity in ("info", "critical", "warning"):
        raise_alarm(folder, 3, severity)
    row = RunStore(runs).row("a")
    assert (row.status, row.task, row.policy, row.credit) == ("finished", "countdown", "tiny_lm", "rloo")
    assert (row.steps, row.planned, row.seconds) == (6, 40, 12.5)
    assert row.reward == pytest.approx(1.5 * 3 / 20 + 0.05)
    assert (row.alarms, row.worst) == (3, "critical")
    assert row.started == pytest.approx((runs / "a" / "recipe.yaml").stat().st_mtime)


def test_a_run_that_has_just_begun_has_done_no_step(runs):
    write_run(runs / "a", steps=0, end=None)
    row = RunStore(runs).row("a")
    assert (row.status, row.steps, row.reward, row.alarms) == ("running", 0, None, 0)


def test_a_silent_run_counts_as_running_for_a_while(runs):
    write_run(runs / "a", end=None)
    now = [(runs / "a" / "rollouts").stat().st_mtime]
    store = RunStore(runs, clock=lambda: now[0])
    running = store.row("a")
    now[0] += PATIENCE_SECONDS + 1
    silent = store.row("a")
    assert (running.status, silent.status) == ("running", "unfinished")
    changed = {part for part in running.parts if running.parts[part] != silent.parts[part]}
    assert changed == {"standing", "header"}


def test_slow_steps_earn_patience(runs, monkeypatch):
    folder = RunFolder.create(runs / "slow", recipe())
    monkeypatch.setattr(folder, "_clock", lambda: folder._origin + 900.0)
    folder.log(0, {"reward/mean": 0.5})
    folder.flush()
    now = (runs / "slow" / "metrics.parquet").stat().st_mtime
    assert RunStore(runs, clock=lambda: now + 10 * 900).row("slow").status == "running"
    assert RunStore(runs, clock=lambda: now + 30 * 900).row("slow").status == "unfinished"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("recipe.yaml", b"\xff\xfe\x00 not: [yaml"),
        ("recipe.yaml", b"task:\n  name: [1, 2]\ntraining:\n  steps: many\n"),
        ("metrics.parquet", b"PAR1 torn"),
        ("metrics.parquet", b""),
        ("summary.json", b'{"status": "fin'),
        ("summary.json", b'[1, "finished"]'),
        ("summary.json", b'{"status": "lost", "steps": 1e999, "seconds": 1}'),
        ("summary.json", b"[" * 100_000),
        ("summary.json", b'{"status": {"a": 1}, "steps": 1, "seconds": NaN}'),
        ("alarms.jsonl", b'{"severity": "warning"}\n[1]\n{"severity": ["x"]}\n{"sev'),
    ],
)
def test_a_damaged_file_costs_only_what_it_says(runs, file, content):
    raise_alarm(write_run(runs / "a"), 1)
    whole = RunStore(runs).row("a")
    (runs / "a" / file).write_bytes(content)
    row = RunStore(runs).row("a")
    assert row.name == "a"
    kept = {"recipe.yaml": "steps", "metrics.parquet": "task", "summary.json": "reward", "alarms.jsonl": "status"}[file]
    assert getattr(row, kept) == getattr(whole, kept)
    assert math.isfinite(row.seconds)
    if file == "summary.json":
        assert row.status == "running"


def test_only_the_parts_whose_files_changed_get_another_version(runs):
    folder = write_run(runs / "a", end=None)
    store = RunStore(runs)

    def changed_by(change):
        before = store.row("a").parts
        change()
        after = store.row("a").parts
        return {part for part in after if after[part] != before[part]}

    assert changed_by(lambda: None) == set()
    assert changed_by(lambda: raise_alarm(folder, 2)) == {"standing", "header", "alarms", "curves"}
    assert changed_by(lambda: (folder.log(6, {"a": 1.0}), folder.flush())) == {"standing", "header", "curves"}
    saved = changed_by((runs / "a" / "rollouts" / "step-000006.parquet").touch)
    assert saved == {"standing", "header", "microscope"}


def test_a_file_is_read_again_only_when_it_changed(runs, monkeypatch):
    for name in ("a", "b"):
        write_run(runs / name, end=None)
    read = []
    whole = store_module._metrics_facts
    monkeypatch.setattr(store_module, "_metrics_facts", lambda path: read.append(path.parent.name) or whole(path))
    store = RunStore(runs)
    for _ in range(3):
        store.rows()
    assert sorted(read) == ["a", "b"]
    folder = RunFolder.open(runs / "b")
    folder.log(9, {"reward/mean": 0.25})
    folder.flush()
    assert store.row("b").reward == 0.25
    assert sorted(read) == ["a", "b", "b"]
