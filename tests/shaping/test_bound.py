import math

import pytest
import torch

from guerdon.shaping.bound import sigma_filter

SCORES = torch.tensor([0.5, -3.0, 3.1, -9.0, math.nan, math.inf])


def test_zero_or_clip():
    zeroed, stats = sigma_filter(SCORES)
    assert zeroed.tolist() == pytest.approx([0.5, -3.0, 0, 0, 0, 0])
    assert stats == {"outliers": pytest.approx(4 / 6)}
    assert sigma_filter(SCORES, outside="clip")[0].tolist() == pytest.approx([0.5, -3.0, 3.0, -3.0, 0, 0])
    assert sigma_filter(SCORES[:4], sigmas=5.0)[0].tolist() == pytest.approx([0.5, -3.0, 3.1, 0])


def test_what_is_not_valid_passes_and_is_not_counted():
    valid = torch.tensor([True, True, True, False, False, False])
    bounded, stats = sigma_filter(SCORES, valid)
    assert bounded[:4].tolist() == pytest.approx([0.5, -3.0, 0, -9.0])
    assert bounded[4].isnan()
    assert stats == {"outliers": pytest.approx(1 / 3)}
    assert sigma_filter(SCORES, torch.zeros(6).bool())[1] == {"outliers": 0.0}


def test_gradients_pass_inside_and_stop_outside():
    scores = torch.tensor([1.0, 5.0]).requires_grad_()
    for outside in ("zero", "clip"):
        (gradient,) = torch.autograd.grad(sigma_filter(scores, outside=outside)[0].sum(), scores)
        assert gradient.tolist() == [1.0, 0.0]


def test_an_impossible_bound_is_refused():
    with pytest.raises(ValueError, match="sigmas is 0"):
        sigma_filter(SCORES, sigmas=0)
