"""Images as tokens: what a processor makes of them, and numbers for them beyond those of the vocabulary.

A model reads an image as a run of vectors, and the engine knows tokens only. So every image of a batch is given numbers
of its own, one for each of its vectors, above those of all words. Rows that begin with the same text and image then
begin with the same tokens, and whatever the engine does for texts (sharing prefixes, packing, branching, turns) it does
for images too; the model alone knows better.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from guerdon.errors import RecipeError
from guerdon.tasks.pictures import MARK, Picture

# What processors say of tokens rather than of images.
_OF_TOKENS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
# Bytes of prepared images that are kept for the next time; those of a task's last batches, for small images.
_ROOM = 2**26
_TEXTS = 2**20  # tokens of texts that are kept likewise

Kept = TypeVar("Kept")


class Sight:
    """A Hugging Face processor, as far as guerdon asks it for anything.

    How many tokens an image takes, and so what becomes of a text, depends on the sizes of its images alone; so the
    processor is asked once per text and sizes, and its image processor for each new image.

    Attributes:
        mark: what a text says where an image is to stand.
        image_token: the token that the processor repeats there.
    """

    def __init__(self, processor: Any, image_token: int) -> None:
        self.processor, self.image_token = processor, image_token
        # Gemma's processors look for the token that opens an image, others for the one that is repeated.
        self.mark: str = getattr(processor, "boi_token", None) or _word(processor, image_token)
        self._texts = _Kept[list[int]](_TEXTS)
        self._images = _Kept[dict[str, Tensor]](_ROOM)
        self._sizes: dict[tuple[int, ...], tuple[int, bool]] = {}  # tokens of an image; whether _part is all of it
        self._names: Iterable[str] = ()

    def ids(self, text: str, pictures: Sequence[Picture], *, special: bool = False) -> list[int]:
        """Tokens of a text with the processor's marks in it, each image as many ``image_token`` as it takes.

        Args:
            text: with the processor's marks.
            pictures: one per mark.
            special: whether the tokenizer may put its own tokens around it.
        """
        key = (text, special, *(picture.pixels.shape for picture in pictures))
        known = self._texts.get(key)
        if known is None:
            if pictures:
                known = self._asked(text, pictures, special)["input_ids"][0].tolist()
            else:
                known = list(self.processor.tokenizer(text, add_special_tokens=special)["input_ids"])
            self._texts.put(key, known, len(known))
        return list(known)

    def prepared(self, picture: Picture) -> tuple[dict[str, Tensor], int]:
        """What the model is given of an image, and how many tokens it takes."""
        size = picture.pixels.shape
        if size not in self._sizes:
            whole = dict(self._asked(self.mark, [picture], special=False))
            count = int((whole["input_ids"] == self.image_token).sum())
            if not count:
                raise RecipeError(
                    f"the processor '{type(self.processor).__name__}' makes no token of {picture}, so no model could "
                    "see it; give it a larger image"
                )
            self._names = _inputs(whole).keys()
            self._sizes[size] = count, self._part_is_enough(picture, _inputs(whole))
        count, enough = self._sizes[size]
        known = self._images.get(picture.digest)
        if known is None:
            if enough:
                known = self._part(picture, self._names)
            else:
                known = _inputs(self._asked(self.mark, [picture], special=False))
            self._images.put(picture.digest, known, sum(x.numel() * x.element_size() for x in known.values()))
        return known, count

    def _part(self, picture: Picture, names: Iterable[str]) -> dict[str, Tensor]:
        """What the image processor alone makes of an image, which takes half the time."""
        made = self.processor.image_processor(images=[[_image(picture)]], return_tensors="pt")
        return {name: made[name] for name in names if name in made}

    def _part_is_enough(self, picture: Picture, wanted: dict[str, Tensor]) -> bool:
        try:
            made = self._part(picture, wanted)
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError):
            return False  # it needs to be told what the processor tells it
        return made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in made)

    def _asked(self, text: str, pictures: Sequence[Picture], special: bool) -> Any:
        images = [[_image(picture) for picture in pictures]]
        try:
            return self.processor(text=[text], images=images, add_special_tokens=special, return_tensors="pt")
        except (ValueError, TypeError, IndexError, KeyError) as error:
            name = type(self.processor).__name__
            raise RecipeError(
                f"the processor '{name}' can't read {text!r:.60} with {list(pictures)}: {error}"
            ) from error


class _Kept(Generic[Kept]):
    """What was made last, up to a total size."""

    def __init__(self, room: int) -> None:
        self._room, self._held = room, 0
        self._items: OrderedDict[Any, tuple[Kept, int]] = OrderedDict()

    def get(self, key: Any) -> Kept | None:
        """What is known under a key, if it is still there."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key][0]

    def put(self, key: Any, item: Kept, size: int) -> None:
        """Keep something, and drop what was not asked for the longest time."""
        self._items[key] = item, size
        self._held += size
        while self._held > self._room and len(self._items) > 1:
            self._held -= self._items.popitem(last=False)[1][1]


