"""Search over ideas that are judged by carrying them out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

from guerdon.errors import GuerdonError
from guerdon.seeding import numpy_generator

Idea = TypeVar("Idea")
Kind = Literal["first", "exploit", "explore"]
Execute = Callable[[Sequence[Idea], int], Iterable[tuple[int, float]]]

EXPLOITED_BY_TENS = 10


class Tried(NamedTuple, Generic[Idea]):
    """An idea that was carried out.

    Attributes:
        idea: what was done.
        epoch, number: when it was proposed, and its place among the proposals.
        score: what it scored; larger is better.
    """

    idea: Idea
    epoch: int
    number: int
    score: float


def ranked_ideas(
    tried: Iterable[Tried[Idea]], possible: tuple[float, float] = (-math.inf, math.inf)
) -> list[Tried[Idea]]:
    """Results that can be believed, best first.

    Of several results of one proposal the first counts. NaN is dropped, and so is what lies outside the possible
    scores: it is a hack of the evaluation, or an accident.

    Args:
        tried: results.
        possible: least and greatest score that there can be.

    Source: Si et al. 2026, Towards Execution-Grounded Automated AI Research.
    """
    low, high = possible
    first: dict[tuple[int, int], Tried[Idea]] = {}
    for each in tried:
        first.setdefault((each.epoch, each.number), each)
    return sorted((each for each in first.values() if low <= each.score <= high), key=lambda each: -each.score)


def exploit_share(epoch: int) -> float:
    """Part of an epoch's ideas that follow the best: min(0.5 + 0.1 floor(e / 2), 0.8), none in epoch 0."""
    return min(0.5 + 0.1 * (epoch // 2), 0.8) if epoch else 0.0


def exploit_count(epoch: int, ideas: int) -> int:
    """The same in ideas, rounded down to tens where an epoch has ten at least."""
    count = math.floor(exploit_share(epoch) * ideas + 1e-9)
    return count - count % EXPLOITED_BY_TENS if ideas >= EXPLOITED_BY_TENS else count


@dataclass
class SearchRecord(Generic[Idea]):
    """What a search has tried.

    Attributes:
        tried: every result, in the order in which it came, hacks included.
        possible: see ``ranked_ideas``.
    """

    possible: tuple[float, float]
    tried: list[Tried[Idea]] = field(default_factory=list)

    @property
    def ranked(self) -> list[Tried[Idea]]:
        """See ``ranked_ideas``."""
        return ranked_ideas(self.tried, self.possible)

    def best_so_far(self) -> list[float]:
        """The best believable score after each result; -inf before the first."""
        low, high = self.possible
        best, out = -math.inf, []
        for each in self.tried:
            best = max(best, each.score) if low <= each.score <= high else best
            out.append(best)
        return out

    def by_epoch(self) -> list[tuple[float, float]]:
        """Mean and best believable score of each epoch's ideas: watch the best, the mean rises by itself."""
        epochs: dict[int, list[float]] = {}
        for each in self.ranked:
            epochs.setdefault(each.epoch, []).append(each.score)
        return [(sum(scores) / len(scores), max(scores)) for _, scores in sorted(epochs.items())]


def execution_guided_search(
    propose: Callable[[Kind, Sequence[Tried[Idea]], int, int], Sequence[Idea]],
    execute: Execute[Idea],
    *,
    baseline: float,
    epochs: int = 10,
    ideas: int = 80,
    examples: int = 10,
    sample: int = 100,
    possible: tuple[float, float] = (-math.inf, math.inf),
    wait: float = 0.3,
    seed: int = 0,
) -> SearchRecord[Idea]:
    """Propose ideas, carry them out, and propose the next ones from what worked and what was there.

    Epoch 0 proposes freely. Later ``exploit_count`` ideas come from being shown ideas drawn from those above the
    baseline, the others from being shown ideas drawn from all, and asked for different ones. An epoch begins once more
    than ``wait`` of the results of the one before are back; late ones are taken up at the next.

    Args:
        propose: ``(kind, examples, count, epoch)`` to ``count`` ideas. Where nothing beats the baseline yet, ideas that
            should exploit are asked for with the kind ``first``.
        execute: ``(ideas, epoch)`` to pairs of number and score as they come back. A run that fails must score below
            the baseline, not be missing; NaN says that nothing is known.
        baseline: score without an idea.
        epochs, ideas: how many, and how many of each.
        examples, sample: ideas shown to exploit and to explore.
        possible: see ``ranked_ideas``; what lies outside never becomes an example.
        wait: part of an epoch's results that must be back.
        seed: of the draws.

    Raises:
        GuerdonError: when ``propose`` gives another number of ideas than was asked for, or ``execute`` ends before
            enough results are back.

    Source: Si et al. 2026, Towards Execution-Grounded Automated AI Research.
    """
    record: SearchRecord[Idea] = SearchRecord(possible)
    running: list[tuple[int, Sequence[Idea], Iterator[tuple[int, float]]]] = []
    for epoch in range(epochs):
        draw = numpy_generator(seed, "execution_guided_search", epoch)
        known = record.ranked
        above = [each for each in known if each.score > baseline]
        exploited = exploit_count(epoch, ideas)
        best = [above[i] for i in draw.permutation(len(above))[:examples]]
        seen = [known[i] for i in draw.permutation(len(known))[:sample]]
        asked: list[tuple[Kind, list[Tried[Idea]], int]] = [
            ("exploit" if best else "first", best, exploited),
            ("explore" if epoch else "first", seen, ideas - exploited),
        ]
        made: list[Idea] = []
        for kind, shown, count in asked:
            if count:
                given = list(propose(kind, shown, count, epoch))
                if len(given) != count:
                    raise GuerdonError(f"propose gave {len(given)} ideas of kind '{kind}', wanted {count}")
                made += given
        for late in running:
            _collect(record, late, math.inf)
        running = [(epoch, made, iter(execute(made, epoch)))]
        wanted = math.inf if epoch == epochs - 1 else math.floor(wait * ideas) + 1
        back = _collect(record, running[0], wanted)
        if back < min(wanted, ideas):
            raise GuerdonError(
                f"execute gave {back} of {ideas} results of epoch {epoch}, wanted {min(wanted, ideas)}; score a run "
                "that fails below the baseline instead of leaving it out"
            )
    return record


def _collect(
    record: SearchRecord[Idea], run: tuple[int, Sequence[Idea], Iterator[tuple[int, float]]], most: float
) -> int:
    """Take up results until there are enough, or no more; return how many."""
    epoch, made, results = run
    back = 0
    while back < most:
        result = next(results, None)
        if result is None:
            break
        number, score = result
        record.tried.append(Tried(made[number], epoch, number, float(score)))
        back += 1
    return back


def patched(files: Mapping[str, str], edits: Mapping[str, str], protected: Iterable[str]) -> dict[str, str]:
    """Files after an idea's edits, which must leave the evaluation alone.

    Args:
        files: name to content.
        edits: name to new content; new files are allowed.
        protected: names that may not be written.

    Raises:
        GuerdonError: when a protected file would change or appear.
    """
    for name in protected:
        if name in edits and edits[name] != files.get(name):
            raise GuerdonError(f"the edit writes '{name}', which is protected; change other files")
    return {**files, **edits}


def repaired(write: Callable[[str], Idea], check: Callable[[Idea], str], *, trials: int = 10) -> tuple[Idea, str]:
    """Have something written until it passes a check, telling what was wrong each time.

    Args:
        write: what was wrong (empty at first) to a new version.
        check: a version to what is wrong with it, empty if nothing is.
        trials: versions at most.

    Returns:
        The last version, and what is wrong with it, empty if nothing is.

    Source: Si et al. 2026, Towards Execution-Grounded Automated AI Research.
    """
    if trials < 1:
        raise ValueError(f"trials is {trials}, wanted 1 or more")
    version = write("")
    for _ in range(trials - 1):
        wrong = check(version)
        if not wrong:
            return version, ""
        version = write(wrong)
    return version, check(version)
