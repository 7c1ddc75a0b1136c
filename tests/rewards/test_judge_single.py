import math

import jsonschema
import pytest

from guerdon.errors import RecipeError
from guerdon.recipe import load_recipe
from guerdon.recipe_schema import Lenient
from guerdon.registry import get
from guerdon.rewards.base import Score
from guerdon.rewards.judge_single import AGGREGATES, rubric_value
from guerdon.rewards.judges import JudgeError, ScriptedJudge, UnreadableVerdict, Verdict


class Recorder:
    """A judge of nobody's making: answers what it is told to, and remembers the questions."""

    def __init__(self, *answers):
        self.answers, self.asked, self.calls = list(answers), [], 0.0

    def ask(self, questions):
        self.asked += questions
        self.calls += 1
        given, self.answers = self.answers[: len(questions)], self.answers[len(questions) :]
        return given

    def stats(self):
        return {"calls": self.calls}


def letters(prompt, text, statement):
    """A text of n letters has quality n / 10; a statement holds for texts that contain it."""
    return float(statement in text) if statement else len(text) / 10


SCRIPTED = {"backend": "scripted", "truth": letters}


def outcome(name, options, **fields):
    return get("reward", name).bind(options)({"prompt": ["p"] * len(fields["text"]), **fields})


def values(scores):
    return [score.value for score in scores]


def test_scores_reasons_and_counts_of_a_batch():
    judge = Recorder(Verdict((0.25,), "so so"), Verdict((1.0,)))
    judge.calls = 5.0
    out = outcome("judge_score", {"judge": judge, "scale": [0, 4]}, text=["a", "b"])
    assert out.fields["value"] == [Score(0.25, detail="so so"), Score(1.0, detail="")]
    assert out.stats == {"calls": 1.0}, "what this batch added, not what was before"
    assert judge.calls == 6, "a batch is asked at once"
    (question, _) = judge.asked
    assert (question.prompt, question.answers, question.low, question.high) == ("p", ("a",), 0, 4)
    assert question.reference is None


def test_a_reference_is_shown_only_if_asked_for():
    judge = Recorder(*[Verdict((1.0,))] * 4)
    outcome("judge_score", {"judge": judge}, text=["a"], answer=[42])
    outcome("judge_score", {"judge": judge, "show_reference": True}, text=["a", "b"], answer=[42, None])
    assert [question.reference for question in judge.asked] == [None, "42", None]
    with pytest.raises(ValueError, match="the problems have no reference answers; set it to false"):
        outcome("judge_score", {"judge": judge, "show_reference": True}, text=["a"])


@pytest.mark.parametrize(
    ("name", "options"), [("judge_score", {}), ("judge_rubric", {"rubric": ["good"]}), ("judge_steps", {})]
)
def test_a_failure_is_an_error_of_its_sample_and_a_fallback_is_only_for_words(name, options):
    gone, unclear = JudgeError("gone"), UnreadableVerdict("unclear")
    for fallback, second in ((None, unclear), (0.25, Score(0.25, detail="fallback: unclear"))):
        judge = Recorder(gone, unclear, Verdict((1.0,)))
        out = outcome(name, {"judge": judge, "fallback": fallback, **options}, text=["a", "b", "c"])
        first, middle, last = out.fields["value"]
        assert (first, middle) == (gone, second)
        assert last.value == 1.0


RUBRIC = ["a", {"text": "b", "weight": 3}, {"text": "c", "weight": -2}]


@pytest.mark.parametrize("together", [True, False])
def test_a_rubric_by_hand(together):
    texts = ["", "a", "ab", "b", "abc", "c"]
    out = outcome("judge_rubric", {"judge": SCRIPTED, "rubric": RUBRIC, "together": together}, text=texts)
    assert values(out.fields["value"]) == [0.0, 0.25, 1.0, 0.75, 0.5, -0.5]
    assert out.fields["value"][1].detail.splitlines()[:3] == ["1 of 1: a", "0 of 3: b", "0 of -2: c"]
    assert out.stats["questions"] == (6 if together else 18)


def test_items_may_be_fractions():
    judge = Recorder(Verdict((1.0, 0.5), "half"))
    rubric = ["a", {"text": "b", "weight": 3, "kind": "fraction"}]
    out = outcome("judge_rubric", {"judge": judge, "rubric": rubric}, text=["x"])
    assert out.fields["value"] == [Score(2.5 / 4, detail="1 of 1: a\n0.5 of 3: b\nhalf")]
    assert [item.scale for item in judge.asked[0].items] == [None, (0.0, 1.0)]


def test_every_problem_may_have_a_rubric_of_its_own():
    metadata = [{"rubric": ["a"]}, {"rubric": RUBRIC}, {}, {"rubric": [{"text": "a", "weight": -1}]}, {"rubric": 3}]
    out = outcome("judge_rubric", {"judge": SCRIPTED, "rubric": "rubric"}, text=["a"] * 5, metadata=metadata)
    first, second, *errors = out.fields["value"]
    assert (first.value, second.value) == (1.0, 0.25)
    assert [type(error) for error in errors] == [JudgeError] * 3
    assert [str(error).partition(";")[0] for error in errors[:2]] == [
        "the problem's metadata has no 'rubric', where its rubric should stand",
        "the problem's 'rubric': a rubric of 1 items, none of them with a weight above 0",
    ]


