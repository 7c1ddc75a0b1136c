import builtins
import json
import math

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from guerdon.errors import RecipeError, TaskError
from guerdon.registry import get
from guerdon.rewards import verifiable  # noqa: F401  registers the verifiers
from guerdon.rewards.base import Reward, batched, resolve_task_reward, score
from guerdon.rollouts import make_rollouts
from guerdon.tasks.dataset import Dataset

ROWS = [{"prompt": f"{i} + 1 =", "answer": str(i + 1), "level": i % 3} for i in range(50)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "sums.jsonl", ROWS)


def every_training_problem(task):
    return task.train_batch(len(task._train), seed=0)


def test_rows_become_problems(table):
    task = Dataset(path=table)
    problems = {p.prompt: p for p in [*every_training_problem(task), *task.eval_problems(5)]}
    assert len(problems) == 50
    assert problems["7 + 1 ="].answer == "8"
    assert problems["7 + 1 ="].metadata == {"level": 1}
    assert get("task", "dataset").target is Dataset


def test_columns_and_template(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"q": f"q{i} {{x}}", "a": i / 10, "prompt": "other"} for i in range(4)])
    task = Dataset(path=path, prompt="q", answer="a", template="Q: {prompt}\nA \\boxed{}:", eval_fraction=0.25)
    problem = next(p for p in [*every_training_problem(task), *task.eval_problems(1)] if "q1" in p.prompt)
    assert problem.prompt == "Q: q1 {x}\nA \\boxed{}:"
    assert problem.answer == "0.1"
    assert problem.metadata == {"prompt": "other"}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv", "tsv"])
