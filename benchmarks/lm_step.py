"""One GRPO step of a language model: guerdon beside TRL's ``GRPOTrainer`` and beside the arithmetic alone.

    python benchmarks/lm_step.py [--json] [--rounds 7] [--shapes short prefix skew] [--no-memory]

Both sides get the same Llama weights (3.4 million, float32), prompts, reward, sampling temperature and AdamW, and run
in processes of their own that take turns, one step each, so that drifts of the machine meet both. Medians are printed.
``trl`` is TRL without gradient checkpointing, which is faster, and ``trl_default`` as it comes, with it; memory is
measured with it, for it needs less so. ``pip install "guerdon[trl]"`` for its side; without it guerdon runs alone.

``products`` are the matrix products of the step alone, each of its own size, one after the other and nothing between
them. The FLOP limit is the time that they need at the speed of a large one on this machine: every distinct token once
forward to sample it, once forward and twice backward to learn from it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopq"
TRL = ("trl", "trl_default")


@dataclass(frozen=True)
class Shape:
    """P prompts of so many tokens, G completions each, of exactly or at most ``new`` tokens."""

    prompts: int
    group: int
    prompt: int
    new: int
    stops: bool = False


SHAPES = {
    "short": Shape(8, 8, 6, 32),
    "prefix": Shape(4, 16, 200, 32),
    "skew": Shape(8, 8, 6, 96, stops=True),
}
MEMORY = Shape(8, 8, 64, 64)
REST = 0.5  # seconds between turns: threads of the side before go on spinning for a while
LLAMA = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def letters(text: str) -> float:
    """The reward of both sides: the share of the letter a."""
    return text.count("a") / max(len(text), 1)


def write_model(folder: Path, config: dict[str, Any], words: int = 0) -> None:
    """Random Llama weights and a tokenizer of single letters, or of so many words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from guerdon.policies.tiny_lm import build_tokenizer

    if words:
        table = {"<eos>": 0, **{f"w{i}": i for i in range(1, words)}}
        inner = Tokenizer(models.WordLevel(table, unk_token="<eos>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")
    else:
        tokenizer = build_tokenizer([LETTERS[:7]])
    tokenizer.padding_side = "left"
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **ids, **config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_prompts(path: Path, shape: Shape, words: int) -> None:
    import random

    rng = random.Random(0)
    lines = []
    for _ in range(64 * shape.prompts):
        picked = [f"w{rng.randrange(1, words)}" if words else rng.choice(LETTERS[:7]) for _ in range(shape.prompt)]
        lines.append(json.dumps({"prompt": (" " if words else "").join(picked)}))
    path.write_text("\n".join(lines) + "\n")


def guerdon_steps(folder: Path, shape: Shape, policy: str) -> Iterator[dict[str, float]]:
    """Whole training steps of the loop: problems, sampling, rewards, credit, update."""
    from guerdon.monitor.progress import Progress
    from guerdon.recipe import load_recipe
    from guerdon.training.loop import training_step
    from guerdon.training.run import Run

    tiny = {"name": "tiny_lm", "width": 256, "layers": 4, "heads": 8}
    recipe = {
        "task": {"name": "dataset", "path": str(folder / "prompts.jsonl"), "answer": "prompt"},
        "policy": tiny if policy == "tiny_lm" else {"name": "causal_lm", "model": str(folder / "model"), "chat": False},
        "sampling": {"prompts": shape.prompts, "group_size": shape.group, "max_new_tokens": shape.new},
        "rewards": [letters],
        "optimizer": {"lr": 1e-5},
        "logging": {"rollouts_every": 0},
        "runs_dir": str(folder / "runs"),
    }
    run = Run.start(load_recipe(recipe), overwrite=True, progress=Progress(quiet=True))
    if not shape.stops:
        run.policy.stop_tokens = lambda: ()  # type: ignore[attr-defined, method-assign]
    step = 0
    while True:
        began = time.perf_counter()
        metrics = training_step(run, step)
        yield {"seconds": time.perf_counter() - began, **{k: v for k, v in metrics.items() if k.startswith("seconds/")}}
        step += 1


def trl_steps(folder: Path, shape: Shape, *, checkpointing: bool) -> Iterator[dict[str, float]]:
    """Steps of ``GRPOTrainer.train``, handed out one at a time."""
    import queue
    import threading

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    go: queue.Queue[None] = queue.Queue()
    done: queue.Queue[float] = queue.Queue()

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            go.get()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            done.put(time.perf_counter() - self.began)

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=shape.prompts * shape.group,
        num_generations=shape.group,
        max_completion_length=shape.new,
        generation_kwargs=None if shape.stops else {"suppress_tokens": [tokenizer.eos_token_id]},
        gradient_checkpointing=checkpointing,
        learning_rate=1e-5,
        max_steps=10_000,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=10_000,
        disable_tqdm=True,
    )

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [letters(text) for text in completions]

    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32"),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    threading.Thread(target=trainer.train, daemon=True).start()
    while True:
        go.put(None)
        yield {"seconds": done.get()}


