import itertools

import pytest
import torch

from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.rewards.consistency import ConsistencyReward, consistency_score
from guerdon.rewards.judges import JudgeError

RIGHT = "<think>Weigh them.\n\nOne is blurred.\nTwo is sharp.\nSo two.</think>\n<answer> Two </answer>"


def test_the_published_table():
    # (form, accuracy, consistency) -> reward
    table = {(1, 1, 1): 2.0, (1, 1, 0): 1.5, (1, 1, -1): 1.0, (0, 1, 1): 1.5, (1, 0, 1): 0.5, (0, 0, 1): 0.0}
    for arguments, wanted in table.items():
        assert consistency_score(*map(float, arguments)) == wanted
    columns = torch.tensor(list(table), dtype=torch.float64).unbind(dim=1)
    assert consistency_score(*columns).tolist() == list(table.values())


def test_consistency_never_pays_for_a_wrong_verdict():
    for form, consistency in itertools.product((0.0, 1.0), (-1.0, 0.0, 1.0)):
        assert consistency_score(form, 0.0, consistency) == 0.5 * form


@pytest.mark.parametrize(("opinion", "value"), [(1, 2.0), (0, 1.5), (-1, 1.0)])
def test_a_right_verdict_in_form(opinion, value):
    heard = []

    def check(rationale, verdict):
        heard.append((rationale, verdict))
        return opinion

    score = ConsistencyReward(check=check)(RIGHT, "two")
    assert score.value == value
    assert score.detail == f"form 1, accuracy 1, consistency {opinion}"
    assert heard == [("One is blurred.\nTwo is sharp.\nSo two.", "Two")]


@pytest.mark.parametrize(
    ("seen", "opinion"), [(1.0, 1), (0.76, 1), (0.74, 0), (0.5, 0), (0.26, 0), (0.24, -1), (0.0, -1)]
)
def test_a_judge_may_give_the_opinion(seen, opinion):
    def truth(prompt, text, statement):
        assert prompt.endswith("One is blurred.\nTwo is sharp.\nSo two.")
        assert text == "Two"
        return seen

    reward = get("reward", "consistency_reward").bind({"check": {"backend": "scripted", "truth": truth}})
    assert reward.call(RIGHT, "two").detail == f"form 1, accuracy 1, consistency {opinion}"
    mute = ConsistencyReward(check={"backend": "scripted", "truth": truth, "failure_rate": 1.0})  # type: ignore[arg-type]
    with pytest.raises(JudgeError, match="failed"):
        mute(RIGHT, "two")


def forbidden(rationale, verdict):
    raise AssertionError("asked about a text whose reward it cannot change")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (RIGHT.replace(" Two ", "one"), 0.5),  # wrong
        ("two", 0.0),  # no blocks
        ("<answer>two</answer>", 1.0),  # right, no rationale
        ("<think> \n</think><answer>two</answer>", 1.5),  # in form, empty rationale
        ("<think>a</think><answer>one</answer> and so on", 0.0),
        ("<think>a</think><answer></answer>", 0.5),
    ],
)
def test_the_second_model_is_asked_only_where_it_matters(text, value):
    assert ConsistencyReward(check=forbidden)(text, "two").value == value


@pytest.mark.parametrize(
    "text",
    [
        RIGHT + " and more",
        "<think>a</think><think>b</think><answer>two</answer>",
        "<think>a</think><answer>one</answer><answer>two</answer>",
        "<think>a <think>b</think></think><answer>two</answer>",
        "<think>a <answer> b</think><answer>two</answer>",
        "<answer>two</answer><think>a</think>",
    ],
)
def test_a_right_verdict_out_of_form_loses_the_form(text):
    assert ConsistencyReward(check=lambda rationale, verdict: 1)(text, "two").value == 1.5


def test_other_tags_and_fewer_lines():
    heard = []
    judge = ConsistencyReward(
        check=lambda rationale, verdict: heard.append(rationale) or 1, think="reason", answer_tag="verdict", lines=1
    )
    assert judge("<reason>x\ny</reason><verdict>3</verdict>", 3).value == 2.0
    assert heard == ["y"]


def test_an_opinion_that_is_no_opinion_raises():
    with pytest.raises(ValueError, match=r"returned 0\.5, wanted 1 \(agrees\)"):
        ConsistencyReward(check=lambda rationale, verdict: 0.5)(RIGHT, "two")


def test_a_recipe_names_the_check_by_path(tmp_path):
    (tmp_path / "second.py").write_text("def agrees(rationale, verdict):\n    return -1 if verdict == 'Two' else 1\n")
    method = get("reward", "consistency_reward")
    bound = method.bind({"check": f"{tmp_path}/second.py:agrees"})
    assert bound.call(RIGHT, "two").value == 1.0
    assert method.requires == ("text", "answer")
    with pytest.raises(RecipeError, match="no file"):
        method.validate({"check": f"{tmp_path}/absent.py:agrees"})
