import pytest

from guerdon.rewards.judges.questions import JudgeError, Verdict
from guerdon.rewards.next_segment import NextSegmentReward, long_enough, prediction_of, prefix_match, words_of


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("The sun rose", True),
        ("the SUN, rose!", True),
        ("The sun rose at six. Birds sang.", True),
        ("The sun", False),  # one word that says something, of two that are asked for
        ("The", False),
        ("", False),
        ("Sun rose", False),
        ("The sun rose at seven", False),
        ("The sun rose at six. Birds sang. More", False),
    ],
)
def test_beginnings(prediction, right):
    assert prefix_match(prediction, "The sun rose at six. Birds sang.") is right


def test_short_references_ask_for_no_more_than_they_have():
    assert long_enough("sunset", "The sunset.", 3)
    assert not long_enough("the", "the and of", 3)
    assert prefix_match("Now 5", "Now 5. Now 8.")
    assert words_of("It's 3.5 km") == ["it", "s", "3", "5", "km"]


def test_tags():
    tags = ("<answer>", "</answer>")
    assert prediction_of("a <answer>x</answer> b <answer> y </answer>", tags) == "y"
    assert prediction_of("<answer>x", tags) is None
    assert prediction_of("x</answer>", tags) is None
    assert prediction_of(" x ", None) == "x"


def test_the_reward_compares_words_without_a_judge():
    known = [{"following": "Now 4. Now 6."}] * 3
    scores = NextSegmentReward()(["<answer>Now 4.</answer>", "Now 4.", "<answer>now 6</answer>"], known)
    assert [score.value for score in scores] == [1.0, 0.0, 0.0]
    assert [score.detail["prediction"] for score in scores] == ["Now 4.", None, "now 6"]


class Judge:
    def __init__(self):
        self.asked = []

    def ask(self, questions):
        self.asked += questions
        return [
            JudgeError("no") if "!" in q.answers[0] else Verdict((float("four" in q.answers[0]),)) for q in questions
        ]

    def stats(self):
        return {"questions": float(len(self.asked))}


def test_a_judge_is_asked_once_and_never_in_vain():
    judge = Judge()
    rule = NextSegmentReward(judge=judge, tags=None)
    known = [{"following": "Now 4. Now 6."}] * 5
    scores, stats = rule(["it is four now", "it is four now", "the", "seven it is now", "four now!"], known)
    assert [score.value for score in scores[:4]] == [1.0, 1.0, 0.0, 0.0]
    assert isinstance(scores[4], JudgeError)
    assert stats["questions"] == 3
    assert judge.asked[0].reference == "Now 4. Now 6."
    assert rule(["it is four now"], known[:1])[1]["questions"] == 0
