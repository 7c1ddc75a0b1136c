"""Texts with images in them: how a task shows a policy what it can't say in words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from guerdon.errors import TaskError
from guerdon.tasks.base import Problem

MARK = "<image>"  # stands in a text for an image
METADATA = "images"  # the key of a problem's metadata under which images of a plain prompt may lie


class Picture:
    """An image; two are equal if their pixels are.

    Attributes:
        pixels: (H,W,3) uint8, not to be written to.
    """

    def __init__(self, pixels: Any) -> None:
        """Take the pixels.

        Args:
            pixels: (H,W,3) uint8, (H,W) uint8 for shades of grey, or what numpy makes one of, such as a PIL image.

        Raises:
            TaskError: for anything else.
        """
        array = np.asarray(pixels)
        if array.ndim == 2:
            array = np.repeat(array[:, :, None], 3, axis=2)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise TaskError(
                f"an image is {array.dtype} of shape {array.shape}, want uint8 of shape (height, width, 3); convert it"
            )
        self.pixels = np.ascontiguousarray(array)

    @cached_property
    def digest(self) -> str:
        """Identity of the pixels."""
        shape = repr(self.pixels.shape).encode()
        return hashlib.blake2b(shape + self.pixels.tobytes(), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        height, width, _ = self.pixels.shape
        return f"Picture({height}x{width}, {self.digest[:8]})"


class Illustrated(str):
    """A text with images, each of which stands where the text says ``<image>``.

    It may be the prompt of a problem, the observation of an environment, or a part of a demonstration. To whatever
    knows nothing of images it is its text; what string methods make of it has no images any more.

    Attributes:
        pictures: the images, in the order of their marks.
    """

    pictures: tuple[Picture, ...]

    def __new__(cls, text: str, images: Sequence[Any]) -> Illustrated:
        """Put images into a text.

        Args:
            text: has as many marks as there are images; images of a text without any mark stand before it.
            images: ``Picture``s, or what one is made of.

        Raises:
            TaskError: when the marks are not as many as the images.
        """
        pictures = tuple(image if isinstance(image, Picture) else Picture(image) for image in images)
        text = str(text) if MARK in text else MARK * len(pictures) + text
        marks = text.count(MARK)
        if marks != len(pictures):
            raise TaskError(
                f"the text {text!r:.60} has {marks} times the mark {MARK} for {len(pictures)} images; put one mark "
                "where each image stands, or none for images that stand before the text"
            )
        this = super().__new__(cls, text)
        this.pictures = pictures
        return this

    def __reduce__(self) -> tuple[Any, ...]:
        return Illustrated, (str(self), self.pictures)

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True and self.pictures == pictures_of(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((str(self), self.pictures)) if self.pictures else str.__hash__(self)

    def __repr__(self) -> str:
        # Environments tell states apart by the representation of what they said.
        return f"Illustrated({str(self)!r}, {[picture.digest for picture in self.pictures]})"

    def __str__(self) -> str:
        return str.__str__(self)


def pictures_of(text: object) -> tuple[Picture, ...]:
    """The images of a text; none of a plain one."""
    return text.pictures if isinstance(text, Illustrated) else ()


def illustrated(problem: Problem) -> str:
    """The prompt of a problem with its images, whether they are the prompt's own or lie in the metadata."""
    images = problem.metadata.get(METADATA) if not isinstance(problem.prompt, Illustrated) else None
    return problem.prompt if images is None else Illustrated(problem.prompt, images)
