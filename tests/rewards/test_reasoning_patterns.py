from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.registry import get
from guerdon.rewards.reasoning_patterns import PHRASES, reasoning_pattern, repeated_share

quick = settings(derandomize=True, deadline=None, max_examples=30)


def test_phrases_count_once_and_without_case():
    assert reasoning_pattern("WAIT, wait, wait").value == pytest.approx(1 / 20)
    assert reasoning_pattern("Wait. Therefore", enough=2).value == 1.0
    assert reasoning_pattern("Wait. Therefore", phrases=["x"]).value == 0.0
    assert reasoning_pattern(" ".join(PHRASES)).value == 1.0
    assert len(PHRASES) == len(set(PHRASES))
    assert all(phrase == phrase.lower() for phrase in PHRASES)


def test_repetition_takes_it_away():
    text = "wait therefore " + " ".join(f"w{i}" for i in range(40))
    once, often = reasoning_pattern(text), reasoning_pattern(" ".join([text] * 50))
    assert once.value == pytest.approx(0.1)
    assert often.value == 0.0
    assert often.detail == {"phrases": 2, "repeated": 1.0}
    released = reasoning_pattern(" ".join([text] * 50), count="distinct").detail["repeated"]
    assert released == pytest.approx(42 / (42 * 50 - 19), abs=1e-4)


@quick
@given(st.lists(st.sampled_from("ab"), max_size=30), st.integers(1, 4))
def test_shares_against_counting(tokens, order):
    grams = [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]
    counts = Counter(grams)
    text = " ".join(tokens)
    total = max(len(grams), 1)
    assert repeated_share(text, order=order) == pytest.approx(sum(counts[g] > 1 for g in grams) / total)
    distinct = repeated_share(text, order=order, count="distinct")
    assert distinct == pytest.approx(sum(c > 1 for c in counts.values()) / total)


def test_no_phrases_are_refused():
    with pytest.raises(ValueError, match="phrases is empty"):
        reasoning_pattern("x", phrases=[])
    assert get("reward", "reasoning_pattern").bind({"phrases": ["hm"]})({"text": "hm"}).fields["value"] == 1 / 20
