import pytest
import torch
from torch import Tensor

from guerdon.errors import MissingField, RecipeError
from guerdon.recipe import load_recipe
from guerdon.sampling.sources import Source
from guerdon.training.plan import make_plan

LANGUAGE = {"task": {"name": "reasoning_gym", "dataset": "chain_sum"}, "policy": "tiny_lm"}
CONTROL = {"task": {"name": "gymnasium", "env": "CartPole-v1"}, "policy": "control"}


def plan_of(recipe, *overrides):
    return make_plan(load_recipe(recipe, overrides))


def test_a_plain_recipe_sums_its_rewards():
    plan = plan_of(LANGUAGE, "rewards=[task, {name: exact, weight: 0.5}, {name: numeric, watch: true}]")
    assert [bound.name for bound in plan.shaping] == ["weighted_sum"]
    assert plan.weights.tolist() == [1.0, 0.5]
    assert {"reward", "group", "mask"} <= plan.needs


def test_costly_fields_are_needed_only_when_named():
    assert "ref_logp" not in plan_of(LANGUAGE).needs
    assert "ref_logp" in plan_of(LANGUAGE, "terms=[kl]").needs
    assert "greedy_reward" in plan_of(LANGUAGE, "credit=remax").needs
    assert "prompt_logp" not in plan_of(LANGUAGE).needs
    assert "prompt_logp" in plan_of(LANGUAGE, "credit=progrpo").needs
    assert "prompt_logp" not in plan_of(CONTROL, "credit=progrpo", "sampling.group_size=4").needs


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (LANGUAGE, ["credit=gae"], r"credit 'gae' needs 'values'.*policy\.value_head: true"),
        (CONTROL, ["rewards=[exact]"], r"reward 'exact' needs 'text'.*use a language policy"),
        (CONTROL, ["terms=[value]"], r"term 'value' needs 'returns'.*use a credit that estimates returns \('gae'\)"),
    ],
)
def test_a_field_that_nobody_supplies_is_refused(recipe, overrides, message):
    with pytest.raises(MissingField, match=message):
        plan_of(recipe, *overrides)


def test_what_the_loop_adds_after_the_rewards_is_refused_to_a_reward():
    def early(prompt_logp):
        """Ask too soon."""

    recipe = LANGUAGE | {"rewards": [early]}
    with pytest.raises(MissingField, match=r"needs 'prompt_logp'.*the loop computes it after the rewards"):
        plan_of(recipe)


def test_the_remedies_that_the_messages_name_work():
    language = plan_of(LANGUAGE, "credit=gae", "policy.value_head=true", "terms=[value]")
    control = plan_of(CONTROL, "credit=gae", "terms=[value]")
    for plan in (language, control):
        assert {"values", "bootstrap", "value_prediction", "returns"} <= plan.needs


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (
            LANGUAGE,
            ["policy=control"],
            "policy 'control' acts on control tasks, but task 'reasoning_gym' is a language",
        ),
        (LANGUAGE, ["sampling.group_size=1"], "sampling.group_size is 1, so every advantage would be 0"),
        (LANGUAGE, ["sampling.temperatur=1"], "no key 'temperatur' for policy 'tiny_lm'; did you mean 'temperature'"),
        (LANGUAGE, ["sampling.temperature=0"], "'temperature' is 0: Input should be greater than 0"),
        (LANGUAGE, ["rewards=[{name: exact, watch: true}]"], "every reward is watch-only"),
        (LANGUAGE, ["rewards=[exact, exact]"], "two rewards are called 'exact'; give one of them another 'label'"),
        (LANGUAGE, ["rewards=[{name: task, strict: true}]"], "reward 'task' has no option 'strict'"),
        (LANGUAGE, ["training.minibatches=1000"], "training.minibatches is 1000, but a batch has .* = 128 traj"),
        (LANGUAGE, ["training.minibatch_by=action"], "which 'tiny_lm' cannot; use minibatch_by: trajectory"),
        (CONTROL, ["warm_start.steps=3"], "policy 'control' cannot be warm-started"),
        (LANGUAGE, ["task.dataset_name=x"], "task 'reasoning_gym' has no option 'dataset_name'"),
        (CONTROL, ["objective.aggregate=sum_over_max_length"], "needs 'max_length'.*use aggregate 'token_mean'"),
        (CONTROL, ["sampling.horizon=8"], "sampling.horizon cuts episodes into trajectories without company"),
        (LANGUAGE, ["credit.name=gpro"], "no credit 'gpro'; did you mean 'grpo'"),
        (LANGUAGE, ["policy.width=wide"], "policy 'tiny_lm': 'width' is 'wide'"),
    ],
)
def test_what_cannot_work_is_refused(recipe, overrides, message):
    with pytest.raises(RecipeError, match=message):
        plan_of(recipe, *overrides)


