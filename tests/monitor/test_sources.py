import csv
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logs import healthy, write

from guerdon.errors import GuerdonError
from guerdon.monitor import sources
from guerdon.monitor.columns import Choices
from guerdon.monitor.sources import open_log
from guerdon.monitor.summaries import step_rows


def jsonl(path, rows, torn=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn, encoding="utf-8")
    return path


def verl(step, n=8):
    """What verl's trainer dumps of a step."""
    return [
        {
            "input": f"q{i // 4}",
            "output": f"text {i}",
            "gts": "x",
            "score": float(i % 2),
            "step": step,
            "acc": i % 2 == 0,
        }
        for i in range(n)
    ]


def numbers(log, columns):
    return log.rows(f"select {columns} from rollouts order by all")


# Formats ------------------------------------------------------------------------------------------------------


def test_verl_dumps_a_file_per_step_or_one_file(tmp_path):
    for step in (1, 2, 10):
        jsonl(tmp_path / f"{step}.jsonl", [{k: v for k, v in row.items() if k != "step"} for row in verl(step)])
    log = open_log(tmp_path)
    assert (log.source, log.rollouts, log.components) == ("verl", 24, ["score"])
    assert log.roles["prompt"] == "input"
    assert log.roles["text"] == "output"
    assert [step for step, _ in step_rows(log)] == [1, 2, 10]
    one = open_log(jsonl(tmp_path / "all.jsonl", verl(1) + verl(2)))
    assert [step for step, _ in step_rows(one)] == [1, 2]


def test_trl_completions_with_messages_and_the_newest_trainer_state(tmp_path):
    (tmp_path / "completions").mkdir()
    for step in (1, 2):
        rows = [
            {
                "step": step,
                "prompt": [{"role": "user", "content": f"question {i // 2}"}],
                "completion": [{"role": "assistant", "content": f"said {i}"}],
                "correct": float(i % 2),
                "format_ok": 1.0,
                "advantage": float(i % 2) - 0.5,
            }
            for i in range(4)
        ]
        write(tmp_path / "completions" / f"completions_{step:05d}.parquet", rows)
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        history = [
            {"step": k, "entropy": 2.0 * k, "clip_ratio/region_mean": 0.1, "loss": 0.5} for k in range(1, step + 1)
        ]
        state = {"global_step": step, "log_history": [*history, {"step": step, "train_runtime": 3.0}]}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 1, "log_history": []}')
    log = open_log(tmp_path)
    assert (log.source, log.components, log.roles["credit"]) == ("trl", ["correct", "format_ok"], "advantage")
    rows = dict(step_rows(log))
    assert rows[2]["entropy/mean"] == 4.0
    assert rows[2]["update/trl/clip_fraction"] == 0.1
    assert rows[2]["reward/correct/mean"] == 0.5
    assert log.rows(f"select distinct _p from ({log.scan}) order by 1") == [("question 0",), ("question 1",)]
    assert log.rows(f"select min(_t) from ({log.scan})") == [("said 0",)]


def test_tables_of_each_kind_say_the_same(tmp_path):
    rows = healthy(steps=2)
    parquet = open_log(write(tmp_path / "log.parquet", rows))
    lines = open_log(jsonl(tmp_path / "log.jsonl", rows))
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    table = open_log(tmp_path / "log.csv")
    assert dict(step_rows(parquet)) == dict(step_rows(lines)) == dict(step_rows(table))
    assert parquet.rollouts == 128


def test_total_and_components_beside_it(tmp_path):
    rows = [row | {"reward_a": 1.0, "style_reward": 2.0} for row in healthy(steps=1)]
    log = open_log(write(tmp_path / "log.parquet", rows))
    assert (log.roles["reward"], log.components) == ("reward", ["reward_a", "style_reward"])


# Choices ------------------------------------------------------------------------------------------------------


def test_columns_that_are_named_win_over_the_guess(tmp_path):
    rows = [{"epoch": 3, "q": "a", "said": "b c", "points": 2.0, "truth": 0.5, "tokens": 7}] * 4
    choices = Choices(
        prompt="q", text="said", step="epoch", reward=("points",), gold=("truth",), length="tokens", max_length=7
    )
    log = open_log(write(tmp_path / "log.parquet", rows), choices)
    assert numbers(log, "step, length, truncated, c0, w0") == [(3, 7.0, 1.0, 2.0, 0.5)] * 4
    assert (log.components, log.watch) == (["points"], ["truth"])


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (Choices(prompt="asked"), "has no column 'asked' for --prompt; it has step, prompt, completion, reward"),
        (Choices(reward=("points",)), "no column 'points' for --reward"),
        (Choices(gold=("truth",)), "no column 'truth' for --gold"),
        (Choices(judge=("rewrad",)), "--judge 'rewrad' is none of the rewards; did you mean 'reward'?"),
    ],
)
def test_a_wrong_column_is_refused_with_those_that_exist(choices, words, tmp_path):
    with pytest.raises(GuerdonError, match=words.replace("?", r"\?")):
        open_log(write(tmp_path / "log.parquet", healthy(steps=1)), choices)


