import random

import pytest
import torch
from logs import changed, healthy, write

from guerdon.monitor import summaries
from guerdon.monitor.batch import batch_metrics
from guerdon.monitor.columns import Choices
from guerdon.monitor.sources import open_log
from guerdon.monitor.summaries import step_rows, whole_log
from guerdon.rollouts import make_rollouts
from guerdon.training.folder import RunFolder


def batch(seed: int, n: int = 96):
    """Ragged groups, repeated texts, two components that don't always apply, a judge, a watched reward, credit."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 7, (n,), generator=generator)
    mask = torch.arange(6) < length.unsqueeze(1)
    rollouts = make_rollouts(
        torch.tensor(sorted(rng.randrange(16) for _ in range(n))),
        torch.tensor([rng.randrange(12) for _ in range(n)]),
        mask,
        torch.zeros(n, 6),
        done=torch.ones(n).bool(),
        truncated=torch.rand(n, generator=generator) < 0.2,
        payload={},
        prompt=[f"q{rng.randrange(12)}" for _ in range(n)],
        text=[
            rng.choice(["a", "b", f"c{i}", r"so \boxed{7}", f"{i} <answer>7</answer>", "long " * 200]) for i in range(n)
        ],
    )
    task = torch.randint(0, 2, (n,), generator=generator).float()
    style = torch.rand(n, generator=generator)
    style[::7] = float("nan")
    rollouts.rewards["task"] = task
    rollouts.rewards["judge"] = style
    rollouts.watch["gold"] = torch.rand(n, generator=generator)
    rollouts.reward = task + 3 * style.nan_to_num()
    rollouts.advantage = torch.randn(n, 1, generator=generator) * mask
    return rollouts


def test_a_log_gives_the_same_numbers_as_the_batch_it_was_written_from(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "name: run\n")
    batches = {step: batch(step) for step in (0, 3)}
    for step, rollouts in batches.items():
        folder.write_rollouts(step, rollouts)
    rows = dict(step_rows(open_log(folder.path)))
    assert rows.keys() == {0, 3}
    for step, rollouts in batches.items():
        expected = batch_metrics(rollouts)
        told = {name: expected[name] for name in expected if name not in ("advantage/off_mask", "actions")}
        told.pop("advantage/abs_mean")  # by action there, by trajectory here
        for name in ("groups/duplicates", "components/judge/noise", "components/task~judge/correlation"):
            assert name in told
        assert {
            "components/task/share",
            "judge/judge/length",
            "judge/gold/gold_length",
            "text/commonest",
        } <= told.keys()
        assert {name: rows[step][name] for name in told} == pytest.approx(told, rel=1e-5, abs=1e-6)


def test_what_the_trainer_wrote_wins_and_the_rollouts_add_the_rest(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "name: run\n")
    for step in range(3):
        folder.log(step, {"reward/mean": 9.0, "trajectories": 96.0})
    folder.flush()
    folder.write_rollouts(1, batch(1))
    rows = dict(step_rows(open_log(folder.path)))
    assert [row["reward/mean"] for row in rows.values()] == [9.0] * 3
    assert ["truncated" in row for row in rows.values()] == [False, True, False]


def test_lengths_of_two_units_are_not_mixed(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 0, "completions/mean_length": 5.0}]}')
    write(tmp_path / "log.parquet", healthy(steps=2))
    first, second = (row for _, row in step_rows(open_log(tmp_path)))
    assert first["length/mean"] == 5.0
    assert "length/mean" not in second
    assert "reward/mean" in second


def test_a_faulted_sample_leaves_its_group_and_is_counted(tmp_path):
    rows = changed(
        lambda row, rng: row | {"reward": None if row["completion"].endswith("3") else row["reward"]}, steps=1
    )
    ((_, row),) = step_rows(open_log(write(tmp_path / "log.parquet", rows)))
    assert (row["faults"], row["trajectories"]) == (8.0, 56.0)


def test_steps_are_read_in_pieces_that_never_cut_one(tmp_path, monkeypatch):
    path = write(tmp_path / "log.parquet", healthy(steps=9))
    whole = list(step_rows(open_log(path)))
    monkeypatch.setattr(summaries, "CHUNK", 150)
    assert list(step_rows(open_log(path))) == whole
    assert [step for step, _ in whole] == list(range(9))
    assert list(summaries._chunks([(0, 60), (1, 60), (2, 60), (3, 500), (4, 1)])) == [(0, 1), (2, 2), (3, 3), (4, 4)]


def test_how_old_samples_are_is_told_by_the_version_that_drew_them(tmp_path):
    rows = changed(lambda row, rng: row | {"version": row["step"] - 3}, steps=2)
    assert [row["staleness"] for _, row in step_rows(open_log(write(tmp_path / "log.parquet", rows)))] == [3.0, 3.0]


def test_problems_count_only_when_they_are_tried_again(tmp_path):
    once = open_log(write(tmp_path / "once.parquet", healthy(steps=4, size=20)))
    assert whole_log(once) == ([], set())
    again = changed(lambda row, rng: row | {"prompt": "q", "reward": 0.0}, steps=4)
    told, checked = whole_log(open_log(write(tmp_path / "again.parquet", again)))
    assert {"unsolvable-tasks", "saturated-tasks"} == checked
    ((code, finding, share, steps),) = told
    assert (code, finding.severity, share, steps) == ("unsolvable-tasks", "warning", 1.0, (0, 3))


def test_noise_is_the_variance_between_equal_texts(tmp_path):
    rows = [
        {"step": 0, "prompt": f"q{k}", "text": "same", "reward": reward, "gold": 1.0}
        for k in range(40)
        for reward in ((0.0, 1.0) if k < 4 else (float(k % 2),) * 2)
    ]
    log = open_log(write(tmp_path / "log.parquet", rows), Choices(reward=("reward",)))
    ((_, finding, share, _),) = [found for found in whole_log(log)[0] if found[0] == "noisy-reward"]
    # 4 of 40 pairs differ by 1: squares of 2 over 40 degrees of freedom, beside a variance of 1/4
    assert finding.evidence["noise"] == pytest.approx(0.2)
    assert finding.evidence["repeats"] == 40
    assert share == 0.1
