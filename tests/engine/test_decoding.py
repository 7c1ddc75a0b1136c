import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from guerdon.engine import attention
from guerdon.engine.decoding import decoder
from guerdon.policies.hugging_face import HuggingFaceModel
from guerdon.policies.tiny_lm import TinyTransformer

PAD = 0
PREFIXES = [[5, 6, 7], [5, 6], [8, 8, 8, 8], [5, 6, 7]]


def tiny():
    network = TinyTransformer(9, width=16, layers=2, heads=2)
    with torch.no_grad():  # sharper than at initialisation, so that mistakes in the cache show
        network.embed.weight.mul_(20)
    return network.eval()


def padded():
    sizes = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.5)
    model = HuggingFaceModel(AutoModelForCausalLM.from_config(config).eval()).eval()
    model._flat = False
    return model


@pytest.mark.parametrize(("build", "copied"), [(tiny, 0), (tiny, 100), (padded, 0)])
@torch.no_grad()
def test_rows_may_become_several_and_change_places(build, copied, monkeypatch):
    """Fewer rows, more rows, and rows of another prefix in a place: each goes on from what it has written.

    Rows of one prefix look at it in common, or, where prefixes are short, each has a copy.
    """
    monkeypatch.setattr(attention, "_COPIED", copied)
    torch.manual_seed(0)
    model = build()
    written = [list(prefix) for prefix in PREFIXES]
    rows = decoder(model, written, capacity=8, pad=PAD)
    for step, chosen in enumerate(([2, 0, 0, 1, 3, 2], [5, 1], [1, 0, 0, 0, 1], [4, 3, 2, 1, 0])):
        rows.select(torch.tensor(chosen))
        tokens = [2 + (step + row) % 6 for row in range(len(chosen))]
        rows.step(torch.tensor(tokens))
        written = [[*written[row], token] for row, token in zip(chosen, tokens, strict=True)]
        fresh = decoder(model, written, capacity=1, pad=PAD)
        assert torch.allclose(rows.states, fresh.states, atol=1e-4)
    assert len({tuple(row) for row in written}) > 2
