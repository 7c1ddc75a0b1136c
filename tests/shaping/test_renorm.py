import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.grouping import center
from guerdon.credit.turn import returns_to_go
from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.shaping.renorm import ReNorm, principle_score, renorm

quick = settings(derandomize=True, deadline=None, max_examples=40)
NAN, INF = float("nan"), float("inf")
NAMES = ("judge", "answer")


@quick
@given(score=st.floats(0, 1), outcome=st.sampled_from([0.0, 1.0]))
def test_the_outcome_decides_the_sign(score, outcome):
    out = renorm(torch.tensor([[score]]), torch.tensor([outcome]), torch.ones(1, 1, dtype=torch.bool)).item()
    assert out == pytest.approx(score + outcome - 1, abs=1e-6)
    assert out >= 0 if outcome else out <= 0


def test_a_shift_cancels_only_where_lengths_agree():
    random = torch.Generator().manual_seed(0)
    process = torch.rand(30, 4, generator=random, dtype=torch.float64)
    outcome = (torch.rand(30, generator=random) < 0.5).double()
    number, length = torch.arange(4).expand(30, 4), torch.randint(1, 5, (30, 1), generator=random)

    def advantage(steps, centre):
        return center(returns_to_go(renorm(process, outcome, steps, centre=centre)), number, steps)

    full, ragged = number >= 0, number < length
    torch.testing.assert_close(advantage(full, 1.0), advantage(full, 0.0))
    assert (advantage(ragged, 1.0) - advantage(ragged, 0.0)).abs().max() > 0.1
    torch.testing.assert_close(advantage(ragged, 1.0)[:, 3], advantage(ragged, 0.0)[:, 3])


def batch(**changed):
    """Two searches and an answer, right; a search and an answer, wrong; two searches, cut; nothing done."""
    turn = torch.tensor([[0, 0, 1, -1, 2], [0, 1, -1, -1, -1], [0, 1, 1, -1, -1], [-1] * 5])
    judged = torch.tensor([[0.8, 0.1, NAN], [1.0, NAN, NAN], [0.4, NAN, NAN], [NAN] * 3])
    outcome = torch.tensor([1.0, 0.0, NAN, 0.0])
    values = {
        "components": torch.stack([judged.nan_to_num(0.0).sum(dim=1), outcome], dim=1),
        "component_names": NAMES,
        "turn_reward": judged,
        "mask": turn >= 0,
        "turn": turn,
        "done": torch.tensor([True, True, False, False]),
    }
    return values | changed


def test_by_hand():
    method = ReNorm(outcome="answer")
    (reward, dense), stats = method(**batch())
    expected = torch.tensor(
        [[0, 0.8, 0.1, 0, 1.0], [0.0, 0, 0, 0, 0], [-0.6, 0, -0.5, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.float32
    )
    torch.testing.assert_close(dense, expected)
    torch.testing.assert_close(reward, expected.sum(dim=1))
    assert stats == {
        "centre": 1.0,
        "step": pytest.approx((0.8 + 0.1 + 0.0 - 0.6 - 0.5) / 5),
        "unreadable": pytest.approx(1 / 5),
    }


def test_the_sum_as_it_is():
    (_, dense), _ = ReNorm(outcome="answer", centre=0.0)(**batch())
    assert dense[0].tolist() == pytest.approx([0, 1.8, 1.1, 0, 1.0])
    assert dense[1].tolist() == pytest.approx([1.0, 0, 0, 0, 0])


def test_a_running_centre_follows_the_outcomes():
    method = ReNorm(outcome="answer", centre="running", rate=0.5)
    assert method(**batch())[1]["centre"] == 1.0
    assert method(**batch())[1]["centre"] == pytest.approx(0.5 + (0.5 + 0.25) / 2)
    again = ReNorm(outcome="answer", centre="running", rate=0.5)
    again.load_state_dict(method.state_dict())
    assert again(**batch())[1] == method(**batch())[1]
    fixed = ReNorm(outcome="answer")
    fixed(**batch())
    assert fixed(**batch())[1]["centre"] == 1.0


@quick
@given(seed=st.integers(0, 10**6))
def test_invariants(seed):
    random = torch.Generator().manual_seed(seed)
    turn = torch.randint(3, (5, 6), generator=random).sort(dim=1).values
    mask = torch.rand(5, 6, generator=random) > 0.4
    turn = turn.masked_fill(~mask, -1)
    outcome = torch.rand(5, generator=random).round()
    b = {"components": torch.stack([torch.rand(5, generator=random), outcome], dim=1), "component_names": NAMES}
    b |= {"turn_reward": torch.rand(5, 3, generator=random), "mask": mask, "turn": turn}
    b["done"] = torch.rand(5, generator=random) > 0.5
    (reward, dense), _ = ReNorm(outcome="answer")(**b)
    torch.testing.assert_close(dense.sum(dim=1), reward)
    assert (dense[~mask] == 0).all()
    last = torch.where(mask, turn, -1).amax(dim=1)
    steps = mask & ((turn < last.unsqueeze(1)) | ~b["done"].unsqueeze(1))
    assert (dense[steps & (outcome == 0).unsqueeze(1)] <= 0).all()
    assert (dense[outcome == 1] >= 0).all()
    there = torch.stack([(turn == m).any(dim=1) for m in range(3)], dim=1)
    spoiled = b | {"turn_reward": b["turn_reward"].masked_fill(~there, INF)}
    spoiled["components"] = torch.stack([torch.full((5,), NAN), outcome], dim=1)
    assert torch.equal(ReNorm(outcome="answer")(**spoiled)[0].dense, dense)
    order = torch.randperm(5, generator=random)
    moved = {name: x[order] if isinstance(x, torch.Tensor) else x for name, x in b.items()}
    assert torch.equal(ReNorm(outcome="answer")(**moved)[0].dense, dense[order])


def test_scores_that_cannot_be_read_are_one_half():
    score = torch.tensor([3.0, 7.0, -1.0, 2.0, NAN, 2.0])
    most = torch.tensor([5.0, 5.0, 5.0, 0.0, 5.0, NAN])
    out, stats = principle_score(score, most)
    assert out.tolist() == pytest.approx([0.6, 1.0, 0.0, 0.5, 0.5, 0.5])
    assert stats == {"unreadable": 0.5}
    assert principle_score(torch.zeros(0), torch.zeros(0))[1] == {"unreadable": 0.0}


def test_the_outcome_must_be_a_reward():
    with pytest.raises(RecipeError, match="renorm: no reward is called 'answr'; did you mean 'answer'"):
        ReNorm(outcome="answr")(**batch())


def test_in_a_recipe_it_is_bound_by_name():
    method = get("shaping", "renorm")
    assert method.produces == ("reward", "dense")
    assert set(method.bind({"outcome": "answer"})(batch()).fields) == {"reward", "dense"}
    with pytest.raises(RecipeError, match="'centre.float' is 'mean'"):
        method.bind({"outcome": "answer", "centre": "mean"})
