import re
from html.parser import HTMLParser

import pytest
import torch

from guerdon.errors import GuerdonError
from guerdon.monitor.alarms import batch_metrics
from guerdon.monitor.report import Curves, changes, fault_rows, visible, write_report
from guerdon.rewards.base import Fault
from guerdon.rollouts import make_rollouts
from guerdon.training.folder import RunFolder

HOSTILE = "</pre><script>alert('x')</script><img src=x onerror=alert(1)>&amp;\x07"


class Page(HTMLParser):
    """Every start tag with its attributes, and the text between."""

    VOID = frozenset({"meta", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def rollouts_of(kind: str, step: int, text: str | None = None):
    n, generator = 8, torch.Generator().manual_seed(step)
    payload = {"sample": torch.randn(n, 64, generator=generator)} if kind == "flow" else {}
    fields = {}
    if kind == "language":
        fields = {"prompt": [f"spell {text or 'sun'}"] * n, "text": [text or "nus"] * n, "answer": [text or "nus"] * n}
    rollouts = make_rollouts(
        torch.arange(2).repeat_interleave(4),
        torch.arange(2).repeat_interleave(4),
        torch.ones(n, 3).bool(),
        torch.zeros(n, 3),
        done=torch.ones(n).bool(),
        truncated=torch.zeros(n).bool(),
        payload=payload,
        **fields,
    )
    rollouts.rewards["task"] = torch.rand(n, generator=generator)
    rollouts.watch["gold"] = torch.rand(n, generator=generator)
    rollouts.reward = rollouts.rewards["task"]
    rollouts.advantage = torch.ones(n, 3)
    return rollouts


def run(path, kind="language", steps=12, finished=True, text=None) -> RunFolder:
    """A folder as a run of ``kind`` leaves it."""
    folder = RunFolder.create(path, f"name: demo\ntask: {text or 'spell'}\n")
    for step in range(steps):
        rollouts = rollouts_of(kind, step, text)
        extra = {"update/loss": 0.1 / (step + 1), "update/grad_norm": 1.0 + step, "actions_per_second": 1e4 + step}
        extra |= {"update/lr": 1e-3, "update/kl/kl": 0.01 * step, "odd/metric": step % 3}
        extra |= {"eval/greedy": 0.3 + step / 100} if step % 5 == 4 else {}
        folder.log(step, batch_metrics(rollouts) | extra)
        if step in (0, 6, steps - 1):
            folder.write_rollouts(step, rollouts)
    folder.flush()
    if finished:
        evaluations = {"before": {"sampled": 0.2, "greedy": 0.25}, "after": {"sampled": 0.5, "greedy": 0.125}}
        folder.write_summary(
            {
                "run": "demo",
                "kind": kind,
                "steps": steps,
                "seconds": 83.4,
                "eval": evaluations,
                "alarms": [],
                "weights_sha256": "f00d" * 16,
                "status": "finished",
            }
        )
    return folder


def page_of(folder: RunFolder) -> Page:
    path = write_report(folder.path)
    assert path == folder.path / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    page.html = html
    return page


def headings(page: Page) -> list[str]:
    return re.findall(r"<h3>(.*?)(?: <span|</h3>)", page.html)


def test_the_report_of_a_finished_run(tmp_path):
    folder = run(tmp_path / "demo")
    folder.add_alarm(
        {"step": 7, "code": "truncation", "severity": "warning", "message": "60% were cut", "evidence": {}}
    )
    page = page_of(folder)
    text = " ".join(page.text.split())
    for part in ("demo finished language policy 12 steps 1 min 23 s 1 alarm", "f00d", "name: demo"):
        assert part in text
    assert "held-out sampled 0.200 → 0.500 ▲ +0.300" in text
    assert "held-out greedy 0.250 → 0.125 ▼ −0.125" in text
    assert "truncation warning step 7 60% were cut" in text
    shown = headings(page)
    assert shown[:2] == ["Held-out evaluation", "Training reward"]
    for title in ("Reward components", "Groups", "Loss", "KL divergence", "Gradient norm", "Throughput", "odd/metric"):
        assert title in shown
    assert "Entropy" not in shown  # never logged
    assert "Cut at the limit" not in shown  # never changed
    assert "never changed" in text
    assert "update/lr0.001" in text  # two cells of a table
    assert "gold (watch only)" in text
    assert "Step 0 8 trajectories" in text
    assert "Step 11 8 trajectories" in text
    assert "Step 6 8" not in text
    assert "step 7: truncation" in page.html  # a marker in the curves


@pytest.mark.parametrize("kind", ["language", "flow", "control"])
@pytest.mark.parametrize("finished", [True, False])
def test_every_kind_of_run_finished_or_not(tmp_path, kind, finished):
    page = page_of(run(tmp_path / "r", kind, finished=finished))
    text = " ".join(page.text.split())
    assert f"{'finished' if finished else 'unfinished'} {kind} policy 12 steps" in text
    assert len(page.all("img")) == (16 if kind == "flow" else 0)
    assert ("return" in text) == (kind == "control")
    assert ("reference answer" in text) == (kind == "language")
    if not finished:
        assert "held-out greedy 0.340 → 0.390 ▲ +0.050" in text


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


def test_what_the_policy_wrote_stays_text(tmp_path):
    folder = run(tmp_path / "demo", text=HOSTILE)
    folder.log(12, {f"reward/{HOSTILE}/mean": 0.5, f"eval/{HOSTILE}": 0.1, HOSTILE: 1.0})
    folder.log(13, {HOSTILE: 2.0})
    folder.add_alarm({"step": 3, "code": HOSTILE, "severity": HOSTILE, "message": HOSTILE, "evidence": {}})
    page = page_of(folder)
    assert not page.all("script")
    assert not page.all("img")
    assert not [a for _, a in page.tags if "onerror" in a]
    assert page.text.count("<script>alert('x')</script>") > 10
    assert "\x07" not in page.html
    assert "␇" in page.text


def test_a_run_of_which_nothing_is_logged_yet(tmp_path):
    page = page_of(RunFolder.create(tmp_path / "young", "name: young\n"))
    text = " ".join(page.text.split())
    assert "young unfinished 0 steps 0 s 0 alarms" in text
    assert "No step has been logged yet" in text
    assert "name: young" in text
    assert "<svg" not in page.html


def test_one_step_and_odd_numbers_are_no_error(tmp_path):
    folder = RunFolder.create(tmp_path / "r", "")
    folder.log(0, {"reward/mean": float("nan"), "update/loss": float("inf"), "length/mean": 1.0})
    folder.flush()
    text = " ".join(page_of(folder).text.split())
    assert "1 step " in text
    assert headings(page_of(folder)) == ["Length"]


def test_the_report_leaves_the_folder_of_a_running_run_alone(tmp_path):
    folder = run(tmp_path / "r", finished=False)
    partial = folder.rollouts_path / ".step-000020.parquet.tmp"
    partial.write_bytes(b"being written")
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    write_report(folder.path)
    after = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file() and p.name != "report.html"}
    assert after == before


def test_there_must_be_a_run(tmp_path):
    with pytest.raises(GuerdonError, match="is not a run"):
        write_report(tmp_path / "nothing")


def curves(columns, summary=None) -> Curves:
    n = max(map(len, columns.values()))
    return Curves({"step": list(range(n)), "time": [0.0] * n, **columns}, summary or {}, [])


def test_components_of_different_scale_do_not_drown_each_other():
    panels = curves({"reward/a/mean": [0.1, 1.0], "reward/b/mean": [50.0, 100.0], "reward/c/mean": [0.0, 0.5]}).main
    assert [[s.name for s in p.series] for p in panels] == [["a", "c"], ["b"]]


def test_a_component_that_is_the_reward_itself_is_drawn_once():
    same, other = [0.1, 0.2], [0.2, 0.4]
    assert [p.title for p in curves({"reward/mean": same, "reward/task/mean": same}).main] == ["Training reward"]
    shaped = curves({"reward/mean": same, "reward/task/mean": other})
    assert [p.title for p in shaped.main] == ["Training reward", "Reward components"]


def test_every_metric_is_shown_somewhere():
    names = (
        "reward/mean reward/std reward/x/mean reward/x/std watch/y/mean groups/zero_variance groups/all_min "
        "length/mean length/max truncated entropy/mean advantage/abs_mean update/loss update/term/loss faults "
        "update/grad_norm update/obj/approx_kl actions_per_second seconds/sample eval/greedy credit/stat trajectories"
    ).split()
    columns = {name: [0.1 * k, 0.2, 0.3 + k] for k, name in enumerate(names)}
    found = curves(columns)
    drawn = [s.name for p in [*found.main, *found.further] for s in p.series]
    assert len(drawn) == len(columns)


def test_evaluations_lie_where_training_stood():
    summary = {"steps": 3, "eval": {"before": {"greedy": 0.1}, "after": {"greedy": 0.9}}}
    (panel,) = curves({"eval/greedy": [None, 0.5, None]}, summary).main
    (series,) = panel.series
    assert (list(series.x), list(series.y)) == ([0, 2, 3], [0.1, 0.5, 0.9])


def test_useful_groups_are_those_that_differ():
    (panel,) = curves({"groups/zero_variance": [1.0, None, 0.25]}).main
    assert list(panel.series[0].y) == [0.0, None, 0.75]


def test_changes_of_a_run_without_an_end():
    columns = {"eval/greedy": [None, 0.2, None, 0.6], "step": [0, 1, 2, 3]}
    assert [(c.name, c.before, c.after) for c in changes({}, columns)] == [("greedy", 0.2, 0.6)]
    (interrupted,) = changes({"before": {"greedy": 0.1}}, columns)
    assert (interrupted.before, interrupted.after) == (0.1, 0.6)
    (early,) = changes({"before": {"greedy": 0.1}}, {})
    assert (early.after, early.difference) == (None, None)


def test_faults_are_counted_by_reward_and_kind_with_the_first_of_each():
    seen = [
        ("a", "timeout", 0, HOSTILE),
        ("a", "timeout", 3, "later"),
        ("b", "killed", 1, None),
        ("a", "timeout", 3, ""),
    ]
    rows = fault_rows([{"reward": r, "kind": k, "step": s, "message": f"at {s}", "text": t} for r, k, s, t in seen])
    assert [(r.reward, r.kind, r.count, r.steps, r.message) for r in rows] == [
        ("a", "timeout", 3, 2, "at 0"),
        ("b", "killed", 1, 1, "at 1"),
    ]
    assert (rows[0].text, rows[1].text) == (HOSTILE, None)
    assert fault_rows([]) == []


def test_the_report_shows_faults_and_their_texts_stay_text(tmp_path):
    folder = run(tmp_path / "run")
    assert "Reward faults" not in page_of(folder).text
    folder.add_faults(2, [Fault("task", 1, "killed", "died")], rollouts_of("language", 2, HOSTILE))
    page = page_of(folder)
    assert "Reward faults" in page.text
    assert "died" in page.text
    assert "alert('x')" in page.text
    assert not page.all("script")


def test_kinds_of_faults_share_a_picture_and_are_zero_where_there_were_none():
    columns = {"faults": [3.0, 0.0, 2.0], "faults/killed": [1.0, None, 2.0], "faults/timeout": [2.0, None, None]}
    drawn = [(s.name, list(s.y)) for p in curves(columns).main for s in p.series]
    assert drawn == [("all", [3.0, 0.0, 2.0]), ("killed", [1.0, 0.0, 2.0]), ("timeout", [2.0, 0.0, 0.0])]


def test_control_characters_become_visible():
    assert visible("a\x00b\x1b[31m\n\tc") == "a␀b␛[31m\n\tc"
