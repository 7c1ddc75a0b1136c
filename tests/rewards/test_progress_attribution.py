import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.rewards.progress_attribution import (
    ProgressAttribution,
    ProgressEstimator,
    progress_loss,
    progress_reward,
    turn_contributions,
)

quick = settings(derandomize=True, deadline=None, max_examples=40)
TURN = torch.tensor([[0, 0, -1, 1, 1, 2], [0, 1, 1, -1, -1, -1]])


def walks(n, generator, turns=6, places=4):
    """Walks of 2 to ``turns`` turns along a line; what a turn earns is the difference of places."""
    length = torch.randint(2, turns + 1, (n, 1), generator=generator)
    step = torch.randint(0, 2, (n, turns), generator=generator)
    place = torch.cat([torch.zeros(n, 1, dtype=torch.long), step.cumsum(1)], 1).clamp(max=places)
    exists = torch.arange(turns) < length
    turn = torch.where(exists, torch.arange(turns), -1)
    keys = torch.where(exists, place[:, :-1], -7)
    reward = place.gather(1, length - 1).squeeze(1).double()
    return reward, keys, turn, exists, torch.zeros(n, dtype=torch.bool)


def test_contributions_stand_at_the_ends_of_turns():
    estimate = torch.arange(12.0).reshape(2, 6)
    estimate[0, 2] = estimate[1, 4] = float("nan")
    assert turn_contributions(estimate, TURN, TURN >= 0).tolist() == [[1, 4, 5], [6, 8, 0]]
    assert (
        turn_contributions(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3).bool()).shape[0]
        == 0
    )


def test_loss_and_gradient_by_hand():
    estimate = torch.full((2, 6), 0.25, requires_grad=True)
    loss = progress_loss(turn_contributions(estimate, TURN, TURN >= 0), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((0.25**2 + 0.5**2) / 2)
    (gradient,) = torch.autograd.grad(loss, estimate)
    # d/dc of each row's half of the square, at the ends of turns alone.
    assert gradient.tolist() == [[0, -0.25, 0, 0, -0.25, -0.25], [0.5, 0, 0.5, 0, 0, 0]]


def test_reward_of_turns_by_hand():
    contribution = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.25, float("nan")]])
    grounded = torch.tensor([[True, False, False], [False, False, True]])
    exists = torch.tensor([[True, True, True], [True, True, False]])
    paid = progress_reward(contribution, grounded, exists)
    assert paid.flatten().tolist() == pytest.approx([0.6, 0.2, 0.8, 0.5, 0.75, 0.0])
    cost = progress_reward(contribution, grounded, exists, alpha=2.0, ground="penalty")
    assert cost.flatten().tolist() == pytest.approx([0.2, -0.1, 0.6, 0.5, 0.5, 0.0])


def test_a_bonus_pays_for_length_and_a_penalty_does_not():
    def paid(turns, ground):
        exists = torch.ones(1, turns, dtype=torch.bool)
        return progress_reward(torch.full((1, turns), 1 / turns), exists, exists, ground=ground).sum().item()

    assert [paid(n, "bonus") for n in (2, 10)] == pytest.approx([2.0, 6.0])
    assert [paid(n, "penalty") for n in (2, 10)] == pytest.approx([1.0, 1.0])


def test_estimator_learns_the_worth_of_turns_from_sums():
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 4, (200, 5), generator=generator)
    worth = torch.tensor([0.0, 0.25, 0.5, 0.0])
    turn = torch.arange(5).expand(200, 5)
    features = torch.nn.functional.one_hot(kind, 4).float()
    model = ProgressEstimator(4)
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    assert model(features).abs().max() == 0
    for _ in range(200):
        loss = progress_loss(turn_contributions(model(features), turn, turn >= 0), worth[kind].sum(1))
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert (model(torch.eye(4)) - worth).abs().max() < 0.02


def test_table_recovers_what_transitions_earn():
    method = ProgressAttribution(beta=0.0, passes=200)
    reward, keys, turn, mask, done = walks(300, torch.Generator().manual_seed(0))
    out, stats = method(reward, keys, turn, mask, done)
    assert stats["miss"] < 0.02
    moved = torch.where(mask[:, 1:], (keys[:, 1:] - keys[:, :-1]).double(), 0.0)
    torch.testing.assert_close(out.dense[:, :-1], moved, atol=0.05, rtol=0)
    torch.testing.assert_close(out.dense.sum(1), out.reward)
    assert bool((out.dense[~mask] == 0).all())


def test_until_it_has_explored_the_outcome_stands_at_the_end():
    method = ProgressAttribution(explore=40)
    batch = walks(20, torch.Generator().manual_seed(1))
    out, stats = method(*batch)
    assert stats == {}
    torch.testing.assert_close(out.reward, batch[0])
    torch.testing.assert_close(out.dense.sum(1), batch[0])
    assert int((out.dense != 0).sum()) <= 20
    assert method(*batch)[1] != {}


def test_memory_survives_a_checkpoint_and_is_bounded():
    first, again = ProgressAttribution(memory=30), ProgressAttribution(memory=30)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        first(*walks(20, generator))
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert len(first.state_dict()["stored"]) == 30
    batch = walks(20, generator, turns=8, places=7)
    for mine, theirs in zip(first(*batch)[0], again(*batch)[0], strict=True):
        assert torch.equal(mine, theirs)


def test_long_trajectories_and_broken_outcomes_teach_nothing():
    method = ProgressAttribution(beta=0.0, max_turns=3)
    reward, keys, turn, mask, done = walks(20, torch.Generator().manual_seed(3))
    reward[0] = float("nan")
    method(reward, keys, turn, mask, done)
    length = mask.sum(1)
    # The last turn of a trajectory that was cut counts for nothing.
    assert len(method.state_dict()["stored"]) == int(((length - 1 < 3) & reward.isfinite()).sum())


@quick
@given(seed=st.integers(0, 1000), n=st.integers(1, 8))
def test_invariants(seed, n):
    reward, keys, turn, mask, done = walks(n, torch.Generator().manual_seed(seed))
    out, _ = ProgressAttribution()(reward, keys, turn, mask, done)
    assert bool(out.dense.isfinite().all())
    torch.testing.assert_close(out.dense.sum(1), out.reward)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    moved, _ = ProgressAttribution()(reward[order], keys[order], turn[order], mask[order], done[order])
    torch.testing.assert_close(moved.dense, out.dense[order])
    pad = torch.nn.functional.pad
    wide, _ = ProgressAttribution()(
        reward, pad(keys, (0, 2), value=99), pad(turn, (0, 2), value=-1), pad(mask, (0, 2)), done
    )
    torch.testing.assert_close(wide.dense[:, :-2], out.dense)
