import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import registry
from guerdon.credit.group import dr_grpo, grpo
from guerdon.credit.tree import prefix_tree, sibling_advantage, sibling_grpo, tempo

quick = settings(derandomize=True, deadline=None, max_examples=60)
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.5, 1.0]), st.lists(st.integers(0, 2), max_size=4)),
    min_size=1,
    max_size=12,
)


def batch(rows, width=None, garbage=0, holes=0):
    """Tensors of rows of (group, reward, tokens), with ``holes`` positions of garbage before each action."""
    width = width or max((len(t) for _, _, t in rows), default=0) * (holes + 1)
    tokens = torch.full((len(rows), width), garbage, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (_, _, written) in enumerate(rows):
        for j, token in enumerate(written):
            tokens[i, j * (holes + 1) + holes], mask[i, j * (holes + 1) + holes] = token, True
    reward = torch.tensor([r for _, r, _ in rows], dtype=torch.float64)
    return reward, tokens, torch.tensor([7 - g for g, _, _ in rows]), mask


def by_hand(rows, eps):
    """Each row's credit from sets of rows that begin alike, without tensors; unscaled where eps is None."""

    def value(group, start):
        return statistics.fmean(r for g, r, t in rows if g == group and t[: len(start)] == start)

    out = []
    for group, reward, written in rows:
        rewards = [r for g, r, _ in rows if g == group]
        spread = 1.0
        if eps is not None:
            spread = (statistics.stdev(rewards) if len(rewards) > 1 else 0.0) + eps
        steps = [value(group, written[: j + 1]) - value(group, written[:j]) for j in range(len(written))]
        out.append([(reward - statistics.fmean(rewards) + step) / spread for step in steps])
    return out


def siblings_by_hand(rows, eps):
    """Each row's comparison of the distinct ways to go on, each counted once; None without siblings."""
    out = []
    for group, _, written in rows:
        mine = []
        for j in range(len(written)):
            ways = {}
            for g, r, t in rows:
                if g == group and t[:j] == written[:j] and len(t) > j:
                    ways.setdefault(t[j], []).append(r)
            means = {token: statistics.fmean(rs) for token, rs in ways.items()}
            if len(means) < 2:
                mine.append(None)
            else:
                centre, spread = statistics.fmean(means.values()), statistics.pstdev(means.values())
                mine.append((means[written[j]] - centre) / (spread + eps))
        out.append(mine)
    return out


def at_actions(x, mask):
    return [row[keep].tolist() for row, keep in zip(x, mask, strict=True)]


def test_four_answers_by_hand():
    rows = [(0, 1.0, [0, 1, 2]), (0, 0.0, [0, 1, 3]), (0, 0.0, [0, 4, 5]), (0, 0.0, [0, 4, 6])]
    wanted = torch.tensor([[0.75, 1, 1.25], [-0.25, 0, -0.75], [-0.25, -0.5, -0.25], [-0.25, -0.5, -0.25]]).double()
    assert torch.allclose(tempo(*batch(rows), scale=False), wanted)
    assert torch.allclose(tempo(*batch(rows), eps=0.0), 2 * wanted)


def test_siblings_by_the_published_numbers():
    rows = [(0, 1.0, [0, 0]), (0, 0.0, [0, 1]), (0, 0.0, [0, 2]), (0, 0.0, [1, 0])]
    out = sibling_advantage(*batch(rows))
    assert out.advantage[:, 0].tolist() == pytest.approx([0.9994, 0.9994, 0.9994, -0.9994], abs=1e-4)
    assert out.advantage[:, 1].tolist() == pytest.approx([1.4139, -0.7070, -0.7070, 0.0], abs=1e-4)
    assert out.valid.tolist() == [[True, True], [True, True], [True, True], [True, False]]


@quick
@given(ROWS)
def test_credit_is_what_sets_of_answers_say(rows):
    reward, tokens, group, mask = batch(rows)
    for eps in (None, 1e-3):
        seen = tempo(reward, tokens, group, mask, scale=eps is not None, eps=eps or 1.0)
        for got, wanted in zip(at_actions(seen, mask), by_hand(rows, eps), strict=True):
            assert got == pytest.approx(wanted, abs=1e-9)
    out = sibling_advantage(reward, tokens, group, mask)
    wanted = siblings_by_hand(rows, 1e-4)
    assert at_actions(out.valid, mask) == [[x is not None for x in row] for row in wanted]
    for got, row in zip(at_actions(out.advantage, mask), wanted, strict=True):
        assert got == pytest.approx([x or 0.0 for x in row], abs=1e-9)


@quick
@given(ROWS, st.integers(-5, 5), st.integers(0, 2), st.integers(0, 99))
def test_padding_holes_garbage_and_order_do_not_matter(rows, garbage, holes, seed):
    reward, tokens, group, mask = batch(rows)
    width = (tokens.shape[1] + 2) * (holes + 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    wide = batch([rows[i] for i in order], width, garbage, holes)
    for method in (tempo, sibling_grpo, sibling_advantage):
        plain, spread = (method(*fields) for fields in ((reward, tokens, group, mask), wide))
        plain, spread = (x[0] if isinstance(x, tuple) else x for x in (plain, spread))
        assert (spread[~wide[3]] == 0).all()
        shuffled = at_actions(spread, wide[3])
        for place, i in enumerate(order):
            assert shuffled[place] == pytest.approx(plain[i][mask[i]].tolist(), abs=1e-9)


@quick
@given(ROWS)
def test_every_node_has_one_first_action(rows):
    _, tokens, group, mask = batch(rows)
    tree = prefix_tree(tokens, group, mask)
    starts = {(g, tuple(t[: j + 1])) for g, _, t in rows for j in range(len(t))}
    assert int(tree.first.sum()) == len(starts) == len(tree.node[mask].unique())
    assert not (tree.first & ~mask).any()


def test_changes_of_value_add_up_for_an_answer_like_no_other():
    rows = [(0, 1.0, [1, 2, 3]), (0, 0.0, [1, 2, 4]), (0, 0.5, [1, 3]), (0, 0.0, [2])]
    reward, tokens, group, mask = batch(rows)
    change = tempo(reward, tokens, group, mask, scale=False) - dr_grpo(reward, group, mask)
    assert torch.allclose(change.sum(dim=1), reward - reward.mean())


def test_equal_answers_share_the_mean_of_their_rewards():
    rows = [(0, 1.0, [1, 2]), (0, 0.0, [1, 2]), (0, 0.0, [1, 3]), (0, 0.0, [1, 3])]
    change = tempo(*batch(rows), scale=False) - dr_grpo(*(batch(rows)[i] for i in (0, 2, 3)))
    assert change.tolist() == [[0.0, 0.25], [0.0, 0.25], [0.0, -0.25], [0.0, -0.25]]


def test_an_answer_and_a_longer_one_that_begins_with_it():
    """Padding is no token: the shorter row has no sibling where it has ended, and token 0 is not padding."""
    rows = [(0, 1.0, [5]), (0, 0.0, [5, 0]), (0, 0.0, [5, 0, 0])]
    reward, tokens, group, mask = batch(rows)
    assert tempo(reward, tokens, group, mask, scale=False)[1].tolist() == pytest.approx([-1 / 3, -2 / 3, 0.0])
    assert not sibling_advantage(reward, tokens, group, mask).valid.any()


def test_nothing_shared_is_grpo_but_for_the_first_token():
    rows = [(0, 1.0, [1, 9]), (0, 0.0, [2, 9]), (0, 0.0, [3, 9])]
    reward, tokens, group, mask = batch(rows)
    plain = grpo(reward, group, mask, eps=1e-6)
    assert torch.allclose(tempo(reward, tokens, group, mask), plain * torch.tensor([2.0, 1.0]))


def test_groups_that_say_nothing():
    alone = [(0, 1.0, [1, 2]), (1, 0.3, [1, 2]), (1, 0.3, [1, 3])]
    for eps in (1e-6, 0.0):
        assert (tempo(*batch(alone), eps=eps) == 0).all()
    credit, stats = sibling_grpo(*batch(alone))
    assert (credit == 0).all()
    # Equally good ways to go on have siblings all the same.
    assert sibling_advantage(*batch(alone)).valid.tolist() == [[False, False], [False, True], [False, True]]
    assert stats["siblings"] == pytest.approx(2 / 6)


def test_a_sibling_counts_once_however_often_it_was_drawn():
    rows = [(0, 1.0, [1])] + [(0, 0.0, [2])] * 7
    out = sibling_advantage(*batch(rows), eps=0.0).advantage[:, 0]
    assert out.tolist() == pytest.approx([1.0] + [-1.0] * 7)


def test_the_added_loss_is_a_mean_over_actions_with_siblings():
    rows = [(0, 1.0, [1, 4]), (0, 0.0, [1, 5]), (0, 0.0, [1, 5])]
    reward, tokens, group, mask = batch(rows)
    credit, stats = sibling_grpo(reward, tokens, group, mask, weight=0.5)
    siblings = sibling_advantage(reward, tokens, group, mask)
    added = (credit - grpo(reward, group, mask)).mean()
    assert stats["siblings"] == 0.5
    assert added == pytest.approx(float(0.5 * siblings.advantage[siblings.valid].mean()))
    assert torch.equal(sibling_grpo(reward, tokens, group, mask, weight=0.0)[0], grpo(reward, group, mask))


@pytest.mark.parametrize("method", [tempo, sibling_grpo])
def test_empty_batches_and_no_actions(method):
    for n, width in ((0, 3), (2, 0), (0, 0), (3, 2)):
        fields = torch.ones(n), torch.zeros(n, width).long(), torch.zeros(n).long(), torch.zeros(n, width).bool()
        out = method(*fields)
        assert (out[0] if isinstance(out, tuple) else out).shape == (n, width)


def test_recipes_find_them():
    for name in ("tempo", "sibling_grpo"):
        method = registry.get("credit", name)
        assert method.requires == ("reward", "tokens", "group", "mask")
        assert method.needs_group
