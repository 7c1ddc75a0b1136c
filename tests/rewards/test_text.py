import itertools
import json
import math
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.registry import get
from guerdon.rewards.text import (
    bleu,
    length_aware_bleu,
    rouge_l,
    sentence_coverage,
    sentences,
    text_overlap,
    trigram_cosine,
    trigram_embedding,
    words,
)

quick = settings(derandomize=True, deadline=None, max_examples=60)
TEXT = st.lists(st.sampled_from(["a", "b", "c"]), max_size=7).map(" ".join)


def test_words_and_sentences():
    assert words("The cat's 2 mats!") == ["the", "cat", "'", "s", "2", "mats", "!"]
    assert sentences(" One. Two?  Three!\nfour 4.5 \n\n") == ["One.", "Two?", "Three!", "four 4.5"]


def test_bleu_by_hand():
    # text: the cat sat; reference: the cat sat down. p1 = 3/3, p2 = (2+1)/(2+1), p3 = (1+1)/(1+1), p4 = (0+1)/(0+1)
    assert bleu("the cat sat", "the cat sat down") == pytest.approx(math.exp(1 - 4 / 3))
    # p1 = 2/4 (the counts once), p2 = (1+1)/(3+1), p3 = (0+1)/(2+1), p4 = (0+1)/(1+1); as long as the reference
    wanted = (2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25
    assert bleu("the cat the dog", "a cat the bird") == pytest.approx(wanted)
    assert bleu("the the the", "the", order=1) == pytest.approx(1 / 3)
    assert bleu("", "a") == bleu("x", "a") == 0.0


def longest(first, second):
    """By trying every subsequence."""
    found = 0
    for size in range(len(first) + 1):
        for chosen in itertools.combinations(first, size):
            rest = iter(second)
            found = max(found, size if all(word in rest for word in chosen) else 0)
    return found


@quick
@given(TEXT, TEXT)
def test_rouge_is_the_f1_of_the_longest_common_subsequence(text, reference):
    ours, theirs = words(text), words(reference)
    wanted = 2 * longest(ours, theirs) / (len(ours) + len(theirs)) if ours and theirs else 0.0
    assert rouge_l(text, reference) == pytest.approx(wanted)


@quick
@given(TEXT.filter(bool), TEXT)
def test_overlaps_are_1_for_the_reference_and_stay_within_0_and_1(text, other):
    for measure in (bleu, rouge_l, text_overlap):
        assert measure(text, text) == pytest.approx(1.0)
        assert 0 <= measure(other, text) <= 1 + 1e-12
    assert trigram_cosine([text, other], [text, text])[0].item() == pytest.approx(1.0)


def test_overlap_is_a_weighted_mean():
    text, answer = "the cat sat", "the cat sat down"
    wanted = (2 * math.exp(1 - 4 / 3) + 3 * 6 / 7) / 6
    assert text_overlap(text, answer, bleu_weight=2, rouge_weight=3) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="all weights are 0"):
        text_overlap("a", "a", exact_weight=0, bleu_weight=0, rouge_weight=0)
    with pytest.raises(ValueError, match="reference answer is empty"):
        text_overlap("a", " ")


def test_trigram_cosine_by_hand():
    # "  ab " and "  ac " have two trigrams each besides their shared first one: "  a"
    assert trigram_cosine(["ab"], ["ac"]).item() == pytest.approx(1 / 3)
    assert trigram_cosine(["", "ab"], ["ab", "xy"]).tolist() == [0.0, 0.0]


def letters(text, reference):
    return [ord(a[0]) / 1000 for a in text]


def test_adaptive_semantic_is_raw_until_warm_and_then_fills_the_unit_interval():
    reward = get("reward", "adaptive_semantic").bind({"similarity": letters, "warmup": 26})
    fields = {"text": list(string.ascii_lowercase), "answer": [1] * 26, "metadata": [{}] * 26}
    first = reward(fields).fields["value"]
    assert first.tolist() == pytest.approx([ord(c) / 1000 for c in string.ascii_lowercase])
    outcome = reward(fields)
    low, high = 0.097 + 0.05 * 0.025, 0.122 - 0.05 * 0.025
    assert outcome.stats == pytest.approx({"low": low, "high": high})
    wanted = [min(max((ord(c) / 1000 - low) / (high - low + 1e-6), 0), 1) for c in string.ascii_lowercase]
    assert outcome.fields["value"].tolist() == pytest.approx(wanted, abs=1e-4)


