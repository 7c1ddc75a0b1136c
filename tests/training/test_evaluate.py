import pytest
import torch

from guerdon.policies.base import Policy, SamplingOptions
from guerdon.registry import describe
from guerdon.rewards.base import Reward
from guerdon.rollouts import make_rollouts
from guerdon.tasks.base import Problem, Task
from guerdon.training.evaluate import evaluate_policy


class Numbers(Task):
    """Problem i has the answer i."""

    kind = "language"

    def train_batch(self, n, seed):
        return [Problem(i, prompt=str(i), answer=i) for i in range(n)]

    def eval_problems(self, n):
        return self.train_batch(n, 0)


class Echo(Policy):
    """Greedy says the answer; sampling says one more."""

    kind = "language"

    def __init__(self, kind="language"):
        super().__init__()
        self.kind = kind

    def sample(self, starts, options, *, seed, greedy=False):
        n = len(starts)
        said = [str(p.answer + (0 if greedy else 1)) for p in starts.problems]
        mask = torch.ones(n, 1, dtype=torch.bool)
        ended = torch.ones(n, dtype=torch.bool)
        rest = {"done": ended, "truncated": ~ended, "payload": {}, "answer": [p.answer for p in starts.problems]}
        return make_rollouts(starts.group, starts.task_id, mask, torch.zeros(n, 1), text=said, **rest)

    def evaluate(self, rollouts, *, logits=False):
        raise AssertionError("an evaluation needs no gradient")


def value(text):
    """The number said."""
    return float(text)


def even(text):
    """Whether it is even; fails on 3."""
    if text == "3":
        raise ValueError("three")
    return float(int(text) % 2 == 0)


def rewards(**second):
    return [Reward("value", describe("reward", value), {}), Reward("even", describe("reward", even), {}, **second)]


@pytest.mark.parametrize("batch", [1, 3, 10, 512])
def test_means_over_all_problems_whatever_the_batch(batch):
    out = evaluate_policy(Echo(), Numbers(), rewards(weight=2.0), SamplingOptions(), problems=10, batch=batch)
    assert out["greedy/value"] == pytest.approx(4.5)
    assert out["sampled/value"] == pytest.approx(5.5)
    assert out["greedy/even"] == pytest.approx(0.5)
    assert out["greedy"] == pytest.approx(4.5 + 2 * 0.5)


def test_a_fault_counts_as_zero_and_stops_nothing():
    out = evaluate_policy(Echo(), Numbers(), rewards(on_fault="stop", floor=9.0), SamplingOptions(), problems=4)
    assert out["greedy/even"] == pytest.approx(2 / 4)  # 0 and 2; 3 fails
    assert out["faults"] == 2, "3 is said once greedily and once sampled"
    assert "faults" not in evaluate_policy(Echo(), Numbers(), rewards(), SamplingOptions(), problems=2)


def test_watched_rewards_are_shown_and_not_summed():
    out = evaluate_policy(Echo(), Numbers(), rewards(watch=True), SamplingOptions(), problems=4)
    assert out.keys() == {"sampled", "greedy", "sampled/even", "greedy/even", "faults"}
    assert out["greedy"] == pytest.approx(1.5)


def test_a_flow_policy_is_evaluated_on_its_noise_free_path_only():
    out = evaluate_policy(Echo("flow"), Numbers(), rewards(), SamplingOptions(), problems=4)
    assert out == {"value": pytest.approx(1.5), "even": pytest.approx(0.5), "faults": 1}
