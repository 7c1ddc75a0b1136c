import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from guerdon.rollouts import Fields, at_last_action, join, make_rollouts, pad_actions, total


def batch(mask, **fields):
    mask = torch.tensor(mask, dtype=torch.bool)
    n = len(mask)
    return make_rollouts(
        torch.arange(n) // 2,
        torch.arange(n),
        mask,
        torch.full(mask.shape, -1.0),
        done=torch.ones(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool),
        payload={"x": torch.arange(n)},
        **fields,
    )


def test_selecting_keeps_every_field_in_step():
    rollouts = batch([[1, 1], [1, 0], [1, 1]], text=["a", "b", "c"], values=torch.arange(6.0).view(3, 2))
    rollouts.rewards["r"] = torch.tensor([1.0, 2.0, 3.0])
    part = rollouts[torch.tensor([2, 0])]
    assert list(part.text) == ["c", "a"]
    assert part.values.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert part.rewards["r"].tolist() == [3.0, 1.0]
    assert part.payload["x"].tolist() == [2, 0]
    assert len(torch.cat([part, part])) == 4


@pytest.mark.parametrize("answers", [[1, 2, 3], [1.5, 2, "c"], [[1], [2], [3]], [None, {"a": 1}, "x"]])
def test_answers_keep_their_types(answers):
    rollouts = batch([[1], [1], [1]], answer=answers)
    assert list(rollouts.answer) == answers
    assert [type(a) for a in rollouts.answer] == [type(a) for a in answers]
    assert list(rollouts[torch.tensor([2, 0])].answer) == [answers[2], answers[0]]


def test_what_lies_off_the_mask_is_cleared():
    rollouts = batch([[1, 0]])
    assert rollouts.old_logp.tolist() == [[-1.0, 0.0]]
    assert rollouts.turn.tolist() == [[0, -1]]


def test_last_action_skips_holes_and_empty_rows():
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    placed = at_last_action(torch.tensor([5.0, 7.0, 9.0]), mask)
    assert placed.tolist() == [[0, 5, 0], [0, 0, 7], [0, 0, 0]]


def test_padding_adds_columns_only():
    assert pad_actions(torch.ones(2, 1), 3, value=-1).tolist() == [[1, -1, -1], [1, -1, -1]]
    assert pad_actions(torch.ones(2, 3), 2).shape == (2, 3)


def test_components_sum_actions_and_keep_the_recipe_order():
    rollouts = batch([[1, 1], [1, 0]])
    rollouts.rewards["late"] = torch.tensor([1.0, 2.0])
    rollouts.rewards["each"] = torch.tensor([[1.0, 1.0], [3.0, 0.0]])
    fields = Fields(rollouts, component_names=("each", "late"))
    assert fields["components"].tolist() == [[2.0, 1.0], [3.0, 2.0]]


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5), st.floats(-3, 3))
def test_dense_rewards_sum_to_the_shaped_outcome(mask, weight):
    rollouts = batch(mask)
    n = len(mask)
    rollouts.rewards["each"] = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    rollouts.reward = torch.arange(n, dtype=torch.float32)
    dense = Fields(rollouts, component_weights=torch.tensor([weight]))["dense"]
    acted = rollouts.mask.any(dim=1)
    assert torch.allclose(dense.sum(dim=1)[acted], rollouts.reward[acted], atol=1e-5)
    assert (dense[~rollouts.mask] == 0).all()


def test_dense_keeps_weighted_action_rewards_before_the_last_action():
    rollouts = batch([[1, 1, 1]])
    rollouts.rewards["each"] = torch.tensor([[1.0, 2.0, 3.0]])
    rollouts.reward = torch.tensor([20.0])
    dense = Fields(rollouts, component_weights=torch.tensor([2.0]))["dense"]
    assert dense.tolist() == [[2.0, 4.0, 14.0]]


def test_fields_hold_what_exists_and_nothing_else():
    fields = Fields(batch([[1, 0]]), step=3)
    assert fields["step"] == 3
    assert fields["length"].tolist() == [1]
    assert "values" not in fields
    assert "components" not in fields
    with pytest.raises(KeyError):
        fields["no such field"]


def test_total_of_turns_and_actions():
    mask = torch.tensor([[1, 1, 0]]).bool()
    assert total(torch.tensor([2.0]), mask).tolist() == [2.0]
    assert total(torch.tensor([[1.0, 2.0, 50.0]]), mask).tolist() == [3.0]
    assert total(torch.tensor([[1.0, 2.0]]), mask).tolist() == [3.0]


def test_joining_pads_actions_and_fills_what_is_missing():
    short = batch([[1], [1]], text=["a", "b"], ref_logp=torch.full((2, 1), -3.0))
    long = batch([[1, 1, 1], [1, 1, 0]], reward=torch.tensor([1.0, 2.0]), external=torch.tensor([[True] * 3] * 2))
    short.rewards["r"], short.watch["w"] = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0])
    long.rewards["r"], long.rewards["dense"] = torch.tensor([3.0, 4.0]), torch.arange(6.0).view(2, 3)
    long.marks = TensorDict({"thought": torch.tensor([[True, False, False]] * 2)}, [2])
    joined = join([short, long], torch.cat([short.payload, long.payload]))
    assert joined.mask.int().tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]
    assert joined.turn.tolist() == [[0, -1, -1], [0, -1, -1], [0, 0, 0], [0, 0, -1]]
    assert joined.old_logp.sum(dim=1).tolist() == [-1, -1, -3, -2]
    assert joined.ref_logp.tolist() == [[-3, 0, 0], [-3, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert joined.external.int().tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert list(joined.text) == ["a", "b", None, None]
    assert joined.reward.isnan().tolist() == [True, True, False, False]
    assert joined.reward[2:].tolist() == [1, 2]
    assert joined.rewards["r"].tolist() == [1, 2, 3, 4]
    assert joined.rewards["dense"].tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 2], [3, 4, 5]]
    assert joined.watch["w"][2:].isnan().all()
    assert joined.marks["thought"].int().tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert joined.payload["x"].tolist() == [0, 1, 0, 1]
    assert joined.advantage is None


def test_a_column_per_component_is_not_taken_for_one_per_action():
    two = batch([[1, 1]], components=torch.ones(1, 2))
    three = batch([[1, 1, 1]], components=torch.ones(1, 2))
    assert join([two, three], torch.cat([two.payload, three.payload])).components.shape == (2, 2)
