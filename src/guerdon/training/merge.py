"""Weighted means of models that share an ancestor: in memory, of safetensors files, of model folders and of runs.

From the command line, an instruction-tuned model, a distilled one and their common base become a start for RL::

    guerdon merge instruct distilled base --weights 0.4,0.4,0.2 --out models/bai
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from guerdon.errors import CheckpointError
from guerdon.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from guerdon.training.folder import RunFolder

State = Mapping[str, Tensor]

_SNAPSHOT = "snapshot/"


def weighted_merge(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """Average models elementwise: theta = sum_k w_k theta_k for every floating tensor.

    Sums are made in float64 and rounded once, so a model of weight 1 comes back bit for bit. Integer and boolean
    tensors are the first model's. Tensors that are one in the first model (tied embeddings) stay one, and are averaged
    once.

    Args:
        states: state dicts with the same names and shapes.
        weights: one per model, which add up to 1.

    Raises:
        CheckpointError: when there are no models, names, shapes or types differ, or weights don't add up.
    """
    _check_weights(weights, len(states))
    first, out, known = states[0], {}, {}
    for place, state in enumerate(states[1:], start=2):
        different = sorted(first.keys() ^ state.keys())
        if different:
            raise CheckpointError(
                f"model {place} differs from the first in '{different[0]}' and {len(different)} in all"
            )
    for name, tensor in first.items():
        same = _identity(tensor)
        if same not in known:
            known[same] = _mean(name, [state[name] for state in states], weights)
        out[name] = known[same]
    return out


def bai_coefficients(a: float = 0.5, b: float = 0.8) -> tuple[float, float, float]:
    """Weights of the instruction-tuned, the distilled and the pretrained model: a b, (1 - a) b, 1 - b.

    Raises:
        CheckpointError: when a or b is not between 0 and 1.
    """
    for name, value in (("a", a), ("b", b)):
        if not 0 <= value <= 1:
            raise CheckpointError(f"ratio {name} is {value}, want a number from 0 to 1")
    return a * b, b - a * b, 1 - b


def bai_merge(
    instruct: State, distilled: State, pretrained: State, *, a: float = 0.5, b: float = 0.8
) -> dict[str, Tensor]:
    """Start RL from between an instruction-tuned, a distilled and their pretrained model.

    mid = a instruct + (1 - a) distilled;  theta = b mid + (1 - b) pretrained

    Both means are taken in one, so nothing is rounded between them. The ratios are a guess where a sweep is too dear:
    the source says that balanced ones work best, and its own were not found.

    Args:
        instruct, distilled, pretrained: state dicts of models with one architecture and vocabulary. Special tokens
            must have the same numbers in all three, or their embeddings are means of different things.
        a: share of the instruction-tuned model in the first mean.
        b: share of that mean in the second.

    Raises:
        CheckpointError: see ``weighted_merge``.

    Source: Balanced Actor Initialization: Stable RLHF Training of Distillation-Based Reasoning Models.
    """
    return weighted_merge([instruct, distilled, pretrained], bai_coefficients(a, b))


def merge_files(sources: Sequence[str | Path], weights: Sequence[float], out: str | Path) -> Path:
    """Average models on disk into a new one.

    - safetensors files give a file.
    - model folders as transformers writes them (``config.json`` and one or several safetensors files) give a folder,
      with the first model's tokenizer and settings: policy ``causal_lm`` takes it as its ``model``.
    - runs of guerdon give a run at step 0 with the first one's recipe, state and moments, and the mean of their newest
      checkpoints as weights and reference: ``guerdon train --resume OUT`` trains it.

    Args:
        sources: of one kind; the first decides on everything but the weights.
        weights: one per source, which add up to 1.
        out: what to write, which must not exist yet.

    Returns:
        The path written.

    Raises:
        CheckpointError: when a source can't be read or is of another kind, ``out`` exists, folders of models number
            their special tokens differently, or models differ (``weighted_merge``).
    """
    paths, target = [Path(source) for source in sources], Path(out)
    _check_weights(weights, len(paths))
    kinds = [_kind(path) for path in paths]
    if len(set(kinds)) > 1:
        raise CheckpointError(f"'{paths[0]}' is a {kinds[0]}, and others are not ({', '.join(kinds)}); merge one kind")
    if target.exists():
        raise CheckpointError(f"'{target}' exists already; name another output")
    if kinds[0] == "run":
        return _merge_runs(paths, weights, target)
    if kinds[0] == "file":
        merged = weighted_merge([load_file(path) for path in paths], weights)
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(_contiguous(merged), target, metadata={"format": "pt"})
        return target
    _check_tokens(paths)
    merged = weighted_merge([_load_folder(path) for path in paths], weights)
    weights_only = {".safetensors", ".bin", ".pt", ".gguf"}
    target.mkdir(parents=True)
    for file in paths[0].iterdir():
        if file.is_file() and file.suffix not in weights_only and not file.name.endswith(".index.json"):
            shutil.copy2(file, target / file.name)
    save_file(_contiguous(merged), target / "model.safetensors", metadata={"format": "pt"})
    return target


def _mean(name: str, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    first = tensors[0]
    for place, tensor in enumerate(tensors[1:], start=2):
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise CheckpointError(
                f"'{name}' is {tensor.dtype} {tuple(tensor.shape)} in model {place} and {first.dtype} "
                f"{tuple(first.shape)} in the first; merge models of one architecture and vocabulary"
            )
    if not first.is_floating_point():
        return first.clone()
    used = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight]
    total = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
    for tensor, weight in used:
        total += weight * tensor.detach().double()
    # A zero of the sum is +0, and what comes alone keeps its sign.
    return used[0][0].detach().clone() if len(used) == 1 and used[0][1] == 1 else total.to(first.dtype)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are views of the same memory in the same way."""
    return tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype


