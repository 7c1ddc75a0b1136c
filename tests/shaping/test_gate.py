import pytest
import torch
from small_recipes import LANGUAGE

from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.shaping.gate import conditioned_reward, staged_reward
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train

NAN = float("nan")


def test_the_easy_reward_counts_where_the_hard_one_is_earned():
    components = torch.tensor([[1.0, 1.0, 3.0], [1.0, 0.5, 3.0], [0.5, 0.6, 3.0], [1.0, NAN, 3.0], [NAN, 0.0, 3.0]])
    names = ("format", "answer", "other")
    out = conditioned_reward(components, names, easy="format", hard="answer", threshold=0.6)
    expected = torch.tensor([[1.0, 1.0, 3.0], [0.0, 0.5, 3.0], [0.5, 0.6, 3.0], [0.0, NAN, 3.0], [NAN, 0.0, 3.0]])
    assert torch.equal(out.nan_to_num(-1), expected.nan_to_num(-1))
    assert components[1, 0] == 1.0
    strict = conditioned_reward(components, names, easy="format", hard="answer")
    assert strict[2, 0] == 0.0


def test_wrong_names_are_refused():
    components, names = torch.zeros(1, 2), ("format", "answer")
    with pytest.raises(RecipeError, match="no reward is called 'formt'; did you mean 'format'"):
        conditioned_reward(components, names, easy="formt", hard="answer")
    with pytest.raises(RecipeError, match="both 'answer'"):
        conditioned_reward(components, names, easy="answer", hard="answer")


def test_stages_pay_in_order():
    components = torch.tensor(
        [[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.5]]
    )
    reward, stats = staged_reward(components)
    assert reward.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.65])
    assert stats == pytest.approx({"stage1": 0.8, "stage2": 0.6, "stage3": 0.4})
    assert staged_reward(torch.ones(1, 4))[0].item() == pytest.approx(1.0)
    assert staged_reward(torch.tensor([[NAN, 1.0, 1.0, 1.0]]))[0].item() == 0.0
    assert staged_reward(torch.tensor([[1.0, NAN]]), bonuses=[0.4], quality=0.6)[0].item() == pytest.approx(0.4)
    with pytest.raises(RecipeError, match="2 rewards are 1 stages and a quality, but bonuses has 3"):
        staged_reward(torch.ones(1, 2))


def test_in_a_run_the_raw_components_stay_and_the_reward_follows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def one(text):
        return 1.0

    def never(text):
        return 0.0

    recipe = LANGUAGE | {
        "rewards": [one, never],
        "shaping": [{"name": "conditioned_reward", "easy": "one", "hard": "never"}],
        "training": {"steps": 1},
    }
    rows = RunFolder.open(train(load_recipe(recipe), progress=Progress(quiet=True)).run).rollouts(0).to_pylist()
    assert {row["reward/one"] for row in rows} == {1.0}
    assert {row["reward"] for row in rows} == {0.0}


def test_what_shaping_reports_is_in_the_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stage(text):
        return 1.0

    def quality(text):
        return 0.5

    shaping = [{"name": "staged_reward", "bonuses": [0.2], "quality": 0.8}]
    recipe = LANGUAGE | {"rewards": [stage, quality], "shaping": shaping, "training": {"steps": 1}}
    metrics = RunFolder.open(train(load_recipe(recipe), progress=Progress(quiet=True)).run).metrics()
    assert metrics["shaping/staged_reward/stage1"] == [1.0]
    assert metrics["reward/mean"] == pytest.approx([0.6])
