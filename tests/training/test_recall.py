"""What the loop looks up in snapshots, features and the exact divergence, and how methods remember tensors."""

import copy
import json
import multiprocessing
import random
import signal
import time

import pytest
import torch
from small_recipes import LANGUAGE
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import scaled_dot_product_attention

import guerdon
from guerdon.errors import MissingField, RecipeError, RewardError
from guerdon.monitor.progress import Progress
from guerdon.recipe import load_recipe
from guerdon.training import loop
from guerdon.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from guerdon.training.folder import RunFolder
from guerdon.training.plan import make_plan
from guerdon.training.preference import best_and_worst
from guerdon.training.run import Run
from guerdon.training.update import _evaluate

QUIET = Progress(quiet=True)
SHORT = {"training": {"steps": 3}, "evaluation": {"problems": 4}, "checkpoint": {"every": 1, "keep": 2}}
OREAL = {"credit": {"name": "oreal", "warmup": 1, "lr": 0.01}, "objective": "oreal", "terms": [{"name": "kl"}]}
OREO = {"policy": LANGUAGE["policy"] | {"value_head": True}, "objective": "oreo", "terms": []}
RTO = {
    "policy": LANGUAGE["policy"] | {"value_head": True},
    "preference": {"steps": 3, "pairs": 8, "lr": 1e-3},
    "shaping": ["weighted_sum", "rto_token_reward"],
    "credit": {"name": "gae", "gamma": 1.0},
    "objective": "ppo_clip",
    "terms": ["value"],
}


def letters(text):
    """Share of letters, which differs from answer to answer."""
    return sum(c.isalpha() for c in text) / (1 + len(text))


def halves(text):
    """Right or wrong, about as often."""
    return float(len(text) % 2)


def recipe_of(tmp_path, **changes):
    recipe = copy.deepcopy(LANGUAGE) | SHORT | {"rewards": [halves], "runs_dir": str(tmp_path)} | changes
    return recipe


def started(tmp_path, **changes):
    run = Run.start(load_recipe(recipe_of(tmp_path, **changes)), overwrite=True, progress=QUIET)
    loop._begin(run)
    return run


def sampled(run):
    starts = guerdon.tasks.base.Starts.repeat(run.task.train_batch(3, 0), 4)
    return starts, run.policy.sample(starts, run.sampling, seed=1)


def plainly_causal(layer, q, k, v, scale):
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(0, 1)


def test_features_are_the_state_after_each_token(tmp_path):
    run = started(tmp_path)
    _, rollouts = sampled(run)
    features = run.policy.features(rollouts)
    assert features.shape == (*rollouts.mask.shape, 16)
    assert not features.requires_grad
    for row in range(0, 12, 5):
        length = int(rollouts.mask[row].sum())
        ids = torch.tensor(run.policy.encode_prompt(rollouts.prompt[row]) + rollouts.tokens[row, :length].tolist())
        with torch.no_grad():
            hidden = run.policy.model.hidden(ids, torch.arange(len(ids)), plainly_causal)
        assert torch.allclose(features[row, :length], hidden[-length:], atol=1e-5)
        assert (features[row, length:] == 0).all()


def test_exact_divergence_from_the_reference(tmp_path):
    run = started(tmp_path, **OREO)
    for p in run.policy.trainable().values():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    _, rollouts = sampled(run)
    evaluation, exact = _evaluate(run.plan, run.policy, rollouts)
    with run.policy.using("ref"), torch.no_grad():
        reference = run.policy.evaluate(rollouts, logits=True).logits
    mask = rollouts.mask
    wanted = kl_divergence(Categorical(logits=evaluation.logits[mask]), Categorical(logits=reference[mask]))
    assert torch.allclose(exact["ref_kl"][mask], wanted, atol=1e-5)
    assert (exact["ref_kl"][~mask] == 0).all()
    exact["ref_kl"].sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in run.policy.trainable().values())
    assert _evaluate(started(tmp_path).plan, run.policy, rollouts)[1] == {}


def test_snapshots_are_recalled_before_shaping(tmp_path):
    run = started(tmp_path, **RTO)
    assert {"ref", "anchor"} <= run.policy.snapshots.keys()
    _, rollouts = sampled(run)
    recalled = loop.recall(run, rollouts)
    now = run.policy.evaluate(rollouts).logp
    assert torch.equal(recalled.ref_logp, now)
    with run.policy.using("anchor"):
        assert torch.equal(recalled.anchor_logp, run.policy.evaluate(rollouts).logp)
    assert not torch.allclose(recalled.anchor_logp, now)


def test_a_preference_stage_leaves_the_policy_and_its_optimiser_as_they_were(tmp_path):
    with_, without = started(tmp_path, **RTO), started(tmp_path, name="plain")
    mine, theirs = with_.policy.trainable(), without.policy.trainable()
    assert all(torch.equal(mine[name], p) for name, p in theirs.items())
    moved = with_.policy.snapshots["anchor"]
    assert any(not torch.equal(mine[name], moved[name]) for name in mine)
    a, b = with_.optimizer.state_dict(), without.optimizer.state_dict()
    assert all(torch.equal(a[key], x) for key, x in b.items())


def test_the_anchor_orders_pairs_better_than_chance(tmp_path):
    settings = RTO | {"preference": {"steps": 40, "pairs": 32, "lr": 5e-3, "beta": 0.1}}
    run = started(tmp_path, **settings, rewards=[letters])
    starts = guerdon.tasks.base.Starts.repeat(run.task.train_batch(64, 5), 4)
    rollouts = loop.recall(run, run.policy.sample(starts, run.sampling, seed=5))
    gain = ((rollouts.anchor_logp - rollouts.ref_logp) * rollouts.mask).sum(dim=1)
    reward = torch.tensor([letters(text) for text in rollouts.text])
    best, worst = best_and_worst(reward, rollouts.group)
    assert len(best) > 30
    assert (gain[best] > gain[worst]).float().mean() > 0.7


