import pytest
import torch
from torch import nn

import guerdon
from guerdon.errors import RecipeError
from guerdon.monitor.progress import Progress
from guerdon.sparsity import MaskSet, masked_finetune
from guerdon.training.checkpoint import list_checkpoints, load_checkpoint
from guerdon.training.folder import RunFolder
from guerdon.training.loop import resume
from guerdon.training.optim import Optimizer
from guerdon.training.stochastic import NPGIGT

KEEP = torch.tensor([True, False, True])


def parameters():
    return {"w": nn.Parameter(torch.tensor([1.0, -2.0, 3.0])), "free": nn.Parameter(torch.tensor([0.5]))}


def backward(params, scale=1.0):
    (scale * sum((p**2).sum() for p in params.values())).backward()


def test_nothing_moves_off_the_mask_though_moments_and_decay_would_move_it():
    params = parameters()
    inner = Optimizer(params, weight_decay=0.1, grad_clip=None)
    backward(params)
    inner.step(0.1)
    assert inner.state_dict()["w/exp_avg"][1] != 0
    start = {name: p.detach().clone() for name, p in params.items()}
    masked = masked_finetune(inner, MaskSet({"w": KEEP}))
    for _ in range(3):
        backward(params)
        masked.step(0.1)
    assert params["w"][1] == start["w"][1]
    assert (params["w"][KEEP] != start["w"][KEEP]).all()
    assert params["free"] != start["free"]
    for key in ("w/exp_avg", "w/exp_avg_sq"):
        assert masked.state_dict()[key][1] == 0
        assert (masked.state_dict()[key][KEEP] != 0).all()


def test_on_the_mask_it_is_the_inner_optimiser():
    params, alone = parameters(), {"w": nn.Parameter(torch.tensor([1.0, 3.0])), "free": parameters()["free"]}
    masked = masked_finetune(Optimizer(params, grad_clip=1.0), MaskSet({"w": KEEP}))
    plain = Optimizer(alone, grad_clip=1.0)
    for _ in range(4):
        backward(params)
        backward(alone)
        assert masked.step(0.1) == pytest.approx(plain.step(0.1))
    torch.testing.assert_close(params["w"][KEEP], alone["w"])
    assert torch.equal(params["free"], alone["free"])
    assert masked.warm() is masked.inner
    masked.forget()
    assert masked.state_dict() == {}


def test_it_works_over_any_optimiser():
    params = parameters()
    masked = masked_finetune(NPGIGT(params), MaskSet({"w": KEEP}))
    for _ in range(4):
        backward(params)
        masked.step(0.5)
    assert params["w"][1] == -2
    with masked.settled():
        assert params["w"][1] == -2
        assert (params["w"][KEEP] != torch.tensor([1.0, 3.0])).all()


def test_masks_of_a_change_and_their_file(tmp_path):
    before = {"a": torch.tensor([1.0, 1.0, 0.0]), "b": torch.ones(2, 2)}
    after = {"a": torch.tensor([1.001, 1.01, 1e-3]), "b": torch.ones(2, 2)}
    masks = MaskSet.of_change(before, after)
    assert masks.masks["a"].tolist() == [False, True, True]  # 1.001 rounds to 1 in bfloat16
    assert MaskSet.of_change(before, after, dtype=torch.float32).masks["a"].all()
    assert MaskSet.of_change(before, after, tol=5e-3).masks["a"].tolist() == [False, True, False]
    assert masks.density == pytest.approx(2 / 7)
    masks.save(tmp_path / "mask.safetensors")
    loaded = MaskSet.load(tmp_path / "mask.safetensors")
    assert all(torch.equal(loaded.masks[name], masks.masks[name]) for name in before)


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="mask 'v' belongs to no tensor; there are w, free"):
        masked_finetune(Optimizer(parameters()), MaskSet({"v": KEEP}))
    with pytest.raises(ValueError, match=r"mask 'w' has shape \(2,\), want \(3,\)"):
        masked_finetune(Optimizer(parameters()), MaskSet({"w": KEEP[:2]}))


RECIPE = {
    "task": {"name": "reasoning_gym", "dataset": "spell_backward", "config": {"min_word_len": 3, "max_word_len": 4}},
    "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2},
    "warm_start": {"steps": 3, "batch": 8},
    "sampling": {"prompts": 4, "group_size": 4, "max_new_tokens": 5},
    "rewards": [{"name": "regex", "pattern": "[a-m]"}],
    "optimizer": {"lr": 1e-2},
    "training": {"steps": 2},
    "evaluation": {"problems": 8},
    "checkpoint": {"every": 1, "keep": 3},
}


def test_a_recipe_trains_under_a_mask_and_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = Progress(quiet=True)
    free = RunFolder.open(guerdon.train(RECIPE, progress=quiet).run).checkpoints_path
    start = load_checkpoint_at(free, 0)
    name = "model.blocks.0.down.weight"
    mask = torch.zeros_like(start[name], dtype=torch.bool)
    mask[:3] = True
    MaskSet({name: mask}).save("mask.safetensors")
    masked = guerdon.train(RECIPE, ["name=masked", "optimizer.mask=mask.safetensors"], progress=quiet)
    folder = RunFolder.open(masked.run).checkpoints_path
    first, last = load_checkpoint_at(folder, 0), load_checkpoint_at(folder, 2)
    assert torch.equal(first[name], start[name])  # the warm start is not masked
    assert torch.equal(last[name][~mask], start[name][~mask])
    assert (last[name][mask] != start[name][mask]).any()
    assert not torch.equal(last["model.embed.weight"], start["model.embed.weight"])
    newest = list_checkpoints(folder)[-1]
    newest.rename(newest.with_name("aside"))
    assert resume(masked.run, progress=quiet).weights_sha256 == masked.weights_sha256


def load_checkpoint_at(folder, step):
    from safetensors.torch import load_file

    assert load_checkpoint(folder) is not None
    return load_file(folder / f"step-{step:08d}" / "policy.safetensors")


@pytest.mark.parametrize(("content", "message"), [(None, "no file 'm.safetensors'"), (b"?", "optimizer.mask 'm.safe")])
def test_a_file_that_is_no_mask_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        guerdon.train(RECIPE, ["optimizer.mask=m.safetensors"], progress=Progress(quiet=True))
