import re

import pytest
from report_runs import HOSTILE, Page, rollouts_of, run

from guerdon.errors import GuerdonError
from guerdon.monitor.report import write_comparison, write_report
from guerdon.rewards.base import Fault
from guerdon.training.folder import RunFolder


def page_of(folder: RunFolder) -> Page:
    path = write_report(folder.path)
    assert path == folder.path / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def headings(page: Page) -> list[str]:
    return re.findall(r"<h3>(.*?)(?: <span|</h3>)", page.html)


def test_the_report_of_a_finished_run(tmp_path):
    folder = run(tmp_path / "demo")
    folder.add_alarm(
        {"step": 7, "code": "truncation", "severity": "warning", "message": "60% were cut", "evidence": {}}
    )
    page = page_of(folder)
    for part in ("demo finished language policy 12 steps 1 min 23 s 1 alarm", "f00d", "name: demo"):
        assert part in page.text
    assert "task spell credit grpo" in page.text
    assert "held-out sampled 0.200 → 0.500 ▲ +0.300" in page.text
    assert "held-out greedy 0.250 → 0.125 ▼ −0.125" in page.text
    assert "truncation warning step 7 60% were cut" in page.text
    shown = headings(page)
    assert shown[:3] == ["Held-out evaluation", "Training reward", "Optimised and watched"]
    for title in ("Groups", "Loss", "KL divergence", "Gradient norm", "Throughput", "odd/metric"):
        assert title in shown
    assert "Entropy" not in shown  # never logged
    assert "Cut at the limit" not in shown  # never changed
    assert "never changed" in page.text
    assert "update/lr 0.001" in page.text
    assert "gold (watch only)" in page.text
    assert "Rollouts of step 0 8 trajectories in 2 groups" in page.text
    assert "Rollouts of step 11 8" in page.text
    assert "Rollouts of step 6" not in page.text
    assert "step 7: truncation" in page.html  # a marker in the curves


@pytest.mark.parametrize("kind", ["language", "flow", "control"])
@pytest.mark.parametrize("finished", [True, False])
def test_every_kind_of_run_finished_or_not(tmp_path, kind, finished):
    page = page_of(run(tmp_path / "r", kind, finished=finished))
    assert f"{'finished' if finished else 'unfinished'} {kind} policy 12 steps" in page.text
    # Two steps of eight samples, and strips of four states of the best and the worst of each group.
    assert len(page.all("img")) == (2 * (8 + 2 * 2 * 4) if kind == "flow" else 0)
    assert ("return" in page.text) == (kind == "control")
    assert ("task per step" in page.text) == (kind == "control")
    assert ("reference answer" in page.text) == (kind == "language")
    if not finished:
        assert "held-out greedy 0.340 → 0.390 ▲ +0.050" in page.text


@pytest.mark.parametrize("kind", ["language", "flow", "control"])
def test_the_page_asks_nothing_of_the_network_and_stays_small(tmp_path, kind):
    page = page_of(run(tmp_path / "r", kind))
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "@import" not in page.html
    assert "url(" not in page.html
    assert not page.all("script")
    assert len(page.html) < 300_000
    assert "prefers-color-scheme: dark" in page.html
    assert 'name="viewport"' in page.html


def test_the_page_without_data_weighs_little(tmp_path):
    page = page_of(RunFolder.create(tmp_path / "young", "name: young\n"))
    assert len(page.html.encode()) < 30_000  # a tenth of what a page may weigh


def test_what_the_policy_wrote_stays_text(tmp_path):
    folder = run(tmp_path / "demo", text=HOSTILE)
    folder.log(12, {f"reward/{HOSTILE}/mean": 0.5, f"eval/{HOSTILE}": 0.1, HOSTILE: 1.0})
    folder.log(13, {HOSTILE: 2.0})
    folder.add_alarm({"step": 3, "code": HOSTILE, "severity": HOSTILE, "message": HOSTILE, "evidence": {}})
    folder.add_faults(2, [Fault("task", 1, "killed", HOSTILE)], rollouts_of("language", 2, HOSTILE))
    page = page_of(folder)
    assert not page.all("script")
    assert not page.all("img")
    assert not [a for _, a in page.tags if "onerror" in a]
    assert page.data.count("<script>alert('x')</script>") > 10
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.html)
    assert "␇␛[31m[U+202E]abc" in page.data


def test_a_run_of_which_nothing_is_logged_yet(tmp_path):
    page = page_of(RunFolder.create(tmp_path / "young", "name: young\n"))
    assert "young unfinished 0 steps 0 s 0 alarms" in page.text
    assert "No step has been logged yet" in page.text
    assert "Rollouts None has been saved yet" in page.text
    assert "name: young" in page.text
    assert "<svg" not in page.html


def test_one_step_and_odd_numbers_are_no_error(tmp_path):
    folder = RunFolder.create(tmp_path / "r", "")
    folder.log(0, {"reward/mean": float("nan"), "update/loss": float("inf"), "length/mean": 1.0})
    folder.flush()
    page = page_of(folder)
    assert "1 step " in page.text
    assert headings(page) == ["Length"]


def test_the_report_leaves_the_folder_of_a_running_run_alone(tmp_path):
    folder = run(tmp_path / "r", finished=False)
    partial = folder.rollouts_path / ".step-000020.parquet.tmp"
    partial.write_bytes(b"being written")
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    write_report(folder.path)
    after = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file() and p.name != "report.html"}
    assert after == before


def test_the_report_may_go_elsewhere(tmp_path):
    folder = run(tmp_path / "r", steps=2)
    assert write_report(folder.path, tmp_path / "there.html") == tmp_path / "there.html"
    assert not folder.report_path.exists()
    assert "r finished language policy" in Page((tmp_path / "there.html").read_text()).text


def test_there_must_be_a_run(tmp_path):
    with pytest.raises(GuerdonError, match="is not a run"):
        write_report(tmp_path / "nothing")
    run(tmp_path / "r", steps=1)
    with pytest.raises(GuerdonError, match="'.*nothing' is not a run"):
        write_comparison([tmp_path / "r", tmp_path / "nothing"], tmp_path / "c.html")


def test_several_runs_are_one_page(tmp_path):
    runs = [run(tmp_path / f"demo-{seed}", steps=6, seed=seed).path for seed in range(2)]
    page = Page(write_comparison(runs, tmp_path / "c.html").read_text(encoding="utf-8"))
    assert "2 runs" in page.text
    assert "demo 0, 1 6" in page.text
    assert not page.all("script")
    assert "held-out greedy" in headings(page)
