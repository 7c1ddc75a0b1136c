import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import registry
from guerdon.credit.group import grpo
from guerdon.credit.process_filter import process_filter
from guerdon.curriculum.process_filter import process_consistency_filter

quick = settings(derandomize=True, deadline=None, max_examples=80)
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.booleans(), st.integers(1, 4)), min_size=1, max_size=14
)  # group, right, steps


def kept(rows, keep, scores=None, **options):
    score = torch.arange(len(rows)).double() if scores is None else torch.tensor(scores, dtype=torch.float64)
    group, right, steps = (torch.tensor([row[k] for row in rows]) for k in range(3))
    return process_consistency_filter(score, steps, right, 5 - group, keep=keep, **options)


@pytest.mark.parametrize(
    ("right", "answers", "keep", "wanted"),
    [(6, 8, 4, (2, 2)), (1, 8, 4, (1, 3)), (8, 8, 4, (4, 0)), (0, 8, 4, (0, 4)), (4, 8, 5, (2, 3)), (2, 3, 9, (2, 1))],
)
def test_how_many_of_each_side(right, answers, keep, wanted):
    rows = [(0, i < right, 2) for i in range(answers)]
    out = kept(rows, keep)
    assert (int(out[:right].sum()), int(out[right:].sum())) == wanted


@quick
@given(ROWS, st.integers(1, 6), st.sampled_from([None, 3]), st.integers(0, 99))
def test_each_side_keeps_the_most_consistent(rows, keep, most, seed):
    scores = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    out = kept(rows, keep, scores, most_steps=most, penalty=0.3).tolist()
    for g in {row[0] for row in rows}:
        sides = []
        for side in (True, False):
            mine = [i for i, row in enumerate(rows) if row[0] == g and row[1] == side]
            odd = {i: rows[i][2] <= 1 or (most is not None and rows[i][2] >= most) for i in mine}
            ranked = sorted(mine, key=lambda i: -(scores[i] - 0.3 * odd[i]) * (1 if side else -1))
            chosen = [i for i in ranked if out[i]]
            assert chosen == ranked[: len(chosen)]
            sides.append((len(chosen), len(mine)))
        (k_right, n_right), (k_wrong, n_wrong) = sides
        total = min(keep, n_right + n_wrong)
        assert k_right + k_wrong == total
        best = max(k * (total - k) for k in range(n_right + 1) if 0 <= total - k <= n_wrong)
        assert k_right * k_wrong == best
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = kept([rows[i] for i in order], keep, [scores[i] for i in order], most_steps=most, penalty=0.3)
    assert shuffled.tolist() == [out[i] for i in order]


def test_answers_of_one_step_and_very_long_ones_lose():
    rows = [(0, True, 1), (0, True, 2), (0, True, 3)]
    scores = [0.6, 0.4, 0.5]
    assert kept(rows, 1, scores, penalty=0.0).tolist() == [True, False, False]
    assert kept(rows, 1, scores).tolist() == [False, False, True]
    assert kept(rows, 1, scores, most_steps=3).tolist() == [False, True, False]


def test_wrong_answers_may_be_chosen_at_random():
    rows = [(0, True, 2)] * 2 + [(0, False, 2)] * 4
    draw = torch.tensor([0.0, 0.0, 0.1, 0.9, 0.2, 0.8])
    assert kept(rows, 4, wrong="correct", draw=draw).tolist() == [True, True, False, True, False, True]
    with pytest.raises(ValueError, match="give uniform numbers"):
        kept(rows, 4, wrong="correct")
    with pytest.raises(ValueError, match="keep is 0"):
        kept(rows, 0)


def fields(scores, outcomes):
    """Answers of steps of one action each, in one group, whose outcome stands at the end."""
    width = max(map(len, scores))
    mask = torch.tensor([[k < len(row) for k in range(width)] for row in scores])
    dense = torch.tensor([row + [float("nan")] * (width - len(row)) for row in scores], dtype=torch.float64)
    for i, (row, outcome) in enumerate(zip(scores, outcomes, strict=True)):
        dense[i, len(row) - 1] += outcome
    columns = torch.tensor([[sum(r), o] for r, o in zip(scores, outcomes, strict=True)], dtype=torch.float64)
    return dense, torch.zeros(len(scores), dtype=torch.int64), mask, columns, ("steps", "right"), 0


def test_credit_is_that_of_the_outcome_among_the_kept():
    scores = [[0.9, 0.8], [0.1, -0.3, 0.2], [0.5, 0.4], [-0.9, -0.8]]
    given_fields = fields(scores, [1.0, 1.0, 0.0, 0.0])
    credit, stats = process_filter(*given_fields, outcome="right", keep=2)
    chosen = torch.tensor([0, 3])
    alone = grpo(torch.tensor([1.0, 0.0]).double(), torch.zeros(2).long(), given_fields[2][chosen])
    assert torch.equal(credit[chosen], alone)
    assert (credit[1:3] == 0).all()
    assert stats == {"kept": 0.5, "one_sided": 0.0}


def test_a_group_of_one_side_is_told_and_has_no_credit():
    credit, stats = process_filter(*fields([[0.9, 0.8], [0.5, 0.4]], [1.0, 1.0]), outcome="right", keep=1)
    assert (credit == 0).all()
    assert stats == {"kept": 0.5, "one_sided": 1.0}


def test_an_empty_batch():
    empty = torch.zeros(0, 2)
    rest = (torch.zeros(0).long(), empty.bool(), torch.zeros(0, 1), ("right",), 0)
    assert process_filter(empty, *rest, outcome="right", keep=1)[0].shape == (0, 2)


def test_recipes_find_it():
    assert registry.get("credit", "process_filter").needs_group
