from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from guerdon import registry
from guerdon.errors import MissingField, RecipeError


class Pair(NamedTuple):
    advantage: Tensor
    returns: Tensor


def scaled(reward: Tensor, mask: Tensor, values: Tensor | None = None, *, scale: float = 2.0) -> Tensor:
    """Scale the reward."""
    offset = 0.0 if values is None else values.sum()
    return (scale * reward).unsqueeze(1) * mask + offset


def pair(reward: Tensor) -> tuple[Pair, dict[str, float]]:
    """Give two fields and a number."""
    return Pair(reward, 2 * reward), {"seen": 1.0}


class Memory:
    """Count the calls."""

    def __init__(self, *, start: int = 0) -> None:
        self.calls = start

    def __call__(self, reward: Tensor) -> Tensor:
        self.calls += 1
        return reward * self.calls

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def test_signature_tells_fields_options_and_outputs():
    method = registry.describe("credit", scaled)
    assert method.requires == ("reward", "mask")
    assert method.optional == ("values",)
    assert list(method.options.model_fields) == ["scale"]
    assert method.produces == ("advantage",)
    assert method.summary == "Scale the reward."
    assert registry.describe("credit", pair).produces == ("advantage", "returns")


def test_bound_method_takes_fields_by_name():
    fields = {"reward": torch.tensor([1.0, 3.0]), "mask": torch.ones(2, 2), "group": torch.zeros(2)}
    out = registry.describe("credit", scaled).bind({"scale": 3})(fields)
    assert torch.equal(out.fields["advantage"], torch.tensor([[3.0, 3.0], [9.0, 9.0]]))
    out = registry.describe("credit", pair).bind()(fields)
    assert torch.equal(out.fields["returns"], torch.tensor([2.0, 6.0]))
    assert out.stats == {"seen": 1.0}


def test_missing_field_names_method_field_and_remedy():
    with pytest.raises(MissingField, match=r"credit 'scaled' needs 'mask'.*every sampler supplies it"):
        registry.describe("credit", scaled).bind()({"reward": torch.ones(1)})


def test_parameter_that_is_no_field_is_refused():
    def wrong(rewards: Tensor) -> Tensor:
        return rewards

    with pytest.raises(RecipeError, match=r"'rewards' is not a batch field; did you mean 'reward'\?"):
        registry.describe("credit", wrong)


@pytest.mark.parametrize(
    ("params", "message"),
    [({"scal": 1}, "no option 'scal'; did you mean 'scale'"), ({"scale": "big"}, "'scale' is 'big'")],
)
def test_options_are_checked(params, message):
    with pytest.raises(RecipeError, match=message):
        registry.describe("credit", scaled).bind(params)


def test_memory_survives_a_restart():
    bound = registry.describe("shaping", Memory).bind({"start": 5})
    bound({"reward": torch.ones(1)})
    again = registry.describe("shaping", Memory).bind()
    again.load_state_dict(bound.state_dict())
    assert again({"reward": torch.ones(1)}).fields["reward"].item() == 7


def test_names_files_and_callables_resolve(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def plain(reward, mask, *, k: int = 1):\n    'Mine.'\n    return reward * k\n")
    assert registry.get("credit", f"{file}:plain").bind({"k": 2})({"reward": torch.ones(1), "mask": 1}).fields
    assert registry.get("credit", scaled).target is scaled
    assert registry.get("credit", "grpo").home == "guerdon.credit.group.grpo"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpro", "no credit 'gpro'; did you mean 'grpo'"),
        ("nowhere.at.all:f", "cannot import module 'nowhere.at.all'"),
        ("missing.py:f", "no file 'missing.py'"),
        ("guerdon.credit.group:gpro", "has no 'gpro'; did you mean 'grpo'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, message):
    with pytest.raises(RecipeError, match=message):
        registry.get("credit", name)


def test_a_name_is_given_once():
    def other(reward: Tensor) -> Tensor:
        return reward

    registry.load_home("credit")
    with pytest.raises(RecipeError, match=r"credit 'grpo' is already registered by guerdon\.credit\.group\.grpo"):
        registry.register("credit", "grpo")(other)


def test_every_registered_method_says_what_it_is():
    for stage in registry.HOMES:
        for method in registry.methods(stage):
            assert method.summary.endswith("."), f"{stage} {method.name}: docstring needs a first sentence"
