import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from guerdon.engine import attention, fused
from guerdon.engine.attention import TreeAttention
from guerdon.engine.fused import FusedModel
from guerdon.engine.generate import GenerationOptions, generate
from guerdon.engine.packing import pack_rows
from guerdon.policies.hugging_face import HuggingFaceModel
from guerdon.policies.tiny_lm import TinyTransformer

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 128}
ROPE = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "grouped": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "wide heads": LlamaConfig(**SIZES, num_key_value_heads=1, head_dim=16),
    "scaled": LlamaConfig(**SIZES, rope_parameters=ROPE),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
}


def build(config):
    torch.manual_seed(0)
    model = HuggingFaceModel(AutoModelForCausalLM.from_config(config)).eval()
    # Norms begin at 1 and biases at 0, where a wrong one would go unseen; embeddings so small that rotation would.
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, 1.0 if "norm" in name else 0.0, 0.3)
    return model


def models():
    yield from ((name, lambda config=config: build(config)) for name, config in CONFIGS.items())
    yield "tiny", lambda: TinyTransformer(40, width=32, layers=2, heads=4).eval()


@pytest.fixture(params=[make for _, make in models()], ids=[name for name, _ in models()])
def model(request):
    torch.manual_seed(0)
    return request.param()


def tree():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 40, (5, 24), generator=generator)
    ids[1:4, :14] = ids[0, :14]
    (pack,) = pack_rows(ids, torch.tensor([24, 20, 24, 15, 7]))
    return pack


@torch.no_grad()
def test_it_reads_what_the_model_reads(model):
    pack = tree()
    wanted = model.hidden(pack.ids, pack.positions, TreeAttention(pack))
    with fused.fused(model) as fast:
        assert isinstance(fast, FusedModel)
        seen = fast.hidden(pack.ids, pack.positions, TreeAttention(pack))
        assert torch.allclose(fast.project(seen), model.project(wanted), atol=1e-4)
    assert torch.allclose(seen, wanted, atol=1e-5)
    assert wanted.std() > 0.1


PREFIXES = [list(range(1, 13))] * 3 + [[*range(1, 10), 3]] + [[5, 6]] * 2
OPTIONS = GenerationOptions(max_new_tokens=40, stop_tokens=(7, 8))


@pytest.mark.parametrize("copied", [0, 8, 32])
def test_it_writes_what_the_model_writes(model, copied, monkeypatch):
    """Whether short prefixes are copied into the rows or attended to apart, and whatever rows end when."""
    monkeypatch.setattr(attention, "_COPIED", copied)
    fast = generate(model, PREFIXES, OPTIONS, pad=0, seed=3)
    monkeypatch.setattr(fused, "ROOM", 0)
    monkeypatch.setattr(attention, "_COPIED", 0)
    plain = generate(model, PREFIXES, OPTIONS, pad=0, seed=3)
    assert torch.equal(fast.tokens, plain.tokens)
    assert torch.allclose(fast.logp, plain.logp, atol=1e-4)
    assert torch.allclose(fast.entropy, plain.entropy, atol=1e-4)


def test_what_it_gives_can_meet_a_gradient(model):
    out = generate(model, PREFIXES, OPTIONS, pad=0, seed=3)
    for x in (out.tokens, out.mask, out.logp, out.sampled_logp, out.entropy, out.finished):
        assert not x.is_inference()
    weight = torch.ones((), requires_grad=True)
    (weight * out.logp).sum().backward()
    assert torch.equal(weight.grad, out.logp.sum())


def test_it_follows_the_weights(model):
    before = generate(model, PREFIXES, OPTIONS, pad=0, seed=3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    after = generate(model, PREFIXES, OPTIONS, pad=0, seed=3)
    assert not torch.allclose(before.logp[:, 0], after.logp[:, 0], atol=1e-3)


def test_the_model_is_left_as_it_was(model):
    kept = {name: (x, x.clone()) for name, x in model.state_dict(keep_vars=True).items()}
    generate(model, PREFIXES, OPTIONS, pad=0, seed=3)
    for name, x in model.state_dict(keep_vars=True).items():
        assert x is kept[name][0]
        assert torch.equal(x, kept[name][1])


def plain(model):
    with fused.fused(model) as fast:
        return fast is model


def test_large_models_and_other_precisions_are_left_as_they_are(model, monkeypatch):
    assert not plain(model)
    assert plain(model.double())
    model.float()
    monkeypatch.setattr(fused, "ROOM", 100)
    assert plain(model)
    monkeypatch.undo()
    monkeypatch.setattr(fused, "_PRODUCT", None)
    assert plain(model)


class Adapter(torch.nn.Linear):
    """A matrix that does something else."""


@pytest.mark.parametrize("name", ["q_proj", "o_proj", "up_proj"])
def test_adapters_are_not_left_out(name):
    model = build(CONFIGS["llama"])
    block = model.inner.model.layers[1]
    of = block.mlp if name == "up_proj" else block.self_attn
    setattr(of, name, Adapter(32, getattr(of, name).out_features))
    assert plain(model)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
        LlamaConfig(**SIZES, hidden_act="gelu"),
        LlamaConfig(**SIZES, attention_bias=True),
        LlamaConfig(**SIZES, mlp_bias=True),
    ],
)
def test_what_is_not_known_is_run_as_it_is(config):
    model = build(config)
    assert plain(model)
    assert generate(model, PREFIXES, OPTIONS, pad=0, seed=3).mask[:, 0].all()
