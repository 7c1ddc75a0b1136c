import pytest
import torch

from guerdon.rollouts import Rollouts, make_rollouts
from guerdon.training import rollout_table as module
from guerdon.training.rollout_table import rollout_table


def flow_batch(reward, group, steps=3) -> tuple[Rollouts, torch.Tensor]:
    n = len(reward)
    latents = torch.arange(n * (steps + 1) * 4, dtype=torch.float32).view(n, steps + 1, 4)
    rollouts = make_rollouts(
        torch.tensor(group),
        torch.tensor(group),
        torch.ones(n, steps).bool(),
        torch.zeros(n, steps),
        done=torch.ones(n).bool(),
        truncated=torch.zeros(n).bool(),
        payload={"latents": latents, "sample": latents[:, -1]},
    )
    rollouts.reward = torch.tensor(reward)
    return rollouts, latents


def kept(table) -> list[int]:
    return [row for row, frames in enumerate(table["frames"].to_pylist()) if frames is not None]


def test_frames_are_those_of_the_best_and_the_worst_of_each_group():
    rollouts, latents = flow_batch([0.2, 0.9, 0.5, 0.1, 1.0, 1.0], [7, 7, 7, 7, 2, 2])
    table = rollout_table(0, rollouts)
    assert kept(table) == [1, 3, 4, 5]
    assert table["frames"][3].as_py() == latents[3].tolist()
    assert table["image"][3].as_py() == latents[3, -1].tolist()


def test_a_group_of_one_or_without_rewards():
    rollouts, _ = flow_batch([0.2, float("nan")], [0, 1])
    assert kept(rollout_table(0, rollouts)) == [0]


def test_frames_have_a_limit(monkeypatch):
    monkeypatch.setattr(module, "FRAME_VALUES", 3 * 16)  # four states of four numbers each
    rollouts, _ = flow_batch([1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1])
    assert kept(rollout_table(0, rollouts)) == [0, 1, 2]


@pytest.mark.parametrize("payload", [{}, {"sample": torch.zeros(2, 4)}])
def test_other_policies_have_no_frames(payload):
    rollouts, _ = flow_batch([1.0, 0.0], [0, 0])
    rollouts.payload = type(rollouts.payload)(payload, [2])
    table = rollout_table(0, rollouts)
    assert "frames" not in table.column_names
    assert ("image" in table.column_names) == bool(payload)
