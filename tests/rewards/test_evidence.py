import pytest

from guerdon.errors import RewardError
from guerdon.rewards.evidence import evidence_found, read_evidence

MARKS = {"query": ("[", "]"), "documents": ("(", ")")}
KNOWN = {"relevant": ["Trial 7", "guideline 2"], "levels": {"guideline 2": 1.0, "trial 7": 0.6, "case 1": 0.3}}


def test_what_the_searches_brought():
    text = "[q](case 1\nGuideline 2)[r](guideline 2\n\nletter 5)"
    seen = read_evidence(text, KNOWN["relevant"], KNOWN["levels"], **MARKS)
    assert seen.recall == 0.5
    assert seen.level == pytest.approx((0.3 + 1.0 + 0.0) / 3)
    assert seen.fresh == 0.25  # four documents, of which one is relevant and appears for the first time
    assert seen.calls == 2


def test_nothing_found():
    assert read_evidence("[q]()", ["a"], **MARKS) == (0.0, 0.0, 0.0, 0)
    assert read_evidence("(trial 7)", ["trial 7"], **MARKS) == (0.0, 0.0, 0.0, 0), "written, not found"
    assert read_evidence("[](trial 7)", ["trial 7"], **MARKS) == (0.0, 0.0, 0.0, 0)


def test_the_reward_weighs_the_parts_and_charges_for_searches():
    text = "[q](trial 7)"
    assert evidence_found(text, KNOWN, **MARKS).value == pytest.approx(0.5 + 0.6 + 1.0 - 0.05)
    weighed = evidence_found(text, KNOWN, recall=2.0, level=0.5, fresh=0.1, cost=1.0, **MARKS)
    assert weighed.value == pytest.approx(1.0 + 0.3 + 0.1 - 1.0)
    assert weighed.detail == {"recall": 0.5, "level": 0.6, "fresh": 1.0, "calls": 1}
    assert evidence_found("none", KNOWN, **MARKS).value == 0.0


def test_asking_again_costs_and_brings_nothing_new():
    once, twice = (evidence_found(text, KNOWN, **MARKS).value for text in ("[q](trial 7)", "[q](trial 7)[r](trial 7)"))
    assert twice == pytest.approx(once - 0.5 - 0.05)


def test_a_problem_without_relevant_documents_is_a_fault():
    with pytest.raises(RewardError, match="relevant"):
        evidence_found("x", {"levels": {}})