def test_best_and_worst_by_hand():
    reward = torch.tensor([1.0, 3.0, 3.0, 2.0, 5.0, 5.0, float("nan"), 0.0, 7.0])
    group = torch.tensor([4, 4, 4, 4, 2, 2, 2, 1, 1])
    best, worst = best_and_worst(reward, group)
    assert best.tolist() == [8, 1]
    assert worst.tolist() == [7, 0]


def test_a_preference_without_pairs_is_an_error(tmp_path):
    def same(text):
        """One and the same for all."""
        return 1.0

    with pytest.raises(RewardError, match="no problem had answers of different reward"):
        started(tmp_path, **RTO, rewards=[same])


def test_plans_know_who_supplies_the_fields(tmp_path):
    assert "ref_kl" in make_plan(load_recipe(recipe_of(tmp_path, **OREO))).needs
    assert "features" in make_plan(load_recipe(recipe_of(tmp_path, **OREAL))).needs
    with pytest.raises(MissingField, match="'anchor_logp'.*add the section 'preference'"):
        make_plan(load_recipe({k: v for k, v in recipe_of(tmp_path, **RTO).items() if k != "preference"}))
    with pytest.raises(RecipeError, match="no method of this recipe reads 'anchor_logp'"):
        make_plan(load_recipe(recipe_of(tmp_path, preference={"steps": 1})))


@pytest.mark.parametrize("changes", [OREAL, OREO, RTO], ids=["oreal", "oreo", "rto"])
def test_each_trains_through_the_loop(tmp_path, changes):
    metrics = RunFolder.open(guerdon.train(recipe_of(tmp_path, **changes), progress=QUIET).run).metrics()
    assert all(torch.isfinite(torch.tensor(metrics["update/loss"])))
    assert metrics["update/grad_norm"][-1] > 0


def test_tensors_in_the_memory_of_stages_are_saved_and_verified(tmp_path):
    memory = {"stages": {"credit/0": {"a": torch.arange(3.0), "deep": [1, {"b": torch.tensor(2)}], "none": None}}}
    path = save_checkpoint(tmp_path, Checkpoint(1, {}, {}, memory), keep=2)
    state = load_checkpoint(tmp_path).state["stages"]["credit/0"]
    assert torch.equal(state["a"], torch.arange(3.0))
    assert state["deep"][0] == 1
    assert state["deep"][1]["b"].dtype == torch.int64
    assert state["none"] is None
    assert "__tensor__" in (path / "state.json").read_text()
    later = save_checkpoint(tmp_path, Checkpoint(2, {}, {}, memory), keep=2)
    data = bytearray((later / "memory.safetensors").read_bytes())
    data[-1] ^= 1
    (later / "memory.safetensors").write_bytes(bytes(data))
    with pytest.warns(UserWarning, match=r"memory.safetensors does not match"):
        assert load_checkpoint(tmp_path).step == 1
    (later / "memory.safetensors").unlink()
    with pytest.warns(UserWarning, match="is damaged"):
        assert load_checkpoint(tmp_path).step == 1


def test_a_memory_without_tensors_needs_no_file(tmp_path):
    path = save_checkpoint(tmp_path, Checkpoint(1, {}, {}, {"x": [1, {"y": 2.5}]}), keep=1)
    assert not (path / "memory.safetensors").exists()
    assert set(json.loads((path / "manifest.json").read_text())) == {
        "policy.safetensors",
        "optimizer.safetensors",
        "state.json",
    }
    assert load_checkpoint(tmp_path).state == {"x": [1, {"y": 2.5}]}


def test_killed_a_method_with_tensors_ends_with_the_same_weights(tmp_path):
    """SIGKILL a run whose credit trains a model of its own, resume it, and compare everything bit for bit."""
    settings = OREAL | {"training": {"steps": 6}}
    whole = guerdon.train(recipe_of(tmp_path, **settings, name="whole"), progress=QUIET)
    recipe = load_recipe(recipe_of(tmp_path, **settings, name="killed"))
    folder, chance = RunFolder(tmp_path / "killed"), random.Random(0)
    for begin, reached in ((lambda: guerdon.train(recipe, progress=QUIET), 2), (lambda: resumed(folder, recipe), 4)):
        child = multiprocessing.get_context("fork").Process(target=begin)
        child.start()
        while not any(int(path.name[5:]) >= reached for path in folder.checkpoints_path.glob("step-*")):
            assert child.is_alive()
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert resumed(folder, recipe).weights_sha256 == whole.weights_sha256
    ours, theirs = (load_checkpoint(RunFolder.open(path).checkpoints_path) for path in (folder.path, whole.run))
    mine, wanted = (x.state["methods"]["credit/0"] for x in (ours, theirs))
    assert mine["steps"] == wanted["steps"] == 6
    assert all(torch.equal(mine["model"][name], x) for name, x in wanted["model"].items())
    for name, moments in wanted["moments"].items():
        assert all(torch.equal(mine["moments"][name][key], x) for key, x in moments.items())
    metrics = [RunFolder.open(path).metrics()["credit/oreal/loss"] for path in (folder.path, whole.run)]
    assert repr(metrics[0]) == repr(metrics[1])


def resumed(folder, recipe):
    return loop.resume(folder.path, recipe=recipe, progress=QUIET)
