import copy
import shutil

import pytest
import torch
from small_recipes import CONTROL, LANGUAGE

import guerdon
from guerdon.errors import RecipeError, TaskError
from guerdon.monitor.progress import Progress
from guerdon.rewards.base import Fault
from guerdon.training import checkpoint, collect, loop
from guerdon.training.folder import RunFolder
from guerdon.training.run import Run

QUIET = Progress(quiet=True)
LENGTH = "metadata.word_len"
COURSES = {
    "success_softmax": {"key": LENGTH},
    "staged_difficulty": {"key": LENGTH, "stages": 2, "least": 4, "advance": 0.01},
    "learnability": {"key": LENGTH},
}


def recipe_of(path, **changes):
    recipe = copy.deepcopy(LANGUAGE) | {"runs_dir": str(path), "rewards": ["task"], "evaluation": {"problems": 4}}
    recipe["training"] = {"steps": 4}
    recipe["checkpoint"] = {"every": 1, "keep": 9}
    return recipe | changes


@pytest.mark.parametrize("name", list(COURSES))
def test_a_run_with_a_curriculum_tells_how_it_went_and_resumes_bit_by_bit(tmp_path, name):
    recipe = recipe_of(tmp_path, curriculum={"name": name, "correct": 0.05, **COURSES[name]})
    whole = guerdon.train(recipe, progress=QUIET)
    folder = RunFolder.open(whole.run)
    told = [column for column in folder.metrics() if column.startswith("curriculum/")]
    assert told
    plain = guerdon.train(recipe_of(tmp_path, name="plain"), progress=QUIET)
    assert plain.weights_sha256 != whole.weights_sha256
    for saved in checkpoint.list_checkpoints(folder.checkpoints_path)[2:]:
        shutil.rmtree(saved)
    before = folder.metrics()
    assert Run.resume(whole.run, progress=QUIET).plan.curriculum.state_dict()
    again = loop.resume(whole.run, progress=QUIET)
    assert again.weights_sha256 == whole.weights_sha256
    assert [folder.metrics()[column] for column in told] == [before[column] for column in told]


def test_stages_choose_what_is_trained_on(tmp_path):
    course = {"name": "staged_difficulty", "key": LENGTH, "stages": 2, "least": 1000}
    run = Run.start(guerdon.load_recipe(recipe_of(tmp_path, curriculum=course)), progress=QUIET)
    collect.prepare(run)
    first = [p.metadata["metadata"]["word_len"] for step in range(4) for p in collect.choose(run, step)]
    run.plan.curriculum.course.stage = 1
    second = [p.metadata["metadata"]["word_len"] for step in range(8) for p in collect.choose(run, step)]
    assert set(first) == {3}
    assert 0.5 < second.count(4) / len(second) < 1  # 0.8
    assert collect.choose(run, 3) == collect.choose(run, 3)
    run.close()


def test_faults_and_rows_that_the_policy_did_not_write_are_no_outcomes(tmp_path):
    run = Run.start(guerdon.load_recipe(recipe_of(tmp_path, curriculum="learnability")), progress=QUIET)
    drawn = loop.draw(run, 0, version=0)
    scored, _ = collect.grade(run, drawn.rollouts, drawn.starts, 0, drawn.scorer)
    scored.rewards["task"] = torch.arange(len(scored)) % 2.0
    scored.external = torch.zeros_like(scored.mask)
    scored.external[0] = scored.mask[0]
    scored.rewards["task"][1] = float("nan")
    fault = Fault("task", 1, "exception", "lost")
    collect.observe(run, scored, [fault], drawn.starts)
    first = drawn.starts.problems[0].task_id
    own = [row for row, problem in enumerate(drawn.starts.problems) if problem.task_id == first and row > 1]
    wins, tries = run.plan.curriculum.counts[first]
    assert tries == len(own)
    assert wins == sum(row % 2 for row in own)
    run.close()


def test_what_cannot_be_chosen_among_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"sampling\.horizon goes on with open episodes"):
        guerdon.train(copy.deepcopy(CONTROL) | {"curriculum": "learnability", "runs_dir": str(tmp_path)})
    with pytest.raises(RecipeError, match="curriculum 'success_softmax': 'key' is missing"):
        guerdon.train(recipe_of(tmp_path, curriculum="success_softmax"))
    with pytest.raises(RecipeError, match="did you mean 'learnability'"):
        guerdon.train(recipe_of(tmp_path, curriculum="learnabilty"))
    with pytest.raises(TaskError, match="by 'difficulty'"):
        guerdon.train(recipe_of(tmp_path, curriculum={"name": "success_softmax", "key": "difficulty"}), progress=QUIET)
