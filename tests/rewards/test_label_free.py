import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.registry import get
from guerdon.rewards.label_free import (
    anchored_certainty,
    answer_numbers,
    log_probability,
    lots,
    majority_vote,
    probability_gap,
    self_certainty,
    token_certainty,
    trajectory_probability,
    vote,
)

quick = settings(derandomize=True, deadline=None, max_examples=30)
BOXED = r"\\boxed\{(.*?)\}"
F64 = torch.float64


def test_answers_are_numbered():
    numbers, answers = answer_numbers([r"\boxed{4}", "no", r"\boxed{5}, so \boxed{4}", r"\boxed{}"], BOXED)
    assert numbers.tolist() == [0, -1, 0, -1]
    assert answers == ["4"]
    assert answer_numbers([" a  b ", "a b", ""])[0].tolist() == [0, 0, -1]
    assert answer_numbers(["x", "1"], valid=str.isdigit)[0].tolist() == [-1, 0]


def test_a_vote_by_hand():
    answer, group = torch.tensor([0, 0, 1, -1, 1, 0]), torch.tensor([3, 3, 3, 3, -8, -8])
    result = vote(answer, group)
    assert result.won.tolist() == [True, True, False, False, False, False]
    assert result.share.tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 0, 0.5, 0.5])
    assert result.top.tolist() == pytest.approx([2 / 3] * 4 + [0.5] * 2)
    assert result.label.tolist() == [0] * 4 + [-1] * 2
    lot = torch.tensor([1.0, 1, 2, 0, 2, 1])
    assert vote(answer, group, priority=lot).won.tolist() == [True, True, False, False, True, False]
    weighted = vote(answer, group, weight=torch.tensor([0.1, 0.2, 0.4, 9.0, 1.0, 1.0]))
    assert weighted.won.tolist() == [False, False, True, False, False, False]


def test_equal_priorities_leave_a_tie():
    assert vote(torch.tensor([0, 1]), torch.zeros(2).long(), priority=torch.ones(2)).label.tolist() == [-1, -1]


def test_weighted_sums_that_are_equal_tie_whatever_their_rounding():
    weight = torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    assert vote(torch.tensor([0, 0, 1]), torch.zeros(3).long(), weight=weight).label.tolist() == [-1] * 3


@quick
@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(-2, 1)), max_size=14), st.randoms())
def test_a_vote_against_counting(members, random):
    answer, group = (torch.tensor([m[k] for m in members], dtype=torch.int64) for k in (0, 1))
    result = vote(answer, group)
    for row, (mine, key) in enumerate(members):
        counts = Counter(a for a, g in members if g == key and a >= 0)
        first = [a for a, c in counts.items() if c == max(counts.values())]
        assert bool(result.won[row]) == (first == [mine])
        assert int(result.label[row]) == (first[0] if len(first) == 1 else -1)
        assert result.share[row].item() == pytest.approx(counts[mine] / max(counts.total(), 1) if mine >= 0 else 0)
    order = torch.tensor(random.sample(range(len(members)), len(members)), dtype=torch.int64)
    assert torch.equal(vote(answer[order], group[order]).won, result.won[order])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"answer has shape \(2,\), group \(3,\)"):
        vote(torch.zeros(2).long(), torch.zeros(3).long())


def test_the_vote_as_a_reward():
    text, group = ["a", "b", "b ", "", "c", "d"], torch.tensor([0, 0, 0, 0, 1, 1])
    reward, stats = majority_vote(text, group)
    assert reward.tolist() == [0, 1, 1, 0, 0, 0]
    assert stats == {"agreement": pytest.approx((4 * 2 / 3 + 2 * 0.5) / 6), "undecided": pytest.approx(1 / 3)}
    drawn = torch.stack([majority_vote(text, group, step, ties="random")[0][4:] for step in range(40)])
    assert (drawn.sum(dim=1) == 1).all()
    assert 8 < drawn[:, 0].sum() < 32
    assert majority_vote([], torch.zeros(0).long())[0].shape == (0,)


def test_lots_depend_on_spelling_and_step_alone():
    number = torch.tensor([1, 0, -1])
    forward, backward = lots(["a", "b"], number, 3), lots(["b", "a"], torch.tensor([0, 1, -1]), 3)
    assert torch.equal(forward, backward)
    assert forward[2] == -1
    assert not torch.equal(forward, lots(["a", "b"], number, 4))


def test_likelihoods_by_hand():
    old_logp = torch.tensor([[-1.0, -3.0, math.nan], [-2.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    assert log_probability(old_logp, mask).tolist() == [-2, -2, 0]
    assert log_probability(old_logp, mask, reduce="sum").tolist() == [-4, -2, 0]
    assert trajectory_probability(old_logp, mask).tolist() == pytest.approx([math.exp(-4), math.exp(-2), 1])


def test_certainties_by_hand():
    p = torch.tensor([0.5, 0.25, 0.25], dtype=F64)
    logits = torch.stack([p.log(), torch.zeros(3, dtype=F64), torch.full((3,), math.nan, dtype=F64)]).unsqueeze(0)
    mask = torch.tensor([[True, True, False]])
    kl = (-math.log(3) - (math.log(0.5) + 2 * math.log(0.25)) / 3) / 2
    assert self_certainty(logits, mask).item() == pytest.approx(kl)
    assert probability_gap(logits, mask).item() == pytest.approx(0.125)
    entropy = torch.tensor([[1.5 * math.log(2), math.log(3), math.nan]], dtype=F64)
    assert token_certainty(entropy, mask).item() == pytest.approx(-(1.5 * math.log(2) + math.log(3)) / 2)
    nobody = torch.zeros(1, 3).bool()
    assert [float(f(logits, nobody)) for f in (self_certainty, probability_gap)] == [0, 0]
    assert token_certainty(entropy, nobody).item() == 0


@quick
@given(st.integers(0, 99))
def test_all_certainties_are_of_one_form(seed):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, 5, generator=random, dtype=F64, requires_grad=True)
    mask = torch.rand(2, 4, generator=random) > 0.3
    table = logits.detach().log_softmax(dim=-1)
    token = torch.randint(5, (2, 4), generator=random)
    written = table.gather(2, token.unsqueeze(2)).squeeze(2)
    entropy = -(table.exp() * table).sum(dim=-1)
    torch.testing.assert_close(anchored_certainty(logits, table.exp(), mask, sign=-1), token_certainty(entropy, mask))
    hot = torch.nn.functional.one_hot(token, 5).double()
    torch.testing.assert_close(anchored_certainty(logits, hot, mask, sign=-1), log_probability(written, mask))
    uniform = torch.full((5,), 0.2, dtype=F64)
    shifted = anchored_certainty(logits, uniform, mask) - math.log(5) * mask.any(dim=1)
    torch.testing.assert_close(self_certainty(logits, mask), shifted)
    assert not self_certainty(logits, mask).requires_grad
    padded = torch.cat([logits, torch.full((2, 1, 5), math.inf)], dim=1)
    longer = torch.cat([mask, torch.zeros(2, 1).bool()], dim=1)
    torch.testing.assert_close(self_certainty(padded, longer), self_certainty(logits, mask))


def test_an_anchor_that_a_sure_policy_rules_out():
    logits = torch.tensor([[[0.0, -math.inf]]])
    ones = torch.ones(1, 1).bool()
    assert anchored_certainty(logits, torch.tensor([1.0, 0.0]), ones).item() == 0


@pytest.mark.parametrize("name", ["majority_vote", "log_probability", "trajectory_probability"])
def test_recipes_find_them(name):
    assert get("reward", name).summary
