import pytest

from guerdon.errors import RewardError
from guerdon.registry import get
from guerdon.rewards.verdict import pairwise_verdict, read_choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Principles: 1 is first.\nComparison: 2 loses.\nVerdict: 1", 1),
        ("**Verdict:** 2", 2),
        ("verdict is action 2.", 2),
        ("Verdict: [1]\n", 1),
        ("so \\boxed{2}.", 2),
        ("<answer> 1 </answer>", 1),
        ("<answer>Action 2</answer>", 2),
        ("Verdict: 1\nVerdict: 2", 2),
        ("Verdict: 1, because it goes on", None),
        ("Verdict: 1 or 2", None),
        ("Verdict: 3", None),
        ("Verdict: 12", None),
        ("Verdict: 1\nBut then again, 2", None),
        ("I prefer 2", None),
        ("2", None),
        ("", None),
    ],
)
def test_the_verdict_stands_at_the_end(text, choice):
    assert read_choice(text) == choice


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [("Verdict: 1", 1, 1.0), ("Verdict: 1", 2, -1.0), ("Verdict: 2", "2", 1.0), ("hm", 1, -1.0), ("", 2, -1.0)],
)
def test_anything_but_the_right_verdict_costs_one(text, answer, value):
    assert pairwise_verdict(text, answer).value == value


@pytest.mark.parametrize("answer", [None, 0, 3, "A", 1.5])
def test_the_reference_is_one_or_two(answer):
    with pytest.raises(RewardError, match="want 1 or 2"):
        pairwise_verdict("Verdict: 1", answer)


def test_it_is_registered():
    method = get("reward", "pairwise_verdict")
    assert method.requires == ("text", "answer")
    assert method.bind()({"text": "Verdict: 2", "answer": 2}).fields["value"] == 1.0
