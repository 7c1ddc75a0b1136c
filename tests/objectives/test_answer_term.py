import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.objectives.answer_term import answer_term

quick = settings(derandomize=True, deadline=None, max_examples=25)


def batch():
    logp = torch.tensor([[-9.0, 0.3, 0.5], [-9.0, 0.2, math.nan]], dtype=torch.float64)
    logp[:, 1:] = logp[:, 1:].log()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    external = torch.tensor([[False, True, True], [False, True, False]])
    return logp, mask, torch.zeros(2, dtype=torch.int64), external


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("log_prob", (math.log(0.15) + math.log(0.2)) / 2),
        ("avg_log_prob", (math.log(0.15) / 2 + math.log(0.2)) / 2),
        ("prob", 0.175),
        ("avg_prob", 0.3),
        ("jepo", math.log(0.175) / 2),
    ],
)
def test_losses_by_hand(kind, wanted):
    logp, mask, group, external = batch()
    loss, _ = answer_term(logp, mask, group, external, kind=kind)
    assert float(loss) == pytest.approx(-wanted)
    half, _ = answer_term(
        logp, mask, group, external, kind=kind, beta=2.0, aggregate="sum_over_max_length", max_length=4
    )
    assert float(half) == pytest.approx(-wanted / 2)


def test_jepo_gives_each_reasoning_its_share():
    logp, mask, group, external = batch()
    logp.requires_grad_(True)
    loss, _ = answer_term(logp, mask, group, external, kind="jepo")
    loss.backward()
    shares = torch.tensor([0.15, 0.2], dtype=torch.float64) / 0.35
    torch.testing.assert_close(-logp.grad[:, 1] * 2, shares)
    assert (logp.grad[:, 0] == 0).all()
    assert logp.grad[1, 2] == 0


def test_nothing_to_learn_from_adds_nothing():
    logp, mask, group, _ = batch()
    logp.requires_grad_(True)
    for kind in ("log_prob", "jepo"):
        loss, stats = answer_term(logp, mask, group, kind=kind)
        assert float(loss.detach()) == 0
        assert stats == {}
        loss.backward()


def test_a_divisor_that_is_missing():
    logp, mask, group, external = batch()
    with pytest.raises(ValueError, match="needs 'max_length', got None"):
        answer_term(logp, mask, group, external, aggregate="sum_over_max_length")


@quick
@given(st.integers(1, 6), st.integers(0, 99), st.sampled_from(["log_prob", "prob", "avg_prob", "jepo"]))
def test_rows_commute_and_padding_is_not_read(n, seed, kind):
    random = torch.Generator().manual_seed(seed)
    logp = -3 * torch.rand(n, 4, generator=random, dtype=torch.float64)
    mask = torch.rand(n, 4, generator=random) > 0.3
    external = torch.rand(n, 4, generator=random) > 0.5
    group = torch.randint(2, (n,), generator=random)
    loss, _ = answer_term(logp, mask, group, external, kind=kind)
    order = torch.randperm(n, generator=random)
    again, _ = answer_term(logp[order], mask[order], group[order], external[order], kind=kind)
    padded, _ = answer_term(logp.masked_fill(~mask, math.nan), mask, group, external, kind=kind)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(padded, loss)
