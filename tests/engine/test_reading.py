import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.engine.reading import read
from guerdon.policies.tiny_lm import TinyTransformer

quick = settings(derandomize=True, deadline=None, max_examples=40)
rows_of_tokens = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyTransformer(9, width=16, layers=2, heads=2).double()


def one_by_one(model, ids, attention, at):
    """States of the chosen tokens, from each row by itself."""
    states = []
    for row, there, wanted in zip(ids, attention, at, strict=True):
        kept = torch.ones(1, int(there.sum()), dtype=torch.bool)
        states.append(read(model, row[there][None], kept, kept)[wanted[there]])
    return torch.cat(states)


@quick
@given(rows_of_tokens, st.integers(0, 999), st.sampled_from([None, 20, 5]))
def test_packs_read_what_rows_read_alone(model, rows, seed, max_tokens):
    generator = torch.Generator().manual_seed(seed)
    width = max(len(row) for row in rows) + 2
    ids = torch.randint(1, 4, (len(rows), width), generator=generator)
    attention = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):  # left-padded, with a hole in long ones
        ids[i, width - len(row) :] = torch.tensor(row)
        attention[i, width - len(row) :] = True
        if len(row) > 4:
            attention[i, width - 2] = False
    at = attention & (torch.rand(ids.shape, generator=generator) < 0.6)
    if not at.any():
        at = attention.clone()
    ours, theirs = read(model, ids, attention, at, max_tokens=max_tokens), one_by_one(model, ids, attention, at)
    assert torch.allclose(ours, theirs, atol=1e-6)
    direction = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    weights = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(ours, weights, direction), torch.autograd.grad(theirs, weights, direction), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max().clamp(min=1e-3)), rtol=1e-5)


def test_the_future_does_not_matter(model):
    ids = torch.tensor([[1, 2, 3, 1, 2]])
    everything = torch.ones_like(ids, dtype=torch.bool)
    states = read(model, ids, everything, everything)
    ids[0, 3:] = 3
    assert torch.equal(read(model, ids, everything, everything)[:3], states[:3])


def test_nothing_is_computed_after_the_last_chosen_token_or_twice(model):
    seen = []

    class Watching:
        flat = True

        def hidden(self, ids, positions, attend):
            seen.append(len(ids))
            return model.hidden(ids, positions, attend)

    ids = torch.randint(1, 9, (1, 12)).repeat(3, 1)
    ids[:, 10] = torch.tensor([1, 2, 3])
    at = torch.zeros_like(ids, dtype=torch.bool)
    at[:, 10] = True
    read(Watching(), ids, torch.ones_like(at), at)
    assert seen == [10 + 3]


def test_no_chosen_token(model):
    ids = torch.ones(2, 3, dtype=torch.int64)
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    assert read(model, ids, ~nothing, nothing).shape == (0, 16)
