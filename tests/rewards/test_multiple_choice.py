import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RecipeError, RewardError
from guerdon.registry import get
from guerdon.rewards.multiple_choice import choice

CITIES = {"choices": ["Rome", "Paris", "Oslo", "Bern"]}


def chosen(text, metadata=None, **options):
    return choice(text, "B" if "answer_is" not in options else 1, metadata, **options).detail["chosen"]


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        "(B)",
        "[b]",
        "B.",
        "**B**",
        "Option B",
        "B) Paris",
        "(B) Paris, of course",
        "**B.** Paris",
        "The answer is B",
        "The answer is (b).",
        "The answer is **B**.",
        "The answer is: B because C is wrong.",
        "the correct option is B, since A fails",
        "Answer: B",
        "**Answer:** B",
        "**Answer**: B",
        "Final answer\n\nAnswer:\n\nB. Paris",
        "The answer to question 3 is B.",
        "So the best choice would be option (B)",
        "I choose B",
        "I'd go with B.",
        "I think it's B) Paris",
        "B is correct.",
        "Option (B) is the right one",
        "\\boxed{B}",
        "so $\\boxed{\\text{(B)}}$.",
        "#### B",
        "A. Rome\nB. Paris\nC. Oslo\n\nB",
        "B\n\nA is in Italy, C is in Norway.",
        "Answer: A. No, wait: the answer is B",
        "The answer is not A. The answer is B.",
        "<answer>B</answer>",
        "The answer is A <answer> (b) </answer> or C",
        "Answer: B, I think",
        "x" * 100_000 + " The answer is B",
    ],
)
def test_a_choice_is_read(text):
    assert chosen(text) == "B"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        ("I do not know.", "chooses no option"),
        ("The answer is not B", "chooses no option"),
        ("I would not choose B", "chooses no option"),
        ("The answer is a boat", "chooses no option"),
        ("The answer is A boat", "chooses no option"),
        ("Answer: I am not sure", "chooses no option"),
        ("The answer is Bern", "chooses no option"),
        ("The answer is B52", "chooses no option"),
        ("The answer is B's", "chooses no option"),
        ("Between A and B I see no difference.", "chooses no option"),
        ("The answer is A or B", "names several options"),
        ("Answer: A, B", "names several options"),
        ("Answer: A/B/C", "names several options"),
        ("Answer: B, and (C)", "names several options"),
        ("Answer: B. Answer: A or B", "names several options"),
        ("A B C D", "names several options"),
        ("(A) (B)", "names several options"),
        ("A or B", "names several options"),
        ("A. Rome\nB. Paris", "names several options"),
        ("<answer>A, B</answer> B", "names several options"),
        ("The answer is B <answer></answer>", "the text is empty"),
        ("The answer is В", "chooses no option"),  # a Cyrillic letter
        ("The answer is Ｂ", "chooses no option"),  # a full-width letter
        ("The answer is B" + " x" * 4000, "chooses no option"),
    ],
)
def test_no_choice_is_0_and_says_why(text, why):
    score = choice(text, "B")
    assert score.value == 0.0
    assert score.detail == {"chosen": None, "wanted": "B", "why": why}


def test_right_and_wrong():
    assert choice("Answer: B", "B").value == 1.0
    assert choice("Answer: B", "(b)").value == 1.0
    wrong = choice("Answer: C", "B")
    assert (wrong.value, wrong.detail) == (0.0, {"chosen": "C", "wanted": "B"})


def test_options_that_the_task_tells():
    assert choice("Paris.", "B", CITIES).value == 1.0
    assert choice("The answer is paris", "B", CITIES).value == 1.0
    assert choice("Oslo?\n**Paris**", "Paris", CITIES).detail == {"chosen": "B", "wanted": "B"}
    assert choice("Answer: E", "B", CITIES).detail["chosen"] is None  # there are four
    arc = {"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}}
    assert choice("The answer is 2.", "2", arc).value == 1.0
    assert choice("The answer is 2.5", "2", arc).value == 0.0
    assert choice("The answer is ٢", "2", arc).value == 0.0  # Arabic digits are no labels
    assert choice("The answer is 2", 2, arc).value == 1.0
    assert choice("q", "Q", {"given": {"P": "no", "Q": "yes"}}, choices="given").value == 1.0
    assert choice("same", "A", {"choices": ["same", "same"]}).value == 0.0


def test_references_by_index():
    assert choice("B", 1, CITIES, answer_is="index").value == 1.0
    assert choice("A", "0", CITIES, answer_is="index").value == 1.0
    for unusable in (4, -1, "B", None, 0.5, "١"):
        with pytest.raises(RewardError, match="want an index below 4"):
            choice("B", unusable, CITIES, answer_is="index")


@pytest.mark.parametrize("answer", ["", None, "K", "AB", "London", ["B"], 1, "A or B"])
def test_a_reference_that_names_no_option_is_an_error(answer):
    with pytest.raises(RewardError, match="the reference answer is"):
        choice("B", answer, CITIES)


def test_a_reference_that_names_two_options_is_an_error():
    with pytest.raises(RewardError, match="the reference answer is 'same'"):
        choice("A", "same", {"choices": ["same", "same", "other"]})


@pytest.mark.parametrize(
    "given", [["one"], "ABCD", 5, {"AB": "x", "C": "y"}, ["x"] * 11, [], {"text": ["a"], "label": []}]
)
def test_options_that_cannot_be_used_are_an_error(given):
    with pytest.raises(RewardError, match="reward 'choice': the options are"):
        choice("B", "B", {"choices": given})


@pytest.mark.parametrize("options", [{"labels": "A"}, {"labels": "AaB"}, {"labels": "A.B"}, {"answer_is": "text"}])
def test_options_without_meaning_are_refused(options):
    with pytest.raises(RecipeError, match="reward 'choice'"):
        get("reward", "choice").validate(options)


@pytest.mark.parametrize(
    "piece", ["answer is ", "(", "A, ", "\\boxed{", "answer to ", "A is ", "\n", "*", "not choose "]
)
def test_no_text_takes_long(piece):
    start = time.perf_counter()
    choice(piece * (1_000_000 // len(piece)), "B")
    assert time.perf_counter() - start < 3


@given(st.text(alphabet="ABab().,:* \n", max_size=40), st.sampled_from("ABCD"))
def test_the_last_statement_overrides_whatever_stands_before_it(before, label):
    assert choice(f"{before}\nThe correct answer is {label}.", label).value == 1.0


@given(st.text(max_size=60))
def test_no_text_breaks_it(text):
    assert choice(text, "B").value in (0.0, 1.0)
