import pytest

from guerdon.errors import TaskError
from guerdon.tasks.base import Problem
from guerdon.tasks.gridtext import MOVES, GridText, KeyDoor


def begun(at, key, door, size=4, **options):
    grid = KeyDoor(size, **options)
    assert grid.reset(Problem(0, start=(at, key, door)), 0).reward == 0
    return grid


def test_the_door_opens_to_who_has_the_key():
    grid = begun((0, 0), (0, 2), (1, 0))
    assert grid.step("down").observation == "key 1 up 2 right ."  # over the door without the key: nothing
    assert grid.step("up") == ("key level 2 right .", 0.0, False, False, {})
    grid.step("right")
    assert grid.step("right").observation == "door 1 down 2 left ."
    for move in ("left", "left"):
        heard = grid.step(move)
        assert not heard.terminated
    heard = grid.step("down")
    assert (heard.reward, heard.terminated, heard.truncated) == (1.0, True, False)


def test_walls_and_nonsense_leave_one_where_one_is():
    grid = begun((0, 0), (3, 3), (1, 1), penalty=-0.1)
    assert grid.step("up") == ("key 3 down 3 right .", 0.0, False, False, {})
    assert grid.step("sideways") == ("key 3 down 3 right .", -0.1, False, False, {})
    assert grid.step(" down ").observation == "key 2 down 3 right ."


def test_the_key_may_pay():
    grid = begun((0, 0), (0, 1), (3, 3), shaped=0.2)
    assert grid.step("right").reward == 0.2
    assert grid.step("left").reward == 0.0
    assert grid.step("right").reward == 0.0  # it is taken once


def test_the_moves_towards_the_goal_take_as_long_as_metadata_says():
    task = GridText(size=5, skill=1.0, max_turns=30)
    for problem in task.train_batch(50, 7):
        grid = KeyDoor(5)
        assert grid.reset(problem, 0).observation == problem.prompt
        steps = problem.metadata["steps"]
        ended = [grid.step(grid.towards()[0]).terminated for _ in range(steps)]
        assert ended == [False] * (steps - 1) + [True]
        assert len(problem.episode) == 2 * steps - 1


def test_a_demonstration_is_what_happens():
    task = GridText(size=4, max_turns=9, skill=0.5)
    for problem in task.train_batch(40, 1):
        grid = KeyDoor(4)
        grid.reset(problem, 0)
        actions, heard = problem.episode[::2], problem.episode[1::2]
        assert len(actions) <= 9
        assert len(heard) == len(actions) - 1
        assert set(actions) <= set(MOVES)
        assert [grid.step(action).observation for action in actions][:-1] == list(heard)


def test_held_out_layouts_are_never_trained_on():
    task = GridText(size=3)
    held_out = {problem.task_id for problem in task.eval_problems(60)}
    assert len(held_out) == 60
    assert [p.task_id for p in task.eval_problems(20)] == [p.task_id for p in task.eval_problems(60)][:20]
    trained = {problem.task_id for seed in range(20) for problem in task.train_batch(50, seed)}
    assert not held_out & trained
    assert task.train_batch(5, 3) == task.train_batch(5, 3)
    with pytest.raises(TaskError, match="few held-out layouts"):
        task.eval_problems(400)


def test_every_word_is_in_the_corpus():
    task = GridText(size=6)
    known = set(" ".join(task.corpus()).split())
    said = {word for p in task.train_batch(200, 0) for text in (p.prompt, *p.episode) for word in text.split()}
    assert said <= known
