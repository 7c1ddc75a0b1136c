import torch

from guerdon.control.turns import at_first
from guerdon.credit.turn import turns_of


def test_the_first_action_speaks_for_its_turn():
    turn = torch.tensor([[-1, 0, 0, 2, 2], [1, 1, -1, 0, -1]])
    turns = turns_of(turn, turn >= 0)
    x = torch.arange(10.0).view(2, 5).masked_fill(turn < 0, torch.nan)
    assert at_first(turns, x)[turns.exists].tolist() == [1.0, 3.0, 8.0, 5.0]


def test_a_batch_without_actions_has_turns_to_fill():
    none = torch.zeros(3, 0)
    seen = at_first(turns_of(none.long(), none.bool()), none)
    assert seen.shape == (3, 1)
    assert (seen == 0).all()
