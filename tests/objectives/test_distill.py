import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.objectives.distill import guided_thought, thought_action_clip
from guerdon.objectives.policy import ppo_clip
from guerdon.registry import get

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
TAUGHT = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool()


def test_only_corrected_thoughts_are_imitated():
    logp = torch.tensor([[-1.0, -3.0, -9.0, math.nan], [-9.0, -9.0, math.nan, math.nan]], requires_grad=True)
    loss, stats = guided_thought(logp, MASK, TAUGHT)
    assert loss.item() == pytest.approx(2.0)
    assert stats == {"nll": 2.0, "tokens": 2.0}
    loss.backward()
    assert logp.grad.tolist() == [[-0.5, -0.5, 0, 0], [0, 0, 0, 0]]
    assert guided_thought(logp, MASK, TAUGHT, beta=0.25)[0].item() == pytest.approx(0.5)
    whole = guided_thought(logp, MASK, TAUGHT, aggregate="sum_over_max_length", max_length=4)[0]
    assert whole.item() == pytest.approx(4 / 8)


def test_without_thoughts_there_is_no_loss_and_no_gradient():
    logp = torch.full((2, 4), -1.0, requires_grad=True)
    loss, stats = guided_thought(logp, MASK, torch.zeros_like(MASK))
    loss.backward()
    assert (loss.item(), stats["tokens"]) == (0.0, 0.0)
    assert not logp.grad.any()


def test_the_ratio_of_a_turn_is_that_of_its_action_and_a_little_of_its_thought():
    logp = torch.tensor([[0.1, 0.2, 0.05, 0.03]], requires_grad=True)
    old, mask, turn = torch.zeros(1, 4), torch.ones(1, 4).bool(), torch.zeros(1, 4).long()
    marks = {"thought": torch.tensor([[1, 1, 0, 0]]).bool()}
    advantage = torch.tensor([[9.0, 9.0, 9.0, 2.0]])
    loss, _ = thought_action_clip(logp, old, advantage, mask, turn, marks)
    assert loss.item() == pytest.approx(-2 * math.exp(0.08))
    loss.backward()
    assert logp.grad[0, :2].tolist() == [0, 0]
    assert logp.grad[0, 2:].tolist() == pytest.approx([-2 * math.exp(0.08)] * 2)
    weighed, _ = thought_action_clip(logp, old, advantage, mask, turn, marks, thought_weight=0.1)
    assert weighed.item() == pytest.approx(-2 * math.exp(0.11))
    clipped, stats = thought_action_clip(logp, old, advantage, mask, turn, marks, thought_weight=1.0)
    assert clipped.item() == pytest.approx(-2 * 1.2)
    assert stats["clip_fraction"] == 1.0


def test_turns_stand_apart_and_those_without_an_action_do_not_count():
    logp = torch.tensor([[0.1, 0.1, 0.3, -0.1, 5.0, math.nan]])
    old = torch.zeros(1, 6)
    mask, turn = torch.tensor([[1, 1, 1, 1, 1, 0]]).bool(), torch.tensor([[0, 0, 1, 1, 2, -1]])
    marks = {"thought": torch.tensor([[1, 0, 1, 0, 1, 1]]).bool()}
    advantage = torch.tensor([[0.0, 1.0, 0.0, -1.0, 7.0, math.nan]])
    loss, _ = thought_action_clip(logp, old, advantage, mask, turn, marks)
    assert loss.item() == pytest.approx(-(math.exp(0.1) - math.exp(-0.1)) / 2)


def test_with_one_token_a_turn_it_is_ppo():
    generator = torch.Generator().manual_seed(0)
    logp, old, advantage = torch.randn(3, 4, 5, generator=generator) * 0.3
    mask = torch.rand(4, 5, generator=generator) < 0.7
    turn = torch.arange(5).expand(4, 5)
    ours, _ = thought_action_clip(logp, old, advantage, mask, turn)
    assert torch.allclose(ours, ppo_clip(logp, old, advantage, mask)[0])
    none, _ = thought_action_clip(logp, old, advantage, mask, turn, {"other": mask})
    assert torch.allclose(none, ours)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000))
def test_rows_padding_and_what_is_masked_do_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    logp, old, advantage = torch.randn(3, 4, 6, generator=generator) * 0.3
    mask = torch.rand(4, 6, generator=generator) < 0.7
    turn = torch.randint(3, (4, 6), generator=generator).sort(dim=1).values
    thought = torch.rand(4, 6, generator=generator) < 0.5
    loss, _ = thought_action_clip(logp, old, advantage, mask, turn, {"thought": thought}, thought_weight=0.2)
    order = torch.randperm(4, generator=generator)
    dirty = [torch.where(mask, x, math.nan)[order] for x in (logp, old, advantage)]
    dirty = [torch.nn.functional.pad(x, (0, 2), value=math.nan) for x in dirty]
    pads = [torch.nn.functional.pad(x[order], (0, 2)) for x in (mask, torch.where(mask, turn, 99), thought)]
    again, _ = thought_action_clip(*dirty, pads[0], pads[1], {"thought": pads[2]}, thought_weight=0.2)
    assert torch.allclose(loss, again, atol=1e-6)


def test_they_are_registered():
    assert "external" in get("term", "guided_thought").requires
    assert get("objective", "thought_action_clip").optional == ("marks",)
