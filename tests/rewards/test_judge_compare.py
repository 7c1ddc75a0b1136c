import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.registry import get
from guerdon.rewards.base import Score
from guerdon.rewards.judge_compare import ALONE, mean_outcome, meetings, merged, outcomes
from guerdon.rewards.judges import JudgeError, ScriptedJudge, UnreadableVerdict, Verdict

quick = settings(derandomize=True, deadline=None, max_examples=40)


def letters(prompt, text, statement):
    """A text of n letters has quality n / 10."""
    return len(text) / 10


def scripted(**faults):
    return ScriptedJudge(truth=letters, **faults)


def compare(name, texts, group=None, answer=None, **options):
    fields = {"prompt": ["p"] * len(texts), "text": texts, "group": torch.tensor(group or [0] * len(texts))}
    if answer is not None:
        fields["answer"] = answer
    options = {"judge": scripted()} | options
    return get("reward", name).bind(options)(fields)


def values(out):
    return [score.value if isinstance(score, Score) else score for score in out.fields["value"]]


# Two at a time ------------------------------------------------------------------------------------------------


def test_shares_of_wins_by_hand():
    out = compare("judge_pairwise", ["a", "aaa", "aa", "b", "c", "dd", "e"], [4, 4, 4, 7, 7, 7, 9])
    assert values(out)[:6] == [0.0, 1.0, 0.5, 0.25, 0.25, 1.0]
    assert out.fields["value"][6] is ALONE
    assert {key: out.stats[key] for key in ("comparisons", "questions", "ties", "order_disagreement", "failures")} == {
        **{"comparisons": 6.0, "questions": 12.0, "ties": 1.0, "order_disagreement": 0.0, "failures": 0.0}
    }


@pytest.mark.parametrize(
    ("ties", "wanted"),
    [("half", [0.25, 0.25, 1.0]), ("first", [0.5, 0.0, 1.0]), ("fault", [0.0, 0.0, 1.0])],
)
def test_position_bias_makes_close_pairs_ties_and_shows(ties, wanted):
    # The judge adds 0.15 to what it reads first: more than the gap of 0.1, less than those of 0.4 and 0.3.
    biased = scripted(position_bias=0.15)
    out = compare("judge_pairwise", ["a", "aa", "aaaaa"], judge=biased, ties=ties)
    assert values(out) == wanted
    assert out.stats["order_disagreement"] == pytest.approx(1 / 3)
    assert out.stats["ties"] == 1.0
    once = compare("judge_pairwise", ["a", "aa", "aaaaa"], judge=biased, both_orders=False)
    assert values(once) == [0.5, 0.0, 1.0], "in one order the first is taken for the better"
    assert "order_disagreement" not in once.stats


def test_against_the_reference():
    out = compare("judge_pairwise", ["a", "aa", "aaa"], against="reference", answer=["xx", "xx", 10])
    assert values(out) == [0.0, 0.5, 1.0]
    assert out.stats["questions"] == 6
    won = compare("judge_pairwise", ["aa"], against="reference", answer=["xx"], ties="first")
    assert values(won) == [1.0]
    with pytest.raises(ValueError, match="some problems have no reference answer; set against: group"):
        compare("judge_pairwise", ["a", "b"], against="reference", answer=["x", None])
    with pytest.raises(ValueError, match="no reference answer"):
        compare("judge_pairwise", ["a", "b"], against="reference")


def test_a_pair_without_both_verdicts_does_not_count():
    def judge(prompts, first, second):
        return [None if (a, b) == ("bbb", "a") else (float(len(a)), float(len(b))) for a, b in zip(first, second)]  # noqa: B905

    out = compare("judge_pairwise", ["a", "cc", "bbb"], judge=judge)
    assert values(out) == [0.0, 0.5, 1.0]
    assert out.stats["failures"] == 1
    out = compare("judge_pairwise", ["a", "bbb"], judge=judge)
    assert [str(error) for error in values(out)] == [
        "no comparison of this answer has a verdict; the last failure: the judge gave no usable scores"
    ] * 2


def test_a_judge_that_fails_gives_faults_and_its_reason():
    out = compare("judge_pairwise", ["a", "bb", "c"], [0, 0, 1], judge=scripted(failure_rate=1.0))
    assert [isinstance(value, JudgeError) for value in out.fields["value"]] == [True, True, False]
    assert "the scripted judge failed" in str(out.fields["value"][0])
    assert out.stats["failures"] == 2


def test_who_meets_whom():
    group = torch.tensor([5, 2, 5, 5, 2, 5, 8])
    assert meetings(group) == [(1, 4), (0, 2), (0, 3), (0, 5), (2, 3), (2, 5), (3, 5)]
    assert meetings(group, 1) == [(1, 4), (0, 2), (0, 5), (2, 3), (3, 5)]
    assert meetings(group, 9) == meetings(group)
    assert meetings(torch.arange(3)) == []


