import pytest
import torch

from guerdon.credit import grpo
from guerdon.credit.refill import vspo
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.sampling.allocation import value_refill
from guerdon.training.folder import RunFolder
from guerdon.training.loop import train


def sixteen():
    """Sixteen groups of five, six of which have a difference."""
    useful = [[1.0] * k + [0.0] * (5 - k) for k in (1, 2, 3, 4, 1, 2)]
    reward = torch.tensor([r for group in [[0.0] * 5] * 8 + useful + [[1.0] * 5] * 2 for r in group])
    return reward, torch.arange(16).repeat_interleave(5), torch.ones(80, 2).bool()


def test_credit_is_grpos_times_the_weight_of_the_group():
    reward, group, mask = sixteen()
    out, stats = vspo(reward, group, mask, 5)
    weight = value_refill(reward, group, 5).weight
    torch.testing.assert_close(out, weight.unsqueeze(1) * grpo(reward, group, mask))
    assert stats == {"useful": pytest.approx(6 / 16), "largest": weight.max().item()}
    per_prompt = out[:, 0].abs().reshape(16, 5).sum(dim=1)
    assert per_prompt.max() <= 2 * 5
    assert (per_prompt[:8] == 0).all()


def test_without_silent_groups_it_is_grpo():
    reward, group, mask = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([3, 3, 1, 1]), torch.ones(4, 1).bool()
    out, stats = vspo(reward, group, mask, 0)
    assert torch.equal(out, grpo(reward, group, mask))
    assert stats == {"useful": 1.0, "largest": 1.0}
    hopeless, _ = vspo(torch.zeros(4), group, mask, 0)
    assert (hopeless == 0).all()


def test_a_run_draws_anew_in_each_step_and_repeats_itself(tmp_path):
    seeds = []

    def spy(reward, group, mask, seed):
        """Remember the seed."""
        seeds.append(seed)
        return vspo(reward, group, mask, seed)

    recipe = {
        "runs_dir": str(tmp_path),
        "task": {"name": "reasoning_gym", "dataset": "spell_backward"},
        "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
        "sampling": {"prompts": 2, "group_size": 3, "max_new_tokens": 2},
        "evaluation": {"problems": 4},
        "training": {"steps": 2},
        "credit": spy,
    }
    for name in ("one", "two"):
        run = train(load_recipe(recipe | {"name": name}), progress=Progress(quiet=True)).run
        assert RunFolder.open(run).metrics()["credit/spy/largest"] == [1.0, 1.0]
    assert seeds[0] != seeds[1]
    assert seeds[:2] == seeds[2:]
