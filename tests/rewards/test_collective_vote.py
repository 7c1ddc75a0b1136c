from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.rewards.collective_vote import collective_vote, rlccf, rlccf_labels
from guerdon.rewards.label_free import vote

quick = settings(derandomize=True, deadline=None, max_examples=30)
A, B, C, D = range(4)


def test_the_published_example():
    label, weight = rlccf_labels(torch.tensor([[A] * 5, [B, B, B, C, D], [B, B, B, C, D]]))
    assert label == A
    assert weight.tolist() == pytest.approx([1.0, 0.6, 0.6])
    rows = torch.arange(3).repeat_interleave(5)
    answers = torch.tensor([A] * 5 + [B, B, B, C, D] * 2)
    result = collective_vote(answers, torch.zeros(15).long(), rows)
    assert result.consistency.tolist() == pytest.approx([5 / 11] * 15)
    assert result.won.tolist() == [True] * 5 + [False] * 10
    assert collective_vote(answers, torch.zeros(15).long(), rows, weighted=False).label[0] == B


def test_no_answers_and_ties():
    assert rlccf_labels(torch.tensor([[A, A], [B, B]]))[0] == -1
    label, weight = rlccf_labels(torch.tensor([[A, -1], [-1, -1]]))
    assert label == A
    assert weight.tolist() == [0.5, 0.0]
    assert rlccf_labels(torch.zeros(2, 0).long())[0] == -1
    two = torch.tensor([A, B])
    assert collective_vote(two, torch.zeros(2).long(), two, priority=two).label.tolist() == [B, B]
    with pytest.raises(ValueError, match=r"model has shape \(1,\), group \(2,\)"):
        collective_vote(two, torch.zeros(2).long(), torch.zeros(1).long())


@quick
@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 1), st.integers(5, 7)), max_size=14), st.randoms())
def test_against_counting(members, random):
    answer, group, model = (torch.tensor([m[k] for m in members], dtype=torch.int64) for k in range(3))
    seen = collective_vote(answer, group, model)
    cells = defaultdict(list)
    for a, g, m in members:
        cells[g, m].append(a)
    weight = {k: max((x.count(a) for a in x if a >= 0), default=0) / len(x) for k, x in cells.items()}
    for row, (_, g, m) in enumerate(members):
        votes = defaultdict(float)
        for a, other, n in members:
            if other == g and a >= 0:
                votes[a] += weight[g, n]
        first = [a for a, v in votes.items() if v > max(votes.values()) - 1e-9]
        assert seen.label[row] == (first[0] if len(first) == 1 else -1)
        assert seen.weight[row].item() == pytest.approx(weight[g, m])
    order = torch.tensor(random.sample(range(len(members)), len(members)), dtype=torch.int64)
    assert torch.equal(collective_vote(answer[order], group[order], model[order]).won, seen.won[order])


@quick
@given(st.integers(0, 99))
def test_equal_self_consistencies_are_a_plain_vote(seed):
    random = torch.Generator().manual_seed(seed)
    answer = torch.stack([torch.randperm(4, generator=random)[torch.tensor([0, 0, 1])] for _ in range(6)])
    group, model = torch.arange(2).repeat_interleave(9), torch.arange(6).repeat_interleave(3)
    assert torch.equal(collective_vote(answer.flatten(), group, model).label, vote(answer.flatten(), group).label)


def test_on_texts_with_the_answers_of_others():
    text, group = ["so 4", "or 5", "so 4", "x: 9", "none"], torch.tensor([0, 0, 0, 3, 3])
    metadata = [{"peers": [["5", "5", "5"], [5]]}] * 3 + [{"peers": []}] * 2
    seen, stats = rlccf(text, group, metadata, pattern=r"\d")
    assert seen.tolist() == [0, 1, 0, 1, 0]
    assert stats["weight"] == pytest.approx((3 * 2 / 3 + 2 * 0.5) / 5)
    assert stats["consistency"] == pytest.approx((3 * (3 + 1 + 2 / 3) / (3 + 1 + 2) + 2 * 1) / 5)
    assert stats["undecided"] == 0
    tied, stats = rlccf(["4"], torch.tensor([0]), [{"peers": [["5"]]}])
    assert tied.tolist() == [0]
    assert stats["undecided"] == 1
    drawn = [rlccf(["4"], torch.tensor([0]), [{"peers": [["5"]]}], step, ties="random")[0].item() for step in range(30)]
    assert 5 < sum(drawn) < 25
    assert rlccf([], torch.zeros(0).long(), [])[0].shape == (0,)


def test_what_is_wrong_with_the_metadata_is_said():
    with pytest.raises(ValueError, match="have no 'peers'; known: other"):
        rlccf(["4"], torch.tensor([0]), [{"other": 1}])
    with pytest.raises(ValueError, match="wanted a list of answers for each model"):
        rlccf(["4"], torch.tensor([0]), [{"peers": ["5"]}])
