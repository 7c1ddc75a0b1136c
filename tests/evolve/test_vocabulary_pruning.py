import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.evolve import (
    genetic_search,
    greedy_append,
    influential,
    kl_influence,
    one_per_cluster,
    particle_swarm,
    reward_influence,
)
from guerdon.evolve.pruning import _spread_out


def blobs(seed=0, groups=6, each=5):
    g = torch.Generator().manual_seed(seed)
    return 20 * torch.randn(groups, 3, generator=g).repeat_interleave(each, 0) + torch.randn(
        groups * each, 3, generator=g
    )


def test_each_cluster_keeps_the_word_nearest_to_its_centre():
    points = blobs()
    kept = one_per_cluster(points, 6)
    assert (kept // 5).tolist() == [0, 1, 2, 3, 4, 5]
    for token in kept.tolist():
        mine = points[token // 5 * 5 : token // 5 * 5 + 5]
        far = (mine - mine.mean(0)).norm(dim=1)
        assert far.argmin() == token % 5


def test_only_the_tokens_asked_for_are_clustered():
    tokens = torch.tensor([29, 3, 4, 8, 9, 3])
    kept = one_per_cluster(blobs(), 3, tokens=tokens)
    assert set(kept.tolist()) < set(tokens.tolist())
    assert (kept // 5).tolist() == [0, 1, 5]
    assert one_per_cluster(blobs(), 50, tokens=tokens).tolist() == [3, 4, 8, 9, 29]


def test_equal_embeddings_leave_clusters_out():
    kept = one_per_cluster(torch.zeros(10, 2), 4)
    assert 1 <= len(kept) <= 4


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_first_centres_are_distinct_and_spread(seed):
    points = blobs().double()
    chosen = _spread_out(points, 6, torch.Generator().manual_seed(seed))
    assert len(chosen.unique()) == 6
    assert len((chosen // 5).unique()) >= 4


def test_influence_by_hand():
    reward, empty = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([1.0, 0.5])
    assert reward_influence(reward, empty).tolist() == [1.5, -1.5]
    p = torch.tensor([[[0.5, 0.5], [0.2, 0.8]], [[1.0, 0.0], [0.2, 0.8]]])
    q = torch.tensor([[0.5, 0.5], [0.4, 0.6]])
    kl = 0.2 * math.log(0.5) + 0.8 * math.log(0.8 / 0.6)
    assert kl_influence(p.log(), q.log()).tolist() == pytest.approx([kl, math.log(2) + kl], abs=1e-6)


def test_the_most_influential_come_first_and_nan_never():
    nan = float("nan")
    assert influential(torch.tensor([1.0, nan, 3.0, 2.0]), quantile=0.5).tolist() == [2, 3]
    assert influential(torch.tensor([1.0, nan, 3.0, 2.0]), least=9).tolist() == [2, 3, 0]
    assert influential(torch.full((3,), nan)).tolist() == []
    assert influential(torch.ones(4)).tolist() == [0, 1, 2, 3]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 5))
def test_everything_kept_is_at_or_above_what_is_left(values, quantile, least):
    x = torch.tensor(values, dtype=torch.float64)
    kept = influential(x, quantile=quantile, least=least)
    assert len(kept) >= max(1, min(least, len(x)))
    left = [v for i, v in enumerate(values) if i not in kept.tolist()]
    assert not left or min(x[kept].tolist()) >= max(left)
    assert x[kept].tolist() == sorted(x[kept].tolist(), reverse=True)


def digits(prompts):
    """Best is 0 1 2 3 4, read as a number of agreements."""
    return (prompts == torch.arange(prompts.shape[1])).sum(dim=1).float()


def test_greedy_appends_the_best():
    found = greedy_append(digits, torch.arange(7))
    assert found.prompt.tolist() == [0, 1, 2, 3, 4]
    assert found.score == 5.0
    assert found.evaluations == 35


@pytest.mark.parametrize("search", [genetic_search, particle_swarm])
def test_searches_find_a_small_optimum_and_count_what_they_spend(search):
    seen = []

    def score(prompts):
        seen.append(len(prompts))
        assert set(prompts.flatten().tolist()) <= set(range(0, 20, 2)) | {1, 3}
        return digits(prompts)

    vocabulary = torch.tensor([*range(0, 20, 2), 1, 3])
    found = search(score, vocabulary)
    assert found.score == 5.0
    assert found.prompt.tolist() == [0, 1, 2, 3, 4]
    assert found.evaluations == sum(seen) == (128 + 30 * 128)
    again = search(digits, vocabulary, epochs=2, seed=1)
    assert again.score == search(digits, vocabulary, epochs=2, seed=1).score
    assert digits(again.prompt.unsqueeze(0)).item() == again.score


def test_scores_of_another_shape_are_named_and_nan_is_the_worst():
    with pytest.raises(ValueError, match=r"score gave shape \(3, 1\) for 3 prompts"):
        greedy_append(lambda p: torch.zeros(len(p), 1), torch.arange(3))
    found = greedy_append(
        lambda p: torch.where(p[:, -1] == 2, float("nan"), p[:, -1].float()), torch.arange(3), length=1
    )
    assert found.prompt.tolist() == [1]
