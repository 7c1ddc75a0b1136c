import pytest
import torch
from small_recipes import WORDS

import guerdon
from guerdon.credit.teacher import on_policy_distill, teacher_advantage
from guerdon.monitor.progress import Progress
from guerdon.registry import get
from guerdon.training.folder import RunFolder

NAN = float("nan")
MASK = torch.tensor([[True, True], [True, False]])
OWN, TEACHER = torch.tensor([[-1.0, -9.0], [-0.5, NAN]]), torch.tensor([[-0.5, -3.0], [-2.5, NAN]])


def test_credit_is_how_much_likelier_a_teacher_finds_it():
    assert teacher_advantage(OWN, TEACHER, MASK).tolist() == [[0.5, 6.0], [-2.0, 0.0]]
    assert teacher_advantage(OWN, TEACHER, MASK, most=1.0).tolist() == [[0.5, 1.0], [-1.0, 0.0]]
    assert not teacher_advantage(OWN.clone().requires_grad_(), TEACHER, MASK).requires_grad
    order = torch.tensor([1, 0])
    assert torch.equal(
        teacher_advantage(OWN[order], TEACHER[order], MASK[order]), teacher_advantage(OWN, TEACHER, MASK)[order]
    )


def test_the_registered_credit_measures_the_divergence_without_the_bound():
    advantage, stats = on_policy_distill(OWN, TEACHER, MASK, most=1.0)
    assert advantage.tolist() == [[0.5, 1.0], [-1.0, 0.0]]
    assert stats == {"reverse_kl": pytest.approx(-4.5 / 3)}
    assert get("credit", "on_policy_distill").target is on_policy_distill


def test_two_steps_of_a_recipe(tmp_path):
    recipe = {
        **WORDS,
        "runs_dir": str(tmp_path),
        "sampling": {"prompts": 4, "group_size": 1, "max_new_tokens": 4},
        "credit": "on_policy_distill",
        "objective": "reinforce",
        "optimizer": {"lr": 0.01},
        "training": {"steps": 2},
    }
    result = guerdon.train(recipe, progress=Progress(quiet=True))
    seen = RunFolder.open(result.run).metrics()["credit/on_policy_distill/reverse_kl"]
    assert seen[0] == pytest.approx(0.0, abs=1e-5)