def test_a_constant_divisor_is_the_samplers_budget():
    plan = plan_of(LANGUAGE, "objective.aggregate=sum_over_max_length", "sampling.max_new_tokens=17")
    assert plan.objective.options["max_length"] == 17
    plan = plan_of(LANGUAGE, "objective={name: ppo_clip, aggregate: sum_over_max_length, max_length: 5}")
    assert plan.objective.options["max_length"] == 5
    game = {"task": {"name": "gridtext", "max_turns": 7}, "policy": {"name": "tiny_lm", "tokenizer": "word"}}
    plan = plan_of(game, "objective.aggregate=sum_over_max_length", "sampling.max_new_tokens=3")
    assert plan.objective.options["max_length"] == 21


def test_users_own_callables_are_bound_by_name():
    def mine(reward: Tensor, mask: Tensor, *, scale: float = 2.0) -> Tensor:
        """Scale the reward."""
        return scale * reward.unsqueeze(1) * mask

    def brevity(text: str) -> float:
        """Prefer short texts."""
        return 1.0 / (1 + len(text))

    plan = plan_of(LANGUAGE | {"credit": {"name": mine, "scale": 3.0}, "rewards": [brevity]})
    out = plan.credit[0]({"reward": torch.ones(1), "mask": torch.ones(1, 2)})
    assert out.fields["advantage"].tolist() == [[3.0, 3.0]]
    assert plan.rewards[0].name == "brevity"


class Odd(Source):
    """A source of nothing."""

    when = "scoring"

    def draw(self, draw):
        return None


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (LANGUAGE, ["sampling.sources=[demonstratoins]"], "no source 'demonstratoins'; did you mean 'demonstrations'"),
        (LANGUAGE, ["sampling.sources=[{name: rehearsal, row: 3}]"], "source 'rehearsal' has no option 'row'"),
        (LANGUAGE, ["sampling.sources=[{name: rehearsal, rows: 0}]"], "'rows' is 0"),
        (LANGUAGE, ["sampling.source=[rehearsal]"], "sampling has no key 'source'.*did you mean 'sources'"),
        (LANGUAGE, ["sampling.sources=[demonstrations]"], "no objective of this recipe reads 'external'.*'rl_plus'"),
        (
            LANGUAGE,
            ["sampling.sources=[demonstrations]", "terms=[f_divergence]"],
            "no objective of this recipe reads 'external'",
        ),
        (LANGUAGE, ["sampling.sources=[rehearsal]"], "no objective or term of this recipe reads 'external'"),
        (CONTROL, ["sampling.sources=[demonstrations]"], "replays given actions.*policy 'control' cannot"),
        (CONTROL, ["training.minibatch_by=action"], "minibatch_by: action .* does not go with 'sampling.sources'"),
    ],
)
def test_sources_that_cannot_work_are_refused(recipe, overrides, message):
    if recipe is CONTROL and "minibatch_by" in overrides[0]:
        recipe = CONTROL | {"sampling": {"sources": [Odd]}}
    with pytest.raises(RecipeError, match=message):
        plan_of(recipe, *overrides)


def test_what_is_no_source_is_refused():
    def rows(*, how_many=3):
        """Not a class."""

    with pytest.raises(RecipeError, match="source 'rows' is no subclass of guerdon.sampling.sources.Source"):
        plan_of(LANGUAGE | {"sampling": {"sources": [rows]}})


def test_external_is_supplied_by_a_source_of_external_rows_alone():
    with pytest.raises(MissingField, match=r"term 'f_divergence' needs 'external'.*'sampling\.sources'"):
        plan_of(LANGUAGE, "terms=[f_divergence]")
    with pytest.raises(MissingField, match="needs 'external'"):
        plan_of(LANGUAGE | {"sampling": {"sources": [Odd]}}, "objective=rl_plus")
    plan = plan_of(LANGUAGE, "sampling.sources=[{name: rehearsal, rows: 3}]", "terms=[f_divergence]")
    assert [type(source).__name__ for source in plan.sources] == ["RehearsalBuffer"]
    assert plan.sources[0].rows == 3
    assert "ref_logp" not in plan.needs, "stored answers carry their own likelihoods"
    assert ("sources/0", plan.sources[0]) in plan.methods
    assert (
        plan_of(LANGUAGE, "sampling.sources=[demonstrations]", "objective=rl_plus").objective.options["max_length"]
        == plan.policy.target.Sampling().max_new_tokens
    )
