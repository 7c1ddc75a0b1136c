"""A reward for the phrases that go with reasoning, right or wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from guerdon.rewards.base import reward
from guerdon.rewards.forms import Score

# Plans, checks, doubts, steps and conclusions, as texts that reason have them; matched in lower case.
PHRASES = (
    *("i need to", "we need to", "i should", "let me think", "let me check", "let me see", "let me try", "let's try"),
    *("let us try", "let me first", "let's first", "let me verify", "let's check", "let's see", "let's consider"),
    *("wait", "hmm", "alternatively", "on second thought", "try again", "another way", "double-check"),
    *("not correct", "does not work", "doesn't work", "not working", "still not", "makes sense"),
    *("first, ", "second, ", "next, ", "then, ", "finally, ", "step by step"),
    *("since we ", "because ", "given that", "if we", "suppose", "for example", "for instance"),
    *("so that", "thus", "therefore", "hence", "as a result", "consequently"),
)


def repeated_share(text: str, *, order: int = 20, count: Literal["all", "distinct"] = "all") -> float:
    """Share of a text's word n-grams that occur more than once.

    Args:
        text: what was written, split at white space.
        order: n, in words.
        count: ``all``: every occurrence of a repeated n-gram counts, so a text that is nothing but repetition has a
            share near 1; ``distinct``: each repeated n-gram counts once, over all occurrences, as the release has it,
            so a text repeated k times has 1 / k.

    Returns:
        In [0,1]; 0 for a text shorter than one n-gram.
    """
    tokens = text.split()
    grams = Counter(zip(*(tokens[i:] for i in range(order)), strict=False))
    repeated = [times for times in grams.values() if times > 1]
    return (sum(repeated) if count == "all" else len(repeated)) / max(grams.total(), 1)


@reward(paper="Lv et al. 2025, arXiv 2505.22653")
def reasoning_pattern(
    text: str,
    *,
    phrases: Sequence[str] = PHRASES,
    enough: Annotated[int, Field(ge=1)] = 20,
    order: Annotated[int, Field(ge=1)] = 20,
    count: Literal["all", "distinct"] = "all",
) -> Score:
    """Reward for how many different phrases of reasoning a text has, less what it repeats.

    max(0, min(1, |different phrases in the text| / enough) - share of repeated n-grams)

    It sees how a text sounds, not whether it is right, so stuffing a text with phrases wins it: watch its count, which
    stands in ``detail``, and use it for ``calibrate_low`` or for a start rather than alone.

    Args:
        text: what the policy wrote, compared in lower case.
        phrases: in lower case; each counts once however often it comes.
        enough: different phrases that make 1.
        order: words of the n-grams of which repetition is counted.
        count: see ``repeated_share``.

    Returns:
        In [0,1]; ``detail`` holds the number of phrases and the share of repetition.

    Raises:
        ValueError: when there are no phrases.

    Source: Lv et al. 2025, arXiv 2505.22653. (The list is ours, of the kinds that the source names. The source divides
    different repeated n-grams by all, which hardly sees a text that is repeated many times: ``count: distinct``.)
    """
    if not phrases:
        raise ValueError("reasoning_pattern: phrases is empty; name at least one, or leave it out")
    lower = text.lower()
    found = sum(phrase in lower for phrase in phrases)
    repeated = repeated_share(lower, order=order, count=count)
    value = max(0.0, min(1.0, found / enough) - repeated)
    return Score(value, detail={"phrases": found, "repeated": round(repeated, 4)})
