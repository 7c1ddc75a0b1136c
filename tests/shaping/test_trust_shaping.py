import json
import math

import pytest
import torch

from guerdon.errors import RecipeError
from guerdon.registry import get
from guerdon.shaping.trust import Trapo

NAMES = ("true", "vote")
TASKS = torch.tensor([7, 7, 8, 8, 9, 9])


def batch(step, steps=6):
    """Problem 7 has a label and improves; the vote on 8 does as well, that on 9 falls."""
    up, down = step / steps, 1 - step / steps
    nan = math.nan
    return torch.tensor([[up, 1.0], [up, 0.0], [nan, up], [nan, up], [nan, down], [nan, down]])


def test_the_vote_counts_where_it_is_trusted():
    trapo = Trapo(labelled="true", vote="vote", warmup=3, topk=0.0)
    for step in range(6):
        seen, stats = trapo(batch(step), NAMES, TASKS)
        assert torch.equal(seen[:2, 0], batch(step)[:2, 0])
        assert seen[:2, 1].isnan().all(), "a label is all that counts where there is one"
        assert seen[4:, 1].isnan().all()
        assert bool(seen[2:4, 1].isnan().all()) == (step < 3)
        assert stats["accepted"] == (0.5 if step >= 3 else 0)
    assert stats["reference"] == 2
    state = json.loads(json.dumps(trapo.state_dict()))
    other = Trapo(labelled="true", vote="vote", warmup=3, topk=0.0)
    other.load_state_dict(state)
    torch.testing.assert_close(other(batch(6), NAMES, TASKS)[0], trapo(batch(6), NAMES, TASKS)[0], equal_nan=True)


def test_it_does_not_depend_on_the_order_of_rows():
    first, second = (Trapo(labelled="true", vote="vote", warmup=2) for _ in range(2))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for step in range(4):
        seen, _ = first(batch(step), NAMES, TASKS)
        moved, _ = second(batch(step)[order], NAMES, TASKS[order])
        torch.testing.assert_close(moved, seen[order], equal_nan=True)


def test_an_audit_hides_labels_and_says_how_often_the_vote_is_right():
    trapo = Trapo(labelled="true", vote="vote", warmup=2, topk=0.0, audit=0.5)
    hidden = next(key for key in range(100) if trapo._audited(key))
    shown = next(key for key in range(100) if not trapo._audited(key))
    tasks = torch.tensor([shown, shown, hidden, hidden])
    for step in range(4):
        up = step / 4
        rows = torch.tensor([[up, 1.0], [up, 1.0], [1.0, up], [0.0, up]])
        seen, stats = trapo(rows, NAMES, tasks)
        assert seen[2:, 0].isnan().all()
    assert stats["audit_accuracy"] == 0.5
    assert stats["accepted"] == 1.0


def test_nothing_at_all():
    seen, stats = Trapo(labelled="true", vote="vote")(torch.zeros(0, 2), NAMES, torch.zeros(0).long())
    assert seen.shape == (0, 2)
    assert stats["accepted"] == 0


def test_wrong_names_are_refused():
    with pytest.raises(RecipeError, match="both 'a'; name two rewards"):
        get("shaping", "trapo").bind({"labelled": "a", "vote": "a"})
    with pytest.raises(RecipeError, match="no reward is called 'vot'; did you mean 'vote'"):
        Trapo(labelled="true", vote="vot")(torch.zeros(1, 2), NAMES, torch.zeros(1).long())
