import copy

import pytest
from small_recipes import LANGUAGE

from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.sampling.forced_modes import ForcedModes
from guerdon.shaping.mode_cost import FORCED
from guerdon.tasks.base import Starts
from guerdon.training.collect import collect
from guerdon.training.loop import training_step
from guerdon.training.run import Run

MODES = {"short": "s", "long": "l"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    source = {"name": "forced_modes", "each": 2, "modes": MODES}
    recipe = copy.deepcopy(LANGUAGE) | {"runs_dir": str(tmp_path_factory.mktemp("runs")), "rewards": ["task"]}
    recipe |= {"objective": "ppo_clip", "terms": [], "warm_start": None, "training": {"steps": 2}}
    recipe |= {"evaluation": {"problems": 2}}
    recipe["sampling"] = {"prompts": 3, "group_size": 4, "max_new_tokens": 3, "sources": [source]}
    recipe["shaping"] = ["weighted_sum", {"name": "mode_cost_reward", "modes": MODES, "cheap": "short"}]
    run = Run.start(load_recipe(recipe), progress=Progress(quiet=True))
    yield run
    run.close()


def test_a_group_has_free_answers_and_some_of_each_mode(run):
    problems = run.task.train_batch(3, 0)
    starts = Starts.repeat(problems, 4)
    batch = collect(run, starts, 0)
    assert len(batch) == 3 * (4 + 2 * 2)
    assert batch.group.bincount().tolist() == [8, 8, 8]
    for row in range(len(batch)):
        problem = problems[int(batch.group[row])]
        mode = (batch.metadata[row] or {}).get(FORCED)
        assert batch.task_id[row] == problem.task_id
        assert batch.prompt[row] == problem.prompt + MODES.get(mode, "")
        assert batch.answer[row] == problem.answer
    forced = [(data or {}).get(FORCED) for data in batch.metadata]
    assert [forced.count(mode) for mode in (None, "short", "long")] == [12, 6, 6]
    assert FORCED not in problems[0].metadata
    # The tag is read and not learned from: a forced answer has as many actions as any other.
    assert batch.mask.shape[1] <= 3
    assert batch.external is None


def test_a_run_trains_with_them(run):
    for step in range(2):
        metrics = training_step(run, step)
        assert metrics["trajectories"] == 24
        assert "shaping/mode_cost_reward/costly" in metrics


def test_modes_are_needed():
    with pytest.raises(RecipeError, match="no modes"):
        ForcedModes(modes={})
