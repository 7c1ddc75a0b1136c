import errno
import json
import math
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tensordict import NonTensorStack

from guerdon.errors import GuerdonError
from guerdon.rewards.base import Fault
from guerdon.rollouts import Rollouts, make_rollouts
from guerdon.training.folder import FAULT_TEXT, RunFolder, atomic_write


def batch(**fields) -> Rollouts:
    """Three trajectories of 2, 3 and 1 actions; the second acts at positions 0, 1 and 3."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    defaults = {"payload": {}, "prompt": ["p", "p", "q"], "text": ["ab", "c<d>", ""], "answer": [4, None, {"x": 1}]}
    rollouts = make_rollouts(
        torch.tensor([0, 0, 1]),
        torch.tensor([7, 7, 9]),
        mask,
        torch.zeros(3, 4),
        done=torch.tensor([True, False, True]),
        truncated=torch.tensor([False, True, False]),
        version=5,
        **(defaults | fields),
    )
    rollouts.rewards["accuracy"] = torch.tensor([1.0, 0.0, 0.5])
    return rollouts


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", "name: run\n")


def fill_disk(monkeypatch, code=errno.ENOSPC):
    """Make every fsync fail, the last moment at which a full disk shows."""

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("guerdon.training.folder.os.fsync", full)


# Metrics ------------------------------------------------------------------------------------------------------


def test_metrics_columns_appear_as_they_come_and_are_null_where_missing(folder):
    folder.log(0, {"reward/mean": 0.25})
    folder.log(1, {"reward/mean": torch.tensor(0.5), "loss": float("nan")})
    folder.log(3, {"loss": 2})
    folder.flush()
    table = pq.read_table(folder.metrics_path)
    assert table.column_names == ["step", "time", "reward/mean", "loss"]
    assert str(table.schema.field("step").type) == "int64"
    assert table["step"].to_pylist() == [0, 1, 3]
    assert table["reward/mean"].to_pylist() == [0.25, 0.5, None]
    loss = table["loss"].to_pylist()
    assert loss[0] is None
    assert math.isnan(loss[1])
    assert loss[2] == 2.0


def test_a_second_call_for_a_step_adds_to_its_row(folder):
    folder.log(4, {"a": 1.0})
    folder.log(4, {"eval/greedy": 0.5})
    metrics = folder.metrics()
    assert metrics["step"] == [4]
    assert (metrics["a"], metrics["eval/greedy"]) == ([1.0], [0.5])
    folder.flush()
    folder.log(4, {"a": 3.0})
    folder.flush()
    assert RunFolder.open(folder.path).metrics()["a"] == [3.0]


def test_steps_must_not_go_back(folder):
    folder.log(4, {})
    with pytest.raises(GuerdonError, match=r"step 2 come after those of step 4.*truncate\(1\)"):
        folder.log(2, {})


@pytest.mark.parametrize(
    ("cost", "expected"), [(0.0, [100.0, 102.0, 104.0]), (0.11, [100.0])], ids=["quick disk", "slow disk"]
)
def test_log_writes_every_two_seconds_or_more_rarely_where_writing_is_slow(folder, monkeypatch, cost, expected):
    now, written = [100.0], []

    def write(path, content):
        written.append(now[0])
        now[0] += cost

    monkeypatch.setattr("guerdon.training.folder.atomic_write", write)
    folder._clock = lambda: now[0]
    for tick in range(12):
        now[0] = 100.0 + 0.5 * tick
        folder.log(tick, {"a": 1.0})
    assert written == expected
    rows = len(written)
    folder.flush()
    assert len(written) == rows + 1
    folder.flush()
    assert len(written) == rows + 1


def test_time_goes_on_where_a_resumed_run_left_it(folder):
    folder._clock = lambda: folder._origin + 7.0
    folder.log(0, {})
    folder.flush()
    again = RunFolder.open(folder.path)
    now = [1000.0]
    again._clock = lambda: now[0]
    again.truncate(0)
    now[0] += 3.0
    again.log(1, {})
    assert again.metrics()["time"] == [7.0, 10.0]


def test_truncate_forgets_everything_later(folder):
    for step in range(4):
        folder.log(step, {"late": 1.0} if step == 3 else {"a": float(step)})
        folder.write_rollouts(step, batch())
        folder.add_alarm({"step": step, "code": "x", "severity": "info", "message": "", "evidence": {}})
    folder.flush()
    folder.write_summary({"status": "finished"})
    (folder.path / ".metrics.parquet.tmp").write_bytes(b"torn")
    (folder.rollouts_path / ".step-000009.parquet.tmp").write_bytes(b"torn")
    again = RunFolder.open(folder.path)
    again.truncate(1)
    assert again.metrics()["step"] == [0, 1]
    assert "late" not in again.metrics()
    assert again.rollout_steps() == [0, 1]
    assert [a["step"] for a in again.alarms()] == [0, 1]
    assert again.summary() is None
    again.log(2, {"a": 9.0})
    again.flush()
    fresh = RunFolder.open(folder.path)
    assert fresh.metrics()["a"] == [0.0, 1.0, 9.0]
    assert not list(fresh.path.rglob("*.tmp"))
    again.truncate(-1)
    assert RunFolder.open(folder.path).metrics()["step"] == []


def test_a_truncated_run_equals_one_that_was_never_interrupted(tmp_path):
    def run(name, stops):
        folder = RunFolder.create(tmp_path / name, "")
        step = 0
        for stop in [*stops, 6]:
            while step < stop:
                folder.log(step, {"x": step / 7, f"only/{step}": 1.0})
                folder.write_rollouts(step, batch())
                step += 1
            folder.flush()
            folder = RunFolder.open(folder.path)
            step = max(0, stop - 2) if stop < 6 else stop
            if stop < 6:
                folder.truncate(step - 1)
        metrics = folder.metrics()
        del metrics["time"]
        return metrics, folder.rollouts().to_pylist()

    assert run("plain", []) == run("stopped", [3, 5])


# Disk full ----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_leaves_the_old_metrics_intact(folder, monkeypatch):
    folder.log(0, {"a": 1.0})
    folder.flush()
    before = folder.metrics_path.read_bytes()
    with monkeypatch.context() as patch:
        fill_disk(patch)
        folder.log(1, {"a": 2.0})
        with pytest.raises(GuerdonError) as caught:
            folder.flush()
    message = str(caught.value)
    assert str(folder.metrics_path) in message
    assert "No space left on device" in message
    assert "previous version is intact and nothing else was lost" in message
    assert f"guerdon train --resume {folder.path}" in message
    assert folder.metrics_path.read_bytes() == before
    assert not list(folder.path.glob(".*.tmp"))
    folder.flush()
    assert RunFolder.open(folder.path).metrics()["a"] == [1.0, 2.0]


def test_a_full_disk_while_writing_rollouts_names_the_run(folder, monkeypatch):
    fill_disk(monkeypatch)
    with pytest.raises(GuerdonError, match=f"step-000012.parquet.*No space.*--resume {folder.path}"):
        folder.write_rollouts(12, batch())
    assert folder.rollout_steps() == []


def test_alarms_and_summary_report_a_full_disk(folder, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(GuerdonError, match=r"alarms\.jsonl.*No space"):
        folder.add_alarm({"step": 0})
    with pytest.raises(GuerdonError, match=r"summary\.json.*No space"):
        folder.write_summary({})


def test_atomic_write_replaces_or_leaves(tmp_path):
    path = tmp_path / "f"
    atomic_write(path, lambda file: file.write(b"one"))

    def torn(file):
        file.write(b"half of tw")
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(GuerdonError, match="Input/output error"):
        atomic_write(path, torn)
    assert path.read_bytes() == b"one"
    atomic_write(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


# The folder itself --------------------------------------------------------------------------------------------


def test_create_refuses_a_run_that_has_begun_and_overwrite_clears_only_what_guerdon_wrote(folder):
    assert RunFolder.create(folder.path, "name: again\n").recipe_path.read_text() == "name: again\n"
    folder.log(0, {"a": 1.0})
    folder.flush()
    with pytest.raises(GuerdonError, match=r"already holds a run.*--resume"):
        RunFolder.create(folder.path, "")
    folder.write_rollouts(0, batch())
    for name in ("mine.txt", "checkpoints/step-1/x", "loggers/wandb/run-id", "report.html"):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("x")
    fresh = RunFolder.create(folder.path, "seed: 1\n", overwrite=True)
    left = {str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file()}
    assert left == {"mine.txt", "recipe.yaml"}
    assert fresh.metrics()["step"] == []


def test_open_refuses_what_is_not_a_run(tmp_path):
    with pytest.raises(GuerdonError, match="is not a run: it has no recipe"):
        RunFolder.open(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GuerdonError, match="cannot write .*file/run"):
        RunFolder.create(tmp_path / "file" / "run", "")


def test_alarms_survive_a_torn_last_line(folder):
    folder.add_alarm({"step": 1, "code": "a"})
    with folder.alarms_path.open("a") as file:
        file.write('{"step": 2, "co')
    assert folder.alarms() == [{"step": 1, "code": "a"}]


def test_faults_are_kept_line_by_line_with_their_samples_and_forgotten_with_their_steps(folder):
    assert folder.faults() == []
    folder.add_faults(0, [], batch())
    assert not folder.faults_path.exists()
    rollouts = batch()
    rollouts.text = NonTensorStack("a" * 600, "c<d>", "")
    folder.add_faults(0, [Fault("gold", 0, "timeout", "late"), Fault("gold", 1, "killed", "gone")], rollouts)
    folder.add_faults(3, [Fault("task", 2, "memory", "full")], rollouts)
    first, second, third = folder.faults()
    known = {"step": 0, "row": 1, "group": int(rollouts.group[1]), "task_id": int(rollouts.task_id[1])}
    assert second == {**known, "reward": "gold", "kind": "killed", "message": "gone", "text": "c<d>"}
    assert first["text"] == "a" * FAULT_TEXT
    assert (third["step"], third["row"], third["text"]) == (3, 2, "")
    RunFolder.open(folder.path).truncate(2)
    assert folder.faults() == [first, second]
    folder.add_faults(3, [Fault("task", 2, "memory", "full")], make_rollouts_without_text())
    assert folder.faults()[-1]["text"] is None
    RunFolder.create(folder.path, "name: again", overwrite=True)
    assert not folder.faults_path.exists()


def make_rollouts_without_text():
    rollouts = batch()
    rollouts.text = None
    return rollouts


def test_summary_round_trip(folder):
    assert folder.summary() is None
    summary = {"run": "run", "eval": {"before": {"greedy": 0.1}}, "alarms": [], "status": "finished"}
    folder.write_summary(summary)
    assert folder.summary() == summary
    assert json.loads(folder.summary_path.read_text()) == summary


# Rollouts -----------------------------------------------------------------------------------------------------


def test_rollouts_of_a_language_batch(folder):
    rollouts = batch()
    rollouts.rewards["format"] = torch.tensor([[0.5, 0.25, 9, 9], [0, 1, 9, 2], [3, 9, 9, 9.0]])
    rollouts.watch["gold"] = torch.tensor([1.0, 0.0, 1.0])
    rollouts.reward = torch.tensor([1.5, 0.0, 2.5])
    rollouts.advantage = torch.tensor([[1.0, 2.0, 8, 8], [-1, -2, 8, -3], [0.5, 8, 8, 8]])
    faults = [Fault("gold", 1, "exception", "boom"), Fault("gold", 1, "not_finite", "again")]
    path = folder.write_rollouts(12, rollouts, faults=faults, token_text=[["a", "b"], ["c", "<", "d>"], ["\ud800"]])
    assert path == folder.rollouts_path / "step-000012.parquet"
    rows = folder.rollouts(12).to_pylist()
    assert [r["row"] for r in rows] == [0, 1, 2]
    first, second, third = rows
    assert {k: first[k] for k in ("step", "group", "task_id", "prompt", "text", "answer", "length")} == {
        "step": 12,
        "group": 0,
        "task_id": 7,
        "prompt": "p",
        "text": "ab",
        "answer": "4",
        "length": 2,
    }
    assert (second["done"], second["truncated"], second["version"]) == (False, True, 5)
    assert [r["answer"] for r in rows] == ["4", None, "{'x': 1}"]
    assert [r["reward"] for r in rows] == [1.5, 0.0, 2.5]
    assert [r["reward/accuracy"] for r in rows] == [1.0, 0.0, 0.5]
    assert [r["reward/format"] for r in rows] == [0.75, 3.0, 3.0]
    assert [r["watch/gold"] for r in rows] == [1.0, 0.0, 1.0]
    assert [r["dense/format"] for r in rows] == [[0.5, 0.25], [0.0, 1.0, None, 2.0], [3.0]]
    assert [r["credit"] for r in rows] == [[1.0, 2.0], [-1.0, -2.0, None, -3.0], [0.5]]
    assert [r["tokens"] for r in rows] == [["a", "b"], ["c", "<", None, "d>"], ["?"]]
    assert second["fault"] == "gold: exception on sample 1: boom; gold: not_finite on sample 1: again"
    assert first["fault"] is None
    assert third["text"] == ""
    assert "turn" not in first
    assert "image" not in first


def test_samples_that_faulted_are_written_without_reward_and_credit(folder):
    scored = batch()
    scored.rewards["accuracy"] = torch.tensor([1.0, float("nan"), 0.5])
    kept = scored[torch.tensor([True, False, True])]
    kept.reward = torch.tensor([1.0, 0.5])
    kept.advantage = torch.ones(2, 4)
    fault = Fault("accuracy", 1, "exception", "KeyError: 'x'")
    folder.write_rollouts(0, kept, faults=[fault], scored=scored)
    rows = folder.rollouts(0).to_pylist()
    assert [r["text"] for r in rows] == ["ab", "c<d>", ""]
    assert [r["reward"] for r in rows] == [1.0, None, 0.5]
    assert [r["credit"] for r in rows] == [[1.0, 1.0], [None, None, None, None], [1.0]]
    assert "KeyError" in rows[1]["fault"]
    folder.write_rollouts(1, kept[:0], faults=[Fault("accuracy", 0, "not_finite", "")], scored=scored[1:2])
    assert folder.rollouts(1).num_rows == 1
    with pytest.raises(GuerdonError, match="3 scored trajectories without 0 faulted ones are not the 2 given"):
        folder.write_rollouts(2, kept, scored=scored)


def test_details_are_columns_of_text_or_json(folder):
    rollouts = batch()
    rollouts.detail = NonTensorStack({"gold": "why", "odd": {"n": (1, 2)}}, {}, {"odd": [{"s": {3}}]})
    folder.write_rollouts(0, rollouts)
    rows = folder.rollouts(0).to_pylist()
    assert [row["detail/gold"] for row in rows] == ["why", None, None]
    assert [row["detail/odd"] for row in rows] == ['{"n": [1, 2]}', None, '[{"s": "{3}"}]']


def test_a_faulted_sample_that_got_the_floor_keeps_its_reward(folder):
    scored = batch()
    scored.reward = torch.tensor([1.0, -1.0, 0.5])
    folder.write_rollouts(0, scored, faults=[Fault("accuracy", 1, "not_finite", "x")], scored=scored)
    assert folder.rollouts(0)["reward"].to_pylist() == [1.0, -1.0, 0.5]


def test_token_text_that_does_not_fit_the_mask_is_refused(folder):
    with pytest.raises(GuerdonError, match="token_text has 3 strings for row 0, which has 2 actions"):
        folder.write_rollouts(0, batch(), token_text=[["a", "b", "c"], ["a", "b", "c"], ["a"]])


def test_rollouts_of_a_flow_batch_hold_the_image(folder):
    sample = torch.arange(12.0).reshape(3, 2, 2)
    folder.write_rollouts(0, batch(payload={"sample": sample}, text=None, prompt=None, answer=None))
    rows = folder.rollouts(0).to_pylist()
    assert rows[1]["image"] == [4.0, 5.0, 6.0, 7.0]
    assert rows[1]["image_shape"] == [2, 2]
    assert rows[1]["text"] is None
    assert rows[1]["reward"] is None


def test_turns_are_written_where_there_are_several(folder):
    turn = torch.tensor([[0, 1, -1, -1], [0, 0, -1, 1], [0, -1, -1, -1]])
    folder.write_rollouts(0, batch(turn=turn))
    assert folder.rollouts(0)["turn"].to_pylist() == [[0, 1], [0, 0, None, 1], [0]]


def test_rollouts_of_all_steps_in_order_even_if_their_columns_differ(tmp_path):
    folder = RunFolder.create(tmp_path / "a[1] *?'run", "")
    folder.write_rollouts(10, batch())
    later = batch()
    later.rewards["style"] = torch.ones(3)
    folder.write_rollouts(2, later)
    table = folder.rollouts()
    assert table["step"].to_pylist() == [2, 2, 2, 10, 10, 10]
    assert table["row"].to_pylist() == [0, 1, 2, 0, 1, 2]
    assert table["reward/style"].to_pylist() == [1.0, 1.0, 1.0, None, None, None]
    assert folder.rollout_steps() == [2, 10]
    with pytest.raises(GuerdonError, match=r"no rollouts of step 3; it has those of \[2, 10\]"):
        folder.rollouts(3)


def test_a_run_without_rollouts_has_an_empty_table(folder):
    assert folder.rollouts().num_rows == 0


def test_off_mask_values_never_reach_the_file(folder):
    a, b = batch(), batch()
    for rollouts, junk in ((a, 0.0), (b, 1e9)):
        rollouts.rewards["format"] = torch.ones(3, 4).masked_fill(~rollouts.mask, junk)
        rollouts.advantage = torch.ones(3, 4).masked_fill(~rollouts.mask, junk)
    folder.write_rollouts(0, a)
    one = folder.rollouts(0).to_pylist()
    folder.write_rollouts(0, b)
    assert folder.rollouts(0).to_pylist() == one
