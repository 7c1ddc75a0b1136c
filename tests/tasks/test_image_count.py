import numpy as np
import pytest

from guerdon.errors import RecipeError
from guerdon.tasks.image_count import CELL, COLOURS, ImageCount, render
from guerdon.tasks.pictures import Illustrated


def counted(problem):
    """The number of squares of the asked colour, found in the pixels alone: the colour in the middle of each cell."""
    pixels = problem.prompt.pictures[0].pixels.astype(int)
    names, values = list(COLOURS), np.array(list(COLOURS.values()))
    found = []
    for row in range(pixels.shape[0] // CELL):
        for column in range(pixels.shape[1] // CELL):
            middle = pixels[row * CELL + 4, column * CELL + 4]
            if middle.max() > 40:
                found.append(names[int(np.abs(values - middle).sum(axis=1).argmin())])
    return found.count(problem.metadata["colour"]), len(found)


@pytest.mark.parametrize("size", [2, 5])
def test_the_answer_is_in_the_picture(size):
    for problem in ImageCount(size=size, colours=5).train_batch(40, seed=3):
        assert isinstance(problem.prompt, Illustrated)
        assert problem.prompt.pictures[0].pixels.shape == (size * CELL, size * CELL, 3)
        assert str(problem.prompt) == "<image>" + problem.metadata["colour"]
        assert counted(problem) == (int(problem.answer), problem.metadata["squares"])


def test_batches_are_functions_of_their_seed():
    task = ImageCount()
    one, same, other = task.train_batch(8, 1), task.train_batch(8, 1), task.train_batch(8, 2)
    assert [p.prompt for p in one] == [p.prompt for p in same]
    assert [p.prompt for p in one] != [p.prompt for p in other]


def test_no_layout_that_is_held_out_is_trained_on():
    task = ImageCount(size=2)
    held_out = {problem.task_id for problem in task.eval_problems(60)}
    assert len(held_out) == 60
    assert not held_out & {problem.task_id for problem in task.train_batch(200, 0)}
    assert [p.prompt for p in task.eval_problems(5)] == [p.prompt for p in task.eval_problems(60)[:5]]


def test_the_scorer_wants_the_number():
    task = ImageCount()
    assert task.scorer("3", "3") == 1
    assert task.scorer("2", "3") == 0


def test_vocabulary_and_options():
    words = " ".join(ImageCount(size=2, colours=2).corpus()).split()
    assert {"red", "green", "0", "4"} <= set(words)
    assert "blue" not in words
    with pytest.raises(RecipeError, match="every picture alike"):
        ImageCount(colours=1, filled=1.0)


def test_squares_stay_in_their_cells():
    layout = np.array([[1, 0], [0, 2]])
    for seed in range(20):
        pixels = render(layout, [(255, 0, 0), (0, 0, 255)], np.random.default_rng(seed))
        assert pixels.dtype == np.uint8
        assert pixels[:CELL, CELL:].max() < 30
        assert pixels[CELL:, :CELL].max() < 30
        assert pixels[3, 3, 0] > 200
        assert pixels[CELL + 4, CELL + 4, 2] > 200