def _image(picture: Picture) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise RecipeError('images need the package pillow; pip install "guerdon[vision]"') from None
    return Image.fromarray(picture.pixels)


def _inputs(made: Any) -> dict[str, Tensor]:
    """What a processor made of images."""
    return {name: x for name, x in made.items() if name not in _OF_TOKENS and isinstance(x, Tensor)}


def _word(processor: Any, image_token: int) -> str:
    return str(processor.tokenizer.convert_ids_to_tokens(image_token)) if image_token >= 0 else MARK


class Gallery:
    """The images of a batch, and the tokens that stand for them.

    Attributes:
        first: the smallest number that is no word's.
        pictures: the images, each once.
        inputs: what the model is given of each.
        counts: how many tokens each takes.
    """

    def __init__(self, sight: Sight, first: int) -> None:
        self.sight, self.first = sight, first
        self.pictures: list[Picture] = []
        self.inputs: list[dict[str, Tensor]] = []
        self.counts: list[int] = []
        self._begin: dict[str, int] = {}  # number of each image's first token
        self._place: dict[int, int] = {}  # and which image begins with a number
        self._next = first

    def tokens(self, picture: Picture) -> range:
        """The numbers of an image's tokens; it joins the gallery if it is not there."""
        begin = self._begin.get(picture.digest)
        if begin is None:
            inputs, count = self.sight.prepared(picture)
            begin = self._begin[picture.digest] = self._next
            self._place[begin] = len(self.pictures)
            self._next += count
            self.pictures.append(picture)
            self.inputs.append(inputs)
            self.counts.append(count)
        return range(begin, begin + self.counts[self._place[begin]])

    def hang(self, ids: Tensor, free: Tensor, rows: Sequence[Sequence[Picture]]) -> Tensor:
        """Tokens (N,C) with each image's own numbers in place of ``image_token``.

        Args:
            ids: the tokens.
            free: (N,C) false where ``image_token`` is a word that the policy wrote.
            rows: images of each row, in order.

        Raises:
            RecipeError: when a row has not as many places as its images take.
        """
        places = (ids == self.sight.image_token) & free
        numbers = [[token for picture in row for token in self.tokens(picture)] for row in rows]
        wanted = torch.tensor([len(row) for row in numbers], device=ids.device)
        wrong = (places.sum(dim=1) != wanted).nonzero().flatten().tolist()
        if wrong:
            row = wrong[0]
            raise RecipeError(
                f"row {row} has {int(places[row].sum())} places for images, and its {len(rows[row])} images take "
                f"{int(wanted[row])}; the processor must treat an image alike alone and among others"
            )
        flat = torch.tensor([token for row in numbers for token in row], dtype=ids.dtype, device=ids.device)
        return ids.masked_scatter(places, flat)

    def taken_down(self, ids: Tensor) -> Tensor:
        """Tokens with ``image_token`` in place of every number of an image."""
        return torch.where(ids >= self.first, self.sight.image_token, ids)

    def seen(self, tokens: Sequence[int]) -> Iterator[int]:
        """Which images begin in a row of tokens, in order."""
        for token in tokens:
            if token >= self.first and token in self._place:
                yield self._place[token]

    def together(self, places: Sequence[int]) -> dict[str, Tensor]:
        """What a model is given of several images at once.

        Raises:
            RecipeError: when their shapes differ.
        """
        chosen = [self.inputs[place] for place in places]
        try:
            return {name: torch.cat([inputs[name] for inputs in chosen]) for name in chosen[0]} if chosen else {}
        except RuntimeError:
            raise RecipeError(
                "this model reads the images of a batch at once, and these have different shapes: "
                f"{[self.pictures[place] for place in places][:8]}; give them all the same size"
            ) from None

    def alike(self, begin: int) -> Iterator[list[int]]:
        """Images from ``begin`` on, in groups of which a model can be given all at once."""
        groups: dict[Any, list[int]] = {}
        for place in range(begin, len(self.pictures)):
            shapes = tuple((name, tuple(value.shape)) for name, value in self.inputs[place].items())
            groups.setdefault((self.counts[place], shapes), []).append(place)
        yield from groups.values()
