import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.engine import attention
from guerdon.engine.attention import GrowingAttention, TreeAttention
from guerdon.engine.packing import pack_rows

quick = settings(derandomize=True, deadline=None, max_examples=60)
rows_of_tokens = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=6)
# The kernel writes the logarithms of its denominators by a single-precision function, even for doubles.
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


@pytest.fixture(params=["kernel", "products"])
def way(request, monkeypatch):
    """The CPU's kernel, and what stands in for it on other devices."""
    if request.param == "products":
        monkeypatch.setattr(attention, "_KERNELS", frozenset())
    return request.param


def padded(rows):
    width = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (width - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


def visible(pack, lengths):
    """(L,L) what each token sees, from the rows' paths."""
    allowed = torch.zeros(len(pack.ids), len(pack.ids), dtype=torch.bool)
    for place, row in zip(pack.place, pack.rows.tolist(), strict=True):
        path = place[: int(lengths[row])]
        for depth in range(len(path)):
            allowed[path[depth], path[: depth + 1]] = True
    return allowed


def plain(q, k, v, allowed, scale):
    """Attention by its definition; heads of keys are shared by consecutive heads of queries."""
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
    scores = torch.einsum("lhd,mhd->hlm", q, k) * scale
    return torch.einsum("hlm,mhd->lhd", scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1), v)


@pytest.mark.parametrize("kinds", [4, 2])
def test_a_tree_sees_its_ancestors_and_so_does_its_gradient(way, kinds):
    @quick
    @given(rows_of_tokens, st.integers(1, 3), st.integers(0, 1000))
    def holds(rows, min_shared, seed):
        ids, lengths = padded(rows)
        (pack,) = pack_rows(ids, lengths, min_shared=min_shared)
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (
            torch.randn(len(pack.ids), heads, 4, generator=generator, dtype=torch.float64, requires_grad=True)
            for heads in (4, kinds, kinds)
        )
        ours, theirs = TreeAttention(pack)(0, q, k, v, 0.5), plain(q, k, v, visible(pack, lengths), 0.5)
        assert torch.allclose(ours, theirs, **CLOSE)
        direction = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
        for a, b in zip(
            torch.autograd.grad(ours, (q, k, v), direction),
            torch.autograd.grad(theirs, (q, k, v), direction),
            strict=True,
        ):
            assert torch.allclose(a, b, **CLOSE)

    holds()


def growing(generator, prefixes, of_row, capacity=40, kinds=2):
    longest = max(prefixes)
    keys, values = (
        [torch.randn(len(prefixes), kinds, longest, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
        for _ in range(2)
    )
    grown = GrowingAttention(keys, values, torch.tensor(prefixes), torch.tensor(of_row), capacity=capacity)
    return grown, keys, values


@quick
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.lists(st.integers(0, 2), min_size=1, max_size=7),
    st.integers(0, 10_000),
)
def test_rows_that_grow_see_their_prefix_and_themselves(prefixes, of_row, seed):
    of_row = [p % len(prefixes) for p in of_row]
    generator = torch.Generator().manual_seed(seed)
    grown, keys, values = growing(generator, prefixes, of_row)
    rows = list(range(len(of_row)))
    history = [[[], []] for _ in rows]
    for step in range(40):
        for layer in range(2):
            q = torch.randn(len(rows), 4, 4, generator=generator, dtype=torch.float64)
            k, v = (torch.randn(len(rows), 2, 4, generator=generator, dtype=torch.float64) for _ in range(2))
            out = grown(layer, q, k, v, 0.5)
            for at, row in enumerate(rows):
                history[row][layer].append((k[at], v[at]))
                prefix, length = of_row[row], prefixes[of_row[row]]
                seen = [torch.stack(x) for x in zip(*history[row][layer], strict=True)]
                own = [
                    torch.cat([x[layer][prefix, :, :length].transpose(0, 1), y])
                    for x, y in ((keys, seen[0]), (values, seen[1]))
                ]
                everything = torch.ones(1, len(own[0]), dtype=torch.bool)
                assert torch.allclose(out[at], plain(q[at : at + 1], *own, everything, 0.5)[0], **CLOSE)
        grown.advance()
        if len(rows) > 1 and step % 3 == 2:
            gone = int(torch.randint(len(rows), (1,), generator=generator))
            order = grown.keep(torch.tensor([i for i in range(len(rows)) if i != gone]))
            rows = [rows[i] for i in order]