def test_adaptive_semantic_keeps_a_window_for_every_kind_and_through_a_checkpoint():
    options = {"similarity": letters, "warmup": 2, "kind": "of"}
    whole, cut = get("reward", "adaptive_semantic").bind(options), get("reward", "adaptive_semantic").bind(options)
    fields = {"text": list("aybz"), "answer": [1] * 4, "metadata": [{"of": kind} for kind in "pqpq"]}
    whole(fields), cut(fields)
    fresh = get("reward", "adaptive_semantic").bind(options)
    fresh.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    outcome = fresh(fields)
    assert outcome.fields["value"].tolist() == whole(fields).fields["value"].tolist() == [0, 0, 1, 1]
    assert set(outcome.stats) == {"p/low", "p/high", "q/low", "q/high"}


def test_semantic_similarity_is_the_similarity():
    fields = {"text": ["ab", "xy"], "answer": ["ac", 7]}
    assert get("reward", "semantic_similarity").bind()(fields).fields["value"].tolist() == pytest.approx([1 / 3, 0])
    given = get("reward", "semantic_similarity").bind({"similarity": letters})
    assert given(fields).fields["value"].tolist() == pytest.approx([0.097, 0.12])


def test_similarities_are_found_by_path_and_must_answer_for_every_pair():
    reward = get("reward", "adaptive_semantic").bind({"similarity": "guerdon.rewards.text:trigram_cosine"})
    assert reward({"text": ["ab"], "answer": ["ac"]}).fields["value"].item() == pytest.approx(1 / 3)
    short = get("reward", "adaptive_semantic").bind({"similarity": lambda a, b: [0.0]})
    with pytest.raises(ValueError, match=r"gave shape \(1,\) for 2 pairs, want \(2,\)"):
        short({"text": ["a", "b"], "answer": ["a", "b"]})


def test_coverage_by_hand_in_one_call():
    calls = []

    def similarity(text, reference):
        calls.append(list(zip(text, reference, strict=True)))
        return [0.1 * len(a) + 0.01 * len(b) for a, b in calls[-1]]

    # each sentence of the answer takes the longest sentence written, of 2 letters and its full stop
    seen = sentence_coverage(["aa. b.", "", "ccc"], ["x. yyyy.", "z.", "w"], similarity=similarity)
    assert seen.tolist() == pytest.approx([(0.32 + 0.35) / 2, 0.0, 0.31])
    assert len(calls) == 1
    assert calls[0][:2] == [("aa.", "x."), ("b.", "x.")]
    with pytest.raises(ValueError, match="answer of sample 1 is empty"):
        sentence_coverage(["a", "a"], ["a", ""])


def test_coverage_of_the_answer_itself_is_1():
    answer = "First this. Then that! Or not?"
    assert sentence_coverage([answer, "Then that! First this. Or not? More."], [answer] * 2).tolist() == pytest.approx(
        [1, 1]
    )
    assert get("reward", "sentence_coverage").bind()({"text": ["a"], "answer": ["b"]}).fields["value"].tolist() == [0.0]


def test_a_short_answer_can_be_right():
    assert length_aware_bleu("Paris", "paris") == 1.0
    assert bleu("paris", "paris", order=4) == 1.0, "smoothed; without smoothing it would be 0"
    assert length_aware_bleu("paris france", "paris") == pytest.approx(math.exp(1 - 2) * 1 / 2)
    assert length_aware_bleu("a b", "a b c") == pytest.approx(math.exp(1 - 3 / 2))
    assert length_aware_bleu("", "a") == length_aware_bleu("b", "a") == 0.0
    assert length_aware_bleu("7", 7) == 1.0
    with pytest.raises(ValueError, match="has no words"):
        length_aware_bleu("a", " ")


def test_beyond_its_length_an_answer_only_loses():
    lengths = [length_aware_bleu("a b c" + " d" * extra, "a b c") for extra in range(5)]
    assert lengths == sorted(lengths, reverse=True)
    assert length_aware_bleu("a b c d e", "a b c", order=1) == pytest.approx(3 / 5 * math.exp(1 - 5 / 3))


@quick
@given(TEXT, TEXT.filter(bool))
def test_length_aware_bleu_stays_in_its_range(text, answer):
    seen = length_aware_bleu(text, answer)
    assert 0 <= seen <= bleu(text, answer, order=min(4, len(words(answer)))) <= 1
    assert length_aware_bleu(answer, answer) == pytest.approx(1.0)


def test_embedded_trigrams_come_close_to_counted_ones():
    texts = ["spell tiger backward", "spell lion backward", "add three and four", ""]
    vectors = trigram_embedding(texts, size=4096)
    units = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-9)
    for i, first in enumerate(texts):
        assert (units[i] @ units.T).tolist() == pytest.approx(trigram_cosine([first] * 4, texts).tolist(), abs=0.1)
    assert trigram_embedding(texts).shape == (4, 512)
