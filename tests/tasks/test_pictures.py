import copy
import json
import pickle

import numpy as np
import pytest

from guerdon.errors import TaskError
from guerdon.tasks.base import Problem
from guerdon.tasks.environments import Step, state_key
from guerdon.tasks.pictures import Illustrated, Picture, illustrated, pictures_of


def shade(value, size=4):
    return np.full((size, size, 3), value, dtype=np.uint8)


def test_a_picture_is_its_pixels():
    assert Picture(shade(1)) == Picture(shade(1))
    assert Picture(shade(1)) != Picture(shade(2))
    assert Picture(shade(0, 4)) != Picture(np.zeros((2, 8, 3), np.uint8))
    assert len({Picture(shade(1)), Picture(shade(1)), Picture(shade(2))}) == 2
    grey = Picture(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert grey.pixels.shape == (2, 3, 3)
    assert (grey.pixels[:, :, 0] == grey.pixels[:, :, 2]).all()


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), 3]
)
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(TaskError, match=r"want uint8 of shape \(height, width, 3\)"):
        Picture(wrong)


def test_a_text_with_images_is_a_text():
    text = Illustrated("look: <image> and <image>?", [shade(1), shade(2)])
    assert isinstance(text, str)
    assert text.startswith("look")
    assert json.loads(json.dumps({"prompt": text})) == {"prompt": "look: <image> and <image>?"}
    assert type(str(text)) is str
    assert [picture.pixels[0, 0, 0] for picture in text.pictures] == [1, 2]
    assert pictures_of("plain") == ()
    assert Illustrated("sum?", [shade(1)]) == Illustrated("<image>sum?", [shade(1)])


def test_texts_with_other_images_are_other_texts():
    one, same, other = (Illustrated("sum?", [shade(x)]) for x in (1, 1, 2))
    assert one == same
    assert one != other
    assert len({one, same, other}) == 2
    assert one != str(one)
    assert str(one) != one
    assert Illustrated("plain", []) == "plain"
    assert hash(Illustrated("plain", [])) == hash("plain")
    # so states of environments that are told apart by what they say are told apart by what they show
    assert state_key(Step(one)) == state_key(Step(same)) != state_key(Step(other))


def test_texts_with_images_travel():
    text = Illustrated("sum?", [shade(1)])
    for again in (pickle.loads(pickle.dumps(text)), copy.deepcopy(text), copy.copy(text)):
        assert again == text
        assert again.pictures[0] == text.pictures[0]


def test_marks_and_images_must_be_as_many():
    with pytest.raises(TaskError, match="has 1 times the mark <image> for 2 images"):
        Illustrated("<image>", [shade(1), shade(2)])


def test_images_of_a_plain_prompt_may_lie_in_the_metadata():
    assert illustrated(Problem(0, "sum?")) == "sum?"
    lent = illustrated(Problem(0, "sum?", metadata={"images": [shade(1)]}))
    assert lent == Illustrated("sum?", [shade(1)])
    own = Illustrated("sum?", [shade(2)])
    assert illustrated(Problem(0, own, metadata={"images": [shade(1)]})) is own
