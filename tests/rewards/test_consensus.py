import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.answers import final_answer
from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.rewards.consensus import answer_entropy

quick = settings(derandomize=True, deadline=None, max_examples=60)
BOXED = r"\\boxed\{(.*?)\}"


def test_the_last_match_is_the_answer():
    assert final_answer(r"\boxed{1} no, \boxed{ 2  x }", BOXED) == "2 x"
    assert final_answer("12 then 34", r"\d+") == "34"
    assert final_answer("none", BOXED) is None
    assert final_answer("b", "(a)|b") is None
    assert final_answer("  a \n b ") == "a b"


def test_entropy_by_hand():
    text = ["x", "x ", "y", "y", "z", "x"]
    group = torch.tensor([7, 7, 7, 7, -2, -2])
    assert answer_entropy(text, group).tolist() == pytest.approx([math.log(2)] * 6)
    assert answer_entropy(["a", "a", "b"], torch.tensor([1, 1, 9])).tolist() == [0, 0, 0]


def test_what_cannot_be_read_is_one_answer():
    text = [r"\boxed{1}", "nothing", "nothing else", r"\boxed{}"]
    thirds = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert answer_entropy(text, torch.zeros(4).long(), pattern=BOXED).tolist() == pytest.approx([thirds] * 4)


@quick
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), max_size=12), st.randoms())
def test_entropy_of_any_batch(members, random):
    random.shuffle(members)
    text, group = [a for a, _ in members], torch.tensor([g for _, g in members], dtype=torch.int64)
    seen = answer_entropy(text, group)
    for row, (_, key) in enumerate(members):
        counts = Counter(a for a, g in members if g == key)
        size = counts.total()
        assert seen[row].item() == pytest.approx(-sum(c / size * math.log(c / size) for c in counts.values()), abs=1e-6)


def test_a_pattern_that_does_not_compile_is_refused():
    with pytest.raises(RecipeError, match="answer_entropy.*not a regular expression"):
        get("reward", "answer_entropy").bind({"pattern": "("})
