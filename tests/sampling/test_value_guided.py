import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.sampling.branching import TrieConstraint
from guerdon.sampling.value_guided import PrefixReward, value_guided_decoding, value_targets

ITEMS = [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]


def tables(seed, vocabulary):
    """Log-probabilities and values of any beginning, which do not depend on who asks first."""

    def of(prefix):
        return torch.Generator().manual_seed(hash((seed, *prefix)) % 2**31)

    def policy(prefixes):
        return torch.stack([torch.randn(vocabulary, generator=of(p)).log_softmax(dim=0) for p in prefixes.tolist()])

    def value(prefixes):
        return torch.stack([torch.randn(3, generator=of(p))[2] for p in prefixes.tolist()])

    return policy, value


def searched(policy, value, items, budget, width, entropy_weight, exploration):
    """The same search on plain dictionaries, with everything computed again at every step."""
    items = [tuple(item) for item in items]
    whole = set(items)

    def following(prefix):
        n = len(prefix)
        return list(dict.fromkeys(item[n] for item in items if item[:n] == prefix and len(item) > n))

    def told(prefix):
        ids = torch.tensor([prefix], dtype=torch.int64).reshape(1, len(prefix))
        allowed = following(prefix)
        logp = policy(ids)[0][allowed].log_softmax(dim=0)
        entropy = -(logp.exp() * logp).sum().item()
        chances = dict(zip(allowed, logp.tolist(), strict=True))
        return chances, value(ids).item() + entropy_weight * entropy

    chances, g = {}, {}
    tree, visits = [()], {(): 0}

    def add(prefix):
        tree.append(prefix)
        visits[prefix] = 0
        if prefix not in whole:
            chances[prefix], g[prefix] = told(prefix)

    def visit(prefix):
        for n in range(len(prefix) + 1):
            visits[prefix[:n]] += 1

    chances[()], g[()] = told(())
    beam = [((), 0.0)]
    for _ in range(max(map(len, items))):
        grown = [(p, s) for p, s in beam if p in whole]
        grown += [((*p, a), s + x) for p, s in beam if p not in whole for a, x in chances[p].items()]
        beam = sorted(grown, key=lambda entry: -entry[1])[:width]
        for p, _ in beam:
            if p not in visits:
                add(p)
    found = [p for p, _ in beam]
    for p in found:
        visit(p)
    while len(tree) - 1 < budget:
        means = {n: [g[p] for p in g if len(p) == n] for n in {len(p) for p in g}}
        may = {
            p
            for p in g
            if any((*p, a) not in visits for a in chances[p]) and g[p] >= sum(means[len(p)]) / len(means[len(p)]) - 1e-9
        }
        if not may:
            break
        at = ()
        while True:
            below = [c for c in tree if len(c) == len(at) + 1 and c[:-1] == at]
            below = [c for c in below if any(m[: len(c)] == c for m in may)]
            if not below:
                break
            top = math.log(visits[()] + 1)
            at = max(below, key=lambda c: g[c] + exploration * math.sqrt(top / (visits[c] + 1)))
        left = {a: x for a, x in chances[at].items() if (*at, a) not in visits}
        child = (*at, max(left, key=left.__getitem__))
        add(child)
        if child in whole:
            found.append(child)
        visit(child)
    return found, len(tree) - 1


def rows(guided):
    return [tuple(row[keep].tolist()) for row, keep in zip(guided.tokens, guided.mask, strict=True)]


@given(
    st.integers(0, 10_000),
    st.sets(st.tuples(*[st.integers(0, 3)] * 3), min_size=3, max_size=40),
    st.integers(1, 5),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.1, 2.0]),
    st.sampled_from([0.0, 1.0]),
)
def test_it_is_the_search_that_the_docstring_states(seed, items, width, more, entropy_weight, exploration):
    # Some items end early, by a token that stands nowhere else.
    items = sorted({item if item[2] else (item[0], 4) for item in items})
    policy, value = tables(seed, 5)
    budget = 3 * width + more
    guided = value_guided_decoding(
        policy,
        value,
        TrieConstraint(items),
        budget=budget,
        width=width,
        entropy_weight=entropy_weight,
        exploration=exploration,
    )
    found, spent = searched(policy, value, items, budget, width, entropy_weight, exploration)
    assert rows(guided) == found
    assert guided.spent == spent <= budget
    assert set(found) <= set(items)
    assert len(set(found)) == len(found)


def by_hand(values, chances):
    """A policy and values of the beginnings of two tokens."""
    first = torch.tensor(chances).log()

    def policy(prefixes):
        return torch.stack([first if not p else torch.zeros(3) for p in prefixes.tolist()])

    return policy, lambda prefixes: torch.tensor([values.get(tuple(p), 0.0) for p in prefixes.tolist()])


def test_an_unlikely_beginning_of_high_value_is_deepened():
    policy, value = by_hand({(2,): 1.0}, [0.69, 0.3, 0.01])
    constraint = TrieConstraint(ITEMS)
    # The beam keeps 0 and 1, then 00 and 01. Of both beginnings nothing is expected, so all tie with the mean and 0
    # has nothing left: 1 gets 10, then 11; the root gets 2 last, and 2 gets its own.
    assert rows(value_guided_decoding(policy, value, constraint, budget=4, width=2)) == [(0, 0), (0, 1)]
    guided = value_guided_decoding(policy, value, constraint, budget=6, width=2)
    assert rows(guided) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert guided.spent == 6
    whole = value_guided_decoding(policy, value, constraint, budget=99, width=2)
    assert rows(whole)[4:] == [(2, 0), (2, 1)]
    assert whole.spent == 9
    # With all three in the beam, 2 is far above the mean of 1/3 and the others are not: they are never deepened.
    wide = value_guided_decoding(policy, value, constraint, budget=99, width=3)
    assert rows(wide) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]


