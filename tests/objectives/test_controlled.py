import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.controllers import Controller
from guerdon.objectives import kl
from guerdon.objectives.controlled import PIDKL, AsymmetricKL, EntropyGatedKL, RewardThreshold

quick = settings(derandomize=True, deadline=None, max_examples=25)
MASK = torch.tensor([[True, True, False], [True, False, False]])
NAN = float("nan")
REF = torch.tensor([[-2.0, -2.0, NAN], [-1.5, NAN, math.inf]])
LOGP = [[-1.0, -2.5, NAN], [-0.5, -math.inf, NAN]]
REWARD = torch.tensor([0.25, 0.75])
ENTROPY = torch.tensor([[1.0, 0.4, NAN], [0.1, NAN, NAN]])


def logp(shift=0.0):
    return (torch.tensor(LOGP) + shift).requires_grad_()


def gated(term, x, step, reward=REWARD, entropy=ENTROPY):
    return term(x, REF, entropy, MASK, reward, step)


def reverse_kl_gradient(x):
    """Of the mean over actions of k2: (log pi - log pi_ref) / number of actions."""
    return torch.where(MASK, (x.detach() - REF) / 3, 0.0)


# kl_pid ---------------------------------------------------------------------------------------------------


def test_until_it_has_seen_a_batch_it_is_the_fixed_term():
    for options in ({}, {"estimator": "k2", "aggregate": "seq_mean"}):
        x, y = logp(), logp()
        loss, stats = PIDKL(beta=0.3, **options)(x, REF, MASK, 0)
        wanted, seen = kl(y, REF, MASK, beta=0.3, **options)
        loss.backward()
        wanted.backward()
        assert loss.item() == wanted.item()
        assert torch.equal(x.grad, y.grad)
        assert stats == {"kl": seen["kl"], "beta": 0.3, "error": 0.0}


def test_the_coefficient_by_hand():
    term = PIDKL(target=1.0, beta=0.5, kp=0.3, ki=0.1, kd=0.2, estimator="k2")
    first = term(logp(), REF, MASK, 0)[1]
    assert first["kl"] == pytest.approx((0.5 + 0.125 + 0.5) / 3)
    error = first["kl"] - 1
    second = term(logp(1.0), REF, MASK, 1)[1]
    assert second["beta"] == pytest.approx(0.5 * math.exp(0.6 * error))
    assert second["kl"] == pytest.approx((2 + 0.125 + 2) / 3)
    later = min(second["kl"] - 1, 1.0)
    third = term(logp(), REF, MASK, 2)[1]
    assert third["beta"] == pytest.approx(0.5 * math.exp(0.3 * later + 0.1 * (error + later) + 0.2 * (later - error)))
    assert third["error"] == pytest.approx(later)


def test_it_is_frozen_within_a_step_and_answers_the_mean_over_its_actions():
    term, other = PIDKL(target=1.0, beta=0.5, estimator="k2"), PIDKL(target=1.0, beta=0.5, estimator="k2")
    few = MASK & torch.tensor([[True], [False]])
    betas = [term(logp(shift), REF, mask, 7)[1]["beta"] for shift, mask in ((0.0, few), (3.0, MASK), (1.0, few))]
    assert betas == [0.5, 0.5, 0.5]
    kls = [kl(logp(shift), REF, mask, estimator="k2")[1]["kl"] for shift, mask in ((0.0, few), (3.0, MASK), (1.0, few))]
    mean = (2 * kls[0] + 3 * kls[1] + 2 * kls[2]) / 7
    other.pid.update({"measured": min(mean, 2.0)})
    assert term(logp(), REF, MASK, 8)[1]["error"] == pytest.approx(other.pid.error)


def test_bounds_hold_and_are_left_again():
    term = PIDKL(target=1e-3, beta=0.04, low=0.01, high=0.2)
    betas = [term(logp(), REF, MASK, step)[1]["beta"] for step in range(80)]
    assert max(betas) == pytest.approx(0.2)
    same = torch.where(MASK, REF, 0.0)
    betas = [term(same, REF, MASK, step)[1]["beta"] for step in range(80, 160)]
    assert betas[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(betas[1:]))


