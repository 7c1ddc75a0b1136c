"""The digits task: draw a handwritten digit of a wanted class, 8 x 8 pixels."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guerdon.errors import TaskError
from guerdon.registry import register
from guerdon.seeding import torch_generator
from guerdon.tasks.base import Kind, Problem, Task

Part = Literal["train", "gold", "test"]

CLASSES = 10
PIXELS = 64
# Shares of the images of each class; what is left (at least 34 images a class) is the held-out part.
TRAIN_SHARE, GOLD_SHARE = 0.45, 0.35
_SPLIT_SEED = 0


@functools.cache
def digit_images(part: Part) -> tuple[Tensor, Tensor]:
    """Images and classes of one part of the data; parts are disjoint and hold the classes in equal shares.

    Policies and the proxy reward learn from ``train``, the gold reward from ``gold``, evaluation uses ``test``.

    Returns:
        (n, 64) float32 pixels in [-1, 1], row by row, and (n,) int64 classes.

    Raises:
        TaskError: when scikit-learn is not installed.

    Source: Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits, as shipped with scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise TaskError("task 'digits' needs scikit-learn; run: pip install guerdon[flow]") from None
    data, target = load_digits(return_X_y=True)
    images = torch.as_tensor(data, dtype=torch.float32) / 8 - 1
    labels = torch.as_tensor(target, dtype=torch.int64)
    rows = []
    for label in range(CLASSES):
        mine = (labels == label).nonzero().flatten()
        mine = mine[torch.randperm(len(mine), generator=torch_generator(_SPLIT_SEED, "digits", label))]
        first, second = int(len(mine) * TRAIN_SHARE), int(len(mine) * (TRAIN_SHARE + GOLD_SHARE))
        rows.append({"train": mine[:first], "gold": mine[first:second], "test": mine[second:]}[part])
    chosen = torch.cat(rows)
    return images[chosen], labels[chosen]


@register("task", "digits", paper="Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits")
class Digits(Task):
    """Draw a handwritten digit of the wanted class.

    The start of a problem is the class, its ``task_id`` too; its answer is one real image of that class, (64,) in
    [-1, 1], from which a policy can be warm-started. Training images come from the training part only. There is no
    scorer: name the rewards ``digit_proxy`` and ``digit_gold``.

    Attributes:
        dimensions: size of a sample.
        classes: number of conditions.
    """

    kind: ClassVar[Kind] = "flow"
    dimensions: ClassVar[int] = PIXELS
    classes: ClassVar[int] = CLASSES

    def __init__(self) -> None:
        self._train, self._test = _by_class("train"), _by_class("test")

    def train_batch(self, n: int, seed: int) -> list[Problem]:
        """Draw ``n`` problems, classes in turn in a random order, each with a random training image as its answer."""
        generator = torch_generator(seed, "digits")
        order = torch.randperm(CLASSES, generator=generator).tolist()
        draws = torch.rand(n, generator=generator, dtype=torch.float64).tolist()
        wanted = [order[i % CLASSES] for i in range(n)]
        return [_problem(c, self._train[c], int(u * len(self._train[c]))) for c, u in zip(wanted, draws, strict=True)]

    def eval_problems(self, n: int) -> list[Problem]:
        """The first ``n`` held-out problems, classes in turn.

        Raises:
            TaskError: when ``n`` exceeds the held-out images of the classes.
        """
        most = min(len(images) for images in self._test) * CLASSES
        if n > most:
            raise TaskError(f"task 'digits' has {most} held-out problems, {n} were asked for; ask for fewer")
        return [_problem(i % CLASSES, self._test[i % CLASSES], i // CLASSES) for i in range(n)]


def _by_class(part: Part) -> list[Tensor]:
    images, labels = digit_images(part)
    return [images[labels == label] for label in range(CLASSES)]


def _problem(label: int, images: Tensor, index: int) -> Problem:
    known = {"label": label, "image": index}
    return Problem(label, f"digit {label}", answer=images[index], start=label, metadata=known)
