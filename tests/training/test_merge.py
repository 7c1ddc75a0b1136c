import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import guerdon
from guerdon.cli.main import app
from guerdon.errors import CheckpointError
from guerdon.monitor.progress import Progress
from guerdon.training.checkpoint import load_checkpoint
from guerdon.training.loop import resume
from guerdon.training.merge import bai_coefficients, bai_merge, merge_files, weighted_merge

QUIET = Progress(quiet=True)


def state(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(4, 3, generator=generator)
    draw[0, 0] = -0.0
    return {"embed": draw.to(dtype), "bias": torch.randn(2, generator=generator).to(dtype), "ids": torch.tensor([seed])}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("place", [0, 1])
def test_a_model_of_weight_one_comes_back_bit_for_bit(dtype, place):
    models = [state(0, dtype), state(1, dtype)]
    merged = weighted_merge(models, [1.0 - place, float(place)])
    for name in ("embed", "bias"):
        assert bits(merged[name]) == bits(models[place][name])
        assert merged[name].data_ptr() != models[place][name].data_ptr()


@settings(max_examples=25, deadline=None)
@given(st.floats(-1, 2), st.integers(0, 9))
def test_merging_is_linear(weight, seed):
    one, two = state(seed, torch.float64), state(seed + 1, torch.float64)
    merged = weighted_merge([one, two], [weight, 1 - weight])
    for name in ("embed", "bias"):
        assert torch.allclose(merged[name], weight * one[name] + (1 - weight) * two[name], atol=1e-12)
    double = weighted_merge(
        [{k: v * 2 if v.is_floating_point() else v for k, v in x.items()} for x in (one, two)], [weight, 1 - weight]
    )
    assert torch.allclose(double["embed"], 2 * merged["embed"], atol=1e-12)


def test_integers_are_the_first_models_and_tied_weights_stay_tied():
    models = []
    for seed in range(2):
        model = state(seed)
        model["head"] = model["embed"]
        models.append(model)
    merged = weighted_merge(models, [0.5, 0.5])
    assert merged["ids"].tolist() == [0]
    assert merged["head"].data_ptr() == merged["embed"].data_ptr()
    assert torch.allclose(merged["embed"], (models[0]["embed"] + models[1]["embed"]) / 2)
    empty = weighted_merge([{"a": torch.zeros(0), "b": torch.zeros(0)}] * 2, [0.5, 0.5])
    assert empty["a"].shape == empty["b"].shape == (0,)


def test_balanced_initialization_is_two_means():
    instruct, distilled, base = (state(seed, torch.float64) for seed in range(3))
    merged = bai_merge(instruct, distilled, base, a=0.3, b=0.6)
    middle = weighted_merge([instruct, distilled], [0.3, 0.7])
    twice = weighted_merge([middle, base], [0.6, 0.4])
    assert torch.allclose(merged["embed"], twice["embed"], atol=1e-12)
    assert bai_coefficients() == pytest.approx((0.4, 0.4, 0.2))
    assert bits(bai_merge(instruct, distilled, base, a=0.0, b=1.0)["bias"]) == bits(distilled["bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bias"), "differs from the first in 'bias'"),
        (lambda s: s.update(embed=torch.zeros(5, 3)), r"'embed' is .*\(5, 3\) in model 2"),
        (lambda s: s.update(embed=s["embed"].half()), r"'embed' is torch.float16"),
    ],
)
def test_models_that_differ_are_refused(change, message):
    other = state(1)
    change(other)
    with pytest.raises(CheckpointError, match=message):
        weighted_merge([state(0), other], [0.5, 0.5])


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.6], [float("nan"), 1.0], []])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(CheckpointError, match="want"):
        weighted_merge([state(0), state(1)], weights)
    with pytest.raises(CheckpointError, match="ratio a is 2"):
        bai_coefficients(2)


