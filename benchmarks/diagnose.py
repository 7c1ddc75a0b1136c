"""What `guerdon diagnose` says of the quickstart, and of the quickstart made ill in ways that are known.

    python benchmarks/diagnose.py [--steps 150] [--seeds 3] [--folder runs/diagnose]

Trains every variant, diagnoses what it left, and prints the codes above `info` beside those that are expected. Two logs
of others follow: the same rollouts as verl would dump them, and a run of TRL's GRPOTrainer, where it is installed. The
last line is the cost of the alarms beside that of a step.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from guerdon.monitor.alarms import Alarms
from guerdon.monitor.batch import batch_metrics
from guerdon.monitor.diagnose import diagnose
from guerdon.monitor.progress import Progress
from guerdon.training import loop
from guerdon.training.folder import RunFolder

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).resolve()


def never(text: str) -> float:
    """A verifier that nothing passes."""
    return 0.0


def length(text: str) -> float:
    """Pays for length."""
    return len(text) / 32


def vowels(text: str) -> float:
    """Pays for vowels, on a scale of 100."""
    return 100.0 * sum(c in "aeiou" for c in text) / max(len(text), 1)


# Name, overrides of the quickstart, and the codes that are right above info. The policy that is paid for vowels ends by
# writing nothing else, whatever is asked.
VARIANTS: list[tuple[str, list[str], set[str]]] = [
    ("impossible verifier", [f"rewards=['{HERE}:never']"], {"unsolvable-tasks"}),
    (
        "length-hackable reward",
        [f"rewards=['{HERE}:length', {{name: task, watch: true}}]", "sampling.max_new_tokens=32"],
        {"length-explosion", "truncation", "proxy-gold-divergence"},
    ),
    (
        "rewards of scale 1 and 100",
        [f"rewards=[task, '{HERE}:vowels']"],
        {"drowned-component", "constant-component", "answer-concentration"},
    ),
    ("temperature 0.1", ["sampling.temperature=0.1"], {"duplicate-rollouts", "zero-variance-groups"}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/diagnose"))
    options = parser.parse_args()
    print("| log | found above info | expected | info |\n|---|---|---|---|")
    for seed in range(options.seeds):
        path = train(options, f"healthy-{seed}", [f"seed={seed}"])
        show(f"quickstart, seed {seed}", path, set())
    for name, overrides, expected in VARIANTS:
        show(name, train(options, name.replace(" ", "-").replace(".", "-"), overrides), expected)
    show("verl's dump of the first", as_verl(options.folder / "healthy-0"), set())
    show("verl's dump of the impossible one", as_verl(options.folder / "impossible-verifier"), {"unsolvable-tasks"})
    try:
        show("a run of TRL", trl(options.folder / "trl"), {"truncation"})
    except ImportError:
        print("| a run of TRL | not installed | | |")
    print(cost(options.folder / "healthy-0"))


def train(options: argparse.Namespace, name: str, overrides: list[str]) -> Path:
    """A run of the quickstart with some settings changed."""
    settings = [f"name={name}", f"runs_dir={options.folder}", f"training.steps={options.steps}"]
    loop.train(
        ROOT / "recipes" / "quickstart.yaml",
        [*settings, "logging.rollouts_every=10", *overrides],
        overwrite=True,
        progress=Progress(quiet=True),
    )
    return options.folder / name


def show(name: str, path: Path, expected: set[str]) -> None:
    """A row of the table."""
    found = diagnose(path).findings
    told = {f.code for f in found if f.severity != "info"}
    mark = "as expected" if told == expected else f"**{', '.join(sorted(expected)) or 'nothing'}**"
    worst = ", ".join(f"{f.code} ({f.severity})" for f in found if f.severity != "info") or "nothing"
    print(f"| {name} | {worst} | {mark} | {', '.join(f.code for f in found if f.severity == 'info')} |", flush=True)


def as_verl(run: Path) -> Path:
    """The saved rollouts of a run as verl's trainer dumps them: a file of JSON lines per step."""
    folder = run.parent / f"{run.name}-verl"
    folder.mkdir(exist_ok=True)
    for step in (opened := RunFolder.open(run)).rollout_steps():
        rows = opened.rollouts(step).to_pylist()
        lines = [
            {"input": r["prompt"], "output": r["text"], "gts": r["answer"], "score": r["reward"], "step": step}
            for r in rows
        ]
        (folder / f"{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def trl(folder: Path) -> Path:
    """Forty steps of TRL's GRPOTrainer on a model of a few thousand weights that never learns to stop."""
    from datasets import Dataset
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = {word: k for k, word in enumerate(["<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyz?"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(0)
    data = Dataset.from_list([{"prompt": "".join(draw.choices("abcdefgh", k=4)) + "?"} for _ in range(64)])

    def vowel_share(completions: list[str], **rest: object) -> list[float]:
        return [sum(c in "aeiou" for c in text) / 8 for text in completions]

    arguments = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=8,
        max_steps=40,
        logging_steps=1,
        save_steps=40,
        log_completions=True,
        num_completions_to_print=0,
        report_to=[],
        learning_rate=3e-3,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )
    GRPOTrainer(str(folder / "model"), vowel_share, arguments, data, processing_class=tokenizer).train()
    return folder / "out"


def cost(run: Path) -> str:
    """CPU time of the numbers and the alarms of a step, beside that of the step."""
    recipe = loop.load_recipe(RunFolder.open(run).recipe_path, [f"name={run.name}-cost", "warm_start.steps=1"])
    started = loop.Run.start(recipe, overwrite=True, progress=Progress(quiet=True))
    whole, watched = [], []
    alarms = Alarms()

    def timed(rollouts):  # type: ignore[no-untyped-def]
        began = time.process_time()
        metrics = batch_metrics(rollouts)
        alarms.observe(len(watched), metrics)
        watched.append(time.process_time() - began)
        return metrics

    loop.batch_metrics = timed  # type: ignore[assignment]
    for step in range(15):
        began = time.process_time()
        loop.training_step(started, step)
        whole.append(time.process_time() - began)
    started.close()
    step, share = sorted(whole)[7], sorted(watched)[7] / sorted(whole)[7]
    return f"\nA step takes {1e3 * step:.0f} ms of CPU time; its numbers and alarms {share:.2%} of it."


if __name__ == "__main__":
    main()
