"""Rewards for answers that are sets: tuples that may be right in part, and passages chosen as evidence.

Both pay for what is found and charge for what is superfluous, since a set reward without the second is best earned by
naming everything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from guerdon.errors import RewardError
from guerdon.rewards.extract import marked_answer, read_json
from guerdon.rewards.forms import Score, reward

Fields = tuple[str, ...]
Wrong = Literal["not_exact", "no_match"]

_TUPLE = re.compile(r"[\[(]([^\[\](),]*(?:,[^\[\](),]*)+)[\])]")
_READ = 1000  # tuples of a text that are read
_SPACES = re.compile(r"\s+")
_NONE = frozenset({"", "[]", "()", "none"})


def _increasing(credits: tuple[float, ...]) -> tuple[float, ...]:
    if any(b < a for a, b in zip((0.0, *credits), credits, strict=False)):
        raise ValueError("want credits that are not below 0 and do not fall")
    return credits


Credits = Annotated[tuple[float, ...], Field(min_length=1), AfterValidator(_increasing)]
Penalty = Annotated[float, Field(ge=0)]


class TupleSetScore(NamedTuple):
    """What a list of tuples is worth beside the wanted ones, and why.

    Attributes:
        value: the reward.
        matched: how many predictions match in the first field only, in the first two, ... and in all.
        wrong: predictions that are charged for.
        missing: how many tuples fewer than wanted there are.
    """

    value: float
    matched: tuple[int, ...]
    wrong: int
    missing: int


def tuple_set_score(
    predicted: Sequence[Sequence[Hashable]],
    reference: Sequence[Sequence[Hashable]],
    *,
    credits: Sequence[float] = (0.5, 1.5, 5.0),
    p_wrong: float = 1.0,
    p_missing: float = 1.0,
    wrong: Wrong = "not_exact",
    normalise: bool = False,
) -> TupleSetScore:
    """Score a list of tuples by how many leading fields each has in common with a tuple that is wanted.

    sum of credits - p_wrong wrong - p_missing max(0, M - N),  N tuples predicted, M wanted

    Each wanted tuple is matched once: first those of which all fields agree, then those of which all but the last do,
    and so on; ``credits[k - 1]`` is for k leading fields. So a tuple that stands twice is paid once.

    Args:
        predicted, reference: tuples of as many fields as there are credits; a prediction of another length matches
            nothing.
        credits: for the first field, the first two, ... and all of them.
        p_wrong, p_missing: price of a wrong tuple, and of each by which there are too few.
        wrong: which predictions are wrong: all that are not exactly right, or those without any credit.
        normalise: divide by ``M credits[-1]``, or by ``credits[-1]`` where nothing is wanted.

    Returns:
        The score. Where nothing is wanted, it is 0 for nothing and ``-p_wrong N`` for N tuples.

    Source: Li et al. 2025, arXiv 2505.15804; that a tuple right in part is charged as well, and matching one to one,
    are inferred.
    """
    open_predictions = [tuple(one) for one in predicted]
    open_references = [tuple(one) for one in reference]
    matched = [0] * len(credits)
    for size in range(len(credits), 0, -1):
        free = Counter(one[:size] for one in open_references)
        taken: Counter[tuple[Hashable, ...]] = Counter()
        rest = []
        for one in open_predictions:
            prefix = one[:size]
            if len(one) == len(credits) and taken[prefix] < free[prefix]:
                taken[prefix] += 1
            else:
                rest.append(one)
        matched[size - 1], open_predictions = taken.total(), rest
        kept = []
        for one in open_references:
            if taken[one[:size]]:
                taken[one[:size]] -= 1
            else:
                kept.append(one)
        open_references = kept
    count = len(predicted) - (matched[-1] if wrong == "not_exact" else sum(matched))
    missing = max(0, len(reference) - len(predicted))
    earned = sum(credit * many for credit, many in zip(credits, matched, strict=True))
    value = earned - p_wrong * count - p_missing * missing
    scale = max(len(reference), 1) * credits[-1] if normalise else 1.0
    return TupleSetScore(value / scale, tuple(matched), count, missing)


@reward("triplet_set", paper="Li et al. 2025, arXiv 2505.15804")
def triplet_set(
    text: str,
    answer: Any,
    *,
    credits: Credits = (0.5, 1.5, 5.0),
    p_wrong: Penalty = 1.0,
    p_missing: Penalty = 1.0,
    wrong: Wrong = "not_exact",
    normalise: bool = False,
    synonyms: Mapping[str, str] | None = None,
) -> Score:
    """Score the tuples that a text lists, such as (object, attribute, value), with credit for leading fields.

    See ``tuple_set_score`` for the sum. A tuple is two or more fields between brackets with commas, ``(1, color, red)``
    or ``["1", "color", "red"]``; where the text has ``<answer>...</answer>``, only there. Case, white space and quotes
    do not count. Without tuples a text has the worth of silence, ``-p_missing M``. The published reward adds 1 for form
    (the reward ``tags``), and leaves it to the group's standard deviation to bring scenes of many changes to one scale.

    Args:
        text: what the policy wrote; its first 1000 tuples count.
        answer: the wanted tuples: a list of lists, or text of the same form; an empty list for none.
        credits: for the first field, the first two, ... and all; their number is that of the fields.
        p_wrong, p_missing: price of a wrong tuple, and of each by which there are too few.
        wrong: which tuples are wrong: all that are not exactly right, or those without any credit.
        normalise: divide by what the wanted tuples would earn.
        synonyms: words to read as others, in any field, as in ``{colour: color}``.

    Returns:
        The value; its detail holds ``matched`` (by leading fields), ``wrong`` and ``missing``.

    Raises:
        RewardError: when the reference is no list of tuples of this length.

    Source: Li et al. 2025, arXiv 2505.15804.
    """
    same = {_plain(word): _plain(other) for word, other in (synonyms or {}).items()}
    wanted = _wanted_tuples(answer, len(credits), same)
    marked = marked_answer(text)
    seen = _tuples(text if marked is None else marked, same)
    options = {"credits": credits, "p_wrong": p_wrong, "p_missing": p_missing, "normalise": normalise}
    score = tuple_set_score(seen, wanted, wrong=wrong, **options)
    return Score(score.value, detail={"matched": score.matched, "wrong": score.wrong, "missing": score.missing})


def _plain(field: object) -> str:
    return _SPACES.sub(" ", str(field).strip().strip("\"'`").strip()).casefold()


def _tuples(text: str, same: Mapping[str, str]) -> list[Fields]:
    groups = (match[1].split(",") for match in islice(_TUPLE.finditer(text), _READ))
    return [tuple(same.get(word, word) for word in map(_plain, fields)) for fields in groups]


def _wanted_tuples(answer: Any, length: int, same: Mapping[str, str]) -> list[Fields]:
    if isinstance(answer, str):
        found = _tuples(answer, same)
        usable = bool(found) or answer.strip().casefold() in _NONE
    else:
        usable = isinstance(answer, list | tuple) and all(isinstance(one, list | tuple) for one in answer)
        words = [map(_plain, one) for one in answer] if usable else []
        found = [tuple(same.get(word, word) for word in one) for one in words]
    if not usable or any(len(one) != length for one in found):
        raise RewardError(
            f"reward 'triplet_set': the reference answer is {answer!r:.80}, want a list of tuples of {length} fields, "
            "one for each of 'credits'; fix the task's answers, or 'credits'"
        )
    return found


def evidence_score(chosen: Collection[Hashable], gold: Collection[Hashable], *, margin: int, penalty: float) -> float:
    """Score a choice of passages by what it covers of a sufficient set, less what it holds too much.

    max(-1, |S & G| / |G| - penalty max(0, |S| - |G| - margin) / |G|)

    Args:
        chosen: S, different passages.
        gold: G, a set that suffices and holds no superfluous passage; not empty.
        margin: passages beyond |G| that cost nothing.
        penalty: price of the others.

    Source: Zhu et al. 2025, arXiv 2512.14465; the formula and its constants are inferred.
    """
    covered = len(set(chosen) & set(gold)) / len(gold)
    redundant = max(0, len(chosen) - len(gold) - margin) / len(gold)
    return max(-1.0, covered - penalty * redundant)


@reward("evidence_set", paper="Zhu et al. 2025, arXiv 2512.14465")
def evidence_set(
    text: str,
    answer: Any,
    metadata: Any = None,
    *,
    margin: Annotated[int, Field(ge=0)] = 4,
    penalty: Penalty = 0.1,
    candidates: str | None = "candidates",
) -> Score:
    """Score a chosen list of passages by its coverage of the evidence, less its redundancy; -1 where it is no choice.

    See ``evidence_score``; of several sufficient sets the best counts. The choice is the last JSON list of the text, or
    of its ``<answer>...</answer>``. It is none if an id is unknown or stands twice.

    Training has two stages: one for recall, with the wide margin and the small penalty of the defaults, then one for
    precision, ``margin: 0, penalty: 0.5``, which the recipe's ``stages`` switch to.

    Args:
        text: what the policy wrote.
        answer: ids of the passages that suffice, or a list of such lists; ``mine_minimal_sets`` finds them.
        metadata: what the task knows of the problem.
        margin: passages beyond those that suffice which cost nothing.
        penalty: price of the others, relative to the size of the set.
        candidates: key in the metadata of the ids there are: a list of ids, or a mapping from ids to texts; null where
            they are not known, so that no id is unknown.

    Returns:
        The value in [-1,1]; its detail holds ``covered`` and ``chosen``, or ``why`` there is no choice.

    Raises:
        RewardError: when there is no evidence, or there are no candidates.

    Source: Zhu et al. 2025, arXiv 2512.14465; the formula and its constants are inferred.
    """
    sets = _gold_sets(answer)
    known = None if candidates is None else _candidates(metadata, candidates)
    try:
        chosen = _ids(read_json(text))
    except ValueError as error:
        return Score(-1.0, detail={"why": f"{error}"[:200]})
    if len(set(chosen)) < len(chosen):
        return Score(-1.0, detail={"why": "an id stands twice"})
    strange = None if known is None else next((one for one in chosen if one not in known), None)
    if strange is not None:
        return Score(-1.0, detail={"why": f"no candidate has the id {strange!r:.60}"})
    value, gold = max(
        ((evidence_score(chosen, one, margin=margin, penalty=penalty), one) for one in sets), key=lambda pair: pair[0]
    )
    return Score(value, detail={"covered": len(set(chosen) & gold), "of": len(gold), "chosen": len(chosen)})


def _ids(given: Any) -> list[str]:
    """Ids as texts.

    Raises:
        ValueError: when it is no list of texts and whole numbers.
    """
    if not isinstance(given, list | tuple):
        raise ValueError(f"want a list of ids, got {type(given).__name__}")
    for one in given:
        if isinstance(one, bool) or not isinstance(one, str | int):
            raise ValueError(f"{one!r:.60} is no id")
    return [str(one) for one in given]


def _gold_sets(answer: Any) -> list[frozenset[str]]:
    several = (
        answer if isinstance(answer, list | tuple) and answer and isinstance(answer[0], list | tuple) else [answer]
    )
    try:
        sets = [frozenset(_ids(one)) for one in several]
    except ValueError:
        sets = []
    if not sets or not all(sets):
        raise RewardError(
            f"reward 'evidence_set': the reference answer is {answer!r:.80}, want a list of ids that is not empty, or "
            "a list of such lists; leave out problems that no passage answers"
        )
    return sets


def _candidates(metadata: Any, key: str) -> frozenset[str]:
    given = metadata.get(key) if isinstance(metadata, Mapping) else None
    try:
        return frozenset(_ids(list(given) if isinstance(given, Mapping) else given))
    except ValueError:
        raise RewardError(
            f"reward 'evidence_set': the metadata's '{key}' is {given!r:.60}, want the ids of the passages that could "
            "be chosen; add it to the problems, or set 'candidates' to its key, or to null"
        ) from None