def test_every_format_gives_the_same_problems(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    rows = [{"prompt": f'say "{i}",\ttwice\nor é', "answer": f"00{i}"} for i in range(10)]
    if suffix == "jsonl":
        write(path, rows)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = {"csv": ",", "tsv": "\t"}[suffix]
        quoted = [['"' + row[key].replace('"', '""') + '"' for key in ("prompt", "answer")] for row in rows]
        lines = [mark.join(fields) for fields in [["prompt", "answer"], *quoted]]
        path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    task = Dataset(path=str(path), eval_fraction=0.2)
    found = {(p.prompt, p.answer) for p in [*every_training_problem(task), *task.eval_problems(2)]}
    assert found == {(row["prompt"], row["answer"]) for row in rows}


def test_blank_lines_of_jsonl_are_skipped(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "a", "answer": 1}\n\n  \n{"prompt": "b", "answer": 2}\n')
    assert len(every_training_problem(Dataset(path=str(path), eval_fraction=0))) == 2


def test_a_saved_hugging_face_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    plain = datasets.Dataset.from_list(ROWS)
    plain.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": plain, "test": plain.select(range(3))}).save_to_disk(str(tmp_path / "two"))

    task = Dataset(path=str(tmp_path / "one"))
    assert len(task.eval_problems(5)) == 5
    assert every_training_problem(task)[0].metadata.keys() == {"level"}
    with pytest.raises(TaskError, match="was saved as one split; remove split 'train'"):
        Dataset(path=str(tmp_path / "one"), split="train")

    with pytest.warns(UserWarning, match="3 prompts of dataset"):
        task = Dataset(path=str(tmp_path / "two"), eval_split="test")
    assert [p.prompt for p in task.eval_problems(3)] == ["0 + 1 =", "1 + 1 =", "2 + 1 ="]
    assert len(every_training_problem(task)) == 47
    with pytest.raises(TaskError, match="has no split 'tests'; did you mean 'test'"):
        Dataset(path=str(tmp_path / "two"), split="tests")


def test_the_hub_is_asked_for_what_looks_like_an_id(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, subset):
        asked.append((path, subset))
        return datasets.DatasetDict({"main": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = Dataset(path="openai/gsm8k", subset="main", split="main")
    assert asked == [("openai/gsm8k", "main")]
    assert len(task.eval_problems(5)) == 5

    def offline(path, subset):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(TaskError, match="'openai/gsm8k' cannot be loaded: ConnectionError: no network"):
        Dataset(path="openai/gsm8k")


def test_hugging_face_needs_its_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_datasets(name, *rest, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(TaskError, match=r"pip install 'guerdon\[datasets\]'"):
        Dataset(path=str(tmp_path))


def test_the_split_depends_on_prompts_and_seed_only(tmp_path, table):
    task = Dataset(path=table)
    held_out = [p.task_id for p in task.eval_problems(5)]
    with pytest.raises(TaskError, match="holds out 5 prompts, want 6; raise eval_fraction"):
        task.eval_problems(6)
    assert held_out[:3] == [p.task_id for p in task.eval_problems(3)]

    turned = write(tmp_path / "turned.jsonl", [row | {"level": 9} for row in reversed(ROWS)])
    assert [
        p.task_id
        for p in Dataset(
            path=turned, answer=None, verifier="regex", verifier_options={"pattern": "x"}, template="Q {prompt}"
        ).eval_problems(5)
    ] == held_out
    assert [p.task_id for p in Dataset(path=table, seed=1).eval_problems(5)] != held_out


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30), st.integers(0, 5), st.floats(0, 0.9))
def test_no_held_out_prompt_is_trained_on(tmp_path_factory, prompts, seed, fraction):
    path = write(tmp_path_factory.mktemp("d") / "t.jsonl", [{"prompt": p, "answer": p} for p in prompts])
    distinct = len(set(prompts))
    expected = max(1, round(fraction * distinct)) if fraction else 0
    if distinct == expected:
        with pytest.raises(TaskError, match="none is left to train on"):
            Dataset(path=path, eval_fraction=fraction, seed=seed)
        return
    task = Dataset(path=path, eval_fraction=fraction, seed=seed)
    held_out = [p.prompt for p in task.eval_problems(expected)]
    trained = [p.prompt for p in every_training_problem(task)]
    assert len(held_out) == len(set(held_out)) == expected
    assert sorted(trained) == sorted(p for p in prompts if p not in held_out)


def test_a_held_out_table_takes_its_prompts_out_of_training(tmp_path, table):
    held_out = write(
        tmp_path / "test.jsonl", [*ROWS[10:13], ROWS[10] | {"answer": "?"}, {"prompt": "new", "answer": 1}]
    )
    with pytest.warns(UserWarning, match="3 prompts of dataset .*sums.jsonl.* are also in the held-out"):
        task = Dataset(path=table, eval_path=held_out)
    assert [p.prompt for p in task.eval_problems(4)] == ["10 + 1 =", "11 + 1 =", "12 + 1 =", "new"]
    assert [p.answer for p in task.eval_problems(4)] == ["11", "12", "13", "1"]
    with pytest.raises(TaskError, match="holds out 4"):
        task.eval_problems(5)
    assert {p.prompt for p in every_training_problem(task)} == {r["prompt"] for r in ROWS[:10] + ROWS[13:]}
    with pytest.warns(UserWarning, match="50 prompts"), pytest.raises(TaskError, match="none is left to train on"):
        Dataset(path=table, eval_path=table)


def test_batches_are_drawn_without_replacement_and_are_a_function_of_the_seed(table):
    task, again = Dataset(path=table), Dataset(path=table)
    batch = task.train_batch(16, seed=3)
    assert len({p.task_id for p in batch}) == 16
    task.train_batch(5, seed=9)
    assert again.train_batch(16, seed=3) == task.train_batch(16, seed=3) == batch
    assert task.train_batch(16, seed=4) != batch
    assert {p.task_id for p in task.train_batch(45, seed=1)} == {p.task_id for p in task.train_batch(45, seed=2)}
    with pytest.raises(TaskError, match="has 45 training rows, want a batch of 46; lower the batch"):
        task.train_batch(46, seed=0)


def test_every_row_is_as_likely_as_any_other(table):
    task = Dataset(path=table)
    counts = dict.fromkeys((p.task_id for p in every_training_problem(task)), 0)
    for seed in range(900):
        for p in task.train_batch(5, seed):
            counts[p.task_id] += 1
    # 900 batches of 5 from 45: mean 100, standard deviation below 10
    assert all(50 < count < 150 for count in counts.values())


def test_the_task_id_is_known_forever(table):
    task = Dataset(path=table)
    ids = {p.prompt: p.task_id for p in [*every_training_problem(task), *task.eval_problems(5)]}
    assert ids["0 + 1 ="] == 5802888882696884583
    assert all(0 <= i < 2**63 for i in ids.values())


def test_the_corpus_shows_every_character_but_no_held_out_text(tmp_path):
    rows = [{"prompt": f"prompt {chr(0x4E00 + i)}", "answer": f"{chr(0x3041 + i)}"} for i in range(20)]
    task = Dataset(path=write(tmp_path / "t.jsonl", rows), eval_fraction=0.3)
    corpus = list(task.corpus())
    assert set("".join(corpus)) == set("".join(r["prompt"] + r["answer"] for r in rows))
    assert not {p.prompt for p in task.eval_problems(6)} & set(corpus)
    assert {p.prompt for p in every_training_problem(task)} <= set(corpus)


def rollouts_of(problems, texts):
    n = len(texts)
    return make_rollouts(
        torch.arange(n),
        torch.tensor([p.task_id for p in problems]),
        torch.ones(n, 1, dtype=torch.bool),
        torch.zeros(n, 1),
        done=torch.ones(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool),
        payload={},
        text=texts,
        answer=[p.answer for p in problems],
        metadata=[dict(p.metadata) for p in problems],
    )


def scored(task, problems, texts):
    method = resolve_task_reward(task)
    assert method is not None
    batch, faults = score(rollouts_of(problems, texts), [Reward("task", method, method.validate({}))])
    return batch.rewards["task"].tolist(), faults


def test_the_verifier_is_the_tasks_scorer(table):
    task = Dataset(path=table)
    problems = task.train_batch(3, seed=0)
    texts = [problems[0].answer + ".", problems[1].answer + "0", f"{problems[2].answer}.0"]
    assert scored(task, problems, texts) == ([1.0, 0.0, 0.0], [])
    task = Dataset(path=table, verifier="numeric")
    assert scored(task, problems, texts) == ([1.0, 0.0, 1.0], [])
    task = Dataset(path=table, verifier="exact", verifier_options={"normalise": False})
    assert scored(task, problems, texts) == ([0.0, 0.0, 0.0], [])


@batched
def count_levels(text, metadata, *, scale: float = 1.0):
    return [scale * m["level"] + len(t) for t, m in zip(text, metadata, strict=True)]


class Streak:
    def __init__(self, *, start: int) -> None:
        self.seen = start

    def __call__(self, text):
        self.seen += 1
        return self.seen


def test_a_verifier_may_be_batched_or_a_class(table):
    task = Dataset(path=table, verifier=f"{__file__}:count_levels", verifier_options={"scale": 10})
    problems = [p for p in every_training_problem(task) if p.metadata["level"] == 2][:2]
    assert scored(task, problems, ["a", "bb"]) == ([21.0, 22.0], [])
    task = Dataset(path=table, verifier=f"{__file__}:Streak", verifier_options={"start": 5})
    assert scored(task, problems, ["a", "bb"]) == ([6.0, 7.0], [])


def test_an_answer_the_verifier_cannot_use_is_a_fault(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"prompt": p, "answer": "Paris"} for p in "abc"])
    task = Dataset(path=path, verifier="numeric")
    values, faults = scored(task, task.train_batch(2, seed=0), ["1", "2"])
    assert all(math.isnan(v) for v in values)
    assert "holds no number" in faults[0].message


