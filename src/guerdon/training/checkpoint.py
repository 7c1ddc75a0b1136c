"""Checkpoints that are whole or absent: written aside, synced, renamed; verified by checksum when read.

``checkpoints/step-00000020/`` holds ``policy.safetensors``, ``optimizer.safetensors``, ``state.json``, where a method
remembers tensors ``memory.safetensors``, and ``manifest.json`` with the SHA-256 of each. A folder without a manifest
that matches is torn or corrupted, and the previous one is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from guerdon.errors import CheckpointError

_FILES = ("policy.safetensors", "optimizer.safetensors", "state.json")
_MEMORY = "memory.safetensors"
# Stands in state.json for a tensor, with its name in the file of tensors.
_TENSOR = "__tensor__"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on.

    Attributes:
        step: how many training steps are behind it.
        policy: trainable weights, buffers and snapshots.
        optimizer: moments.
        state: memory of every other part: JSON values, and tensors anywhere among them.
    """

    step: int
    policy: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint atomically and remove all but the newest ``keep``.

    Raises:
        CheckpointError: when it cannot be written (disk full, no permission); earlier checkpoints are intact.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    partial = folder / f".partial-{checkpoint.step:08d}"
    if target.exists() and _verify(target) is None:
        return target  # runs repeat exactly, so the same step holds the same weights
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        memory: dict[str, Tensor] = {}
        state = _without_tensors({"step": checkpoint.step, **checkpoint.state}, "", memory)
        contents = {
            "policy.safetensors": save(_independent(checkpoint.policy)),
            "optimizer.safetensors": save(_independent(checkpoint.optimizer)),
            "state.json": json.dumps(state).encode(),
        }
        if memory:
            contents[_MEMORY] = save(_independent(memory))
        manifest = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        for name, data in (contents | {"manifest.json": json.dumps(manifest).encode()}).items():
            _write_synced(partial / name, data)
        _sync_folder(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"cannot write checkpoint '{target}': {error.strerror or error}; earlier checkpoints are intact; "
            "free space or fix the permission, then run 'guerdon train --resume' on the run's folder"
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first; partial ones are not among them."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint that verifies; warn about each one that does not.

    Returns:
        None when there is none to read.
    """
    for path in reversed(list_checkpoints(folder)):
        problem = _verify(path)
        if problem is None:
            memory = load_file(path / _MEMORY) if (path / _MEMORY).exists() else {}
            state = _with_tensors(json.loads((path / "state.json").read_text()), memory)
            return Checkpoint(
                step=state.pop("step"),
                policy=load_file(path / "policy.safetensors"),
                optimizer=load_file(path / "optimizer.safetensors"),
                state=state,
            )
        warnings.warn(f"checkpoint '{path}' is damaged ({problem}); using the one before it", stacklevel=2)
    return None


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes())
    return digest.hexdigest()


def _verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name in dict.fromkeys([*_FILES, *manifest]):
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != manifest.get(name):
                return f"{name} does not match its checksum"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _without_tensors(value: Any, place: str, memory: dict[str, Tensor]) -> Any:
    """The value with each tensor in it moved to ``memory`` and its name there left in its stead."""
    if isinstance(value, Tensor):
        memory[place] = value
        return {_TENSOR: place}
    if isinstance(value, Mapping):
        return {key: _without_tensors(item, f"{place}/{key}", memory) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{place}/{index}", memory) for index, item in enumerate(value)]
    return value


def _with_tensors(value: Any, memory: Mapping[str, Tensor]) -> Any:
    """Undo ``_without_tensors``."""
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return memory[value[_TENSOR]]
        return {key: _with_tensors(item, memory) for key, item in value.items()}
    return [_with_tensors(item, memory) for item in value] if isinstance(value, list) else value


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies where tensors share memory, which safetensors refuses."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        out[name] = tensor.detach().clone() if shared else tensor.detach().contiguous()
    return out


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
