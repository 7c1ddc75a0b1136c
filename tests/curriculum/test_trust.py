import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.curriculum.trust import PassRateHistory, trapo_score, trapo_select, zscores

quick = settings(derandomize=True, deadline=None, max_examples=30)
F64 = torch.float64


@quick
@given(st.integers(0, 99), st.integers(1, 4), st.integers(3, 8))
def test_the_score_is_the_mean_correlation(seed, n, time):
    random = torch.Generator().manual_seed(seed)
    labelled = torch.rand(n, time, generator=random, dtype=F64)
    other = torch.rand(3, time, generator=random, dtype=F64)
    seen = trapo_score(labelled, other)
    wanted = [np.mean([np.corrcoef(u, d)[0, 1] for d in labelled.numpy()]) for u in other.numpy()]
    assert seen.tolist() == pytest.approx(wanted, abs=1e-6)
    assert trapo_score(2 + 3 * labelled, 5 * other - 1).tolist() == pytest.approx(seen.tolist(), abs=1e-6)


def test_zscores_by_hand():
    series = torch.tensor([[0.0, 1.0, 2.0], [0.3, 0.3, 0.3]], dtype=F64)
    assert zscores(series).tolist() == [pytest.approx([-1, 0, 1]), [0, 0, 0]]
    assert zscores(series[:, :1]).tolist() == [[0.0], [0.0]]


def test_what_cannot_be_compared_scores_0():
    rising = torch.linspace(0, 1, 5, dtype=F64).repeat(2, 1)
    assert trapo_score(rising, torch.full((1, 5), 0.9, dtype=F64)).tolist() == [0.0]
    assert trapo_score(rising[:0], rising).tolist() == [0.0, 0.0]
    assert trapo_score(rising, rising[:0]).shape == (0,)
    with pytest.raises(ValueError, match="5 and 4 numbers"):
        trapo_score(rising, rising[:, 1:])


def test_the_best_tenth_and_the_threshold():
    rising = torch.linspace(0, 1, 6, dtype=F64)
    others = torch.stack([-rising] * 18 + [rising, -rising + 0.1 * torch.tensor([0, 1.0] * 3, dtype=F64)])
    assert trapo_select(rising.unsqueeze(0), others, topk=0).nonzero().flatten().tolist() == [18]
    assert trapo_select(rising.unsqueeze(0), others).sum() == 2
    assert trapo_select(rising.unsqueeze(0), others[:3]).sum() == 1, "one at least"
    assert trapo_select(rising.unsqueeze(0), others, topk=0, thres=-2).all()
    assert trapo_select(rising.unsqueeze(0), others[:0]).shape == (0,)
    with pytest.raises(ValueError, match="topk is 2"):
        trapo_select(rising.unsqueeze(0), others, topk=2)


def filled(**options):
    """Problem 0 has a label and rises; of those without, 1 rises and 2 falls."""
    history = PassRateHistory(warmup=3, topk=0.0, **options)
    for step in range(4):
        history.append([0], [step / 4], labelled=True)
        history.append([1, 2], [step / 5, 1 - step / 5], labelled=False)
    return history


def test_who_is_trusted_joins_the_reference():
    history = filled()
    assert history.select([1, 2, 99]) == {1}
    assert len(history.compared([2])[2]) == 2
    history.append([3], [0.5], labelled=True)
    assert len(history.compared([2])[2]) == 2, "a short history is no reference"
    history.append([1], [0.2], labelled=True)
    assert 1 in history.labelled


def test_all_leave_the_reference_under_replace():
    for refresh, left in (("extend", {1, 4}), ("replace", {1})):
        history = filled(refresh=refresh)
        history.trusted = {4}
        history.rates[4] = [0.1, 0.2, 0.3]
        assert history.select([1]) == {1}
        assert history.trusted == {1, 4}
        history.trusted = {1, 4}
        history.select([1])
        assert history.trusted == left


def test_nobody_is_trusted_before_the_warmup_or_without_labels():
    assert PassRateHistory(warmup=2).select([1]) == set()
    history = PassRateHistory(warmup=5)
    for _ in range(4):
        history.append([0], [0.5], labelled=True)
        history.append([1], [0.5], labelled=False)
    assert history.select([1]) == set()
    alone = PassRateHistory(warmup=2)
    alone.append([1], [0.1], labelled=False)
    alone.append([1], [0.2], labelled=False)
    assert alone.select([1]) == set()
    with pytest.raises(ValueError, match="warmup is 1"):
        PassRateHistory(warmup=1)


def test_histories_are_cut_to_the_shortest():
    history = filled()
    history.append([1], [math.pi], labelled=False)
    ripe, ours, theirs = history.compared([1, 2])
    assert ripe == [1, 2]
    assert ours.shape == theirs.expand(2, -1).shape == (2, 4)


def test_memory_survives_a_checkpoint():
    history, other = filled(), PassRateHistory(warmup=3, topk=0.0)
    history.select([1])
    other.load_state_dict(history.state_dict())
    assert other.state_dict() == history.state_dict()
    assert other.select([1, 2]) == history.select([1, 2])
