import pytest

from guerdon import registry
from guerdon.rewards.judges.questions import JudgeError, Rating, UnreadableVerdict
from guerdon.rewards.judges.scripted import ScriptedJudge
from guerdon.rewards.rubric_score import FAILURES, RubricScore

asked: list[Rating] = []


class Told(ScriptedJudge):
    """Says what it is told to, and keeps the questions."""

    def _answer(self, questions):
        asked.extend(questions)
        given = super()._answer(questions)
        return [
            UnreadableVerdict("no number") if "mumble" in q.answers[0] else a
            for q, a in zip(questions, given, strict=True)
        ]


def quality(prompt, text, statement):
    return {"good": 1.0, "half": 0.5}.get(text, 0.0)


@pytest.fixture
def judge():
    asked.clear()
    return Told(truth=quality)


def test_scores_are_those_of_the_judge_and_stand_alone(judge):
    scores, stats = RubricScore(judge=judge)(["p"] * 3, ["good", "half", "bad"], [{"rubric": "r"}] * 3)
    assert [score.value for score in scores] == [1.0, 0.5, 0.0]
    assert stats["unreadable"] == 0
    assert [(q.low, q.high, q.reference) for q in asked] == [(0, 10, None)] * 3


def test_the_judge_reads_problem_rubric_and_whole_answer_and_no_reference(judge):
    RubricScore(judge=judge)(["1 + 1?"], ["good\nall of it"], [{"rubric": ["adds", "concludes"], "answer": "SECRET"}])
    (question,) = asked
    assert (question.prompt, question.answers) == ("1 + 1?", ("good\nall of it",))
    assert question.criteria.endswith("Rubric:\n- adds\n- concludes")
    assert "SECRET" not in repr(question)


def test_an_unreadable_verdict_is_worth_nothing_and_counted(judge):
    scores, stats = RubricScore(judge=judge)(["p"] * 4, ["good", "mumble", "mumble", "half"], [{"rubric": "r"}] * 4)
    assert [score.value for score in scores] == [1.0, 0.0, 0.0, 0.5]
    assert stats["unreadable"] == 0.5


def test_a_judge_that_fails_is_a_fault_and_not_a_zero():
    broken = ScriptedJudge(truth=quality, failure_rate=1.0)
    scores, stats = RubricScore(judge=broken)(["p"], ["good"], [{"rubric": "r"}])
    assert isinstance(scores[0], JudgeError)
    assert stats["unreadable"] == 0


def test_a_rubric_for_all_and_one_of_the_problem(judge):
    scorer = RubricScore(judge=judge, rubric="common")
    scorer(["p"] * 3, ["good"] * 3, [{"rubric": "own"}, {}, {"rubric": ["a"]}])
    assert [q.criteria.rpartition("Rubric:\n")[2] for q in asked] == ["own", "common", "- a"]
    scorer(["p"], ["good"])
    assert asked[-1].criteria.endswith("common")
    with pytest.raises(ValueError, match="neither a 'rubric' nor a 'key'"):
        RubricScore(judge=judge, key=None)


def test_a_problem_without_a_rubric_is_a_fault_and_others_keep_their_place(judge):
    scores, _ = RubricScore(judge=judge)(["p"] * 3, ["good", "good", "half"], [{"rubric": "r"}, {}, {"rubric": "r"}])
    assert isinstance(scores[1], JudgeError)
    assert "no 'rubric'" in str(scores[1])
    assert [scores[0].value, scores[2].value] == [1.0, 0.5]


def test_it_is_registered_and_names_the_failures():
    assert registry.get("reward", "rubric_score").requires == ("prompt", "text")
    assert len(FAILURES) == 6
