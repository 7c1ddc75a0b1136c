import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.errors import RecipeError, TaskError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.tasks.segments import NextSegment, next_segment_tasks, sentences_of
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train

quick = settings(derandomize=True, deadline=None, max_examples=25)
TEXT = 'It rained all day. "Go home!" said Ann. They went, slowly. Ha. The sun came out at last.'
TEXTS = [f"Count by {by}. Now {by}. Now {2 * by}. Now {3 * by}. Now {4 * by}." for by in range(1, 20)]


def test_sentences():
    assert sentences_of(TEXT) == [
        "It rained all day.",
        '"Go home!"',
        "said Ann.",
        "They went, slowly.",
        "The sun came out at last.",
    ]
    assert sentences_of("A heading\n\nfollowed by\na line") == ["A heading", "followed by a line"]
    assert sentences_of("Pi is 3.14 or so. Not 3.2 then.") == ["Pi is 3.14 or so.", "Not 3.2 then."]
    assert sentences_of("") == []


def test_triples():
    s = sentences_of(TEXT)
    triples = next_segment_tasks(TEXT, following=2)
    assert [t.target for t in triples] == s[1:-1]
    assert triples[1].context == " ".join(s[:2])
    assert triples[1].after == s[3]
    assert triples[1].following == " ".join(s[2:4])


@quick
@given(st.integers(0, 9))
def test_n_sentences_have_n_minus_two_triples(n):
    text = " ".join(f"Sentence number {i}." for i in range(n))
    triples = next_segment_tasks(text)
    assert len(triples) == max(n - 2, 0)
    for t in triples:
        assert t.target not in t.context
        assert t.target != t.after


def test_a_middle_prompt_shows_what_follows_and_never_the_sentence():
    task = NextSegment(texts=TEXTS, eval_fraction=0.3)
    for triple in next_segment_tasks(TEXTS[4]):
        middle, after = task.problem(triple, "middle"), task.problem(triple, "next")
        assert triple.after in middle.prompt
        assert triple.target not in middle.prompt
        assert triple.after not in after.prompt
        assert triple.target not in after.prompt
        assert middle.metadata == {"kind": "middle", "following": triple.target}
        assert after.metadata["following"] == triple.following
        assert after.demonstration == (f"<answer>{triple.target}</answer>",)


def test_batches_and_the_split():
    task = NextSegment(texts=TEXTS, eval_fraction=0.3, weight=0.5)
    batch = task.train_batch(600, seed=3)
    assert batch == task.train_batch(600, seed=3)
    share = sum(p.metadata["kind"] == "middle" for p in batch) / 600
    assert share == pytest.approx(1 / 3, abs=0.06)
    held_out = task.eval_problems(9)
    assert held_out == task.eval_problems(9)
    assert not {p.prompt for p in held_out} & {p.prompt for p in batch}
    assert all(p.metadata["kind"] == "next" for p in NextSegment(texts=TEXTS, weight=0.0).train_batch(50, 0))


def test_the_score_of_the_task():
    task = NextSegment(texts=TEXTS, eval_fraction=0.3)
    known = {"following": "Now 4. Now 6."}
    assert task.scorer("so <answer>now 4</answer>", known).value == 1
    assert task.scorer("now 4", known).value == 0


def test_files(tmp_path):
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("\n\n".join(TEXTS))
    lines.write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    first, second = (NextSegment(path=str(p), eval_fraction=0.3) for p in (plain, lines))
    assert first.train_batch(5, 0) == second.train_batch(5, 0)
    lines.write_text("{}")
    with pytest.raises(TaskError, match="line 1 of"):
        NextSegment(path=str(lines))
    with pytest.raises(TaskError, match="cannot read"):
        NextSegment(path=str(tmp_path / "none.txt"))


def test_what_cannot_work_is_refused():
    with pytest.raises(RecipeError, match="either 'path' or 'texts'"):
        NextSegment()
    with pytest.raises(TaskError, match="no text with three sentences"):
        NextSegment(texts=["Too short."])
    with pytest.raises(TaskError, match="holds out"):
        NextSegment(texts=TEXTS, eval_fraction=0.3).eval_problems(1000)


def test_a_run_of_two_steps(tmp_path):
    recipe = {
        "task": {"name": "next_segment", "texts": TEXTS, "eval_fraction": 0.3, "tags": None, "ask_next": "{context}"},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "warm_start": {"steps": 3, "batch": 8},
        "sampling": {"prompts": 3, "group_size": 4, "max_new_tokens": 6},
        "rewards": ["task", {"name": "next_segment", "tags": None, "watch": True}],
        "evaluation": {"problems": 4},
        "training": {"steps": 2},
        "runs_dir": str(tmp_path),
    }
    metrics = RunFolder.open(train(load_recipe(recipe), progress=Progress(quiet=True)).run).metrics()
    assert metrics["watch/next_segment/mean"] == metrics["reward/mean"]
    assert all(x == 0 for x in metrics["faults"])