def test_files_and_the_command_line(tmp_path):
    for seed in range(3):
        save_file(state(seed), tmp_path / f"{seed}.safetensors")
    names = [str(tmp_path / f"{seed}.safetensors") for seed in range(3)]
    out = str(tmp_path / "deep" / "bai.safetensors")
    done = CliRunner().invoke(app, ["merge", *names, "--bai", "0.5,0.8", "--out", out])
    assert (done.exit_code, done.output.strip()) == (0, out)
    wanted = bai_merge(*(state(seed) for seed in range(3)))
    found = load_file(out)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for wrong, said in (
        ([*names, "--out", names[0]], "exists already"),
        ([names[0], str(tmp_path), "--out", "x"], "no safetensors file"),
        ([*names, "--weights", "1,0,0", "--bai", "1,1", "--out", "x"], "not both"),
        ([names[0], "--bai", "1,1", "--out", "x"], "takes three models"),
        ([*names, "--weights", "1,0", "--out", "x"], "wanted 3 numbers"),
        ([*names, "--weights", "a,b,c", "--out", "x"], "wanted 3 numbers"),
    ):
        refused = CliRunner().invoke(app, ["merge", *wrong])
        assert refused.exit_code == 1
        assert said in " ".join(refused.output.split())


def folder(path, seed, tokens=(("<eos>", 0),)):
    path.mkdir()
    whole = state(seed)
    save_file({"embed": whole["embed"]}, path / "model-00001-of-00002.safetensors")
    save_file({"bias": whole["bias"], "ids": whole["ids"]}, path / "model-00002-of-00002.safetensors")
    (path / "model.safetensors.index.json").write_text("{}")
    (path / "config.json").write_text(json.dumps({"seed": seed}))
    added = [{"content": content, "id": number} for content, number in tokens]
    (path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    return path


def test_model_folders_keep_the_first_ones_settings(tmp_path):
    one, two = folder(tmp_path / "one", 1), folder(tmp_path / "two", 2)
    out = merge_files([one, two], [0.25, 0.75], tmp_path / "out")
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((out / "config.json").read_text()) == {"seed": 1}
    wanted = weighted_merge([state(1), state(2)], [0.25, 0.75])
    assert torch.equal(load_file(out / "model.safetensors")["embed"], wanted["embed"])


def test_special_tokens_must_have_the_same_numbers(tmp_path):
    one, two = folder(tmp_path / "one", 1), folder(tmp_path / "two", 2, (("<eos>", 1),))
    with pytest.raises(CheckpointError, match="special tokens"):
        merge_files([one, two], [0.5, 0.5], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_merge_into_a_run_that_trains_on(tmp_path):
    def trained(name, steps):
        recipe = {
            "name": name,
            "runs_dir": str(tmp_path),
            "task": {"name": "gridtext", "size": 3, "max_turns": 2},
            "policy": {"name": "tiny_lm", "width": 16, "layers": 1, "heads": 2, "tokenizer": "word"},
            "warm_start": {"steps": steps, "batch": 4},
            "sampling": {"prompts": 2, "group_size": 2, "max_new_tokens": 2},
            "terms": [{"name": "kl", "beta": 0.1}],
            "training": {"steps": 1},
            "evaluation": {"problems": 2},
        }
        guerdon.train(recipe, progress=QUIET)
        return tmp_path / name

    runs = [trained("one", 1), trained("two", 3)]
    out = merge_files(runs, [0.5, 0.5], tmp_path / "both")
    parts = [load_checkpoint(run / "checkpoints").policy for run in runs]
    merged = load_checkpoint(out / "checkpoints")
    name = "model.embed.weight"
    assert torch.allclose(merged.policy[name], (parts[0][name] + parts[1][name]) / 2)
    assert torch.equal(merged.policy[f"snapshot/ref/{name}"], merged.policy[name])
    assert merged.step == 0
    result = resume(out, progress=QUIET)
    assert result.steps == 1
    assert not torch.equal(load_checkpoint(out / "checkpoints").policy[name], merged.policy[name])
    save_file(state(0), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="merge one kind"):
        merge_files([runs[0], tmp_path / "x.safetensors"], [0.5, 0.5], tmp_path / "no")
