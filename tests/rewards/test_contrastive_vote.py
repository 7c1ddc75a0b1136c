from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.rewards.contrastive_vote import co_reward, contrastive_reward, partner_label

quick = settings(derandomize=True, deadline=None, max_examples=30)


@quick
@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 4)), max_size=14), st.randoms())
def test_labels_against_counting(members, random):
    """Groups 0 and 3 are a pair, 1, 2 and 4 another of three phrasings."""
    pairs = {0: 9, 3: 9, 1: -2, 2: -2, 4: -2}
    answer, group = (torch.tensor([m[k] for m in members], dtype=torch.int64) for k in (0, 1))
    pair = torch.tensor([pairs[g] for _, g in members], dtype=torch.int64)
    seen = partner_label(answer, group, pair)
    for row, (_, key) in enumerate(members):
        others = [a for a, g in members if g != key and pairs[g] == pairs[key]]
        counts = Counter(a for a in others if a >= 0)
        first = [a for a, c in counts.items() if c == max(counts.values())]
        assert seen[row] == (-2 if not others else first[0] if len(first) == 1 else -1)
    order = torch.tensor(random.sample(range(len(members)), len(members)), dtype=torch.int64)
    assert torch.equal(partner_label(answer[order], group[order], pair[order]), seen[order])


def test_the_label_comes_from_the_partner_alone():
    group, pair = torch.tensor([0, 0, 0, 1, 1, 1]), torch.zeros(6).long()
    ours, theirs = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])
    seen = contrastive_reward(torch.cat([ours, theirs]), group, pair)
    assert seen.tolist() == [0, 0, 1, 0, 0, 1]
    changed = contrastive_reward(torch.cat([torch.tensor([1, 1, 1]), theirs]), group, pair)
    assert partner_label(torch.cat([torch.tensor([2, 2, 2]), theirs]), group, pair)[:3].tolist() == [1, 1, 1]
    assert changed[3:].tolist() == [1, 1, 0]


def test_ties_have_no_label_or_one_by_priority():
    answer, group, pair = torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 1, 1]), torch.zeros(4).long()
    assert contrastive_reward(answer, group, pair).tolist() == [1, 0, 0, 0]
    assert contrastive_reward(answer, group, pair, priority=torch.tensor([2.0, 1.0])).tolist() == [1, 0, 1, 1]


def test_what_has_no_partner():
    seen = contrastive_reward(torch.tensor([0, -1]), torch.tensor([4, 4]), torch.tensor([1, 1]))
    assert seen.isnan().all()
    assert contrastive_reward(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0).long()).shape == (0,)


def test_wrong_keys_are_refused():
    with pytest.raises(ValueError, match="group 3 belongs to several pairs"):
        partner_label(torch.zeros(2).long(), torch.tensor([3, 3]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"shapes \(2,\), \(2,\), \(1,\)"):
        partner_label(torch.zeros(2).long(), torch.zeros(2).long(), torch.zeros(1).long())


def test_on_texts():
    text, group = ["a", "a", "b", "b", "b", ""], torch.tensor([0, 0, 1, 1, 1, 2])
    scores, stats = co_reward(text, group, torch.tensor([5, 5, 5, 5, 5, 6]))
    assert [score.value for score in scores] == [0, 0, 0, 0, 0, 0]
    assert [score.valid for score in scores] == [True] * 5 + [False]
    assert stats == {"paired": pytest.approx(5 / 6), "undecided": 0.0}
    metadata = [{"q": 1}, {"q": 1}, {"q": 2}, {"q": 2}, {"q": 2}, {"q": 1}]
    scores, stats = co_reward(text, group, torch.arange(6), metadata, pair="q", pattern="[ab]")
    assert [score.valid for score in scores] == [True, True, False, False, False, True]
    assert stats["undecided"] == pytest.approx(2 / 3)
    tied = co_reward(["a", "b", "a"], torch.tensor([0, 0, 1]), torch.zeros(3).long(), step=1, ties="random")[0]
    assert tied[0].value == 1
    with pytest.raises(ValueError, match="metadata of sample 1 have no 'q'; known: p"):
        co_reward(["a", "b"], torch.tensor([0, 1]), torch.arange(2), [{"q": 1}, {"p": 1}], pair="q")
    assert co_reward([], torch.zeros(0).long(), torch.zeros(0).long()) == ([], {"paired": 0.0, "undecided": 0.0})
