"""Search for a text with many details, from the coarse ones to the fine, led by a judge that compares two at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

State = TypeVar("State")
Compare = Callable[[State, State], float]


@dataclass
class Panel(Generic[State]):
    """Judges who compare in both orders, and a majority that must be strict.

    votes = sum over judges of sign(judge(new, old)) - sign(judge(old, new)); new is preferred if that is above 0

    A judge who favours what it reads first cancels itself. A tie rejects what is new. One judge is a list of one,
    several votes of it are a list with repeats; judges whose mistakes differ correct one another, repeats don't.

    Args:
        judges: each takes a first and a second text, and returns a number above 0 for the first, below 0 for the
            second, 0 for neither; NaN counts as 0.

    Attributes:
        calls: how often a judge was asked, both orders counted.

    Source: Yang et al. 2025, arXiv 2505.19209.
    """

    judges: Sequence[Compare[State]]
    calls: int = field(default=0, init=False)

    def __call__(self, new: State, old: State) -> bool:
        """Whether ``new`` is strictly preferred to ``old``."""
        self.calls += 2 * len(self.judges)
        return sum(_sign(judge(new, old)) - _sign(judge(old, new)) for judge in self.judges) > 0


class Climb(NamedTuple, Generic[State]):
    """Where a greedy search ended, how many edits it tried, and how many were accepted."""

    state: State
    steps: int
    accepted: int


def greedy_search(
    start: State,
    propose: Callable[[State, int], State],
    prefer: Callable[[State, State], bool],
    *,
    patience: int = 3,
    max_steps: int = 150,
) -> Climb[State]:
    """Edit a text as long as that makes it better; the baseline is this on all details at once.

    Args:
        start: where to begin.
        propose: ``(text, step)`` to an edit of it.
        prefer: ``(new, old)`` to whether the new one is strictly better, see ``Panel``.
        patience: rejections in a row after which the text counts as a local optimum.
        max_steps: edits at most.

    Source: Yang et al. 2025, arXiv 2505.19209; the value of patience is inferred.
    """
    best, refused, accepted, step = start, 0, 0, 0
    while step < max_steps and refused < patience:
        new = propose(best, step)
        step += 1
        if prefer(new, best):
            best, refused, accepted = new, 0, accepted + 1
        else:
            refused += 1
    return Climb(best, step, accepted)


def hierarchical_greedy(
    start: State,
    propose: Callable[[State, int, int, int], State],
    prefer: Callable[[State, State], bool],
    *,
    levels: int = 5,
    beams: int = 2,
    starts: int = 3,
    patience: int = 3,
    max_steps: int = 150,
    recombine: Callable[[Sequence[State], int], State] | None = None,
) -> list[State]:
    """Settle the coarse details first, then finer ones, each level by greedy search from several starts.

    At each level every beam is climbed ``starts`` times by edits of that level alone. The local optima are recombined
    into one text, which is kept if it is preferred to the best of them. Of what was found the best ``beams`` go on to
    the next level. A climb ends no lower than it began, so a level that helps nothing leaves the beam as it was. With
    one level, beam and start it is ``greedy_search``.

    Args:
        start: where to begin.
        propose: ``(text, level, number of the climb, step)`` to an edit of the details of that level; levels count from
            0, the coarsest.
        prefer: see ``greedy_search``.
        levels: of detail.
        beams: texts that go on to the next level.
        starts: climbs from each.
        patience, max_steps: see ``greedy_search``.
        recombine: ``(local optima, level)`` to a text of the best of each; None does without.

    Returns:
        At most ``beams`` texts, best first.

    Raises:
        ValueError: when levels, beams or starts is below 1.

    Source: Yang et al. 2025, arXiv 2505.19209. (Beams are taken from the local optima and their recombinations; that
    is inferred.)
    """
    for name, number in (("levels", levels), ("beams", beams), ("starts", starts)):
        if number < 1:
            raise ValueError(f"{name} is {number}, wanted 1 or more")
    living = [start]
    climbs = 0
    for level in range(levels):
        found: list[State] = []
        for beam in living:
            optima: list[State] = []
            for number in range(climbs, climbs + starts):

                def edit(state: State, step: int, number: int = number, level: int = level) -> State:
                    return propose(state, level, number, step)

                optima.append(greedy_search(beam, edit, prefer, patience=patience, max_steps=max_steps).state)
            climbs += starts
            optima = ranked(optima, prefer)
            if recombine is not None and len(optima) > 1:
                joined = recombine(optima, level)
                if prefer(joined, optima[0]):
                    optima.insert(0, joined)
            found += optima
        living = (ranked(found, prefer) if len(living) > 1 else found)[:beams]
    return living


def ranked(states: Sequence[State], prefer: Callable[[State, State], bool]) -> list[State]:
    """Best first, by insertion: each passes those it is preferred to, until one that it is not. Equals count once."""
    order: list[State] = []
    for state in states:
        if any(state == other for other in order):
            continue
        place = len(order)
        while place > 0 and prefer(state, order[place - 1]):
            place -= 1
        order.insert(place, state)
    return order


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
