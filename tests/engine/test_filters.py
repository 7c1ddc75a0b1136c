import pytest
import torch

from guerdon.engine.filters import draw, keep_likely, keep_listed

LOG_P = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def kept(**options):
    return torch.isfinite(keep_likely(LOG_P, **options))[0].tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [True, True, True, True]),
        ({"top_k": 2}, [True, True, False, False]),
        ({"top_k": 9}, [True, True, True, True]),
        ({"top_p": 0.5}, [True, False, False, False]),
        ({"top_p": 0.51}, [True, True, False, False]),
        ({"min_p": 0.29}, [True, True, True, False]),
        ({"min_p": 0.31}, [True, True, False, False]),
        ({"top_k": 3, "min_p": 0.45}, [True, True, False, False]),
    ],
)
def test_which_tokens_stay(options, expected):
    assert kept(**options) == expected


def test_the_likeliest_always_stays():
    assert kept(top_p=1e-9, min_p=0.999, top_k=1) == [True, False, False, False]


def test_draws_invert_the_cumulative_distribution():
    log_p = torch.tensor([[0.5, 0.0, 0.5]]).log().expand(4, 3)
    assert draw(log_p, torch.tensor([0.0, 0.49, 0.51, 0.999999])).tolist() == [0, 0, 2, 2]


def test_what_is_left_need_not_add_up_to_one():
    assert draw(torch.tensor([[0.1, 0.1]]).log().expand(2, 2), torch.tensor([0.4, 0.6])).tolist() == [0, 1]


def test_a_row_that_lists_nothing_is_kept_whole():
    logits = torch.zeros(3, 4)
    out = keep_listed(logits, torch.tensor([[1, 3], [-1, -1], [2, -1]]))
    assert (out == 0).tolist() == [[False, True, False, True], [True] * 4, [False, False, True, False]]
    assert torch.isfinite(out).all()
    assert torch.equal(keep_listed(logits, torch.zeros(3, 0, dtype=torch.int64)), logits)