def peak_mb() -> float:
    """Largest resident size of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def work(side: str, folder: Path, shape: Shape, *, checkpointing: bool) -> None:
    """Take one step for every line on standard input, and answer with its numbers."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    if side in TRL:
        steps = trl_steps(folder, shape, checkpointing=checkpointing or side == "trl_default")
    else:
        steps = guerdon_steps(folder, shape, side)
    for _ in sys.stdin:
        print(json.dumps({**next(steps), "peak_mb": peak_mb()}), file=out, flush=True)


class Worker:
    """One side in a process of its own."""

    def __init__(self, side: str, folder: Path, shape: Shape, log: Path, *, checkpointing: bool = False) -> None:
        self.log = log
        command = [sys.executable, __file__, "--work", side, str(folder), json.dumps(vars(shape)), str(checkpointing)]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )

    def step(self) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side of the benchmark died:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def gflops() -> float:
    """Speed of a large float32 matrix product, in GFLOP/s; the best of several."""
    import torch

    a = torch.randn(2048, 2048)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began) / 1e9)
    return best


def step_flops(shape: Shape, config: dict[str, Any], new: float, vocabulary: int = 21) -> float:
    """Matrix products of a step in FLOP, every distinct token once; ``new`` tokens per completion."""
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    rows = shape.prompts * shape.group
    tokens = shape.prompts * shape.prompt + rows * (new - 1)  # the last token drawn is never read
    weights = layers * (4 * width**2 + 3 * width * inner)
    context = shape.prompts * shape.prompt**2 / 2 + rows * (new * shape.prompt + new**2 / 2)
    forward = 2 * weights * tokens + 2 * width * vocabulary * rows * new + 4 * width * layers * context
    return 4 * forward


def products_alone(shape: Shape, config: dict[str, Any]) -> float:
    """Seconds of the matrix products of a step, each of its own size, one after the other and nothing between them."""
    import torch

    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    sizes = [(3 * width, width), (width, width), (2 * inner, width), (width, inner)]
    weights = [torch.randn(size) for _ in range(layers) for size in sizes]
    rows, ends = shape.prompts * shape.group, 20 / 21 if shape.stops else 1.0
    writing = [max(1, round(rows * ends**step)) for step in range(shape.new - 1)]
    sampled = [shape.prompts * shape.prompt, *writing]
    learned = shape.prompts * shape.prompt + sum(writing)

    def once() -> float:
        began = time.perf_counter()
        for count in sampled:
            for weight, x in zip(weights, inputs[count], strict=True):
                torch.nn.functional.linear(x, weight)
        for weight, x, slope in zip(weights, inputs[learned], slopes, strict=True):
            torch.nn.functional.linear(x, weight)
            slope @ weight
            slope.t() @ x
        return time.perf_counter() - began

    inputs = {count: [torch.randn(count, w.shape[1]) for w in weights] for count in {*sampled, learned}}
    slopes = [torch.randn(learned, w.shape[0]) for w in weights]
    with torch.no_grad():
        return min(once() for _ in range(5))


