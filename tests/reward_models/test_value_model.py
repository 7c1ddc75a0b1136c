import json

import pytest
import torch

from guerdon.reward_models.value import InContextValue


def axes(texts):
    """A vector for each first letter."""
    return torch.tensor([[float(text[:1] == letter) for letter in "abc"] for text in texts])


def model(**options):
    return InContextValue(embed=axes, **options)


def test_neighbours_by_hand():
    value = model()
    assert value(["a1", "b1"]).tolist() == [0.5, 0.5]
    value.observe(["a1", "a2", "b1"], torch.tensor([1.0, 0.5, 0.0]))
    # Two a's, each of cosine 1, and the prior once; a c is like no other.
    assert value(["a9", "b9", "c9"]).tolist() == pytest.approx([(0.5 + 1.5) / 3, 0.5 / 2, 0.5])
    few = model(neighbours=1, prior=0.0)
    few.observe(["a1", "b1"], torch.tensor([1.0, 1.0]))
    assert few(["a9"]).tolist() == [0.5]


def test_new_outcomes_replace_old_ones_and_the_oldest_go():
    value = model(capacity=2)
    value.observe(["a1", "b1"], torch.tensor([0.0, 1.0]))
    value.observe(["a1"], torch.tensor([1.0]))
    assert value(["a9", "b9"]).tolist() == pytest.approx([0.75, 0.75])
    value.observe(["c1"], torch.tensor([0.0]))
    assert list(value.support) == ["a1", "c1"]
    assert value(["b9"]).tolist() == [0.5]


def test_it_is_refitted_every_few_batches():
    value = model(refit_every=2)
    value.observe(["a1"], torch.tensor([1.0]))
    assert value(["a9"]).tolist() == [0.5]
    saved = json.loads(json.dumps(value.state_dict()))
    value.observe(["b1"], torch.tensor([0.0]))
    assert value(["a9", "b9"]).tolist() == [0.75, 0.25]
    resumed = model(refit_every=2)
    resumed.load_state_dict(saved)
    assert resumed(["a9"]).tolist() == [0.5]
    resumed.observe(["b1"], torch.tensor([0.0]))
    assert resumed(["a9", "b9"]).tolist() == [0.75, 0.25]


def test_binarised_means_predict_passing():
    value = model(binarise=0.5, prior=0.0)
    value.observe(["a1", "b1"], torch.tensor([0.5, 0.4]))
    assert value(["a9", "b9"]).tolist() == [0.5, 0.0]


def test_a_logistic_head_follows_its_support_when_the_policy_changes():
    value = model(head="logistic")
    prompts = [f"{letter}{i}" for letter in "ab" for i in range(10)]
    value.observe(prompts, torch.tensor([0.9] * 10 + [0.1] * 10))
    high, low = value(["a99", "b99"]).tolist()
    assert high == pytest.approx(0.85, abs=0.06)
    assert low == pytest.approx(1 - high, abs=1e-3)
    value.observe(prompts, torch.tensor([0.1] * 10 + [0.9] * 10))
    assert value(["a99", "b99"]).tolist() == pytest.approx([low, high], abs=1e-3)
    with torch.no_grad():
        value.observe(prompts, torch.tensor([0.9] * 10 + [0.1] * 10))
    assert value(["a99"]).item() == pytest.approx(high, abs=1e-3)


def test_spelling_generalises_by_default():
    value = InContextValue()
    value.observe([f"add {i} and {i + 1}" for i in range(4)], torch.ones(4))
    value.observe([f"spell word{i} backward" for i in range(4)], torch.zeros(4))
    easy, hard = value(["add 8 and 9", "spell word9 backward"]).tolist()
    assert easy > 0.7
    assert hard < 0.3
