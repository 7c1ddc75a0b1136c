import pickle

import pytest

import guerdon
from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.tasks.self_correct import SelfCorrect
from guerdon.training.folder import RunFolder

OF = {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 4}}
RECIPE = {
    "task": {"name": "self_correct", "of": OF, "instruction": " again "},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "warm_start": {"steps": 3, "batch": 8},
    "sampling": {"prompts": 4, "group_size": 4, "max_new_tokens": 5},
    "rewards": ["task"],
    "shaping": [{"name": "progress_bonus", "first_stage": 1}],
    "credit": "turn_rloo",
    "terms": [{"name": "first_turn_kl", "first_stage": 1}, {"name": "kl", "beta": 0.01, "estimator": "k2"}],
    "training": {"steps": 2},
    "evaluation": {"problems": 4},
    "logging": {"rollouts_every": 1},
}


@pytest.fixture(scope="module")
def task():
    return SelfCorrect(of=OF, instruction=" again ")


def test_both_answers_are_scored_and_the_second_ends_it(task):
    problem = task.train_batch(1, 0)[0]
    right, wrong = str(problem.answer), str(problem.answer) + "x!"
    for first, second, rewards in [(right, wrong, (1, 0)), (wrong, right, (0, 1)), (wrong, wrong, (0, 0))]:
        session = task.begin([problem], [0])
        assert session.reset()[0].observation == problem.prompt
        heard = session.step([0], [first])[0]
        assert (heard.observation, heard.reward, heard.terminated) == (" again ", rewards[0], False)
        heard = session.step([0], [second])[0]
        assert (heard.reward, heard.terminated) == (rewards[1], True)


def test_states_of_second_turns_are_first_answers(task):
    problems = task.train_batch(1, 0) * 3
    session = task.begin(problems, [0, 0, 0])
    session.reset()
    keys = [heard.info["state_key"] for heard in session.step([0, 1, 2], ["a", "b", "a"])]
    assert keys[0] == keys[2] != keys[1]


def test_demonstrations_begin_right_as_often_as_asked(task):
    problems = task.train_batch(200, 1)
    assert all(p.episode[1:] == (" again ", str(p.answer)) for p in problems)
    share = sum(p.episode[0] == str(p.answer) for p in problems) / 200
    assert share == pytest.approx(0.5, abs=0.12)
    assert [p.episode for p in problems] == [p.episode for p in task.train_batch(200, 1)]
    assert {p.prompt for p in task.eval_problems(9)}.isdisjoint({p.prompt for p in problems})
    assert all(p.episode[0] == str(p.answer) for p in SelfCorrect(of=OF, right=1.0).train_batch(9, 1))


def test_its_environments_can_be_sent_to_workers(task):
    make = pickle.loads(pickle.dumps(task.environment()))
    problem = task.train_batch(1, 0)[0]
    environment = make()
    environment.reset(problem, 0)
    assert environment.step(str(problem.answer)).reward == 1.0


@pytest.mark.parametrize(
    ("of", "message"),
    [("digits", "no scorer"), ({"dataset": "x"}, "'name' of a task"), ({"name": "gridtext"}, "no scorer")],
)
def test_tasks_that_cannot_be_asked_twice_are_refused(of, message):
    with pytest.raises(RecipeError, match=message):
        SelfCorrect(of=of)


def test_two_steps_of_a_recipe(tmp_path):
    result = guerdon.train(RECIPE | {"runs_dir": str(tmp_path)}, progress=Progress(quiet=True))
    metrics = RunFolder.open(result.run).metrics()
    assert result.steps == 2
    assert metrics["update/first_turn_kl/loss"][1] == 0.0
    assert len(metrics["shaping/progress_bonus/gain"]) == 2
