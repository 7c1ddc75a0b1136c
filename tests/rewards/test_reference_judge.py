import pytest
import torch

from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.rewards.judges.questions import JudgeError, Verdict
from guerdon.rewards.reference_judge import ReferenceJudge, at_shares, prefixes_of
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train


class Counted:
    """Rates by the share of letters that are an 'x', and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def ask(self, questions):
        self.asked += questions
        return [
            JudgeError("no") if "!" in q.answers[0] else Verdict((q.answers[0].count("x") / max(len(q.answers[0]), 1),))
            for q in questions
        ]

    def stats(self):
        return {"questions": float(len(self.asked))}


def test_cuts():
    assert prefixes_of("abcdefgh", 4) == [2, 4, 6, 8]
    assert prefixes_of("abc\ndefgh", 2) == [4, 9]
    assert prefixes_of("a\n" + "b" * 18, 2) == [10, 20]  # the break is too far from the half
    assert prefixes_of("ab", 8) == [1, 2]
    assert prefixes_of("", 3) == []


def test_places_of_prefixes():
    mask = torch.tensor([[True, False, True, True, True], [False] * 5])
    out = at_shares([[2.0, 3.0], [4.0]], [[0.5, 1.0], [1.0]], mask)
    assert out.tolist() == [[0, 0, 2, 0, 3], [0] * 5]


def test_an_outcome_is_asked_once():
    judge = Counted()
    rule = ReferenceJudge(judge=judge)
    mask = torch.ones(3, 4).bool()
    verdicts, stats = rule(["q"] * 3, ["xx", "xo", "xx"], ["r"] * 3, mask)
    assert verdicts == [1.0, 0.5, 1.0]
    assert stats == {"questions": 2.0, "reused": 1.0}
    assert judge.asked[0].reference == "r"
    assert rule(["q"], ["xo"], ["r"], mask)[1] == {"questions": 0.0, "reused": 1.0}
    assert rule(["q"], ["xo"], ["other"], mask)[1] == {"questions": 1.0, "reused": 0.0}


def test_prefixes_and_a_judge_that_fails():
    rule = ReferenceJudge(judge=Counted(), prefixes=2)
    mask = torch.tensor([[True] * 4, [True] * 4, [False] * 4])
    out, _ = rule(["q"] * 3, ["xxoo", "oo!o", ""], ["r"] * 3, mask)
    assert out[0].tolist() == [0, 5, 0, 3]
    assert out[1, 1] == 1
    assert out[1, 3].isnan()
    assert (out[2] == 0).all()


def share(prompt, text, statement):
    """A scripted judge's truth: how many letters are vowels."""
    return sum(c in "aeiou" for c in text) / max(len(text), 1)


@pytest.mark.parametrize(
    ("options", "credit"), [({}, "grpo"), ({"prefixes": 3}, {"name": "telescoped_process", "first": "score"})]
)
def test_a_run_of_two_steps(tmp_path, options, credit):
    judge = {"backend": "scripted", "truth": share}
    recipe = {
        "task": {
            "name": "reasoning_gym",
            "dataset": "spell_backward",
            "config": {"min_word_len": 3, "max_word_len": 4},
        },
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {"prompts": 3, "group_size": 4, "max_new_tokens": 5},
        "rewards": [{"name": "reference_judge", "judge": judge, **options}],
        "credit": credit,
        "evaluation": {"problems": 4},
        "training": {"steps": 2},
        "runs_dir": str(tmp_path),
    }
    metrics = RunFolder.open(train(load_recipe(recipe), progress=Progress(quiet=True)).run).metrics()
    assert all(x == 0 for x in metrics["faults"])
    assert all(x > 0 for x in metrics["advantage/abs_mean"])
