import errno
import json
import warnings

import pytest
import torch

from guerdon.errors import CheckpointError
from guerdon.training import checkpoint as module
from guerdon.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint, weights_sha256


def made(step):
    weights = {"w": torch.full((3, 2), float(step)), "scale": torch.tensor(1.5), "half": torch.ones(2).bfloat16()}
    return Checkpoint(step, weights, {"w/exp_avg": torch.ones(3, 2), "w/step": torch.tensor(4.0)}, {"seconds": 1.25})


def test_what_is_saved_is_read_back(tmp_path):
    save_checkpoint(tmp_path, made(7), keep=2)
    loaded = load_checkpoint(tmp_path)
    assert loaded.step == 7
    assert loaded.state == {"seconds": 1.25}
    for mine, theirs in ((made(7).policy, loaded.policy), (made(7).optimizer, loaded.optimizer)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) and mine[k].dtype == theirs[k].dtype for k in mine)


def test_tensors_that_share_memory_are_saved(tmp_path):
    base = torch.arange(6.0)
    save_checkpoint(tmp_path, Checkpoint(0, {"a": base, "b": base.view(2, 3), "c": base[2:4]}, {}, {}), keep=1)
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(loaded.policy["b"], base.view(2, 3))
    assert torch.equal(loaded.policy["c"], base[2:4])


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, made(step), keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000010"]
    assert load_checkpoint(tmp_path).step == 10


@pytest.mark.parametrize("file", ["policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_detected_and_the_one_before_is_used(tmp_path, file, damage):
    save_checkpoint(tmp_path, made(1), keep=2)
    victim = save_checkpoint(tmp_path, made(2), keep=2) / file
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data) if damage == "flip" else bytes(data[: len(data) // 2]))
    if damage == "remove":
        victim.unlink()
    with pytest.warns(UserWarning, match=r"step-00000002' is damaged .*using the one before"):
        assert load_checkpoint(tmp_path).step == 1


def test_all_damaged_is_none(tmp_path):
    (save_checkpoint(tmp_path, made(1), keep=1) / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("call", range(1, 8))
def test_a_full_disk_at_any_write_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, call):
    save_checkpoint(tmp_path, made(1), keep=1)
    calls = 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    if call <= 5:  # four files and their folder are synced before the rename
        with pytest.raises(CheckpointError, match="No space left on device; earlier checkpoints are intact"):
            save_checkpoint(tmp_path, made(2), keep=1)
        assert load_checkpoint(tmp_path).step == 1
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                save_checkpoint(tmp_path, made(2), keep=1)
            except CheckpointError:
                assert call == 6
            assert load_checkpoint(tmp_path).step == 2


def test_a_partial_folder_of_a_killed_save_is_replaced(tmp_path):
    (tmp_path / ".partial-00000003").mkdir(parents=True)
    (tmp_path / ".partial-00000003" / "policy.safetensors").write_text("half")
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, made(3), keep=1)
    assert load_checkpoint(tmp_path).step == 3
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_saving_a_step_again_leaves_it_alone(tmp_path):
    path = save_checkpoint(tmp_path, made(3), keep=1)
    stamp = json.loads((path / "manifest.json").read_text())
    assert save_checkpoint(tmp_path, made(3), keep=1) == path
    assert json.loads((path / "manifest.json").read_text()) == stamp


def test_digest_tells_weights_apart():
    a = {"x": torch.zeros(2, 2), "y": torch.ones(1)}
    assert weights_sha256(a) == weights_sha256({"y": torch.ones(1), "x": torch.zeros(2, 2)})
    others = [
        {"x": torch.zeros(4), "y": torch.ones(1)},
        {"x": torch.zeros(2, 2), "y": torch.ones(1).double()},
        {"x": torch.zeros(2, 2), "z": torch.ones(1)},
        {"x": torch.zeros(2, 2), "y": torch.nextafter(torch.ones(1), torch.tensor(2.0))},
    ]
    assert len({weights_sha256(w) for w in [a, *others]}) == 5
