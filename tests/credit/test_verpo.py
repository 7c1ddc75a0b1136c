import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import registry
from guerdon.credit.group import dr_grpo, grpo
from guerdon.credit.verpo import verpo
from guerdon.errors import RecipeError

quick = settings(derandomize=True, deadline=None, max_examples=60)
NAMES = {"outcome": "right", "local": "worth"}
# group, right, and of each attempt its actions and its worth
TRAJECTORY = st.tuples(
    st.integers(0, 2), st.booleans(), st.lists(st.tuples(st.integers(1, 2), st.floats(0, 1)), min_size=1, max_size=3)
)


def fields(trajectories, width=0, garbage=0.0):
    width = max([width, *(sum(n for n, _ in attempts) for _, _, attempts in trajectories)])
    most = max(len(attempts) for _, _, attempts in trajectories)
    turn = torch.full((len(trajectories), width), -1)
    worth = torch.full((len(trajectories), most), garbage, dtype=torch.float64)
    for i, (_, _, attempts) in enumerate(trajectories):
        flat = [k for k, (n, _) in enumerate(attempts) for _ in range(n)]
        turn[i, : len(flat)] = torch.tensor(flat)
        worth[i, : len(attempts)] = torch.tensor([w for _, w in attempts], dtype=torch.float64)
    columns = torch.tensor([[a[-1][1], float(r)] for _, r, a in trajectories], dtype=torch.float64)
    group = torch.tensor([7 - g for g, _, _ in trajectories])
    return columns, ("worth", "right"), group, turn >= 0, turn, worth


def by_hand(trajectories, beta, gamma):
    whole = [gamma ** len(a) if right else 0.0 for _, right, a in trajectories]
    out = []
    for i, (group, _, attempts) in enumerate(trajectories):
        mine = [j for j, other in enumerate(trajectories) if other[0] == group]
        centre = statistics.fmean(w for j in mine for _, w in trajectories[j][2])
        above = whole[i] - statistics.fmean(whole[j] for j in mine)
        out.append([above + beta * (worth - centre) for n, worth in attempts for _ in range(n)])
    return out


def at_actions(x, mask):
    return [row[keep].tolist() for row, keep in zip(x, mask, strict=True)]


@quick
@given(st.lists(TRAJECTORY, min_size=1, max_size=6), st.sampled_from([0.0, 0.5]), st.sampled_from([0.9, 1.0]))
def test_credit_is_what_lists_of_attempts_say(trajectories, beta, gamma):
    given_fields = fields(trajectories)
    credit, stats = verpo(*given_fields, **NAMES, beta=beta, gamma=gamma)
    for got, want in zip(at_actions(credit, given_fields[3]), by_hand(trajectories, beta, gamma), strict=True):
        assert got == pytest.approx(want, abs=1e-9)
    groups = {g for g, _, _ in trajectories}
    silent = [g for g in groups if all(credit[i].eq(0).all() for i, t in enumerate(trajectories) if t[0] == g)]
    assert stats["silent"] == pytest.approx(len(silent) / len(groups))


@quick
@given(st.lists(TRAJECTORY, min_size=1, max_size=6), st.integers(0, 99))
def test_padding_garbage_and_order_do_not_matter(trajectories, seed):
    order = torch.randperm(len(trajectories), generator=torch.Generator().manual_seed(seed)).tolist()
    plain, wide = fields(trajectories), fields([trajectories[i] for i in order], width=9, garbage=float("nan"))
    for options in ({}, {"scale": True}):
        credit, spread = (verpo(*x, **NAMES, **options)[0] for x in (plain, wide))
        assert (spread[~wide[3]] == 0).all()
        for place, i in enumerate(order):
            assert at_actions(spread, wide[3])[place] == pytest.approx(at_actions(credit, plain[3])[i], abs=1e-9)


def test_one_attempt_takes_its_worth_from_the_named_reward():
    columns = torch.tensor([[0.5, 0.0], [0.1, 0.0], [0.9, 1.0]], dtype=torch.float64)
    group, mask = torch.zeros(3, dtype=torch.int64), torch.ones(3, 2, dtype=torch.bool)
    credit, stats = verpo(columns, ("worth", "right"), group, mask, mask.long() - 1, **NAMES)
    assert credit[:, 0].tolist() == pytest.approx([-0.3, -0.5, 0.8])
    assert stats == pytest.approx({"outcome_size": 0.4, "local_size": 0.8 / 3, "silent": 0.0})


def test_without_one_part_it_is_the_other():
    columns = torch.tensor([[0.5, 0.0], [0.1, 1.0], [0.9, 1.0]], dtype=torch.float64)
    group, mask = torch.zeros(3, dtype=torch.int64), torch.ones(3, 2, dtype=torch.bool)
    rest = (columns, ("worth", "right"), group, mask, mask.long() - 1)
    outcome = verpo(*rest, **NAMES, beta=0.0, gamma=1.0)[0]
    assert torch.allclose(outcome, dr_grpo(columns[:, 1], group, mask))
    local = verpo(*rest, **NAMES, outcome_weight=0.0, beta=1.0)[0]
    assert torch.allclose(local, dr_grpo(columns[:, 0], group, mask))
    scaled = verpo(*rest, **NAMES, beta=0.0, scale=True, eps=1e-4, gamma=1.0)[0]
    assert torch.allclose(scaled, grpo(columns[:, 1], group, mask))


def test_a_group_that_fails_still_tells_attempts_apart():
    columns = torch.tensor([[0.5, 0.0], [0.1, 0.0]], dtype=torch.float64)
    rest = (("worth", "right"), torch.zeros(2).long(), torch.ones(2, 1).bool(), torch.zeros(2, 1).long())
    credit, stats = verpo(columns, *rest, **NAMES)
    assert credit[:, 0].tolist() == pytest.approx([0.1, -0.1])
    assert stats["silent"] == 0.0
    assert verpo(columns, *rest, **NAMES, beta=0.0)[1]["silent"] == 1.0


def test_alone_in_a_group_and_rewards_that_do_not_apply():
    columns = torch.tensor([[0.5, 1.0], [float("nan"), float("nan")], [0.2, 0.0]], dtype=torch.float64)
    rest = (("worth", "right"), torch.tensor([0, 1, 1]), torch.ones(3, 1).bool(), torch.zeros(3, 1).long())
    credit = verpo(columns, *rest, **NAMES)[0][:, 0]
    assert credit.tolist() == pytest.approx([0.0, -0.05, 0.05])


def test_unknown_rewards_are_refused():
    rest = (torch.zeros(1).long(), torch.ones(1, 1).bool(), torch.zeros(1, 1).long())
    with pytest.raises(RecipeError, match="no reward is called 'python_tests'"):
        verpo(torch.ones(1, 1), ("right",), *rest)
    with pytest.raises(RecipeError, match="no reward is called 'worth'"):
        verpo(torch.ones(1, 1), ("right",), *rest, **NAMES)


def test_an_empty_batch():
    empty = torch.zeros(0, 2)
    assert verpo(empty, ("worth", "right"), torch.zeros(0).long(), empty.bool(), empty.long(), **NAMES)[0].shape == (
        0,
        2,
    )


def test_recipes_find_it():
    method = registry.get("credit", "verpo")
    assert method.requires == ("components", "component_names", "group", "mask", "turn")
    assert method.optional == ("turn_reward",)
