import sys

import pytest
import torch

from guerdon.errors import TaskError
from guerdon.tasks.digits import Digits, digit_images


def keys(images):
    return {tuple(row) for row in images.tolist()}


def test_the_parts_share_no_image_and_hold_all():
    parts = {name: digit_images(name) for name in ("train", "gold", "test")}
    assert sum(len(images) for images, _ in parts.values()) == 1797
    sets = {name: keys(images) for name, (images, _) in parts.items()}
    assert not sets["train"] & sets["gold"]
    assert not sets["train"] & sets["test"]
    assert not sets["gold"] & sets["test"]
    for images, labels in parts.values():
        assert images.min() == -1
        assert images.max() == 1
        assert len(images) == len(labels)
        counts = torch.bincount(labels, minlength=10)
        assert counts.max() - counts.min() <= 4


def test_pixels_and_classes_are_those_of_the_data_set():
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    known = {tuple((row / 8 - 1).tolist()): int(label) for row, label in zip(data, target, strict=True)}
    for part in ("train", "gold", "test"):
        images, labels = digit_images(part)
        assert [known[tuple(row)] for row in images.tolist()] == labels.tolist()


def test_training_problems_are_balanced_images_of_the_train_part():
    images, labels = digit_images("train")
    label_of = dict(zip(map(tuple, images.tolist()), labels.tolist(), strict=True))
    problems = Digits().train_batch(200, seed=3)
    assert torch.bincount(torch.tensor([p.start for p in problems])).tolist() == [20] * 10
    for p in problems:
        assert label_of[tuple(p.answer.tolist())] == p.start == p.task_id == p.metadata["label"]
        assert p.prompt == f"digit {p.start}"
    assert {p.start for p in problems[:10]} == set(range(10))


def test_a_training_batch_is_a_pure_function_of_its_seed():
    first, again, other = (Digits().train_batch(30, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.stack([p.answer for p in first]), torch.stack([p.answer for p in again]))
    assert [p.start for p in first] == [p.start for p in again]
    assert not torch.equal(torch.stack([p.answer for p in first]), torch.stack([p.answer for p in other]))


def test_every_training_image_can_be_drawn():
    drawn = keys(torch.stack([p.answer for p in Digits().train_batch(20_000, seed=0)]))
    assert drawn == keys(digit_images("train")[0])


def test_held_out_problems_are_balanced_distinct_and_disjoint_from_training():
    problems = Digits().eval_problems(200)
    images = torch.stack([p.answer for p in problems])
    assert [p.start for p in problems[:12]] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(keys(images)) == 200
    assert keys(images) <= keys(digit_images("test")[0])
    assert [p.metadata for p in Digits().eval_problems(50)] == [p.metadata for p in problems[:50]]


def test_too_many_held_out_problems_are_refused():
    assert len(Digits().eval_problems(350)) == 350
    with pytest.raises(TaskError, match="has 350 held-out problems, 351 were asked for"):
        Digits().eval_problems(351)


def test_a_missing_scikit_learn_names_the_extra(monkeypatch):
    digit_images.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(TaskError, match=r"pip install guerdon\[flow\]"):
        Digits()
    digit_images.cache_clear()
