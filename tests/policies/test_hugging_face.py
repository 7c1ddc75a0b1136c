import warnings

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from guerdon.engine.generate import GenerationOptions, generate
from guerdon.engine.reading import read
from guerdon.policies.hugging_face import HuggingFaceModel

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 128}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None}
FLAT = {
    "llama": LlamaConfig(**SIZES),
    "smollm2": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=128, **NO_ENDS),
}
PADDED = {
    "alibi": (BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4, **NO_ENDS), "come out different"),
    "window": (MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4), "sliding_window"),
}


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    return HuggingFaceModel(model).eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 40, (6, 24), generator=generator)
    ids[1:4, :14] = ids[0, :14]
    attention = torch.ones_like(ids, dtype=torch.bool)
    attention[4, :5] = False  # left padding
    attention[2, 18:] = False
    at = attention.clone()
    at[:, :9] = False
    return ids, attention, at


@pytest.mark.parametrize("name", FLAT)
def test_packed_and_padded_agree_in_states_and_gradients(name):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*can't share prefixes")
        model = build(FLAT[name])
    assert model.flat
    ids, attention, at = batch()
    weights = [p for p in model.parameters() if p.requires_grad]
    direction = torch.randn(int(at.sum()), 32, generator=torch.Generator().manual_seed(2))

    def gradients(**options):
        states = read(model, ids, attention, at, **options)
        return states.detach(), torch.autograd.grad(states, weights, direction, allow_unused=True)

    packed, in_parts = gradients(), gradients(max_tokens=40)
    model._flat = False
    padded = gradients()
    for states, slopes in (packed, in_parts):
        assert torch.allclose(states, padded[0], rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(slopes, padded[1], strict=True):
            if theirs is not None:
                assert float((mine - theirs).norm()) <= 1e-5 * float(theirs.norm())


@pytest.mark.parametrize("name", FLAT)
def test_flat_and_padded_decoding_write_the_same(name):
    model = build(FLAT[name])
    prefixes = [list(range(1, 13))] * 3 + [[*range(1, 10), 3]] + [[5, 6]] * 2
    options = GenerationOptions(max_new_tokens=30, stop_tokens=(7, 8))
    flat = generate(model, prefixes, options, pad=0, seed=3)
    model._flat = False
    padded = generate(model, prefixes, options, pad=0, seed=3)
    assert len(set(flat.mask.sum(dim=1).tolist())) > 2  # rows end at different times
    assert torch.equal(flat.tokens, padded.tokens)
    assert torch.allclose(flat.logp, padded.logp, atol=1e-5)


@pytest.mark.parametrize("name", PADDED)
def test_what_cannot_be_packed_is_padded_and_says_so_once(name):
    config, why = PADDED[name]
    with pytest.warns(UserWarning, match=rf"can't share prefixes.*{why}"):
        model = build(config)
    ids, attention, at = batch()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*can't share prefixes")
        states = read(model, ids, attention, at)
        out = generate(model, [[1, 2, 3], [4]], GenerationOptions(max_new_tokens=3), pad=0, seed=0)
    assert states.shape == (int(at.sum()), 32)
    assert out.mask.all()
    alone = read(model, ids[4:5, 5:], attention[4:5, 5:], at[4:5, 5:])
    assert torch.allclose(states[at.nonzero()[:, 0] == 4], alone, atol=1e-5)


def test_dropout_of_attention_is_not_left_out():
    model = build(FLAT["gpt2"])
    assert model.flat
    model.train()
    assert not model.flat


def test_grouped_heads_are_not_mixed_up():
    """Queries of one head attend to their own head's keys: zeroing the keys of one head changes its queries alone."""
    config = LlamaConfig(**{**SIZES, "num_hidden_layers": 1}, num_key_value_heads=2)
    model = build(config)
    ids, attention, at = batch()
    before = read(model, ids, attention, at)
    with torch.no_grad():
        model.inner.model.layers[0].self_attn.k_proj.weight[8:] = 0
    model._flat = False
    padded = read(model, ids, attention, at)
    model._flat = True
    assert torch.allclose(read(model, ids, attention, at), padded, atol=1e-5)
    assert not torch.allclose(before, padded, atol=1e-3)