def test_no_reward_to_be_guessed_is_refused_with_the_numbers_that_there_are(tmp_path):
    with pytest.raises(GuerdonError, match="name one or several with --reward; columns of numbers: points"):
        open_log(write(tmp_path / "log.parquet", [{"prompt": "a", "text": "b", "points": 1.0}]))


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(GuerdonError, match="there is no"):
        open_log(tmp_path / "nowhere")
    with pytest.raises(GuerdonError, match="holds no rollouts"):
        open_log(tmp_path)
    (tmp_path / "log.txt").write_text("x")
    with pytest.raises(GuerdonError, match="is no file of"):
        open_log(tmp_path / "log.txt")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(GuerdonError, match="holds no rollouts"):
        open_log(tmp_path / "empty.jsonl")
    write(tmp_path / "none.parquet", healthy(steps=1))
    pq.write_table(pq.read_table(tmp_path / "none.parquet").slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(GuerdonError, match="holds no rollouts"):
        open_log(tmp_path / "none.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "none.parquet").read_bytes()[:-20])
    with pytest.raises(GuerdonError, match="cannot be read"):
        open_log(tmp_path / "torn.parquet")


# Damage -------------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_left_out_and_counted(tmp_path):
    log = open_log(jsonl(tmp_path / "log.jsonl", verl(1), torn='{"input": "q", "outp'))
    assert (log.rollouts, log.unreadable) == (8, 1)


def test_nothing_is_left_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    log = open_log(jsonl(tmp_path / "log.jsonl", verl(1)))
    assert [*(tmp_path / "scratch").iterdir()] != []
    log.close()
    with pytest.raises(GuerdonError):
        open_log(jsonl(tmp_path / "log.jsonl", [{"points": 1}]))
    assert [*(tmp_path / "scratch").iterdir()] == []


def test_a_lone_surrogate_costs_its_line_and_nul_and_emoji_none(tmp_path):
    rows = [row | {"output": text} for row, text in zip(verl(1), ["\ud800", "a\0b", "\U0001f600"], strict=False)]
    log = open_log(jsonl(tmp_path / "log.jsonl", rows))
    assert (log.rollouts, log.unreadable) == (2, 1)


def test_null_nan_and_infinite_rewards_are_faults(tmp_path):
    rows = [row | {"score": score} for row, score in zip(verl(1), [None, math.nan, math.inf, 1.0, 0.0], strict=False)]
    log = open_log(jsonl(tmp_path / "log.jsonl", rows))
    ((_, row),) = step_rows(log)
    assert (row["faults"], row["trajectories"], row["reward/mean"]) == (3.0, 2.0, 0.5)


def test_numbers_that_are_whole_at_first_keep_their_fractions_later(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SAMPLE", 4)
    scores = [1, 0, 1, 1, 0.5, 0.25]
    log = open_log(jsonl(tmp_path / "log.jsonl", [row | {"score": s} for row, s in zip(verl(1), scores, strict=False)]))
    assert numbers(log, "c0") == [(0.0,), (0.25,), (0.5,), (1.0,), (1.0,), (1.0,)]
    lines = [f"q,t {k},{1 if k < 30000 else 0.5}" for k in range(30001)]
    (tmp_path / "log.csv").write_text("\n".join(["prompt,text,reward", *lines]))
    assert open_log(tmp_path / "log.csv").rows("select sum(c0) from rollouts") == [(30000.5,)]


def test_texts_that_look_like_numbers_or_dates_at_first_stay_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SAMPLE", 2)
    texts = ["2026-01-01", "2026-01-02", "none of these", "7"]
    rows = [row | {"output": text} for row, text in zip(verl(1), texts, strict=False)]
    log = open_log(jsonl(tmp_path / "log.jsonl", rows))
    assert log.rows(f"select _t from ({log.scan}) order by 1") == [(text,) for text in sorted(texts)]
    lines = [f"q,{k if k < 30000 else 'x'},true" for k in range(30001)]
    (tmp_path / "log.csv").write_text("\n".join(["prompt,text,reward", *lines]))
    log = open_log(tmp_path / "log.csv")
    assert log.rows("select count(distinct text), sum(c0) from rollouts") == [(30001, 30001.0)]


def test_files_may_differ_in_their_columns(tmp_path):
    write(tmp_path / "a.parquet", [{"step": 0, "prompt": "q", "text": "t", "reward": 1}])
    write(tmp_path / "b.parquet", [{"step": 1, "prompt": "q", "reward": 0.5, "text": None, "uid": "u"}])
    log = open_log(tmp_path)
    assert numbers(log, "step, c0, text is null") == [(0, 1.0, False), (1, 0.5, True)]


def test_names_with_wildcards_and_quotes(tmp_path):
    folder = tmp_path / "run [1]* it's"
    folder.mkdir()
    rows = [{"prompt": "q", 'the "reward"': 1.0, "text": "t"}] * 2
    log = open_log(write(folder / "log.parquet", rows), Choices(reward=('the "reward"',)))
    assert numbers(log, "c0") == [(1.0,)] * 2


def test_lists_of_rewards_count_by_their_sum_and_booleans_as_numbers(tmp_path):
    table = pa.table({"prompt": ["q", "q"], "text": ["a", "b"], "reward": [[1.0, 2.0], [0.5]], "won": [True, False]})
    pq.write_table(table, tmp_path / "log.parquet")
    log = open_log(tmp_path / "log.parquet", Choices(reward=("reward", "won")))
    assert numbers(log, "c0, c1") == [(0.5, 0.0), (3.0, 1.0)]
