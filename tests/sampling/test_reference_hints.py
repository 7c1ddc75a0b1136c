from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import guerdon
from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.registry import get
from guerdon.sampling.reference_hints import (
    ReferenceGuided,
    hard_rows,
    partial_reference,
    spread_evenly,
    without_copy,
)
from guerdon.training.collect import prepare
from guerdon.training.folder import RunFolder
from guerdon.training.run import Run

quick = settings(derandomize=True, deadline=None, max_examples=30)
TEXT = "Take the word.\nIts last letter is g, then o. Then comes the first.\nIt is god."


def solution(problem):
    """Say how the reference goes."""
    return f"Take the word.\nIts last letter is {str(problem.answer)[0]}.\nSo write it all: {problem.answer}."


def test_references_are_cut_where_a_sentence_ends():
    assert partial_reference(TEXT) == "Take the word.\nIts last letter is g, then o."
    assert partial_reference(TEXT, fraction=0.3) == "Take the word."
    assert partial_reference(TEXT, fraction=0.1) == ""
    assert partial_reference(TEXT, fraction=1.0) == TEXT
    assert partial_reference("no end at all") == ""


def test_the_answer_is_not_given_away():
    assert partial_reference(TEXT, "g") == "Take the word."
    assert partial_reference(TEXT, "god", fraction=1.0) == TEXT[: TEXT.index("\nIt is")]
    assert partial_reference("It is 12.\nSo 1.\nEnd of it.", "1", fraction=0.9) == "It is 12."


@quick
@given(st.text(alphabet="ab1. \n", max_size=60), st.sampled_from(["1", "ab", ""]), st.floats(0.05, 1))
def test_what_is_kept_is_a_beginning_without_the_answer(text, answer, fraction):
    kept = partial_reference(text, answer, fraction=fraction)
    assert text.startswith(kept)
    assert len(kept) <= fraction * len(text)
    if answer == "1":
        assert not any(word.strip(".") == "1" for word in kept.replace(".", " ").split())


def test_copies_of_the_hint_go():
    assert without_copy("Take the\n word. So: god", "Take the word.") == "So: god"
    assert without_copy("So: god", "Take the word.") == "So: god"
    assert without_copy("anything", "") == "anything"
    assert without_copy("a+b is it", "a+b") == "is it"


def test_hard_problems_and_even_shares():
    right = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert hard_rows(right).tolist() == [True, False, False]
    assert hard_rows(right, below=0.3).tolist() == [True, True, False]
    assert spread_evenly([["x", "x", "y", "z"], [], ["x"]], 2) == [(0, "x"), (0, "y"), (2, "x")]


def odd(text, prompt):
    """Give 1 for a long text if a hint was shown, and never without."""
    return float("solution begins" in prompt and len(text) > 1)


RECIPE = {
    "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 3}},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "sampling": {
        "prompts": 4,
        "group_size": 4,
        "max_new_tokens": 4,
        "sources": [
            {"name": "reference_guided", "reference": solution, "problems": 6, "samples": 4, "rows": 5, "steps": 1}
        ],
    },
    "rewards": [odd],
    "terms": [{"name": "guided_thought", "beta": 0.5}],
    "training": {"steps": 2},
    "evaluation": {"problems": 4},
}


def started(home, **changes):
    recipe = RECIPE | {"runs_dir": str(home)}
    recipe["sampling"] = recipe["sampling"] | {"sources": [recipe["sampling"]["sources"][0] | changes]}
    return Run.start(load_recipe(recipe), overwrite=True, progress=Progress(quiet=True))


def test_right_answers_found_with_a_hint_are_kept_for_the_plain_prompt(tmp_path):
    run = started(tmp_path)
    with torch.no_grad():
        prepare(run)
    source = run.plan.sources[0]
    assert source.solved["hard"] == source.solved["guided"] == 6
    assert source.solved["plain"] == 0
    prompts = {p.prompt for p in run.task.train_batch(50, 1)}
    assert source.known
    assert not any("solution begins" in prompt for _, prompt, _ in source.known)
    assert len({(task, tuple(tokens)) for task, _, tokens in source.known}) == len(source.known)
    assert prompts
    batch = SimpleNamespace(group=torch.tensor([3, 3, 4]))
    draw = SimpleNamespace(rollouts=batch, policy=run.policy, sampling=run.sampling, seed=1, step=0)
    rows = source.draw(draw)
    assert len(rows) == 5
    assert rows.group.tolist() == [5, 6, 7, 8, 9]
    assert torch.equal(rows.external, rows.mask)
    assert list(rows.prompt) == [source.known[i][1] for i in chosen(source, 1)]
    draw.step = 1
    assert source.draw(draw) is None
    again = ReferenceGuided(reference=solution)
    again.load_state_dict(source.state_dict())
    assert (again.known, again.solved) == (source.known, source.solved)


def chosen(source, seed):
    from guerdon.seeding import torch_generator

    return torch.randperm(len(source.known), generator=torch_generator(seed, "reference_guided"))[:5].tolist()


def test_without_a_right_answer_it_says_so(tmp_path):
    run = started(tmp_path, fraction=0.01)
    with pytest.raises(RecipeError, match="6 are hard, and none of these was solved"), torch.no_grad():
        prepare(run)


def test_two_steps_of_a_recipe(tmp_path):
    result = guerdon.train(RECIPE | {"runs_dir": str(tmp_path)}, progress=Progress(quiet=True))
    tokens = RunFolder.open(result.run).metrics()["update/guided_thought/tokens"]
    assert tokens[0] > 0
    assert tokens[1] == 0
    assert get("source", "reference_guided").target is ReferenceGuided