def _check_weights(weights: Sequence[float], models: int) -> None:
    if not models or len(weights) != models:
        raise CheckpointError(
            f"got {len(weights)} weights for {models} models, want one for each, and one model at least"
        )
    if not all(map(math.isfinite, weights)) or abs(sum(weights) - 1) > 1e-6:
        raise CheckpointError(f"weights {list(weights)} add up to {sum(weights):.6g}, want 1")


def _kind(path: Path) -> str:
    if path.is_file():
        return "file"
    if (path / "recipe.yaml").is_file():
        return "run"
    if (path / "config.json").is_file():
        return "model"
    raise CheckpointError(
        f"'{path}' is no safetensors file, no model folder (it has no config.json) and no run (no recipe.yaml)"
    )


def _load_folder(path: Path) -> dict[str, Tensor]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"'{path}' holds no safetensors file; save the model with safe_serialization=True")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _check_tokens(paths: Sequence[Path]) -> None:
    """Refuse models whose special tokens have different numbers, as far as their tokenizers are there to be read."""

    def special(path: Path) -> dict[str, int] | None:
        file = path / "tokenizer.json"
        if not file.is_file():
            return None
        added = json.loads(file.read_text(encoding="utf-8")).get("added_tokens") or []
        return {token["content"]: token["id"] for token in added}

    known = [(path, tokens) for path in paths if (tokens := special(path)) is not None]
    for path, tokens in known[1:]:
        if tokens != known[0][1]:
            apart = sorted(set(tokens.items()) ^ set(known[0][1].items()))
            raise CheckpointError(
                f"special tokens of '{path}' and '{known[0][0]}' differ, such as {apart[0]}, so means of their "
                "embeddings would mean nothing; bring the models to one vocabulary first"
            )


def _merge_runs(paths: Sequence[Path], weights: Sequence[float], target: Path) -> Path:
    found = [load_checkpoint(path / "checkpoints") for path in paths]
    for path, checkpoint in zip(paths, found, strict=True):
        if checkpoint is None:
            raise CheckpointError(f"run '{path}' has no checkpoint that can be read")
    checkpoints: list[Checkpoint] = [checkpoint for checkpoint in found if checkpoint is not None]
    own = [{name: x for name, x in c.policy.items() if not name.startswith(_SNAPSHOT)} for c in checkpoints]
    merged = weighted_merge(own, weights)
    # What a snapshot such as the reference holds is where training starts from.
    for name in checkpoints[0].policy:
        if name.startswith(_SNAPSHOT):
            merged[name] = merged[name.split("/", 2)[2]].clone()
    state = {key: value for key, value in checkpoints[0].state.items() if key != "evaluations"}
    start = Checkpoint(0, merged, checkpoints[0].optimizer, state | {"evaluations": {}, "seconds": 0.0})
    folder = RunFolder.create(target, (paths[0] / "recipe.yaml").read_text(encoding="utf-8"))
    save_checkpoint(folder.checkpoints_path, start, keep=1)
    return target


def _contiguous(state: State) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: each with memory of its own."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        shared = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        out[name] = tensor.clone() if shared else tensor.contiguous()
    return out
