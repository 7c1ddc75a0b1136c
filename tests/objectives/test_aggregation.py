import pytest
import torch

from guerdon.errors import RecipeError
from guerdon.objectives import aggregate

X = torch.tensor([[1.0, 2.0, 3.0, float("nan")], [8.0, float("inf"), float("nan"), 4.0], [float("nan")] * 4])
MASK = torch.tensor([[True, True, True, False], [True, False, False, True], [False] * 4])
USEFUL = torch.tensor([True, False, False])
BY_HAND = [
    ("seq_mean", {}, (2 + 6) / 2),
    ("token_mean", {}, (6 + 12) / 5),
    ("sum_over_max_length", {"max_length": 10}, 18 / (3 * 10)),
    ("valid_token_mean", {"useful": USEFUL}, 6 / 3),
]


@pytest.mark.parametrize(("mode", "extra", "expected"), BY_HAND)
def test_by_hand_with_garbage_off_the_mask(mode, extra, expected):
    x = X.clone().requires_grad_()
    out = aggregate(x, MASK, mode, **extra)
    assert out.item() == pytest.approx(expected)
    out.backward()
    assert x.grad.isfinite().all()
    assert (x.grad[~MASK] == 0).all()
    assert (x.grad[0, :3] > 0).all()


@pytest.mark.parametrize(("mode", "extra", "expected"), BY_HAND)
def test_padding_changes_nothing(mode, extra, expected):
    padding = torch.full((3, 5), float("nan"))
    wide = aggregate(torch.cat([X, padding], dim=1), torch.cat([MASK, padding == 0], dim=1), mode, **extra)
    assert wide.item() == pytest.approx(expected)


@pytest.mark.parametrize(("mode", "extra", "_"), BY_HAND)
@pytest.mark.parametrize("shape", [(3, 4), (3, 0), (0, 4)])
def test_nothing_to_count_gives_zero_with_zero_gradient(mode, extra, _, shape):
    x = torch.full(shape, float("nan"), requires_grad=True)
    extra = {key: torch.zeros(shape[0], dtype=torch.bool) if key == "useful" else v for key, v in extra.items()}
    out = aggregate(x, torch.zeros(shape), mode, **extra)
    assert out.item() == 0
    out.backward()
    assert (x.grad == 0).all()


def test_what_is_missing_or_mistyped_is_named():
    with pytest.raises(RecipeError, match="'sum_over_max_length' needs 'max_length', got None"):
        aggregate(X, MASK, "sum_over_max_length")
    with pytest.raises(RecipeError, match="'valid_token_mean' needs"):
        aggregate(X, MASK, "valid_token_mean")
    with pytest.raises(RecipeError, match="no aggregation 'token_maen'; did you mean 'token_mean'"):
        aggregate(X, MASK, "token_maen")
