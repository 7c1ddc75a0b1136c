import math
import time

import pytest
from batches import batch_of
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import get
from guerdon.rewards.base import Reward, score
from guerdon.rewards.ngrams import Bleu, Chrf, Rouge, token_f1

REFERENCE = "the cat sat on the mat"
ALL = {"bleu": Bleu(), "chrf": Chrf(), "rouge": Rouge(), "token_f1": token_f1}


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; as long as the reference.
    assert Bleu()("the cat sat on a mat", REFERENCE).value == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    # All 2 words and the 1 pair; brevity exp(1 - 6 / 2).
    assert Bleu()("the cat", REFERENCE).value == pytest.approx(math.exp(-2))
    assert Bleu(order=1)("the the the the the the", REFERENCE).value == pytest.approx(2 / 6)
    assert Bleu(smooth="none")("cat the", REFERENCE).value == 0.0
    # A precision of 0 out of 1 becomes 1 / 2 of it.
    assert Bleu()("cat the", REFERENCE).value == pytest.approx(math.sqrt(0.5) * math.exp(-2))
    assert Bleu()("The Cat", "the cat").value == 0.0
    assert Bleu(lowercase=True)("The Cat", "the cat").value == 1.0
    assert Bleu(tokenize="char", order=1)("猫在", "在猫").value == 1.0


def test_chrf_by_hand():
    # Characters of "abc" and "abd", n = 1: 2 of 3; n = 2: 1 of 2; n = 3: 0 of 1. Both are as long, so P = R = F.
    assert Chrf(order=3)("abc", "abd").value == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # "ab" in "abab", n = 1: P = 1 and R = 1/2; F2 = 5 P R / (4 P + R).
    assert Chrf(order=1)("ab", "abab").value == pytest.approx(5 * 0.5 / 4.5)
    assert Chrf(order=1, beta=1)("ab", "abab").value == pytest.approx(2 * 0.5 / 1.5)
    assert Chrf()("Ж", "Ж").value == 1.0
    assert Chrf()("A", "a").value == 0.0
    assert Chrf(lowercase=True)("A", "a").value == 1.0


def test_rouge_by_hand():
    text = "the cat lay on a mat"  # 4 of 6 words; pairs: the cat; subsequence: the cat on mat
    assert Rouge(kind="rouge1")(text, REFERENCE).value == pytest.approx(4 / 6)
    assert Rouge(kind="rouge2")(text, REFERENCE).value == pytest.approx(1 / 5)
    assert Rouge()(text, REFERENCE).value == pytest.approx(4 / 6)
    assert Rouge()("mat the on cat", REFERENCE).value == pytest.approx(2 * 2 / 10)
    assert Rouge(measure="precision")("the cat", REFERENCE).value == 1.0
    assert Rouge(measure="recall")("the cat", REFERENCE).value == pytest.approx(2 / 6)
    assert Rouge()("cats", "cat").value == 0.0
    assert Rouge(stem=True)("running", "runs").value == 1.0
    # Lines are compared each by itself: the order of lines does not count.
    assert Rouge(kind="rougeLsum")("c d\na b", "a b\nc d").value == 1.0
    assert Rouge()("c d\na b", "a b\nc d").value == 0.5


def test_token_f1_by_hand():
    assert token_f1("The cat!", "a cat").value == 1.0
    assert token_f1("on the mat the cat", REFERENCE).value == pytest.approx(2 * 3 / (3 + 4))
    assert token_f1("cat cat cat", "cat cat dog").value == pytest.approx(2 * 2 / 6)
    assert token_f1("anthem", "them").value == 0.0
    assert token_f1("1,000", 1000).value == 1.0
    assert token_f1("dog", REFERENCE) == (0.0, True, None)


@pytest.mark.parametrize("name", ALL)
def test_the_best_of_several_references_counts(name):
    metric = ALL[name]
    alone = metric("the cat", REFERENCE).value
    assert metric("the cat", [REFERENCE, "the cat"]).value == 1.0
    assert metric("the cat", [REFERENCE]).value == alone < 1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", ["", "  \n", "!", "٣", "\x00", "🙂", "x" * 1_000_000, "y " * 500_000])
def test_what_shares_nothing_earns_nothing_at_once(name, text):
    start = time.perf_counter()
    found = ALL[name](text, REFERENCE)
    assert time.perf_counter() - start < 3
    assert found.value == 0.0
    if not text.strip():
        assert found.detail["why"] in ("the text is empty", "the text has no words")
    elif len(text) > 10_000 and name != "token_f1":
        assert found.detail["why"] == "the text has 1000000 characters, more than 10000"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("answer", ["", " ", None, [], ["a", ""], {"a": 1}])
def test_an_empty_reference_is_an_error(name, answer):
    for text in ("", "the cat"):
        with pytest.raises(RewardError, match=f"reward '{name}': the reference answer is"):
            ALL[name](text, answer)


def test_a_reference_that_the_metric_cannot_see_is_an_error():
    with pytest.raises(RewardError, match="fewer than 1 words of a-z"):
        Rouge()("猫", "猫")
    with pytest.raises(RewardError, match="fewer than 2 words of a-z"):
        Rouge(kind="rouge2")("one", ["two words", "one"])
    with pytest.raises(RewardError, match="only articles and punctuation"):
        token_f1("the", "The!")


@pytest.mark.parametrize("name", ALL)
def test_the_reference_itself_has_1_and_nothing_has_more(name):
    @given(st.text(st.sampled_from("abc d.\n"), max_size=30), st.text(st.sampled_from("abc d.\n"), max_size=30))
    def check(text, more):
        reference = f"cab {more}"
        assert ALL[name](reference, reference).value == pytest.approx(1.0)
        assert 0.0 <= ALL[name](text, reference).value <= 1.0

    check()


@pytest.mark.parametrize("name", ALL)
def test_the_reward_stage_scores_them(name):
    method = get("reward", name)
    assert method.requires == ("text", "answer")
    batch = batch_of(["a cat sat here", "", "x"], answer=["a cat sat here", "cat", ""])
    batch, faults = score(batch, [Reward(name, method, method.validate({}))])
    assert batch.rewards[name][:2].tolist() == [1.0, 0.0]
    assert [(fault.row, fault.kind) for fault in faults] == [(2, "exception")]
    assert "RewardError" in faults[0].message


@pytest.mark.parametrize(
    ("name", "options"),
    [("bleu", {"order": 0}), ("bleu", {"tokenize": "spm"}), ("chrf", {"beta": 0}), ("rouge", {"kind": "rouge0"})],
)
def test_options_without_meaning_are_refused(name, options):
    with pytest.raises(RecipeError, match=f"reward '{name}'"):
        get("reward", name).validate(options)
