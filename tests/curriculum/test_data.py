import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.curriculum.data import ASPECTS, reformulate
from guerdon.errors import TaskError


def solve(question):
    """A solver of these problems that reads definitions: the value of the last sum or product."""
    term = re.search(r"one (\w+) stands for the number (\d+)\. ", question)
    if term:
        question = question[term.end() :].replace(f"one {term[1]}", term[2])
    nested = re.search(r"Let X be the result of (\d+) ([+-]) (\d+)\. ", question)
    if nested:
        value = int(nested[1]) + int(nested[3]) * (1 if nested[2] == "+" else -1)
        question = re.sub(r"\bX\b", str(value), question[nested.end() :])
    left, sign, right = re.search(r"What is (\d+) (plus|times|minus) (\d+)\?", question).groups()
    return {"plus": int.__add__, "times": int.__mul__, "minus": int.__sub__}[sign](int(left), int(right))


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from(["plus", "times", "minus"]), st.integers(0, 10**6))
def test_every_rewrite_has_the_same_answer_and_other_words(left, right, sign, seed):
    question = f"What is {left} {sign} {right}?"
    rewrites = reformulate(question, seed)
    assert len(set(rewrites) | {question}) == 4
    assert {solve(rewrite) for rewrite in rewrites} == {solve(question)}
    assert reformulate(question, seed) == rewrites


def test_aspects_can_be_chosen_and_numbers_are_needed():
    question = "What is 12 plus 3.5 plus x2 plus 40?"
    assert len({rewrite for seed in range(400) for rewrite in reformulate(question, seed, aspects=["term"])}) == 10
    for seed in range(20):  # 3.5 and x2 are no whole numbers
        assert "3.5 plus x2" in reformulate(question, seed, aspects=["nested"])[0]
    assert reformulate("Why?", 0, aspects=["story"])[0].endswith(" Why?")
    with pytest.raises(TaskError, match="no whole number"):
        reformulate("Why?", 0)
    assert len(ASPECTS) == 3
