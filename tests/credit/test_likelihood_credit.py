import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.credit import grpo
from guerdon.credit.likelihood import progrpo

quick = settings(derandomize=True, deadline=None, max_examples=40)
ROW = st.tuples(st.sampled_from([0.0, 1.0]), st.integers(0, 2), st.floats(-6, 0), st.floats(-6, 0), st.integers(0, 2))


def single(rewards, groups, probabilities, **options):
    """Credit of trajectories of one action each."""
    reward, group = torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups)
    old_logp = torch.tensor(probabilities, dtype=torch.float64).log().unsqueeze(1)
    mask = torch.ones(len(rewards), 1).bool()
    return progrpo(reward, group, mask, old_logp, **options)[0].squeeze(1), grpo(reward, group, mask).squeeze(1)


def batch(rows):
    reward, group, first, second, length = (torch.tensor(column) for column in zip(*rows, strict=True))
    old_logp = torch.stack([first, second], dim=1).double()
    mask = torch.arange(2) < length.unsqueeze(1)
    return reward.double(), group, mask, old_logp


PROMPT = torch.tensor([[math.nan, -0.5, -1.0]] * 3, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"prompt_logp": PROMPT}, {"centre": True}, {"correct_only": True}])
def test_the_less_confident_of_two_right_answers_gets_more(options):
    seen, _ = single([1.0, 1.0, 0.0], [7, 7, 7], [0.9, 0.3, 0.5], **options)
    assert (seen[1] - seen[0]).item() == pytest.approx(0.3 * 0.6)


def test_by_hand_with_a_prompt():
    # ceil(0.2 * 2) = 1 prompt token counts, the one of log-probability -1
    seen, plain = single([1.0, 1.0, 0.0], [7, 7, 7], [0.9, 0.3, 0.5], prompt_logp=PROMPT, alpha=0.5)
    bonus = [0.5 * (math.exp(-1) - c) for c in (0.9, 0.3, 0.5)]
    assert (seen - plain).tolist() == pytest.approx(bonus)
    only, _ = single([1.0, 1.0, 0.0], [7, 7, 7], [0.9, 0.3, 0.5], prompt_logp=PROMPT, alpha=0.5, correct_only=True)
    assert (only - plain).tolist() == pytest.approx([*bonus[:2], 0.0])


def test_without_a_prompt_the_bonus_is_centred_over_those_who_get_it():
    seen, plain = single([1.0, 1.0, 0.0], [7, 7, 7], [0.9, 0.3, 0.6])
    assert (seen - plain).tolist() == pytest.approx([0.3 * (0.6 - c) for c in (0.9, 0.3, 0.6)])
    only, _ = single([1.0, 1.0, 0.0], [7, 7, 7], [0.9, 0.3, 0.6], correct_only=True)
    assert (only - plain).tolist() == pytest.approx([0.3 * (0.6 - c) for c in (0.9, 0.3)] + [0.0])
    raw, _ = single([1.0, 1.0, 0.0], [7, 7, 7], [0.9, 0.3, 0.6], centre=False)
    assert (raw - plain).tolist() == pytest.approx([-0.3 * c for c in (0.9, 0.3, 0.6)])


def test_groups_without_a_success_are_left_alone_and_solved_ones_still_teach():
    seen, plain = single(
        [0.0, 0.0, 1.0, 1.0, 0.5, 0.2], [1, 1, 2, 2, 3, 3], [0.9, 0.1, 0.9, 0.1, 0.9, 0.1], threshold=0.5
    )
    assert seen[[0, 1, 4, 5]].tolist() == plain[[0, 1, 4, 5]].tolist(), "0.5 does not exceed the threshold"
    assert seen[2:4].tolist() == pytest.approx([-0.12, 0.12])
    assert plain[2:4].tolist() == [0.0, 0.0]


@quick
@given(st.lists(ROW, min_size=1, max_size=10), st.booleans(), st.booleans())
def test_alpha_zero_is_grpo_and_nothing_lands_off_the_mask(rows, correct_only, prompted):
    reward, group, mask, old_logp = batch(rows)
    prompt = torch.full((len(rows), 2), -0.3, dtype=torch.float64) if prompted else None
    off, _ = progrpo(reward, group, mask, old_logp, prompt, alpha=0.0, correct_only=correct_only)
    torch.testing.assert_close(off, grpo(reward, group, mask))
    spoiled = old_logp.masked_fill(~mask, float("nan"))
    seen, _ = progrpo(reward, group, mask, spoiled, prompt, correct_only=correct_only)
    torch.testing.assert_close(seen, progrpo(reward, group, mask, old_logp, prompt, correct_only=correct_only)[0])
    assert (seen[~mask] == 0).all()


@quick
@given(st.lists(ROW, min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_order_and_padding_do_not_matter_and_centred_credit_adds_up_to_zero(rows, random):
    reward, group, mask, old_logp = batch([(*row[:4], max(row[4], 1)) for row in rows])
    seen, _ = progrpo(reward, group, mask, old_logp)
    order = torch.tensor(random.sample(range(len(rows)), len(rows)))
    torch.testing.assert_close(progrpo(reward[order], group[order], mask[order], old_logp[order])[0], seen[order])
    pad = torch.nn.functional.pad
    wide, _ = progrpo(reward, group, pad(mask, (0, 3)), pad(old_logp, (0, 3)))
    torch.testing.assert_close(wide[:, :2], seen)
    for key in group.unique():
        assert seen[group == key, 0].sum().item() == pytest.approx(0, abs=1e-9)


def test_padding_of_the_prompt_is_not_read():
    narrow, _ = single([1.0, 1.0, 0.0], [7, 7, 7], [0.9, 0.3, 0.5], prompt_logp=PROMPT)
    wide = torch.cat([torch.full((3, 4), math.nan, dtype=torch.float64), PROMPT], dim=1)
    assert single([1.0, 1.0, 0.0], [7, 7, 7], [0.9, 0.3, 0.5], prompt_logp=wide)[0].tolist() == narrow.tolist()
