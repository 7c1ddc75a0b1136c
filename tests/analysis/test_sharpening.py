import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.analysis.sharpening import (
    collapse_signs,
    model_collapse_step,
    reward_accuracy,
    sharpen,
    sharpening_limit,
    sharpening_odds,
)

quick = settings(derandomize=True, deadline=None, max_examples=30)
F64 = torch.float64


def test_the_published_odds():
    assert sharpening_odds(0.4, beta=2.0, steps=10) == pytest.approx(1.5 * math.exp(-5), abs=1e-12)
    assert sharpening_odds(1.0, beta=2.0, steps=3) == 0.0
    with pytest.raises(ValueError, match="p is 0 and beta 1"):
        sharpening_odds(0, beta=1, steps=1)
    with pytest.raises(ValueError, match="beta 0"):
        sharpening_odds(0.5, beta=0, steps=1)


@quick
@given(st.integers(0, 99), st.floats(0.2, 5), st.integers(1, 6))
def test_exact_steps_are_the_kl_regularised_optimum(seed, beta, steps):
    p = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=F64).softmax(dim=0)
    once = sharpen(p, beta=beta)
    reward = (p == p.max()).double()

    def objective(q):
        return float(q @ reward - beta * (q * (q / p).log()).sum())

    for other in torch.rand(20, 4, generator=torch.Generator().manual_seed(seed), dtype=F64):
        assert objective(once) >= objective((once.log() + 0.1 * other).softmax(dim=0)) - 1e-12
    after = sharpen(p, beta=beta, steps=steps)
    assert ((1 - after.max()) / after.max()).item() == pytest.approx(
        sharpening_odds(p.max().item(), beta=beta, steps=steps), rel=1e-6
    )
    repeated = p
    for _ in range(steps):
        repeated = sharpen(repeated, beta=beta)
    torch.testing.assert_close(repeated, after)
    torch.testing.assert_close(sharpen(p, beta=0.05, steps=200), sharpening_limit(p))


def test_a_tie_stays_a_tie():
    p = torch.tensor([[0.4, 0.4, 0.2], [0.5, 0.3, 0.2]])
    torch.testing.assert_close(sharpen(p, beta=0.1)[0], p[0])
    assert sharpening_limit(p).tolist() == [pytest.approx([0.4, 0.4, 0.2]), [1, 0, 0]]
    assert sharpen(torch.tensor([1.0, 0.0]), beta=1.0).tolist() == [1, 0]


def test_reward_accuracy_counts_what_is_known():
    own, true = torch.tensor([1.0, 1, 0, 0, math.nan]), torch.tensor([1.0, 0, 0, math.nan, 1])
    assert reward_accuracy(own, true) == pytest.approx(2 / 3)
    assert math.isnan(reward_accuracy(own[:0], true[:0]))


def test_the_step_of_collapse():
    assert model_collapse_step([0.5, 0.01, 0.009, 0.5]) == (2, "reward accuracy")
    assert model_collapse_step([0.5, 0.4]) == (None, "reward accuracy")
    agreement = torch.tensor([0.995] * 9 + [0.5] + [0.99] * 10)
    assert model_collapse_step(agreement=agreement) == (10, "agreement")
    assert model_collapse_step(agreement=agreement, patience=9) == (0, "agreement")
    assert model_collapse_step(agreement=[1.0] * 9) == (None, "agreement")
    assert model_collapse_step([0.5], agreement) == (None, "reward accuracy"), "labels come first"
    with pytest.raises(ValueError, match="give accuracy"):
        model_collapse_step()
    with pytest.raises(ValueError, match="patience is 0"):
        model_collapse_step([1.0], patience=0)


def test_signs():
    assert collapse_signs(length=[30.0, 20.0, 9.0]) == ["length collapse"]
    assert collapse_signs(length=[30.0, 10.0]) == []
    assert collapse_signs(repetition=[0.1, 0.6]) == ["repetition"]
    assert collapse_signs(repetition=[0.6, 0.7]) == []
    falling = torch.tensor([0.3, 0.5, 0.4])
    assert collapse_signs(reward=[0.2, 0.9, 1.0], accuracy=falling) == ["slow decay"]
    assert collapse_signs(reward=[0.2, 0.1, 0.1], accuracy=falling) == []
    assert collapse_signs(reward=[0.2, 0.9], accuracy=[0.5, 0.46]) == []
    assert collapse_signs(length=[], repetition=[], reward=[], accuracy=[]) == []
