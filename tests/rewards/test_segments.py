import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.rewards.segments import FrameReward, paid_in_order, segment_pseudo_labels

quick = settings(derandomize=True, deadline=None, max_examples=30)


def test_by_hand():
    gripper = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 0]])
    speed = torch.tensor([[0.0, 1, 1, 1, 1, 0.01, 0.01, 1, 1]])
    exists = torch.ones(1, 9, dtype=torch.bool)
    labels = segment_pseudo_labels(gripper, speed, exists)
    assert labels.positive[0].int().tolist() == [0, 0, 0, 1, 0, 1, 0, 0, 1]
    assert labels.segment[0].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    two = segment_pseudo_labels(gripper, speed, exists, last=2)
    assert two.positive[0].int().tolist() == [0, 0, 1, 1, 1, 1, 0, 1, 1]
    assert segment_pseudo_labels(gripper, speed, exists, last=9).positive.all()


def reference(gripper, speed, last, threshold):
    n = len(gripper)
    ends = [
        t == n - 1
        or (t > 0 and gripper[t] != gripper[t - 1])
        or (t > 0 and speed[t] < threshold and speed[t - 1] >= threshold)
        for t in range(n)
    ]
    positive, segment, begin = [False] * n, [0] * n, 0
    number = 0
    for t in range(n):
        segment[t] = number
        if ends[t]:
            for u in range(max(begin, t - last + 1), t + 1):
                positive[u] = True
            begin, number = t + 1, number + 1
    return positive, segment


@quick
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_against_a_loop_with_padding_that_holds_garbage(seed, last):
    g = torch.Generator().manual_seed(seed)
    gripper, speed = torch.randint(0, 2, (3, 12), generator=g).float(), torch.rand(3, 12, generator=g)
    lengths = torch.randint(1, 13, (3,), generator=g)
    exists = torch.arange(12) < lengths.unsqueeze(1)
    nan = float("nan")
    seen = segment_pseudo_labels(
        gripper.masked_fill(~exists, nan), speed.masked_fill(~exists, nan), exists, threshold=0.4, last=last
    )
    for i, n in enumerate(lengths.tolist()):
        positive, segment = reference(gripper[i, :n].tolist(), speed[i, :n].tolist(), last, 0.4)
        assert seen.positive[i, :n].tolist() == positive
        assert seen.segment[i, :n].tolist() == segment
    assert not seen.positive[~exists].any()
    assert (seen.segment[~exists] == -1).all()


def test_no_positive_frame_is_refused():
    with pytest.raises(ValueError, match="last is 0"):
        segment_pseudo_labels(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2).bool(), last=0)


def test_each_subtask_is_paid_once_and_in_order():
    answer = torch.tensor([[[0, 1], [1, 1], [1, 0], [1, 1], [1, 1], [1, 0], [0, 1]]])
    ended = torch.tensor([[0, 0, 0, 0, 1, 0, 0]]).bool()
    paid, progress = paid_in_order(answer, ended)
    assert paid[0].int().tolist() == [0, 1, 0, 1, 0, 1, 1]
    assert progress.tolist() == [2]
    first, then = paid_in_order(answer[:, :3], ended[:, :3]), answer[:, 3:]
    rest = paid_in_order(then, ended[:, 3:], first.progress)
    assert torch.cat([first.paid, rest.paid], dim=1).tolist() == paid.tolist()


def test_frames_are_told_apart_after_fitting():
    g = torch.Generator().manual_seed(0)
    frames = 5 + torch.randn(20, 10, 3, generator=g)
    positive = frames[..., 0] - 2 * frames[..., 2] > -5
    exists = torch.rand(20, 10, generator=g) < 0.8
    frames[~exists] = float("nan")
    model = FrameReward(3, seed=1)
    assert model.fit(frames, positive, exists) < 0.1
    right = model.answer(frames[exists]) == positive[exists]
    assert right.float().mean() > 0.97
    again = FrameReward(3, seed=1)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(frames[exists]), model(frames[exists]))
    with pytest.raises(ValueError, match="no frame"):
        model.fit(frames, positive, torch.zeros_like(exists))
