import json

import jsonschema
import pytest
import yaml

from guerdon.errors import RecipeError
from guerdon.recipe import load_recipe
from guerdon.recipe_schema import recipe_schema

MINIMAL = {"task": "reasoning_gym", "policy": "tiny_lm"}


def test_shorthand_and_defaults():
    recipe = load_recipe(MINIMAL | {"rewards": ["task", {"name": "exact", "weight": 2, "normalise": False}]})
    assert recipe.credit.name == "grpo"
    assert recipe.rewards[1].weight == 2
    assert recipe.rewards[1].options == {"normalise": False}
    assert recipe.sampling.group_size == 8


def test_overrides_reach_every_depth():
    recipe = load_recipe(
        MINIMAL,
        [
            "credit.eps=1e-6",
            "rewards.0.weight=3",
            "optimizer.lr=3e-4",
            "policy.width=64",
            "terms=[{name: kl, beta: 0.1}]",
        ],
    )
    assert recipe.credit.options == {"eps": "1e-6"}
    assert recipe.credit.name == "grpo"
    assert recipe.rewards[0].name == "task"
    assert recipe.rewards[0].weight == 3
    assert recipe.optimizer.lr == 3e-4
    assert recipe.policy.options == {"width": 64}
    assert recipe.terms[0].options == {"beta": 0.1}


def test_overrides_leave_the_callers_mapping_alone():
    mine = {"task": {"name": "reasoning_gym"}, "policy": "tiny_lm"}
    load_recipe(mine, ["task.dataset=chain_sum"])
    assert mine == {"task": {"name": "reasoning_gym"}, "policy": "tiny_lm"}


def test_yaml_round_trip(tmp_path):
    recipe = load_recipe(MINIMAL, ["warm_start.steps=5", "sampling.max_new_tokens=4"])
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(file) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainin": {}}, "no key 'trainin'; did you mean 'training'"),
        ({"training": {"step": 3}}, "no key 'training.step'; did you mean 'training.steps'"),
        ({"training": {"steps": "many"}}, "'training.steps' is 'many'"),
        ({"training": {"epochs": 0}}, "'training.epochs' is 0"),
        ({"name": "../escape"}, "'name' is '../escape'"),
        ({"rewards": []}, "'rewards' is"),
    ],
)
def test_wrong_keys_and_types_are_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(MINIMAL | change)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps", "not of the form"),
        ("rewards.3.weight=1", "the list has 1 items"),
        ("seed.deep=1", "which has no keys"),
        ("name=[", "not valid YAML"),
    ],
)
def test_wrong_overrides_are_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(MINIMAL | {"seed": 1}, [override])


def test_missing_and_broken_files(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match=r"no recipe file .*; did you mean '.*quickstart\.yaml'"):
        load_recipe(tmp_path / "quikstart.yaml")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(tmp_path / "quickstart.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RecipeError, match="holds list, want a mapping"):
        load_recipe(tmp_path / "list.yaml")


def test_schema_accepts_the_recipes_and_refuses_typos(recipes):
    schema = json.loads(json.dumps(recipe_schema()))
    validator = jsonschema.Draft202012Validator(schema)
    for file in recipes:
        validator.validate(yaml.safe_load(file.read_text()))
    good = yaml.safe_load(recipes[0].read_text())
    assert list(validator.iter_errors(good | {"credit": {"name": "grpo", "epps": 1}}))
    assert list(validator.iter_errors(good | {"credit": "gpro"}))
    assert list(validator.iter_errors(good | {"trainin": {}}))
