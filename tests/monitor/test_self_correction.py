import math

import pytest
import torch

from guerdon.monitor.self_correction import edit_ratio, self_correction


def test_metrics_by_hand():
    scores = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [float("nan"), 1.0]])
    texts = [("a", "b"), ("a", "a"), ("ab", "ac"), ("", ""), ("ab", "abcd"), ("x", "x")]
    seen = self_correction(scores, texts)
    assert seen == pytest.approx((0.4, 0.6, 0.2, 0.4, 0.2, 2 / 3, (1 + 0 + 0.5 + 0 + 1 / 3) / 5, 0.4))
    assert seen.gain == pytest.approx(seen.fixed - seen.spoiled)


def test_what_cannot_be_told_is_nan():
    seen = self_correction(torch.tensor([[1.0, 1.0]]))
    assert math.isnan(seen.fix_rate)
    assert math.isnan(seen.edited)
    assert self_correction(torch.tensor([[0.5, 0.7]]), right=0.6).fixed == 1.0


def test_edit_ratio_counts_what_is_not_shared():
    assert edit_ratio("copy", "copy") == 0
    assert edit_ratio("abc", "xyz") == 1
    assert edit_ratio("a" * 300, "a" * 300 + "b" * 100) == pytest.approx(100 / 700)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"wanted \(N,2\)"):
        self_correction(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="1 pairs of texts for 3 problems"):
        self_correction(torch.zeros(3, 2), [("a", "b")])
