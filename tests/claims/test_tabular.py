import pytest
import torch

from guerdon.claims.testbeds.tabular import History, Tabular

FIRST = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
INITIAL = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.6, 0.3]])


def first_is_right(actions, prompt):
    return FIRST[actions[:, 0]]


def test_a_step_of_reinforce_is_the_known_gradient():
    """With the raw reward as credit, the mean step over many samples is lr times the exact gradient."""

    def raw(reward, mask):
        return reward.unsqueeze(1) * mask

    bed = Tabular(INITIAL[:1], first_is_right)
    history = bed.train(seeds=1, steps=1, group_size=200_000, lr=1.0, credit=raw)
    before = INITIAL[0].double()
    gradient = before * (FIRST - (before * FIRST).sum())
    moved = history.probs[1, 0, 0, 0].log() - history.probs[0, 0, 0, 0].log()
    moved = moved - moved.mean()
    assert torch.allclose(moved, gradient - gradient.mean(), atol=3e-3)


@pytest.mark.parametrize("per_seed", [False, True])
def test_a_seed_is_itself_whatever_runs_beside_it(per_seed):
    bed = Tabular(INITIAL, first_is_right)
    settings = {"steps": 5, "group_size": 4, "lr": 1.0, "credit": "grpo"}
    both = bed.train(seeds=3, per_seed=per_seed, **settings)
    alone = bed.train(seeds=1, first_seed=2, **settings)
    assert torch.allclose(both.probs[:, 2:], alone.probs)
    assert not torch.allclose(both.probs[-1, 0], both.probs[-1, 1])


def test_memory_and_batch_statistics_are_kept_per_seed():
    class Counting:
        def __init__(self):
            self.calls = 0

        def __call__(self, reward, mask, task_id):
            self.calls += 1
            assert len(reward) == 2 * 4
            assert sorted(set(task_id.tolist())) == [0, 1]
            return reward.unsqueeze(1) * mask, {"calls": float(self.calls)}

    history = Tabular(INITIAL, first_is_right).train(
        seeds=3, steps=4, group_size=4, lr=1.0, credit=Counting, per_seed=True
    )
    assert [stats["Counting/calls"] for stats in history.stats] == [1, 2, 3, 4]


def test_several_positions_rewards_updates_terms_and_noise():
    seen = []

    def reward(actions, prompt, uniform):
        seen.append((actions.shape, uniform.clone()))
        return torch.stack([(actions[:, 0] == 0).double(), (actions[:, 1] == 2).double()], dim=1)

    bed = Tabular(torch.full((2, 2, 3), 1 / 3), reward, weights=[1.0, 3.0], names=["a", "b"])
    history = bed.train(
        **{"seeds": 2, "steps": 60, "group_size": 8, "lr": 0.1, "updates": 2, "optimizer": "adam", "prompts": 1},
        **{"objective": "ppo_clip", "terms": [{"name": "kl", "beta": 0.001}], "per_seed": True, "credit": "gdpo"},
    )
    assert seen[0][0] == (2 * 1 * 8, 2)
    assert (seen[0][1] >= 0).all()
    assert (seen[0][1] < 1).all()
    assert history.probs.shape == (61, 2, 2, 2, 3)
    assert (history.probs[-1, :, :, 0, 0] > 0.6).all()
    assert (history.probs[-1, :, :, 1, 2] > 0.8).all()
    assert {"ppo_clip/ratio", "kl/kl"} <= history.stats[-1].keys()
    assert history.stats[-1]["ppo_clip/ratio"] != 1.0


def test_readings_of_a_history():
    probs = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).reshape(2, 1, 1, 1, 2)
    history = History(probs)
    assert history.expected(torch.tensor([1.0, 0.0])).flatten().tolist() == pytest.approx([0.5, 0.9])
    assert history.entropy()[0].item() == pytest.approx(0.6931, abs=1e-4)
    curve = torch.tensor([[0.1, 0.1], [0.6, 0.1], [0.5, 0.2]])
    assert History.first(curve, 0.55).tolist() == [1, 3]