@quick
@given(st.integers(2, 9), st.integers(1, 9))
def test_everybody_meets_equally_many(size, opponents):
    pairs = meetings(torch.zeros(size).long(), opponents)
    assert len(set(pairs)) == len(pairs)
    assert all(a < b for a, b in pairs)
    met = torch.bincount(torch.tensor(pairs).flatten(), minlength=size)
    assert set(met.tolist()) == {min(2 * opponents, size - 1)}


def test_outcomes_by_hand():
    ours, theirs = torch.tensor([3.0, 1.0, 2.0, math.nan, 1.0]), torch.tensor([1.0, 3.0, 2.0, 1.0, math.nan])
    assert outcomes(ours, theirs)[:3].tolist() == [1.0, 0.0, 0.5]
    assert outcomes(ours, theirs, "first")[:3].tolist() == [1.0, 0.0, 1.0]
    for ties in ("half", "first", "fault"):
        assert outcomes(ours, theirs, ties)[3:].isnan().all()
    assert outcomes(ours, theirs, "fault")[2].isnan()
    won, first, second = torch.tensor([1.0, 0.0, math.nan]), torch.tensor([0, 0, 2]), torch.tensor([1, 2, 3])
    shares = mean_outcome(won, first, second, 4)
    assert shares[:3].tolist() == [0.5, 0.0, 1.0]
    assert shares[3].isnan()


@quick
@given(st.lists(st.integers(1, 9), min_size=2, max_size=7), st.floats(0, 0.5), st.randoms(use_true_random=False))
def test_shares_of_a_group_add_up_and_don_t_depend_on_its_order(lengths, bias, random):
    texts = ["a" * n for n in lengths]
    judge = scripted(position_bias=bias)
    shares = values(compare("judge_pairwise", texts, judge=judge))
    assert math.fsum(shares) == pytest.approx(len(texts) / 2)
    order = random.sample(range(len(texts)), len(texts))
    assert values(compare("judge_pairwise", [texts[i] for i in order], judge=judge)) == [shares[i] for i in order]


# All at once --------------------------------------------------------------------------------------------------


def test_places_by_hand():
    out = compare("judge_ranking", ["a", "ccc", "bb", "x", "yy", "z"], [4, 4, 4, 7, 7, 9])
    assert values(out)[:5] == [0.0, 1.0, 0.5, 0.0, 1.0]
    assert out.fields["value"][5] is ALONE
    assert (out.stats["questions"], out.stats["order_disagreement"]) == (4, 0.0)


def test_the_list_is_turned_round_and_the_places_averaged():
    # With 0.15 for the first of the list: in order a, bb, dddd the judge sees 0.25, 0.2, 0.4; backwards 0.55, 0.2, 0.1.
    out = compare("judge_ranking", ["a", "bb", "dddd"], judge=scripted(position_bias=0.15))
    assert values(out) == [0.25, 0.25, 1.0]
    assert out.stats["order_disagreement"] == pytest.approx(1 / 3)
    once = compare("judge_ranking", ["a", "bb", "dddd"], judge=scripted(position_bias=0.15), both_orders=False)
    assert values(once) == [0.5, 0.0, 1.0]
    assert "order_disagreement" not in once.stats


def test_rankings_are_merged_by_hand():
    there, back = Verdict((1.0, 0.5, 0.0), "why"), Verdict((1.0, 0.0, 0.5))
    assert merged([there, back]) == (Verdict((0.75, 0.25, 0.5), "why"), 2 / 3)
    assert merged([there]) == (there, None)
    error = JudgeError("no")
    assert merged([there, error]) == (error, None)


def test_a_group_without_a_ranking_is_a_fault_or_has_the_fallback():
    class Mute:
        def ask(self, questions):
            return [
                UnreadableVerdict("mute") if "a" in question.answers else Verdict((1.0, 0.0)) for question in questions
            ]

        def stats(self):
            return {}

    texts, group = ["a", "b", "c", "d"], [0, 0, 1, 1]
    first, second, third, fourth = values(compare("judge_ranking", texts, group, judge=Mute()))
    assert isinstance(first, UnreadableVerdict)
    assert first is second
    assert (third, fourth) == (0.5, 0.5)
    out = compare("judge_ranking", texts, group, judge=Mute(), fallback=0.125)
    assert values(out) == [0.125, 0.125, 0.5, 0.5]


def test_a_group_that_is_too_large_is_a_fault_of_its_own():
    out = compare("judge_ranking", ["x"] * 27 + ["a", "bb"], [0] * 27 + [1, 1])
    assert all("a ranking of 27 answers" in str(error) for error in out.fields["value"][:27])
    assert values(out)[27:] == [0.0, 1.0]


def test_both_compare_the_members_of_a_group():
    assert get("reward", "judge_ranking").needs_group
    assert not get("reward", "judge_pairwise").needs_group, "against the reference it needs no company"