def test_rubric_value_is_the_share_of_what_can_be_had():
    assert rubric_value([1, 1, 0], [2, 3, 5]) == 0.5
    assert rubric_value([0.5, 1], [1, -1]) == -0.5


def test_steps_by_hand():
    # qualities 0.9, 0.3, 0.8; yes from 0.5
    text = "aaaaaaaaa\n\n\n  \nbbb\n\ncccccccc\n\n"
    wanted = {"min": 0.3, "mean": 2.0 / 3, "product": 0.9 * 0.3 * 0.8, "prefix": 1 / 3}
    for aggregate, value in wanted.items():
        options = {"judge": SCRIPTED, "aggregate": aggregate, "kind": "fraction"}
        (score, empty) = outcome("judge_steps", options, text=[text, " \n\n "]).fields["value"]
        assert score.value == pytest.approx(value)
        assert score.detail == "steps 0.9, 0.3, 0.8"
        assert empty == Score(0.0, detail="no steps")
    (score,) = outcome("judge_steps", {"judge": SCRIPTED, "aggregate": "mean"}, text=[text]).fields["value"]
    assert score.value == pytest.approx(2 / 3)
    (score,) = outcome("judge_steps", {"judge": SCRIPTED, "split": "b+", "kind": "fraction"}, text=["abbaa"]).fields[
        "value"
    ]
    assert score.detail == "steps 0.1, 0.2"
    assert AGGREGATES["prefix"]([1, 1, 0, 1]) == 0.5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("judge_score", {"judge": SCRIPTED, "scale": [5, 5]}, "the worst below the best"),
        ("judge_score", {"judge": SCRIPTED, "scale": [0, 5000]}, "by at most 1000"),
        ("judge_steps", {"judge": SCRIPTED, "split": "("}, "no regular expression"),
        ("judge_steps", {"judge": SCRIPTED, "aggregate": "max"}, "aggregate"),
        ("judge_rubric", {"judge": SCRIPTED, "rubric": []}, "none of them with a weight above 0"),
        ("judge_rubric", {"judge": SCRIPTED, "rubric": [{"text": "a", "wieght": 2}]}, "wieght"),
        ("judge_rubric", {"judge": SCRIPTED, "rubric": [{"text": "a", "weight": math.inf}]}, "finite"),
        ("judge_score", {"judge": {"backend": "opanai"}}, "no backend 'opanai'; did you mean 'openai'"),
        ("judge_score", {"judge": {"backend": "scripted"}}, "judge 'scripted': 'truth'"),
        ("judge_score", {"judge": {"model": "m"}}, "no backend None"),
        ("judge_score", {"judge": lambda questions: 1}, "has no methods 'ask' and 'stats'"),
        ("judge_score", {"judge": 3}, "judge is int 3, want a mapping such as {backend: openai, model: NAME}"),
        ("judge_score", {}, "judge"),
    ],
)
def test_what_cannot_work_is_refused_before_any_compute(name, options, message):
    with pytest.raises(RecipeError) as caught:
        get("reward", name).validate(options)
    assert message in str(caught.value)


def test_a_judge_may_be_an_object_a_class_or_an_import_path():
    class Kind(Recorder):
        def __init__(self):
            super().__init__(Verdict((0.5,)))

    for judge in (Kind(), Kind, f"{__file__}:READY"):
        assert values(outcome("judge_score", {"judge": judge}, text=["a"]).fields["value"]) == [0.5]


READY = Recorder(Verdict((0.5,)))


def test_a_judge_in_a_recipe_survives_being_written(tmp_path):
    judge = {"backend": "scripted", "truth": f"{__file__}:letters", "noise": 0.1}
    recipe = {"task": "digits", "policy": "flow", "rewards": [{"name": "judge_score", "judge": judge}]}
    (tmp_path / "recipe.yaml").write_text(load_recipe(recipe).to_yaml())
    again = load_recipe(tmp_path / "recipe.yaml").rewards[0].options["judge"]
    assert again == judge
    recipe["rewards"] = [{"name": "judge_score", "judge": ScriptedJudge.model_validate(judge)}]
    assert load_recipe(recipe).to_dict()["rewards"][0]["judge"]["noise"] == 0.1


def test_the_schema_tells_editors_what_a_judge_may_be():
    for name, option in (("judge_score", "judge"), ("tournament", "judge"), ("consistency_reward", "check")):
        options = get("reward", name).options.model_json_schema(schema_generator=Lenient)
        validator = jsonschema.Draft202012Validator(options | {"required": [option]})
        openai = {"backend": "openai", "model": "m", "concurrency": 4}
        for judge in (openai, {"backend": "local", "model": "m"}, "judges.py:mine"):
            validator.validate({option: judge})
        for judge in (openai | {"concurrency": 0}, openai | {"modle": "m"}, {"backend": "openai"}, 3):
            assert not validator.is_valid({option: judge}), judge
