import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit.necessary_prefix import (
    Decs,
    decs_advantage,
    decs_token_reward,
    first_mention,
    necessary_prefix,
    positionwise_advantage,
    redundant_actions,
)

quick = settings(derandomize=True, deadline=None, max_examples=25)


def mask_of(*lengths, width=None):
    return torch.arange(width or max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def test_the_example_by_hand():
    # Two right answers of 4 and 6 actions; the first needed two of them.
    mask, right = mask_of(4, 6), torch.ones(2).bool()
    redundant = torch.zeros(2, 6).bool()
    redundant[0, 2:4] = True
    reward = decs_token_reward(right, redundant, mask, longest=10)
    assert reward[0].tolist() == pytest.approx([1.1, 1.1, 1.06, 1.06, 0, 0])
    assert reward[1].tolist() == pytest.approx([1.1] * 6)
    credit = decs_advantage(right, redundant, torch.zeros(2).long(), mask, longest=10)
    assert credit[:, 0].tolist() == [0.0, 0.0]
    assert credit[:, 2].tolist() == pytest.approx([-0.70709, 0.70709], abs=1e-4)
    assert credit[:, 4:].tolist() == [[0.0, 0.0], [0.0, 0.0]]  # the answer that is over counts 1.1, as the other's


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.7, 1.1])
def test_an_answer_that_is_over_equals_a_necessary_action_exactly(beta):
    nothing = torch.zeros(2, 6).bool()
    credit = decs_advantage(torch.ones(2).bool(), nothing, torch.zeros(2).long(), mask_of(3, 6), beta=beta)
    assert credit.abs().max() == 0


def test_wrong_answers_earn_nothing_at_any_position():
    mask, right = mask_of(2, 3), torch.tensor([True, False])
    reward = decs_token_reward(right, torch.zeros(2, 3).bool(), mask, longest=10)
    assert reward.tolist() == [pytest.approx([1.1, 1.1, 0]), [0.0, 0.0, 0.0]]
    credit = decs_advantage(right, torch.zeros(2, 3).bool(), torch.zeros(2).long(), mask, longest=10)
    assert (credit[1] < 0).all()  # at the last position too, where the right answer is over
    assert credit[0].tolist() == pytest.approx([0.70711, 0.70711, 0.0], abs=1e-4)


def test_longer_than_the_longest_pays_no_less_than_nothing():
    reward = decs_token_reward(torch.ones(1).bool(), torch.ones(1, 8).bool(), mask_of(8), longest=4)
    assert reward.unique().tolist() == [1.0]


rows = st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 6)), min_size=1, max_size=10)