def test_what_is_found_is_reported_as_the_policy_sees_it_among_the_items():
    policy, value = by_hand({}, [0.6, 0.3, 0.1])
    guided = value_guided_decoding(policy, value, TrieConstraint([[0, 0], [2, 1]]), budget=4, width=2)
    assert torch.allclose(guided.logp.exp(), torch.tensor([[6 / 7, 1.0], [1 / 7, 1.0]]))
    assert guided.mask.all()
    assert guided.tokens.tolist() == [[0, 0], [2, 1]]


def test_entropy_counts():
    policy, value = by_hand({}, [0.5, 0.4, 0.1])

    def surer(prefixes):
        sharp = torch.tensor([9.0, 0.0, 0.0])
        return torch.stack(
            [sharp if p == [0] else row for p, row in zip(prefixes.tolist(), policy(prefixes), strict=True)]
        )

    constraint = TrieConstraint([*ITEMS, [0, 2], [1, 2]])
    plain = value_guided_decoding(surer, value, constraint, budget=5, width=2, entropy_weight=0.0)
    assert rows(plain) == [(0, 0), (1, 0), (0, 1)]
    curious = value_guided_decoding(surer, value, constraint, budget=5, width=2)
    assert rows(curious) == [(0, 0), (1, 0), (1, 1)]


def test_calls_are_batched_and_never_about_whole_items():
    asked = []

    def policy(prefixes):
        asked.append(tuple(prefixes.shape))
        return torch.zeros(len(prefixes), 3)

    constraint = TrieConstraint(list(itertools.product(range(3), repeat=3)))
    value_guided_decoding(policy, lambda p: torch.zeros(len(p)), constraint, budget=99, width=3)
    assert asked[:3] == [(1, 0), (3, 1), (3, 2)]
    assert all(n == 1 and length < 3 for n, length in asked[3:])


def test_settings_that_make_no_sense():
    policy, value = by_hand({}, [0.5, 0.4, 0.1])
    with pytest.raises(ValueError, match="width is 0"):
        value_guided_decoding(policy, value, TrieConstraint(ITEMS), budget=9, width=0)
    with pytest.raises(ValueError, match="may take 16"):
        value_guided_decoding(policy, value, TrieConstraint(ITEMS), budget=15)


def test_prefix_reward_by_hand():
    items = [[0, 0], [0, 1], [1, 0]]
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    reward = PrefixReward(items, embeddings)
    tokens = torch.tensor([[0, 0], [0, 1], [1, 0], [0, -1]])
    mask = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
    gold = torch.tensor([[0, 0]] * 3 + [[1, 0]])
    near = 1 - 1 / math.sqrt(2)  # of gold 00 nothing is lost at 0; the bucket 0 is (1/2, 1/2), the item 10 its contrary
    expected = [[0.3, 0.5], [0.3, -0.5], [-0.6, -1.0], [-0.3 * (2 - near), 0.0]]
    assert torch.allclose(reward(tokens, gold, mask), torch.tensor(expected), atol=1e-6)


@given(st.integers(0, 10_000))
def test_prefix_reward_is_the_mean_over_the_items_that_begin_so(seed):
    g = torch.Generator().manual_seed(seed)
    items = [item for item in itertools.product(range(3), repeat=3) if torch.rand(1, generator=g) < 0.6] or [(0, 0, 0)]
    embeddings = torch.randn(len(items), 4, generator=g, dtype=torch.float64)
    pick, right = (torch.randint(len(items), (6,), generator=g) for _ in range(2))
    tokens, gold = torch.tensor(items)[pick], torch.tensor(items)[right]
    mask = torch.arange(3) < torch.randint(0, 4, (6, 1), generator=g)
    seen = PrefixReward(items, embeddings)(torch.where(mask, tokens, 77), gold, mask)
    for i, (p, r) in enumerate(zip(pick.tolist(), right.tolist(), strict=True)):
        for n, weight in enumerate((0.3, 0.5, 1.0)):
            bucket = [e for item, e in zip(items, embeddings, strict=True) if item[: n + 1] == items[p][: n + 1]]
            near = torch.cosine_similarity(torch.stack(bucket).mean(dim=0), embeddings[r], dim=0).item()
            matches = items[p][: n + 1] == items[r][: n + 1]
            wanted = 0.0 if not mask[i, n] else weight * (1.0 if matches else near - 1)
            assert seen[i, n].item() == pytest.approx(wanted, abs=1e-9)


def test_prefix_reward_refuses_what_it_does_not_know():
    reward = PrefixReward([[0, 1]], torch.ones(1, 2))
    with pytest.raises(ValueError, match="begin no item"):
        reward(torch.tensor([[0, 2]]), torch.tensor([[0, 1]]), torch.ones(1, 2))
    with pytest.raises(ValueError, match="2 embeddings of 1 items"):
        PrefixReward([[0, 1]], torch.ones(2, 2))


def test_value_targets_look_one_token_ahead():
    dense = torch.tensor([[0.3, 0.5, 1.0], [-0.3, 0.5, float("nan")]])
    values = torch.tensor([[9.0, 2.0, 4.0], [9.0, 2.0, float("nan")]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    targets = value_targets(dense, values, mask)
    assert torch.allclose(targets, torch.tensor([[0.3 + 1.98, 0.5 + 3.96, 1.0], [-0.3 + 1.98, 0.5, 0.0]]))
    assert not targets.requires_grad
