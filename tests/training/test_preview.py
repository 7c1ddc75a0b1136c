import math
from types import SimpleNamespace

import pytest
import torch
from small_recipes import LANGUAGE

import guerdon
from guerdon.monitor.progress import Progress
from guerdon.training.folder import RunFolder
from guerdon.training.preview import shorten, weights_of

MASK = torch.tensor([[True, True, False], [True, False, False]])


class Line:
    """log pi = -1 - w at every action, and nonsense elsewhere."""

    def __init__(self, w):
        self.w = torch.nn.Parameter(torch.tensor(w))

    def trainable(self):
        return {"w": self.w}

    def evaluate(self, rollouts):
        return SimpleNamespace(logp=torch.where(rollouts.mask, -1.0 - self.w, math.nan))


def tried(to, limit):
    policy = Line(0.0)
    before, logp = weights_of(policy), policy.evaluate(SimpleNamespace(mask=MASK)).logp
    with torch.no_grad():
        policy.w.fill_(to)
    stats = shorten(policy, before, SimpleNamespace(mask=MASK), logp, limit=limit)
    return policy.w.item(), stats


def test_a_long_step_is_scaled_by_limit_over_kl():
    kl = math.exp(-2.0) - 1 + 2  # k3 of samples of the old policy, whose log ratio is -2
    w, stats = tried(2.0, 0.5)
    assert stats == {"step_kl": pytest.approx(kl), "step_scale": pytest.approx(0.5 / kl)}
    assert w == pytest.approx(2 * 0.5 / kl)


def test_a_short_step_is_left_alone():
    assert tried(0.5, 0.5) == (0.5, {"step_kl": pytest.approx(math.exp(-0.5) - 0.5), "step_scale": 1.0})


def test_in_a_run_no_step_goes_further_than_a_limit_it_is_far_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reward = {"name": "regex", "pattern": "[a-m]"}
    limits = {"training": {"steps": 3, "max_step_kl": 1e-4}, "optimizer": {"lr": 1e-2}}
    recipe = LANGUAGE | {"rewards": [reward]} | limits
    metrics = RunFolder.open(guerdon.train(recipe, progress=Progress(quiet=True)).run).metrics()
    assert all(kl > 1e-4 for kl in metrics["update/step_kl"])
    for kl, scale in zip(metrics["update/step_kl"], metrics["update/step_scale"], strict=True):
        assert scale == pytest.approx(1e-4 / kl)
