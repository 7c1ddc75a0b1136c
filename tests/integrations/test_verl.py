"""The estimator by verl's interface; verl itself is too large to be a dependency of tests."""

import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.group import gdpo, grpo
from guerdon.errors import MissingField, RecipeError
from guerdon.integrations.verl import estimator, register

MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
UID = np.array(["q", "q", "p", "p"], dtype=object)
SCORES = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_it_is_the_function_by_hand():
    advantages, returns = estimator("grpo")(token_level_rewards=SCORES, response_mask=MASK, index=UID, config=None)
    expected = grpo(torch.tensor([1.0, 0.5, 2.0, 0.0]), torch.tensor([0, 0, 1, 1]), MASK.bool())
    assert torch.allclose(advantages, expected)
    assert torch.equal(advantages, returns)


def test_components_are_those_that_verl_names():
    batch = {"accuracy": np.array([1.0, 0.0, 1.0, 1.0]), "form": np.array([0, 10, 0, 10])}
    config = {"gdpo_reward_keys": ["accuracy", "form"], "gdpo_reward_weights": [1.0, 0.5]}
    ask = {"token_level_rewards": SCORES, "response_mask": MASK, "index": UID}
    advantages, _ = estimator("gdpo")(**ask, config=config, non_tensor_batch=batch, batch={})
    components = torch.tensor([[1.0, 0.0], [0.0, 10.0], [1.0, 0.0], [1.0, 10.0]])
    expected = gdpo(components, torch.tensor([0, 0, 1, 1]), MASK.bool(), torch.tensor([1.0, 0.5]))
    assert torch.allclose(advantages, expected)
    with pytest.raises(RecipeError, match=r"names 'length', which the batch lacks; it has accuracy, form"):
        estimator("gdpo")(**ask, config={"gdpo_reward_keys": ["length"]}, non_tensor_batch=batch)
    with pytest.raises(RecipeError, match="has 1 numbers for 2 keys"):
        estimator("gdpo")(**ask, config=config | {"gdpo_reward_weights": [1.0]}, non_tensor_batch=batch)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.permutations(range(4)), st.integers(0, 2))
def test_order_padding_and_what_lies_off_the_mask_do_not_matter(order, more):
    order = list(order)
    wide = torch.cat([SCORES, torch.full((4, more), 7.0)], dim=1)
    mask = torch.cat([MASK, torch.zeros(4, more, dtype=MASK.dtype)], dim=1)
    wide[0, 2] = 99.0
    ask = {"token_level_rewards": wide[order], "response_mask": mask[order], "index": UID[order]}
    advantages, _ = estimator(["grpo", "difficulty_weights"])(**ask)
    expected, _ = estimator(["grpo", "difficulty_weights"])(token_level_rewards=SCORES, response_mask=MASK, index=UID)
    assert torch.allclose(advantages[:, :3], expected[order], atol=1e-6)
    assert not advantages[:, 3:].any()


def test_what_verl_does_not_hand_over_is_refused():
    with pytest.raises(MissingField, match=r"'gae'.*which verl does not provide"):
        estimator("gae")
    with pytest.raises(RecipeError, match="verl gave no 'uid'"):
        estimator()(token_level_rewards=SCORES, response_mask=MASK)


def test_it_is_registered_under_its_name(monkeypatch):
    core = types.ModuleType("verl.trainer.ppo.core_algos")
    core.ADV_ESTIMATOR_REGISTRY = {"grpo": None, "gdpo": None}
    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, core.__name__, core)
    made = register("guerdon", "rloo")
    assert core.ADV_ESTIMATOR_REGISTRY["guerdon"] is made
    assert core.ADV_ESTIMATOR_REGISTRY["gdpo"] is None
    own = register("gdpo", ["gdpo", "difficulty_weights"])
    assert core.ADV_ESTIMATOR_REGISTRY["gdpo"] is own
    with pytest.raises(RecipeError, match="has an estimator 'grpo' already"):
        register("grpo")
