import numpy as np
import pytest

from guerdon.tasks.gridimage import CELL, GridImage, draw_grid
from guerdon.tasks.gridtext import GridText
from guerdon.tasks.pictures import Illustrated


def colours(pixels, cell):
    """Colour of the rim, of the ring inside it and of the middle of a cell."""
    top, left = (x * CELL for x in cell)
    return [tuple(pixels[top + depth, left + depth].tolist()) for depth in (0, 1, 4)]


GROUND, WALKER, KEY, DOOR = (20, 20, 20), (230, 230, 230), (230, 200, 40), (200, 60, 60)


def test_walker_key_and_door_are_where_they_are():
    pixels = draw_grid(3, (0, 1), (2, 2), (1, 0))
    assert pixels.shape == (24, 24, 3)
    assert colours(pixels, (0, 1)) == [GROUND, WALKER, WALKER]
    assert colours(pixels, (1, 0)) == [GROUND, GROUND, KEY]
    assert colours(pixels, (2, 2)) == [DOOR, DOOR, DOOR]
    assert colours(pixels, (1, 1)) == [GROUND] * 3
    assert colours(draw_grid(3, (0, 1), (2, 2), None), (0, 1)) == [GROUND, WALKER, KEY]
    assert colours(draw_grid(3, (2, 2), (2, 2), (1, 0)), (2, 2)) == [DOOR, WALKER, WALKER]


def test_every_state_has_a_picture_of_its_own():
    cells = [(i, j) for i in range(2) for j in range(2)]
    seen = {draw_grid(2, at, (1, 1), key).tobytes() for at in cells for key in [*cells[:3], None] if at != key}
    assert len(seen) == 4 * 4 - 3  # who stands on the key has it


def test_it_is_the_grid_in_words_but_for_what_is_seen():
    words, pictures = GridText(size=4, max_turns=12, skill=0.5), GridImage(size=4, max_turns=12, skill=0.5)
    for said, shown in zip(words.train_batch(10, 5), pictures.train_batch(10, 5), strict=True):
        assert (said.task_id, said.start, said.metadata) == (shown.task_id, shown.start, shown.metadata)
        assert said.episode[::2] == shown.episode[::2]
        assert len(said.episode) == len(shown.episode)
        talk, show = words.environment()(), pictures.environment()()
        talk.reset(said, 0)
        assert show.reset(shown, 0).observation == shown.prompt
        for place, move in enumerate(shown.episode[::2]):
            heard, seen = talk.step(move), show.step(move)
            assert heard[1:] == seen[1:]
            if not seen.terminated:
                assert isinstance(seen.observation, Illustrated)
                if 2 * place + 1 < len(shown.episode):
                    assert seen.observation == shown.episode[2 * place + 1]


def test_states_are_told_apart_by_their_pictures():
    task = GridImage(size=3)
    problem = task.train_batch(1, 0)[0]
    session = task.begin([problem], [0])
    begun = session.reset()[0]
    keys = {begun.info["state_key"]}
    for move in ("up", "down", "left", "right"):
        keys.add(session.step([0], [move])[0].info["state_key"])
    again = task.begin([problem], [1]).reset()[0]
    assert again.info["state_key"] == begun.info["state_key"]
    assert len(keys) >= 3


@pytest.mark.parametrize("size", [3, 4])
def test_held_out_layouts_are_not_trained_on(size):
    task = GridImage(size=size)
    held_out = {problem.task_id for problem in task.eval_problems(20)}
    assert not held_out & {problem.task_id for problem in task.train_batch(300, 0)}
    assert all(isinstance(p.prompt, Illustrated) and np.any(p.prompt.pictures[0].pixels) for p in task.eval_problems(3))
