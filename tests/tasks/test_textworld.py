import pytest

from guerdon.errors import RecipeError, TaskError
from guerdon.tasks.textworld import LEVELS, Level, TextWorld

pytest.importorskip("textworld", reason="the agents extra is not installed")

SMALL = {"rooms": 1, "objects": 1, "quest": 2, "games": 1, "eval_games": 1}


@pytest.fixture(scope="module")
def problem():
    return TextWorld(**SMALL, skill=1.0).train_batch(1, 0)[0]


@pytest.mark.parametrize("pay", ["win", "progress"])
def test_the_shortest_solution_wins_and_pays_one(problem, pay):
    session = TextWorld(**SMALL, pay=pay).begin([problem], [0])
    assert session.reset()[0].observation == problem.prompt
    heard = [session.step([0], [command])[0] for command in problem.episode[::2]]
    session.close()
    assert [step.observation for step in heard[:-1]] == list(problem.episode[1::2])
    assert [step.terminated for step in heard] == [False] * (len(heard) - 1) + [True]
    rewards = [step.reward for step in heard]
    assert sum(rewards) == pytest.approx(1.0)
    assert rewards[-1] == (1.0 if pay == "win" else pytest.approx(1 / len(heard)))
    assert len({step.info["state_key"] for step in heard}) == len(heard)


def test_observations_are_plain_text_with_the_commands_that_do_something(problem):
    session = TextWorld(**SMALL).begin([problem], [0])
    begun, looked = session.reset()[0], session.step([0], ["look"])[0]
    nonsense = session.step([0], ["sing a song"])[0]
    bare = TextWorld(**SMALL, commands=False).begin([problem], [0])
    silent = bare.reset()[0]
    session.close(), bare.close()
    for step in (begun, looked, nonsense):
        assert ">" not in step.observation
        assert "\n\n" not in step.observation
        assert step.observation.splitlines()[-1].startswith("You can: ")
    assert "You can: " not in silent.observation
    assert "TextWorld" in begun.observation
    assert nonsense.reward == 0.0
    assert begun.info["state_key"] == looked.info["state_key"] == nonsense.info["state_key"]


def test_held_out_games_are_others():
    task = TextWorld(**SMALL)
    assert task.eval_problems(1)[0].start != task.train_batch(1, 0)[0].start
    with pytest.raises(TaskError, match="1 games to evaluate on"):
        task.eval_problems(2)
    own = TextWorld(**{**SMALL, "eval_games": 0})
    assert own.eval_problems(1)[0].start == task.train_batch(1, 0)[0].start


def test_words_of_a_game_are_in_its_corpus(problem):
    known = set(" ".join(TextWorld(**SMALL).corpus()).split())
    assert {word for text in (problem.prompt, *problem.episode) for word in text.split()} <= known


def test_levels_are_sizes():
    task = TextWorld(level="hard", rooms=3)
    assert task.level == Level(3, LEVELS["hard"].objects, LEVELS["hard"].quest)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(RecipeError, match=r"guerdon\[agents\]"):
        TextWorld()
