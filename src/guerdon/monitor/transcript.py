"""A rollout's text cut into turns: what the policy wrote, token by token, and what others wrote between.

A saved trajectory holds its whole text, and the text of each action beside its credit; where each action stands in the
text is found again here, for special tokens are not in it, and some tokenizers put spaces between tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import accumulate

# What tokenizers leave out of a text: <eos>, <|im_end|>, [SEP], </s>.
SPECIAL = re.compile(r"<\|?/?[\w ]{1,40}\|?>|\[[A-Z]{2,10}\]|")
# Places that are tried for a segment, those nearest to where it is expected.
TRIES = 1000
# What stands for a character of which a token holds a part of the bytes.
BROKEN = "\ufffd"

Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Token:
    """An action's text as it stands in the rollout.

    Attributes:
        place: its position in the lists of the table.
        text: with the white space before it.
        special: not part of the text; shown as a sign.
    """

    place: int
    text: str
    special: bool = False


@dataclass(frozen=True)
class Turn:
    """What the policy wrote in one go, and what it was answered.

    Attributes:
        number: the turn, counted from 0.
        tokens: what the policy wrote.
        heard: what others wrote after it; None where the text does not tell.
        unread: tokens that others wrote after it.
    """

    number: int
    tokens: Sequence[Token]
    heard: str | None = None
    unread: int = 0


@dataclass(frozen=True)
class _Segment:
    number: int
    places: Sequence[int]
    tokens: Sequence[str]
    after: int


def transcript(
    text: str | None, tokens: Sequence[str | None], turns: Sequence[int | None] | None = None
) -> tuple[list[Turn], bool]:
    """Cut a trajectory into turns.

    Args:
        text: the whole of it, or None.
        tokens: text of each action at its position; None where others wrote.
        turns: turn of each action; one turn for each unbroken stretch of actions by default.

    Returns:
        the turns, and whether they are the whole text: where the tokens cannot be found in it, they are given as they
        are, without what stands between.
    """
    segments = _segments(tokens, turns)
    if text is not None and (spans := _aligned(text, segments)) is not None:
        return _cut(text, segments, spans), True
    return [
        Turn(
            s.number,
            [Token(place, t, _is_special(t)) for place, t in zip(s.places, s.tokens, strict=True)],
            unread=s.after,
        )
        for s in segments
    ], False


def _segments(tokens: Sequence[str | None], turns: Sequence[int | None] | None) -> list[_Segment]:
    """Stretches of actions of one turn, with the number of tokens between each and the next."""
    found: list[tuple[int, list[int]]] = []
    previous = None
    for place, token in enumerate(tokens):
        if token is None:
            previous = None
            continue
        turn = turns[place] if turns is not None and place < len(turns) else None
        if previous is None or turn != previous[0]:
            found.append((len(found) if turn is None else turn, []))
        found[-1][1].append(place)
        previous = (turn,)
    out = []
    for k, (number, places) in enumerate(found):
        after = (found[k + 1][1][0] if k + 1 < len(found) else len(tokens)) - places[-1] - 1
        out.append(_Segment(number, places, [tokens[place] or "" for place in places], after))
    return out


def _aligned(text: str, segments: Sequence[_Segment]) -> list[Spans] | None:
    """Where the tokens of each segment stand in the text; None if they can't all be found, in order.

    Of the places where a segment can be read that one is taken which is nearest to where it should be: as far behind
    the last one as the tokens between take, at as many words, or characters, each as the whole text gives them. A
    segment of special tokens only stands where the next one begins.
    """
    shown = [k for k, segment in enumerate(segments) if not all(_invisible(token) for token in segment.tokens)]
    far = _distances(text, [token.strip() for segment in segments for token in segment.tokens if not _invisible(token)])
    places = _Places(text, far)
    anywhere = [places.nearest(segments[k].tokens, 0, 0.0) for k in shown]
    own = sum(far[spans[-1][1]] - far[spans[0][0]] for spans in anywhere if spans is not None)
    unread = sum(segment.after for segment in segments)
    each = max(0, far[len(text)] - own) / unread if unread else 0.0
    placed: dict[int, Spans] = {}
    at = done = 0
    for k in shown:
        gap = each * sum(segment.after for segment in segments[done:k])
        spans = places.nearest(segments[k].tokens, at, far[at] + gap)
        if spans is None:
            return None
        placed[k], at, done = spans, spans[-1][1], k
    out: list[Spans] = []
    begin = len(text)
    for k in reversed(range(len(segments))):
        spans = placed.get(k, [(begin, begin)] * len(segments[k].tokens))
        begin = spans[0][0]
        out.append(spans)
    return out[::-1] if shown else None


class _Places:
    """Where tokens stand in a text."""

    def __init__(self, text: str, far: Sequence[int]) -> None:
        self._text, self._far = text, far
        self._found: dict[str, list[int]] = {}

    def nearest(self, tokens: Sequence[str], after: int, expected: float) -> Spans | None:
        """Spans of the tokens at the place from ``after`` on that is nearest to ``expected``; None if there is none."""
        first = next(token.strip() for token in tokens if not _invisible(token))
        if first not in self._found:
            self._found[first] = [match.start() for match in re.finditer(f"(?={re.escape(first)})", self._text)]
        later = (place for place in self._found[first] if place >= after)
        for at in nsmallest(TRIES, later, key=lambda place: abs(self._far[place] - expected)):
            spans = _read(self._text, at, tokens)
            if spans is not None:
                return spans
        return None


def _distances(text: str, written: Sequence[str]) -> Sequence[int]:
    """How far into the text each place is: in words where every token is one, else in characters."""
    if not set(written) <= set(text.split()):
        return range(len(text) + 1)
    begins = (not c.isspace() and (k == 0 or text[k - 1].isspace()) for k, c in enumerate(text))
    return [0, *accumulate(begins)]


def _read(text: str, at: int, tokens: Sequence[str]) -> Spans | None:
    """The span of each token if they can be read from ``at`` on; empty for what is not in the text."""
    spans, broken = [], 0
    for token in tokens:
        core = token.strip()
        begin = at
        if not core:
            at += len(token) if text.startswith(token, at) else 0
        elif BROKEN in token:
            broken += 1
        else:
            place = at
            while place < len(text) and text[place].isspace() and not text.startswith(core, place):
                place += 1
            if broken and not text.startswith(core, place):
                place = text.find(core, place, place + 4 * broken + len(core))
            if place >= 0 and text.startswith(core, place):
                at, broken = place + len(core), 0
            elif not _is_special(token):
                return None
        spans.append((begin, at))
    return spans


def _cut(text: str, segments: Sequence[_Segment], spans: Sequence[Spans]) -> list[Turn]:
    out = []
    for k, (segment, found) in enumerate(zip(segments, spans, strict=True)):
        end = spans[k + 1][0][0] if k + 1 < len(spans) else len(text)
        heard = text[found[-1][1] : end]
        tokens = []
        for place, (begin, stop), raw in zip(segment.places, found, segment.tokens, strict=True):
            tokens.append(Token(place, text[begin:stop] or raw, special=begin == stop and _is_special(raw)))
        out.append(Turn(segment.number, tokens, heard or None, segment.after))
    return out


def _is_special(token: str) -> bool:
    return SPECIAL.fullmatch(token.strip()) is not None


def _invisible(token: str) -> bool:
    """Whether a token can't be looked for: white space, a special one, or a part of a character."""
    return not token.strip() or BROKEN in token or _is_special(token)