@quick
@given(st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=8), st.integers(1, 7))
def test_a_restored_term_goes_on_as_if_never_stopped(shifts, cut):
    """Also when it is cut in the middle of a step: two calls make one."""
    steps = [i // 2 for i in range(len(shifts))]
    whole, first, second = PIDKL(kd=0.1), PIDKL(kd=0.1), PIDKL(kd=0.1)
    stats = [whole(logp(x), REF, MASK, step)[1] for x, step in zip(shifts, steps, strict=True)]
    seen = [first(logp(x), REF, MASK, step)[1] for x, step in zip(shifts[:cut], steps[:cut], strict=True)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    seen += [second(logp(x), REF, MASK, step)[1] for x, step in zip(shifts[cut:], steps[cut:], strict=True)]
    assert seen == stats


@pytest.mark.parametrize(
    ("options", "message"), [({"target": 0.0}, "target is 0.0"), ({"beta": 20.0}, "low, beta, high")]
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PIDKL(**options)


def test_a_batch_without_actions_steers_nothing():
    term = PIDKL()
    nothing = torch.zeros_like(MASK)
    assert [term(logp(), REF, nothing, step)[1]["beta"] for step in range(3)] == [0.04] * 3


# The threshold of SAFE ------------------------------------------------------------------------------------


def test_threshold_by_hand():
    control = RewardThreshold()
    assert control.update({"reward": 0.5}) == {"threshold": pytest.approx(0.45), "relaxation": 1.5}
    # smoothed reward 0.5 -> 0.525, so e = 0.024; then 0.525 -> 0.52375, so e = -0.00225.
    first = 0.3 * 0.024 + 0.01 * 0.024 + 0.05 * 0.024
    assert control.update({"reward": 1.0})["threshold"] == pytest.approx(1.5 * (0.3 + first))
    second = 0.3 * -0.00225 + 0.01 * (0.024 - 0.00225) + 0.05 * (-0.00225 - 0.024)
    assert control.update({"reward": 0.5})["threshold"] == pytest.approx(1.5 * (0.3 + second))


def test_phases():
    def phase_of(rewards):
        control = RewardThreshold()
        for reward in rewards:
            relaxation = control.update({"reward": reward})["relaxation"]
        return control.phase, relaxation

    assert phase_of([0.5] * 49) == ("warmup", 1.5)
    assert phase_of([0.5] * 50) == ("plateau", 0.8)
    assert phase_of([0.9] * 50) == ("converged", 1.0)
    # The reward rises all the time, but there is no earlier window to compare with before 100 rewards.
    rising = [i / 100 for i in range(100)]
    assert phase_of(rising[:99])[0] == "plateau"
    assert phase_of(rising) == ("climbing", 1.2)
    assert phase_of([0.5] * 100 + [0.5, 0.52] * 25)[0] == "plateau"
    assert phase_of([0.5] * 50 + [0.512] * 50)[0] == "climbing"
    assert phase_of([0.8] * 80 + [0.5, 0.9] * 25)[0] == "plateau"


@quick
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=130), st.floats(0, 1))
def test_the_threshold_stays_in_its_bounds(rewards, base):
    control = RewardThreshold(base=base, window=10)
    assert all(0.1 <= control.update({"reward": reward})["threshold"] <= 0.6 for reward in rewards)
    assert len(control.rewards) <= 20
    assert isinstance(control, Controller)


# entropy_gated_kl -----------------------------------------------------------------------------------------


def test_low_entropy_doubles_the_penalty():
    def penalty(entropy):
        term = EntropyGatedKL()
        return [term.update({"kl": 6.0, "entropy": entropy, "reward": 0.5}) for _ in range(4)][-1]["penalty"]

    assert penalty(0.9) / penalty(1.9) == pytest.approx(2.0)
    assert penalty(10.0) == pytest.approx(penalty(3.9))
    # s after four batches of KL 6: 6 (1 - .9^4) = 2.0634. From the second reward on e = -0.001, -0.001, -0.001.
    threshold = 1.5 * (0.3 - 0.3 * 0.001 - 0.01 * 0.003)
    assert penalty(1.9) == pytest.approx(0.1 * (2.0634 - threshold) ** 2)


def test_the_loss_has_the_value_of_the_penalty_and_its_gradient():
    term = EntropyGatedKL(threshold=0.2)
    x = logp()
    loss, stats = gated(term, x, 0)
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert stats["kl"] == pytest.approx((1 - 0.5 + 1) / 3)
    assert stats["entropy"] == pytest.approx(0.5)
    for step in range(1, 60):
        gated(term, logp(2.0), step)
    x = logp()
    loss, stats = gated(term, x, 60)
    loss.backward()
    assert stats["kl_short"] == pytest.approx(2.5, abs=0.02)
    assert stats["relaxation"] == 0.8
    excess, gate = stats["kl_short"] - stats["threshold"], 2.0 / 0.6
    assert loss.item() == pytest.approx(0.1 * excess**2 * gate)
    slope = 0.2 * excess * gate
    torch.testing.assert_close(x.grad, slope * reverse_kl_gradient(x))


def test_the_slope_is_the_derivative_of_the_penalty():
    def after(kl):
        term = EntropyGatedKL()
        term.kl_short = kl / 0.9
        return term.update({"kl": 0.0, "entropy": 0.5, "reward": 0.5})

    h = 1e-5
    assert after(0.8)["slope"] == pytest.approx((after(0.8 + h)["penalty"] - after(0.8 - h)["penalty"]) / (2 * h))
    assert after(0.2) == {"penalty": 0.0, "slope": 0.0}


def test_the_penalty_is_frozen_within_a_step():
    term = EntropyGatedKL(threshold=0.0)
    for step in range(40):
        gated(term, logp(1.0), step)
    seen = [gated(term, logp(shift), 40)[1]["penalty"] for shift in (0.0, 5.0, -1.0)]
    assert seen[0] == seen[1] == seen[2] > 0
    assert gated(term, logp(), 41)[1]["penalty"] != seen[0]


@quick
@given(st.lists(st.floats(-1, 3), min_size=3, max_size=10), st.integers(1, 9))
def test_restored_penalties_go_on_as_if_never_stopped(shifts, cut):
    steps = [i // 2 for i in range(len(shifts))]
    calls = list(zip(shifts, steps, strict=True))
    for make, call in (
        (lambda: EntropyGatedKL(threshold=0.05, window=2), gated),
        (lambda: AsymmetricKL(window=2), lambda term, x, step: term(x, REF, MASK, step)),
    ):
        whole, first, second = make(), make(), make()
        stats = [call(whole, logp(x), step)[1] for x, step in calls]
        seen = [call(first, logp(x), step)[1] for x, step in calls[:cut]]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert seen + [call(second, logp(x), step)[1] for x, step in calls[cut:]] == stats


# asymmetric_kl --------------------------------------------------------------------------------------------


def test_asymmetric_penalty_by_hand():
    term = AsymmetricKL(window=2)
    assert term.update({"kl": -4.0}) == {"penalty": 0.0, "slope": 0.0}
    assert term.update({"kl": 0.3}) == {"penalty": 0.0, "slope": 0.0}
    # velocity (0.5 + 4) / 2 over two batches, excess 0.2
    seen = term.update({"kl": 0.5})
    assert seen["penalty"] == pytest.approx(0.1 * 0.04 + 5 * 2.25**2)
    assert seen["slope"] == pytest.approx(0.2 * 0.2 + 10 * 2.25 / 2)
    # falling, so only the distance counts
    term.update({"kl": 0.5})
    assert term.update({"kl": 0.4})["penalty"] == pytest.approx(0.1 * 0.01)


def test_asymmetric_slope_is_the_derivative_of_the_penalty():
    def after(kl):
        term = AsymmetricKL()
        for i in range(50):
            term.update({"kl": i / 50})
        return term.update({"kl": kl})

    h = 1e-5
    assert after(1.2)["slope"] == pytest.approx((after(1.2 + h)["penalty"] - after(1.2 - h)["penalty"]) / (2 * h))


def test_asymmetric_loss_has_the_gradient_of_the_penalty():
    term = AsymmetricKL(window=3)
    for step in range(5):
        term(logp(0.5 * step), REF, MASK, step)
    x = logp()
    loss, stats = term(x, REF, MASK, 5)
    loss.backward()
    assert stats["velocity"] == pytest.approx(0.5)
    assert loss.item() == pytest.approx(stats["penalty"])
    assert stats["penalty"] > 0
    torch.testing.assert_close(x.grad, stats["slope"] * reverse_kl_gradient(x))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="entropy has shape"):
        gated(EntropyGatedKL(), logp(), 0, entropy=ENTROPY[:, :1])
    with pytest.raises(ValueError, match="ref_logp has shape"):
        AsymmetricKL()(logp(), REF[:, :1], MASK, 0)
