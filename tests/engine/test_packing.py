import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.engine.packing import Stretch, compact, pack_rows

quick = settings(derandomize=True, deadline=None, max_examples=150)
# Few different tokens, so that rows share beginnings of all lengths and some are the same to the end.
rows_of_tokens = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=10), min_size=1, max_size=8)


def padded(rows):
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [7] * (width - len(row)) for row in rows])  # what stands beyond the end must not matter
    return ids, torch.tensor([len(row) for row in rows])


@quick
@given(rows_of_tokens, st.integers(1, 4), st.sampled_from([None, 4, 9]))
def test_every_row_finds_its_tokens(rows, min_shared, max_tokens):
    ids, lengths = padded(rows)
    seen = []
    for pack in pack_rows(ids, lengths, max_tokens=max_tokens, min_shared=min_shared):
        seen += pack.rows.tolist()
        assert len(pack.ids) == len(pack.positions) == int(pack.own[:, 1].sum())
        for place, row in zip(pack.place, pack.rows.tolist(), strict=True):
            length = len(rows[row])
            assert pack.ids[place[:length]].tolist() == rows[row]
            assert pack.positions[place[:length]].tolist() == list(range(length))
    assert sorted(seen) == list(range(len(rows)))


@quick
@given(rows_of_tokens, st.sampled_from([3, 6, 12]))
def test_no_pack_holds_more_than_the_budget(rows, max_tokens):
    ids, lengths = padded(rows)
    for pack in pack_rows(ids, lengths, max_tokens=max_tokens, min_shared=1):
        assert len(pack.ids) <= max_tokens or len(pack.rows) == 1


@quick
@given(rows_of_tokens)
def test_sharing_everything_computes_each_prefix_once(rows):
    ids, lengths = padded(rows)
    (pack,) = pack_rows(ids, lengths, min_shared=1)
    prefixes = {tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)}
    assert len(pack.ids) == len(prefixes)


@quick
@given(rows_of_tokens, st.integers(1, 4), st.randoms())
def test_the_order_of_rows_changes_nothing_but_their_places(rows, min_shared, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    (pack,) = pack_rows(*padded(rows), min_shared=min_shared)
    (other,) = pack_rows(*padded([rows[i] for i in order]), min_shared=min_shared)
    assert torch.equal(pack.ids, other.ids)
    assert pack.shared == other.shared
    assert [rows[i] for i in pack.rows] == [rows[order[i]] for i in other.rows]


def test_a_group_shares_its_prompt():
    prompt = [5, 6, 7, 8]
    (pack,) = pack_rows(*padded([[*prompt, 1, 2], [*prompt, 3, 4], [*prompt, 9]]), min_shared=2)
    assert pack.ids.tolist() == [5, 6, 7, 8, 1, 2, 3, 4, 9]
    assert pack.shared == (Stretch(query=6, query_end=9, key=0, key_end=4),)


def test_short_overlaps_are_not_worth_a_stretch():
    (pack,) = pack_rows(*padded([[1, 2, 3], [1, 2, 4]]), min_shared=3)
    assert pack.ids.tolist() == [1, 2, 3, 1, 2, 4]
    assert pack.shared == ()


def test_packs_are_of_about_equal_size():
    rows = [[i // 9, i % 9, *range(20)] for i in range(81)]
    sizes = [len(pack.ids) for pack in pack_rows(*padded(rows), max_tokens=500, min_shared=100)]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 2 * 22


def test_nothing_to_pack():
    assert pack_rows(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)) == []


def test_compact_moves_what_is_attended_to_to_the_left():
    ids = torch.tensor([[9, 1, 2, 9], [3, 9, 4, 5]])
    attention = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]]).bool()
    tokens, lengths, order = compact(ids, attention)
    assert tokens.tolist() == [[1, 2, 0, 0], [3, 4, 5, 0]]
    assert lengths.tolist() == [2, 3]
    assert order[attention].tolist() == [0, 1, 0, 1, 2]
