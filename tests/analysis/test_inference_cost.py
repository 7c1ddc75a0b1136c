import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.analysis.inference_cost import (
    Configuration,
    Cost,
    ModelShape,
    best_within,
    block_sparse_cost,
    dense_cost,
    frontier,
    pass_at_k,
    sparse_cost,
)

MODEL = ModelShape(8.19e9, 32, 8, 4608)
SMALL = ModelShape(1000.0, 4, 2, 6)


@pytest.mark.parametrize(("length", "compute", "memory"), [(1024, 17.24, 65.23), (16384, 350.0, 11480.0)])
def test_golden_costs(length, compute, memory):
    cost = dense_cost(MODEL, length, prompt=256)
    assert cost.compute / 1e12 == pytest.approx(compute, rel=1e-3)
    assert 562.5 * cost.memory / 1e12 == pytest.approx(memory, rel=1e-3)
    assert cost.eflops() == pytest.approx(cost.compute + 562.5 * cost.memory)
    assert cost.eflops(0.0) == cost.compute


def test_the_prompt_is_read_once_and_answers_are_not_shared():
    one, three = dense_cost(SMALL, 10, 1, 7), dense_cost(SMALL, 10, 3, 7)
    assert three.compute == 3 * one.compute
    per_key = 2 * 2 * 6 * 10  # twice kv_heads, width and length
    assert one.memory == per_key * (2 * 7 + 10)
    assert three.memory == per_key * (2 * 7 + 3 * 10)


def test_memory_grows_with_the_square_and_short_answers_are_cheaper():
    assert dense_cost(SMALL, 200).memory == 4 * dense_cost(SMALL, 100).memory
    assert dense_cost(SMALL, 100, 8).eflops() < dense_cost(SMALL, 800).eflops()


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 60), st.integers(1, 4))
def test_sparse_cost_is_the_sum_over_tokens(length, budget, prompt, trials):
    """A token in the middle of step t sees prompt + t + 1/2 keys, or the budget if that is less."""
    keys = sum(min(prompt + t + 0.5, budget) for t in range(length))
    cost = sparse_cost(SMALL, length, budget, trials, prompt)
    assert cost.compute == pytest.approx((2 * 1000 * length + 4 * keys * 4 * 6) * trials)
    assert cost.memory == pytest.approx(4 * keys * 2 * 6 * trials)
    if length >= budget - prompt:
        formula = budget * length - max(0, budget - prompt) ** 2 / 2
        assert keys == pytest.approx(formula)
    else:
        assert cost.memory == pytest.approx(dense_cost(SMALL, length, 1, prompt).memory * trials)


def test_sparse_is_never_dearer_than_dense_without_a_shared_prompt():
    lengths = np.arange(1, 300)
    assert (sparse_cost(SMALL, lengths, 50).eflops() <= dense_cost(SMALL, lengths).eflops() + 1e-6).all()
    assert sparse_cost(SMALL, lengths, 50).compute.shape == (299,)


def test_blocks_add_their_search():
    sparse = sparse_cost(SMALL, 100, 4 + 16 * 3, 2, 20)
    blocks = block_sparse_cost(SMALL, 100, 3, 2, 20, block=16, local=4)
    search = (140 // 16) * 100 * 6 * 2
    assert blocks.compute - sparse.compute == search * 4
    assert blocks.memory - sparse.memory == search * 2


@given(st.integers(1, 7), st.data())
def test_pass_at_k_counts_all_choices(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    choices = list(combinations([1] * c + [0] * (n - c), k))
    wanted = sum(any(choice) for choice in choices) / len(choices)
    assert pass_at_k(torch.tensor(c), n, k).item() == pytest.approx(wanted, abs=1e-12)


def test_pass_at_k_of_many_and_of_shapes():
    out = pass_at_k(torch.tensor([[0, 1], [5, 100]]), torch.tensor([[10, 10], [10, 100]]), 10)
    assert torch.allclose(out, torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64), atol=1e-12)
    assert pass_at_k(torch.tensor(1), 10**6, 1000).item() == pytest.approx(1e-3, rel=1e-6)
    assert math.isclose(pass_at_k(torch.tensor(3), 10, 1).item(), 0.3)


@pytest.mark.parametrize(("c", "n", "k"), [(1, 3, 4), (5, 4, 1), (1, 3, 0), (-1, 3, 1)])
def test_impossible_counts_are_refused(c, n, k):
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(torch.tensor(c), n, k)


def made(rows):
    return [Configuration(name, Cost(compute, memory), accuracy) for name, compute, memory, accuracy in rows]


def test_the_frontier_depends_on_the_price():
    tried = made(
        [("small", 1.0, 1.0, 0.5), ("large", 2.0, 0.1, 0.5), ("worse", 9.0, 9.0, 0.4), ("best", 9.0, 1.0, 0.9)]
    )
    assert [c.label for c in frontier(tried, price="flops")] == ["small", "best"]
    assert [c.label for c in frontier(tried, intensity=10.0)] == ["large", "best"]
    assert best_within(tried, 5.0, price="flops").label == "small"
    assert best_within(tried, 5.0, intensity=10.0).label == "large"
    assert best_within(tried, 0.5) is None
    assert frontier([]) == []


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.integers(0, 5)), max_size=12), st.randoms())
def test_nothing_off_the_frontier_is_cheaper_and_better(rows, random):
    tried = made([(str(i), *row) for i, row in enumerate(rows)])
    kept = frontier(tried)
    for c in tried:
        assert any(f.cost.eflops() <= c.cost.eflops() and f.accuracy >= c.accuracy for f in kept)
    shuffled = random.sample(tried, len(tried))
    assert [(c.cost.eflops(), c.accuracy) for c in frontier(shuffled)] == [(c.cost.eflops(), c.accuracy) for c in kept]