def test_a_task_without_answers(table):
    task = Dataset(path=table, answer=None, verifier="regex", verifier_options={"pattern": "^yes"})
    problems = task.train_batch(2, seed=0)
    assert [p.answer for p in problems] == [None, None]
    assert problems[0].metadata.keys() == {"answer", "level"}
    assert scored(task, problems, ["yes!", "no"]) == ([1.0, 0.0], [])
    assert "answer" not in "".join(task.corpus())
    with pytest.raises(RecipeError, match="verifier 'exact' needs 'answer', but task 'dataset' has answer: null"):
        Dataset(path=table, answer=None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt": "promt"}, TaskError, "has no column 'promt' \\(prompt\\); did you mean 'prompt'"),
        ({"answer": "anser"}, TaskError, "has no column 'anser' \\(answer\\); did you mean 'answer'"),
        ({"prompt": "level"}, TaskError, "row 1: prompt column 'level' is int 0, want text"),
        ({"split": "test"}, TaskError, "is a file, which has no subset or split"),
        ({"subset": "main"}, TaskError, "is a file, which has no subset or split"),
        ({"eval_path": "nowhere.jsonl"}, TaskError, "'nowhere.jsonl': no such file \\(looked in /"),
        ({"eval_fraction": 1.0}, RecipeError, "eval_fraction is 1.0, want 0 or more and less than 1"),
        ({"eval_fraction": -0.1}, RecipeError, "eval_fraction is -0.1"),
        ({"template": "Q: {question}"}, RecipeError, "lacks the place '\\{prompt\\}'"),
        ({"verifier": "exat"}, RecipeError, "no reward 'exat'; did you mean 'exact'"),
        ({"verifier_options": {"normalize": 1}}, RecipeError, "no option 'normalize'; did you mean 'normalise'"),
        ({"verifier": "regex", "verifier_options": {"pattern": "("}}, RecipeError, "'pattern' is '\\('"),
    ],
)
def test_what_cannot_work_is_refused(table, options, error, message):
    with pytest.raises(error, match=message):
        Dataset(path=table, **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", "", "has no rows"),
        ("t.json", "[]", "has no rows"),
        ("t.csv", "prompt,answer\n", "has no rows"),
        ("t.jsonl", '{"prompt": "a", "answer": 1}\n{"prompt": "b"', "cannot be read: line 2 is not JSON"),
        ("t.jsonl", '{"prompt": "a", "answer": 1}\n[1]\n', "line 2 is list \\[1\\], want an object"),
        ("t.json", '{"prompt": "a"}', "does not hold a list of objects"),
        ("t.json", "[1]", "does not hold a list of objects"),
        ("t.csv", "prompt,answer\na,1,2\n", "row 1 has more fields than the header names \\(2\\)"),
        ("t.csv", "prompt,answer\na,1\nb\n", "row 2: column 'answer' is empty"),
        ("t.csv", 'prompt,answer\n"a,1\n', "cannot be read"),
        ("t.parquet", "PAR1", "cannot be read"),
        ("t.jsonl", '{"prompt": "a", "answer": 1}\n{"prompt": "b"}\n', "row 2: column 'answer' is empty"),
        ("t.jsonl", '{"prompt": "a", "answer": null}\n', "row 1: column 'answer' is empty"),
        ("t.jsonl", '{"prompt": "  ", "answer": 1}\n', "row 1: column 'prompt' is empty"),
        ("t.jsonl", '{"prompt": ["a"], "answer": 1}\n', "row 1: prompt column 'prompt' is list \\['a'\\], want text"),
        ("t.jsonl", '{"prompt": "a", "answer": 1}\n', "none is left to train on"),
        ("t.txt", "a", "no reader for '.txt' files; use .jsonl, .json"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(TaskError, match=message):
        Dataset(path=str(path))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"prompt,answer\n\xff\xfe,1\n")
    with pytest.raises(TaskError, match="cannot be read: 'utf-8' codec"):
        Dataset(path=str(path))


@pytest.mark.parametrize("path", ["nowhere.jsonl", "./nowhere", "a/b/c", "~/nowhere-at-all.csv", "C:\\x\\y"])
def test_a_missing_file_is_not_looked_for_on_the_hub(path):
    with pytest.raises(TaskError, match="no such file"):
        Dataset(path=path)