@quick
@given(rows, st.integers(0, 99))
def test_positions_against_a_brute_force(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    group, right, lengths = (torch.tensor(column) for column in zip(*rows, strict=True))
    mask = mask_of(*lengths.tolist(), width=8)
    value = torch.randint(0, 3, mask.shape, generator=generator).double()
    value[~mask] = float("nan")  # what stands off the mask is never read
    out = positionwise_advantage(value, right.double(), group, mask, eps=1e-6)
    for i in range(len(rows)):
        for t in range(8):
            if not mask[i, t]:
                assert out[i, t] == 0
                continue
            mates = [j for j in range(len(rows)) if group[j] == group[i] and lengths[j] > 0]
            seen = torch.stack([value[j, t] if mask[j, t] else right[j].double() for j in mates])
            spread = seen.std() if len(mates) > 1 else torch.zeros(())
            wanted = (value[i, t] - seen.mean()) / (spread + 1e-6) if seen.unique().numel() > 1 else 0.0
            assert out[i, t].item() == pytest.approx(float(wanted), abs=1e-9)
    order = torch.randperm(len(rows), generator=generator)
    again = positionwise_advantage(value[order], right.double()[order], group[order], mask[order])
    assert torch.allclose(again, out[order])
    wide = torch.nn.functional.pad(mask, (0, 2))
    padded = positionwise_advantage(torch.nn.functional.pad(value, (0, 2)), right.double(), group, wide)
    assert torch.allclose(padded[:, :8], out)


def test_a_gap_between_actions_counts_nowhere():
    mask = torch.tensor([[True, False, True], [True, True, True]])
    value = torch.tensor([[1.0, 9.0, 1.0], [1.0, 5.0, 0.0]])
    out = positionwise_advantage(value, torch.zeros(2), torch.zeros(2).long(), mask)
    assert out[:, 1].tolist() == [0.0, 0.0]
    assert out[0, 2] > 0 > out[1, 2]


def test_where_the_answer_is_first_mentioned():
    assert first_mention(["so 142 or", "x = 42.", "42"], 42) == 1
    assert first_mention(["4.2 and 42.5", "-42"], 42) == 1
    assert first_mention(["The Word", "a word"], "word") == 0
    assert first_mention(["nothing"], 42) is None
    assert first_mention(["x"], "") is None


def test_the_prefix_of_a_thought():
    text = "<think>try 3\n\nso 42\n\ncheck\n\nagain 42</think>The answer is 42"
    prefix = necessary_prefix(text, 42)
    assert text[prefix.begin : prefix.end] == "check\n\nagain 42"
    assert prefix.needed == 0.5
    assert text[necessary_prefix(text, 7).begin :] == "</think>The answer is 42"  # an empty stretch
    assert necessary_prefix(text, 7).needed == 1.0
    late = necessary_prefix(text, 42, judge=lambda chunks, answer: len(chunks) - 1)
    assert late.begin == late.end
    assert late.needed == 1.0


def test_without_marks_the_last_chunk_is_the_answer():
    text = "so 42\n\ncheck\n\n42"
    prefix = necessary_prefix(text, 42)
    assert text[prefix.begin : prefix.end] == "check"
    for whole in ("42", "", "<think>42", "</think>42"):
        assert necessary_prefix(whole, 42).begin == necessary_prefix(whole, 42).end


def test_actions_are_taken_to_be_equally_wide():
    text = ["ab\n\ncdefgh\n\nz"]  # 13 characters: redundant are [4, 10)
    found = [necessary_prefix(text[0], "ab")]
    assert found[0][:2] == (4, 10)
    one_each = redundant_actions(found, text, torch.ones(1, 13).bool())
    assert one_each[0].nonzero().flatten().tolist() == list(range(4, 10))
    holes = torch.tensor([[True, False, True, True]])  # three actions, with middles at 1/6, 1/2 and 5/6
    assert redundant_actions(found, text, holes)[0].tolist() == [False, False, True, False]


def test_a_batch_and_its_curriculum():
    texts = ["7\n\nidle\n\n7", "7\n\n7", "7\n\nidle\n\n7", "9\n\n9", "9\n\n9", "9\n\n9"]
    reward, group = torch.tensor([1.0, 1, 1, 0, 0, 0]), torch.tensor([0, 0, 1, 1, 2, 2])
    mask = mask_of(*map(len, texts))
    method = Decs(longest=20)
    arguments = (reward, group, mask, texts, [7] * 6, 0)
    credit, stats = method(*arguments)
    assert stats["needed"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert stats["kappa"] == 0.0
    assert credit[:2].abs().max() == 0  # solved throughout, and nothing is admitted at kappa 0
    assert credit[2:4].abs().max() > 0
    assert credit[4:].abs().max() == 0
    everybody, _ = Decs(longest=20, curriculum=False)(*arguments)
    assert everybody[:2].abs().max() > 0
    state = json.loads(json.dumps(method.state_dict()))
    fresh = Decs(longest=20)
    fresh.load_state_dict(state)
    assert fresh.share.needed == method.share.needed


def test_nothing_right_and_nothing_at_all():
    credit, stats = Decs()(torch.zeros(2), torch.zeros(2).long(), mask_of(2, 1), ["ab", "a"], ["x", "x"], 0)
    assert credit.abs().max() == 0
    assert "needed" not in stats
    empty, _ = Decs()(torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, 3).bool(), [], [], 0)
    assert empty.shape == (0, 3)
