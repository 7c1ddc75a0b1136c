from itertools import pairwise

import torch

from guerdon.claims.credit_and_agents.internal_rl import f1
from guerdon.claims.testbeds.colours import (
    COLOURS,
    LENGTH,
    PLACES,
    Imitator,
    errand,
    habits,
    in_order,
    move,
    same_quarter,
    shifted,
    towards,
    walk,
)


def test_the_first_move_tells_the_goal():
    for here in range(COLOURS):
        others = torch.tensor([there for there in range(COLOURS) if there != here])
        assert sorted(towards(PLACES[here].expand(8), others).tolist()) == list(range(8))


def test_walkers_arrive_where_they_choose_anew():
    data = walk(50, torch.Generator().manual_seed(0), habits(0, 0.1))
    at_colour = (data.cell.unsqueeze(2) == PLACES).any(dim=2)
    assert torch.equal(at_colour, data.fresh)
    assert torch.equal(move(data.cell[:, :-1].flatten(), data.action[:, :-1].flatten()), data.cell[:, 1:].flatten())
    gaps = data.fresh.nonzero()[:, 1].diff()
    assert set(gaps[gaps > 0].tolist()) <= {4, 5, 6}


def test_habits_are_chances_and_errands_leave_the_quarter():
    for rare in (0.1, 0.75):
        chance = habits(3, rare)
        assert torch.allclose(chance.sum(dim=1), torch.ones(COLOURS))
        assert torch.allclose(chance[~same_quarter(3)], torch.tensor(rare / 6))
    start, order = errand(3, 4)
    path = [start, *order.tolist()]
    assert len(set(path)) == 5
    assert not any(same_quarter(3)[a, b] for a, b in pairwise(path))


def test_orders_may_be_interrupted_and_not_reversed():
    cell = PLACES[torch.tensor([[0, 1, 5, 2], [0, 2, 5, 1], [1, 2, 1, 2]])]
    assert in_order(cell, torch.tensor([1, 2])).tolist() == [True, False, True]


def test_a_step_at_a_time_gives_the_logits_of_the_whole():
    model, data = Imitator(0), walk(3, torch.Generator().manual_seed(0), habits(0, 0.1))
    before, lower, upper, columns = shifted(data.action), None, None, []
    for t in range(LENGTH):
        seen, lower = model.step(data.cell[:, t], before[:, t], t, lower)
        logits, upper = model.answer(seen, upper)
        columns.append(logits)
    assert torch.allclose(torch.stack(columns, dim=1), model(data.cell, before), atol=1e-5)


def test_a_firing_answers_one_arrival():
    fresh = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 1]]).bool()
    assert f1(fresh, fresh) == 1.0
    assert f1(fresh.roll(1, dims=1), fresh) == 0.5
    assert f1(torch.ones(1, 8).bool(), fresh) == 2 * 2 / (7 + 2)
    assert f1(torch.zeros(1, 8).bool(), fresh) == 0.0