def compare(
    names: list[str], rounds: int, folder: Path, sides: list[str], show: Callable[[str], None]
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    model = folder / "model"
    write_model(model, LLAMA)
    for name in names:
        shape = SHAPES[name]
        write_prompts(folder / "prompts.jsonl", shape, 0)
        workers = {side: Worker(side, folder, shape, folder / f"{side}.log") for side in sides}
        seen: dict[str, list[float]] = {side: [] for side in sides}
        parts: dict[str, list[float]] = {}
        speed = 0.0
        with contextlib.ExitStack() as stack:
            for worker in workers.values():
                stack.callback(worker.close)
            for turn in range(rounds + 2):
                speed = max(speed, gflops())
                for side, worker in workers.items():
                    time.sleep(REST)
                    numbers = worker.step()
                    if turn >= 2:
                        seen[side].append(numbers["seconds"])
                        for key, value in numbers.items():
                            if key.startswith("seconds/"):
                                parts.setdefault(f"{side} {key[8:]}", []).append(value)
                show(f"{name}: round {turn + 1} of {rounds + 2}")
        new = MEAN_SKEW if shape.stops else shape.new
        row: dict[str, Any] = {side: statistics.median(x) for side, x in seen.items()}
        row["flop_limit"] = step_flops(shape, LLAMA, new) / speed / 1e9
        for side, ratio in zip(TRL, ("ratio", "ratio_default"), strict=True):
            pairs = zip(seen.get(side, []), seen["guerdon"], strict=side in sides)
            row[ratio] = statistics.median(t / g for t, g in pairs) if side in sides else None
        row["gflops"], row["products"] = speed, products_alone(shape, LLAMA)
        row["parts"] = {key: statistics.median(x) for key, x in parts.items()}
        results[name] = row
        show(f"{name}: " + ", ".join(f"{side} {row[side]:.3f} s" for side in sides))
    return results


# Mean number of tokens of a completion that ends with probability 1/21 at each of at most 96: a random model is close
# to uniform over its 21 tokens.
MEAN_SKEW = (1 - (20 / 21) ** 96) * 21


def compare_memory(folder: Path, sides: list[str], show: Callable[[str], None]) -> dict[str, float | None]:
    words = 49_152
    write_model(folder / "model", SMOLLM2, words)
    write_prompts(folder / "prompts.jsonl", MEMORY, words)
    peaks: dict[str, float | None] = {"guerdon_mb": None, "trl_mb": None}
    for side in (s for s in sides if s in ("guerdon", "trl")):
        show(f"memory: {side}, two steps of 135 million weights (some minutes)")
        worker = Worker(side, folder, MEMORY, folder / f"{side}.log", checkpointing=True)
        try:
            worker.step()
            peaks[f"{side}_mb"] = worker.step()["peak_mb"]
        finally:
            worker.close()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        side, folder, shape, checkpointing = arguments.work
        work(side, Path(folder), Shape(**json.loads(shape)), checkpointing=checkpointing == "True")
        return
    has_trl = importlib.util.find_spec("trl") is not None and not arguments.no_trl
    sides = ["guerdon", *(TRL if has_trl else []), "tiny_lm"]
    if not has_trl and not arguments.no_trl:
        print('TRL is not installed, so guerdon runs alone; pip install "guerdon[trl]"', file=sys.stderr)

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        results = compare(arguments.shapes, arguments.rounds, Path(folder), sides, show)
    if not arguments.no_memory:
        with tempfile.TemporaryDirectory() as folder:
            results["memory"] = compare_memory(Path(folder), sides, show)
    if arguments.json:
        print(json.dumps(results))
        return
    columns = {
        "guerdon": "guerdon",
        "trl": "TRL",
        "ratio": "ratio",
        "trl_default": "as it comes",
        "ratio_default": "ratio",
    }
    columns |= {"tiny_lm": "tiny_lm", "products": "products", "flop_limit": "FLOP limit"}
    print(f"\n{'':8}" + "".join(f"{head:>12}" for head in columns.values()) + "   times the limit: guerdon, tiny_lm")
    for name in arguments.shapes:
        row = results[name]
        limit, seen = row["flop_limit"], [row.get(key) for key in columns]
        print(
            f"{name:8}" + "".join(f"{'-':>12}" if value is None else f"{value:12.3f}" for value in seen) + "   "
            f"{row['guerdon'] / limit:.2f}, {row['tiny_lm'] / limit:.2f} at {row['gflops']:.0f} GFLOP/s"
        )
    if "memory" in results:
        peaks = results["memory"]
        print("\npeak memory, 135 million weights, vocabulary 49,152, 8 x 8 rows of 64 + 64 tokens:")
        for side, peak in peaks.items():
            print(f"  {side.removesuffix('_mb'):8} " + (f"{peak:8.0f} MB" if peak else f"{'-':>8}"))


if __name__ == "__main__":
    main()
